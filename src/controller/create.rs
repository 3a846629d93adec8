//! CreateVolume: pool and node of a wish.

use std::collections::BTreeMap;

use crate::agent::CreateVolume;
use crate::types::{AccessType, Bytes, Capability, Error, FsKind};
use crate::volume::SizeRange;
use crate::volume::create::{Source, usable_together};
use crate::volume::inventory::Volume;

use super::{Controller, POOL_KEY, Segments};

/// CreateVolume, checked for form.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// `name`.
    pub name: String,
    /// `capacity_range`.
    pub size: SizeRange,
    /// `volume_capabilities`; at least one.
    pub capabilities: Vec<Capability>,
    /// `parameters`.
    pub parameters: BTreeMap<String, String>,
    /// `mutable_parameters`.
    pub mutable_parameters: BTreeMap<String, String>,
    /// `volume_content_source`.
    pub source: Option<Source>,
    /// `accessibility_requirements.requisite`.
    pub requisite: Vec<Segments>,
    /// `accessibility_requirements.preferred`.
    pub preferred: Vec<Segments>,
}

impl Controller {
    /// Makes a volume, or finds it made.
    ///
    /// # Errors
    /// What the request lacks, or why the volume cannot be made; nothing is left then.
    pub async fn create(&self, request: CreateRequest) -> Result<Volume, Error> {
        Self::check_keys("parameters", &request.parameters, &[POOL_KEY])?;
        Self::check_keys("mutable_parameters", &request.mutable_parameters, &[])?;
        let offers = self.agent.offers().await?;
        let pool = Self::pool(&offers, &request.parameters)?;
        self.admit_topology(&request)?;
        let access: Vec<AccessType> = request.capabilities.iter().map(|capability| capability.access).collect();
        usable_together(&access).map_err(|why| Error::invalid("volume_capabilities", "", why))?;
        let size = for_access(&request.name, request.size, pool.default_size, &access, request.source.is_some())?;
        let wish = CreateVolume { name: request.name, pool: pool.name.clone(), size, access, source: request.source };
        self.agent.create(wish).await
    }

    /// Refuses a wish for other nodes: its pod would never run here (CSI: 8 RESOURCE_EXHAUSTED, and the scheduler chooses anew).
    fn admit_topology(&self, request: &CreateRequest) -> Result<(), Error> {
        let wanted = if request.requisite.is_empty() { &request.preferred } else { &request.requisite };
        if wanted.is_empty() || wanted.iter().any(|segments| self.is_here(segments)) {
            return Ok(());
        }
        let what = format!("volume {:?}", request.name);
        let reason =
            format!("its accessibility_requirements name other nodes than {} ({})", self.agent.node(), self.topology_key);
        Err(Error::Exhausted { what, reason })
    }
}

/// The size to ask for, so that the filesystem fits: the least it needs where less is asked.
fn for_access(name: &str, size: SizeRange, default: Bytes, access: &[AccessType], copied: bool) -> Result<SizeRange, Error> {
    let needs = |access: &AccessType| match access {
        AccessType::Block => Bytes(0),
        AccessType::Mount(kind) => kind.unwrap_or(FsKind::Ext4).minimal_size(),
    };
    let least = access.iter().map(needs).max().unwrap_or_default();
    let unnamed = size.required.0 == 0;
    // A copy without a size is as large as its source; a new volume without one has the default.
    if size.required >= least || (unnamed && (copied || default >= least) && (size.limit.0 == 0 || size.limit >= least)) {
        return Ok(size);
    }
    if size.limit.0 > 0 && size.limit < least {
        let reason = format!("its filesystem needs at least {least}, and limit_bytes is {}", size.limit);
        return Err(Error::OutOfRange { what: format!("volume {name:?}"), reason });
    }
    Ok(SizeRange { required: least, ..size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_gets_the_least_size_it_needs() {
        let range = |required: u64, limit: u64| SizeRange { required: Bytes(required << 20), limit: Bytes(limit << 20) };
        let ask = |size, access: &[AccessType]| for_access("v", size, Bytes::GIB, access, false);
        let xfs = AccessType::Mount(Some(FsKind::Xfs));
        assert_eq!(ask(range(1, 0), &[xfs]).unwrap(), range(300, 0));
        assert_eq!(ask(range(1, 0), &[AccessType::Block]).unwrap(), range(1, 0));
        assert_eq!(ask(range(0, 0), &[xfs]).unwrap(), range(0, 0));
        assert_eq!(ask(range(1, 0), &[AccessType::Block, AccessType::Mount(None)]).unwrap(), range(16, 0));
        assert!(matches!(ask(range(1, 100), &[xfs]), Err(Error::OutOfRange { .. })));
        assert!(matches!(ask(range(0, 100), &[xfs]), Err(Error::OutOfRange { .. })));
    }
}
