//! CreateVolume: the pool and the node of a new volume.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use crate::agent::Agent;
use crate::types::{AccessType, Bytes, ClaimName, Error, FsKind, NodeId};
use crate::volume::SizeRange;
use crate::volume::create::{Source, VolumeSpec, usable_together};
use crate::volume::inventory::Volume;

use super::begun::Begun;
use super::place::{self, Place, PlacementRequest};
use super::{Book, Controller, POOL_KEY, Segments, holder, notifications};

/// CreateVolume, checked for form.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// `name`, `capacity_range`, `volume_capabilities` (at least one) and `volume_content_source`.
    pub spec: VolumeSpec,
    /// `parameters`.
    pub parameters: BTreeMap<String, String>,
    /// `mutable_parameters`.
    pub mutable_parameters: BTreeMap<String, String>,
    /// `accessibility_requirements.requisite`.
    pub requisite: Vec<Segments>,
    /// `accessibility_requirements.preferred`.
    pub preferred: Vec<Segments>,
}

impl Controller {
    /// Makes a volume, or finds it made; tells its node beside.
    ///
    /// # Errors
    /// What the request lacks, or why the volume cannot be made; nothing is left then.
    pub async fn create(&self, request: CreateRequest) -> Result<(NodeId, Volume), Error> {
        let (name, parameters) = (request.spec.name.csi().to_owned(), request.parameters.clone());
        let made = self.make(request).await;
        if let (Some(sender), Err(error)) = (&self.notifications, &made)
            && let Some(notification) = notifications::of_creation(&name, &parameters, error)
        {
            // The call is answered with the same; that nobody else could be told changes nothing.
            let _ = sender.try_send(notification);
        }
        made
    }

