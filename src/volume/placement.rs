//! What a placement means for LVM: how to read it from an LV, how to create an LV with it, and how much space is left for it.

use crate::lvm::command::Command;
use crate::lvm::metadata::{Lv, SegmentKind, Vg};
use crate::types::{Bytes, Extents, Geometry, LvName, Placement, Pool, Tag};

use super::PoolUse;
use super::capacity::{self, Shortage};

impl Placement {
    /// The placement of an LV; `None` if LVM would not allow the name of its thin pool.
    pub(super) fn of(lv: &Lv) -> Option<Self> {
        let first = lv.segments.first().map(|segment| &segment.kind);
        Some(match first {
            Some(SegmentKind::Thin { pool, .. }) => Self::Thin { pool: LvName::of_existing(pool).ok()? },
            _ if lv.is_linear() => Self::LINEAR,
            _ => Self::Thick(Geometry::Converted),
        })
    }
}

impl Pool {
    /// The command that makes an empty LV in this pool.
    pub(super) fn create(&self, vg: &Vg, lv: LvName, extents: Extents, tags: Vec<Tag>) -> Command {
        let name = vg.name.clone();
        match &self.placement {
            Placement::Thick(_) => Command::CreateLinear { vg: name, lv, extents, tags },
            Placement::Thin { pool } => {
                Command::CreateThin { vg: name, pool: pool.clone(), lv, size: extents.to_bytes(vg.extent_bytes()), tags }
            }
        }
    }

    /// Extents left in this pool, or why it provides none.
    pub(super) fn left(&self, vg: &Vg, pool_use: Option<PoolUse>) -> Result<Extents, Shortage> {
        match &self.placement {
            Placement::Thick(_) => Ok(capacity::unreserved(vg, self)),
            Placement::Thin { pool } => capacity::promisable(vg, pool, &self.rules, pool_use),
        }
    }

    /// The pool's limit in words, to append to the error for a request that exceeds it.
    pub(super) fn limit(&self, vg: &Vg) -> String {
        match &self.placement {
            Placement::Thin { pool } => format!(
                "; volumes and snapshots, each in full, may promise {} % of thin pool {}/{pool} (overprovisionPercent)",
                self.rules.overprovision_percent, vg.name
            ),
            Placement::Thick(_) if self.reserved.0 > 0 => {
                let kept: Bytes = self.reserved.to_bytes(vg.extent_bytes());
                format!("; {kept} of volume group {} are kept for its thin pools", vg.name)
            }
            Placement::Thick(_) => String::new(),
        }
    }
}
