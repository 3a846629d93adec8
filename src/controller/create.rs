//! CreateVolume: the pool and the node of a new volume.

use std::sync::{Arc, PoisonError};

use crate::agent::Agent;
use crate::types::{AccessType, Bytes, Changed, ClaimName, Error, FsKind, NodeId, Parameter};
use crate::volume::SizeRange;
use crate::volume::create::{Source, VolumeSpec, usable_together};
use crate::volume::inventory::Volume;

use super::begun::Begun;
use super::place::{self, Place, PlacementRequest};
use super::{Book, Controller, Segments, holder, notifications};

/// CreateVolume, checked for form.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// `name`, `capacity_range`, `volume_capabilities` (at least one) and `volume_content_source`.
    pub spec: VolumeSpec,
    /// The claim that it is for, from `parameters`.
    pub claim: Option<ClaimName>,
    /// `accessibility_requirements.requisite`.
    pub requisite: Vec<Segments>,
    /// `accessibility_requirements.preferred`.
    pub preferred: Vec<Segments>,
}

impl Controller {
    /// Makes a volume, or finds the existing one; also returns its node.
    ///
    /// # Errors
    /// What is wrong with the request, or why the volume cannot be made. After a [final](Error::is_final) error nothing is left.
    pub async fn create(&self, request: CreateRequest) -> Result<(NodeId, Changed<Volume>), Error> {
        let claim = request.claim.clone();
        let made = self.make(request).await;
        if let (Some(sender), Some(claim), Err(error)) = (&self.notifications, claim, &made)
            && let Some(notification) = notifications::of_creation(&claim, error)
        {
            // If the notification cannot be sent, the caller still gets the error.
            let _ = sender.try_send(notification);
        }
        made
    }

    async fn make(&self, request: CreateRequest) -> Result<(NodeId, Changed<Volume>), Error> {
        let pool = self.pool(request.spec.parameters.get(Parameter::Pool)).await?;
        usable_together(&request.spec.access).map_err(|why| Error::invalid("volume_capabilities", "", why))?;
        let size = for_access(&request.spec, pool.default_size)?;
        let Placed { agent, is_open, is_unsure } = self.place(&request, &pool.name).await?;
        let node = agent.node().clone();
        if is_open {
            self.write_down(&request, &node, is_unsure).await?;
        }
        let claim = self.book_of(&request).filter(|_| is_open);
        let name = request.spec.name.csi().to_owned();
        // Until the result is known, a repeat goes to the same node, whatever node it prefers.
        self.begun().on(&name, node.clone());
        let made = agent.create(pool.name, VolumeSpec { size, ..request.spec }).await;
        if made.as_ref().map_or_else(Error::is_final, |_| true) {
            self.begun().ended(&name);
        }
        // After a final error the next try may go to any node.
        if let Some((book, claim)) = claim.filter(|_| made.as_ref().is_err_and(Error::is_final))
            && let Err(error) = book.write(&claim, None).await
        {
            tracing::warn!(
                volume = name,
                error = error.chain(),
                "the node recorded for a volume that was not made cannot be removed"
            );
        }
        made.map(|volume| (node, volume))
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The book for the node of a requested volume, and its claim; `None` without a book or without a known claim.
    fn book_of(&self, request: &CreateRequest) -> Option<(Arc<dyn Book>, ClaimName)> {
        let claim = request.claim.clone().filter(|claim| !claim.uid.is_empty())?;
        Some((Arc::clone(self.book.as_ref()?), claim))
    }

    /// Records the node chosen among several before the volume is made there. If that node and this controller are lost together, the
    /// next controller knows where the volume may be.
    async fn write_down(&self, request: &CreateRequest, node: &NodeId, is_unsure: bool) -> Result<(), Error> {
        let Some((book, claim)) = self.book_of(request) else { return Ok(()) };
        match book.write(&claim, Some(node)).await {
            // The choice relied on the absence of an earlier record, so it must be recorded itself.
            Err(error) if is_unsure => Err(error),
            Err(error) => {
                let volume = request.spec.name.csi();
                tracing::warn!(volume, %node, error = error.chain(), "the node chosen for a volume cannot be recorded");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Chooses the agent that makes a volume in a pool.
    async fn place(&self, request: &CreateRequest, pool: &str) -> Result<Placed, Error> {
        let CreateRequest { requisite, preferred, spec, .. } = request;
        let name = spec.name.csi();
        // A single agent decides alone, whether or not it has reported.
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
        // Read only if some node's volumes are unknown; otherwise the reports show where the volume is.
        let written = match self.book_of(request).filter(|_| is_unsure) {
            Some((book, claim)) => Some(book.read(&claim).await?),
            None => None,
        };
        if let Some(written) = &written {
            // A recorded node that no longer exists does not count. The record is on the tenant's object, so it must not allow a node that
            // the request does not allow.
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

/// The place of a new volume.
struct Placed {
    agent: Arc<dyn Agent>,
    /// There were several nodes to choose from, and no sign of an earlier try.
    is_open: bool,
    /// Only the book excludes that the volume began on another node.
    is_unsure: bool,
}

/// The size to make, with room for the filesystem: at least the smallest size that the filesystem needs.
fn for_access(spec: &VolumeSpec, default: Bytes) -> Result<SizeRange, Error> {
    let (size, copied) = (spec.size, spec.source.is_some());
    let needs = |access: &AccessType| match access {
        AccessType::Block => Bytes(0),
        AccessType::Mount(kind) => kind.unwrap_or(FsKind::DEFAULT).minimal_size(),
    };
    let least = spec.access.iter().map(needs).max().unwrap_or_default();
    let unnamed = size.required.0 == 0;
    // Without a requested size a copy has the size of its source, and a new volume the default.
    if size.required >= least || (unnamed && (copied || default >= least) && (size.limit.0 == 0 || size.limit >= least)) {
        return Ok(size);
    }
    if size.limit.0 > 0 && size.limit < least {
        let reason = format!("its filesystem needs at least {least}, but limit_bytes is {}", size.limit);
        return Err(Error::OutOfRange { what: format!("volume {:?}", spec.name.csi()), reason });
    }
    Ok(SizeRange { required: least, ..size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Parameters;
    use crate::volume::name::VolumeName;

    #[test]
    fn a_filesystem_gets_at_least_the_size_it_needs() {
        let range = |required: u64, limit: u64| SizeRange { required: Bytes(required << 20), limit: Bytes(limit << 20) };
        let ask = |size, access: &[AccessType]| {
            let spec = VolumeSpec {
                name: VolumeName::new("v"),
                size,
                access: access.to_vec(),
                source: None,
                parameters: Parameters::default(),
                claim: None,
            };
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