    async fn make(&self, request: CreateRequest) -> Result<(NodeId, Volume), Error> {
        Self::check_keys("parameters", &request.parameters, &[POOL_KEY])?;
        Self::check_keys("mutable_parameters", &request.mutable_parameters, &[])?;
        let pool = self.pool(&request.parameters).await?;
        usable_together(&request.spec.access).map_err(|why| Error::invalid("volume_capabilities", "", why))?;
        let size = for_access(&request.spec, pool.default_size)?;
        let Placed { agent, is_open, is_unsure } = self.place(&request, &pool.name).await?;
        let node = agent.node().clone();
        if is_open {
            self.write_down(&request, &node, is_unsure).await?;
        }
        let claim = self.book_of(&request).filter(|_| is_open);
        let name = request.spec.name.csi().to_owned();
        // Until the end of it is known, a repeat goes to the same node, whatever is preferred then.
        self.begun().on(&name, node.clone());
        let made = agent.create(pool.name, VolumeSpec { size, ..request.spec }).await;
        if made.as_ref().map_or_else(Error::is_final, |_| true) {
            self.begun().ended(&name);
        }
        // The next try of it may go anywhere.
        if let Some((book, claim)) = claim.filter(|_| made.as_ref().is_err_and(Error::is_final))
            && let Err(error) = book.write(&claim, None).await
        {
            tracing::warn!(volume = name, error = error.chain(), "it stays written down where the volume was to be made");
        }
        made.map(|volume| (node, volume))
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The book in which it is written down where a volume is made, and the claim that it is for.
    fn book_of(&self, request: &CreateRequest) -> Option<(Arc<dyn Book>, ClaimName)> {
        let claim = notifications::claim_of(request.spec.name.csi(), &request.parameters).filter(|claim| !claim.uid.is_empty());
        Some((Arc::clone(self.book.as_ref()?), claim?))
    }

    /// Writes down which of several nodes a volume is to be made on, before it is: if that node and this controller are lost together, the
    /// next controller knows where the volume may be.
    async fn write_down(&self, request: &CreateRequest, node: &NodeId, is_unsure: bool) -> Result<(), Error> {
        let Some((book, claim)) = self.book_of(request) else { return Ok(()) };
        match book.write(&claim, Some(node)).await {
            // That none was written down before must be as sure as that it is now.
            Err(error) if is_unsure => Err(error),
            Err(error) => {
                tracing::warn!(volume = request.spec.name.csi(), %node, error = error.chain(), "it is not written down where the volume is made");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The agent that is to make a volume in a pool.
    async fn place(&self, request: &CreateRequest, pool: &str) -> Result<Placed, Error> {
        let CreateRequest { requisite, preferred, spec, .. } = request;
        let name = spec.name.csi();
        // One agent decides alone; what it has need not be known for that.
        let agents = self.fleet.agents().await?;
        if let [only] = &*agents {
            if spec.source.is_none() && !place::admits(requisite, preferred, &self.topology_key, only.node()) {
                return Err(place::elsewhere(name, &self.topology_key, &[only.node()]));
            }
            return Ok(Placed { agent: Arc::clone(only), is_open: false, is_unsure: false });
        }
        let sites = self.fleet.sites().await?;
        let mut places = Vec::with_capacity(sites.len());
        for site in &sites {
            let contested = match site.group_of(pool).await {
                Some(vg) => holder::contested(&vg, &self.fleet.holders(&sites, &vg).await?),
                None => None,
            };
            let offers = site.agent.offers().await.ok();
            let vg = offers.and_then(|offers| Some(offers.iter().find(|offer| offer.name == pool)?.vg.clone()));
            places.push(Place { node: site.node(), heard: site.heard.as_deref(), away: site.agent.away(), vg, contested });
        }
        let begun = self.begun().node(name).cloned();
        let mut wanted = PlacementRequest {
            name,
            lv: spec.name.lv(),
            pool,
            source: spec.source.as_ref().map(Source::vg),
            copied: spec.source.is_some(),
            requisite,
            preferred,
            begun: begun.as_ref(),
            is_first: false,
        };
        let is_open = place::is_open(&places, &wanted, &self.topology_key) && begun.is_none();
        let is_unsure = is_open && places.iter().any(place::is_unsure);
        // Only where somebody is silent: what all have told says where it is.
        let written = match self.book_of(request).filter(|_| is_unsure) {
            Some((book, claim)) => Some(book.read(&claim).await?),
            None => None,
        };
        if let Some(written) = &written {
            // Where that is no node any more it is made anew. It stands on the tenant's object, so it opens no node that the request does not.
            let may_be = |node: &&NodeId| {
                places.iter().any(|place| place.node == *node && place::may_have_begun(place, &wanted, &self.topology_key))
            };
            wanted.begun = written.as_ref().filter(may_be);
            wanted.is_first = wanted.begun.is_none();
        }
        let at = place::choose(&places, &wanted, &self.topology_key)?;
        let agent = sites.get(at).map(|site| Arc::clone(&site.agent)).ok_or_else(super::fleet::none)?;
        Ok(Placed { agent, is_open: is_open && wanted.begun.is_none(), is_unsure: written.is_some() })
    }
}

/// Where a volume is to be made.
struct Placed {
    agent: Arc<dyn Agent>,
    /// There were several nodes to choose from, and nothing said where it was begun.
    is_open: bool,
    /// It may have been begun elsewhere, were that not written down.
    is_unsure: bool,
}

/// The size to ask for, so that the filesystem fits: the least it needs where less is asked.
fn for_access(spec: &VolumeSpec, default: Bytes) -> Result<SizeRange, Error> {
    let (size, copied) = (spec.size, spec.source.is_some());
    let needs = |access: &AccessType| match access {
        AccessType::Block => Bytes(0),
        AccessType::Mount(kind) => kind.unwrap_or(FsKind::Ext4).minimal_size(),
    };
    let least = spec.access.iter().map(needs).max().unwrap_or_default();
    let unnamed = size.required.0 == 0;
    // A copy without a size is as large as its source; a new volume without one has the default.
    if size.required >= least || (unnamed && (copied || default >= least) && (size.limit.0 == 0 || size.limit >= least)) {
        return Ok(size);
    }
    if size.limit.0 > 0 && size.limit < least {
        let reason = format!("its filesystem needs at least {least}, and limit_bytes is {}", size.limit);
        return Err(Error::OutOfRange { what: format!("volume {:?}", spec.name.csi()), reason });
    }
    Ok(SizeRange { required: least, ..size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::name::VolumeName;

    #[test]
    fn a_filesystem_gets_the_least_size_it_needs() {
        let range = |required: u64, limit: u64| SizeRange { required: Bytes(required << 20), limit: Bytes(limit << 20) };
        let ask = |size, access: &[AccessType]| {
            let spec = VolumeSpec { name: VolumeName::new("v"), size, access: access.to_vec(), source: None };
            for_access(&spec, Bytes::GIB)
        };
        let xfs = AccessType::Mount(Some(FsKind::Xfs));
        assert_eq!(ask(range(1, 0), &[xfs]).unwrap(), range(300, 0));
        assert_eq!(ask(range(1, 0), &[AccessType::Block]).unwrap(), range(1, 0));
        assert_eq!(ask(range(0, 0), &[xfs]).unwrap(), range(0, 0));
        assert_eq!(ask(range(1, 0), &[AccessType::Block, AccessType::Mount(None)]).unwrap(), range(16, 0));
        assert!(matches!(ask(range(1, 100), &[xfs]), Err(Error::OutOfRange { .. })));
        assert!(matches!(ask(range(0, 100), &[xfs]), Err(Error::OutOfRange { .. })));
    }
}
