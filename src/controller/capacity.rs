//! GetCapacity.

use std::collections::BTreeMap;

use crate::types::Error;
use crate::volume::capacity::Capacity;

use super::{Controller, Segments};

/// GetCapacity, checked for form.
#[derive(Clone, Debug)]
pub struct CapacityRequest {
    /// `parameters`, as the StorageClass has them.
    pub parameters: BTreeMap<String, String>,
    /// `accessible_topology`.
    pub topology: Option<Segments>,
}

impl Controller {
    /// What is left for volumes of a class on a node: nothing where the class or the node is not ours.
    ///
    /// # Errors
    /// The node cannot be asked.
    pub async fn capacity(&self, request: &CapacityRequest) -> Result<Capacity, Error> {
        if request.topology.as_ref().is_some_and(|segments| !self.is_here(segments)) {
            return Ok(Capacity::default());
        }
        let offers = self.agent.offers().await?;
        let Ok(pool) = Self::pool(&offers, &request.parameters) else { return Ok(Capacity::default()) };
        let holdings = self.agent.holdings().await?;
        let found = holdings.pools.iter().find(|(name, _)| *name == pool.name);
        Ok(found.and_then(|(_, state)| state.clone().ok()).unwrap_or_default())
    }
}
