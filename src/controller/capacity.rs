//! GetCapacity.

use crate::types::{Bytes, Error};
use crate::volume::capacity::Capacity;

use super::{Controller, Segments, holder, place};

/// GetCapacity, checked for form.
#[derive(Clone, Debug)]
pub struct CapacityRequest {
    /// The pool in `parameters`. Other keys are ignored: CreateVolume refuses unknown ones.
    pub pool: Option<String>,
    /// `accessible_topology`.
    pub topology: Option<Segments>,
}

impl Controller {
    /// Space left for volumes of a class, on one node or on all. It is 0 for an unknown class or node, and a node that is away counts as
    /// full, since nothing can be made there.
    ///
    /// # Errors
    /// A node has not reported yet and is not known to be away.
    pub async fn capacity(&self, request: &CapacityRequest) -> Result<Capacity, Error> {
        let wanted = |node: &_| match &request.topology {
            Some(segments) => place::names(segments, &self.topology_key, node),
            None => true,
        };
        let agents = self.fleet.agents().await?;
        if !agents.iter().any(|agent| wanted(agent.node())) {
            return Ok(Capacity::default());
        }
        let pool = match self.pool(request.pool.as_deref()).await {
            Ok(pool) => pool,
            Err(error @ Error::Unavailable { .. }) => return Err(error),
            Err(_) => return Ok(Capacity::default()),
        };
        let mut all: Option<Capacity> = None;
        let sites = self.fleet.sites().await?;
        for site in sites.iter().filter(|site| wanted(site.node())) {
            let agent = &site.agent;
            let holdings = match &site.heard {
                Ok(holdings) => holdings,
                // Nothing can be made there now.
                Err(_) if agent.away().is_some() => continue,
                Err(error) => return Err(error.clone()),
            };
            if let Some(vg) = site.group_of(&pool.name).await
                && holder::contested(&vg, &self.fleet.holders(&sites, &vg).await?).is_some()
            {
                continue;
            }
            let capacity = holdings.pools.iter().find(|(name, _)| *name == pool.name).and_then(|(_, state)| state.as_ref().ok());
            if let Some(left) = capacity.filter(|_| agent.away().is_none()) {
                all = Some(all.map_or(*left, |sum| Capacity {
                    available: Bytes(sum.available.0.saturating_add(left.available.0)),
                    maximum: sum.maximum.max(left.maximum),
                    minimum: sum.minimum.min(left.minimum),
                }));
            }
        }
        Ok(all.unwrap_or_default())
    }
}
