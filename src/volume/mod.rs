//! The rules of volumes: pure functions of a volume group's inventory and a request. Nothing here touches a machine.
//!
//! Every verb has a `decide`, which runs again after each command until nothing is left to do. A crash between two commands, or an
//! administrator's `lvextend` meanwhile, is just another inventory to decide from.

pub mod blocks;
pub mod capacity;
pub mod context;
pub mod create;
pub mod delete;
pub mod ephemeral;
pub mod expand;
pub mod grow;
pub mod import;
pub mod inventory;
pub mod name;
pub mod owner;
mod placement;
pub mod snapshot;
pub mod tag;
pub mod thin_pool;
pub mod undelivered;
pub mod zero;

#[cfg(test)]
mod testing;

use crate::lvm::command::Command;
use crate::lvm::metadata::{Lv, SegmentKind, Vg};
use crate::types::{Bytes, Error, Extents, ThinPoolStatus};

use inventory::{Inventory, Volume};
use tag::Marks;

/// What a verb decides from the present inventory.
#[derive(Debug)]
pub enum Decision<A> {
    /// The group is as requested.
    AlreadyThere(A),
    /// The request cannot be met; nothing is changed.
    Refuse(Error),
    /// Take this step, then decide again.
    Do(Step),
}

/// One step towards what a call requests. Only the metadata record the progress, so any later run continues from there: the same call,
/// the next driver, or housekeeping without a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Lvm(Command),
    /// Zeroes a part of an active LV. It may take longer than a call; the tag `csi.z` is its cursor.
    Zero(Box<Zero>),
}

/// The part of an LV to zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zero {
    /// The volume as it was when this was decided. The part that its tag counts as zeroed stays untouched.
    pub volume: Volume,
    /// End of the part, as an offset from the beginning of the LV.
    pub to: Bytes,
}

impl Zero {
    /// The progress in words.
    pub fn progress(&self, zeroed: Bytes) -> String {
        let size = self.volume.size;
        let percent = u128::from(zeroed.0) * 100 / u128::from(size.0.max(1));
        format!("{percent} % of it are zeroed, {zeroed} of {size}")
    }
}

/// The step that gives a volume these marks; `None` if it has them.
pub fn retag(vg: &Vg, volume: &Volume, marks: &Marks) -> Option<Step> {
    let (remove, add) = volume.marks.change(marks);
    let is_same = remove.is_empty() && add.is_empty();
    let retag = || Step::Lvm(Command::Retag { vg: vg.name.clone(), lvs: vec![volume.id.lv.clone()], remove, add });
    (!is_same).then(retag)
}

/// The size a request asks for, in bytes (CSI `CapacityRange`); 0 means "not given".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SizeRange {
    /// Least size.
    pub required: Bytes,
    /// Largest size.
    pub limit: Bytes,
}

impl SizeRange {
    /// Whether a volume of this size satisfies the request.
    pub fn holds(&self, size: Bytes) -> bool {
        size >= self.required && (self.limit.0 == 0 || size <= self.limit)
    }

    /// The size to make: `required`, or `default` if none is given, rounded up to extents.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if rounding up exceeds the limit, or the size in bytes exceeds an `i64`.
    pub fn extents(&self, what: &str, default: Bytes, extent: Bytes) -> Result<Extents, Error> {
        let out_of_range = |reason: String| Error::OutOfRange { what: what.to_owned(), reason };
        let wanted = if self.required.0 > 0 {
            self.required
        } else if self.limit.0 > 0 {
            default.min(Extents(self.limit.to_extents_down(extent).0).to_bytes(extent))
        } else {
            default
        };
        let extents = wanted.to_extents_up(extent).max(Extents(1));
        if self.limit.0 > 0 && extents.to_bytes(extent) > self.limit {
            return Err(out_of_range(format!(
                "limit_bytes is {}, but the request rounded up to whole extents of {extent} is {}",
                self.limit,
                extents.to_bytes(extent)
            )));
        }
        // CSI's answers carry sizes as i64.
        if extents.to_bytes(extent).0 > i64::MAX as u64 {
            return Err(out_of_range(format!("the requested {} is more than any volume group can hold", self.required)));
        }
        Ok(extents)
    }
}

/// Fill of a thin pool as the kernel reports it; the metadata text does not contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// Data blocks in use, in percent rounded up.
    pub data_percent: u64,
    /// Metadata blocks in use, in percent rounded up.
    pub metadata_percent: u64,
    /// The pool takes new volumes and writes.
    pub healthy: bool,
}

impl PoolUse {
    pub fn of(status: &ThinPoolStatus) -> Self {
        Self { data_percent: status.data_percent(), metadata_percent: status.metadata_percent(), healthy: status.is_healthy() }
    }
}

/// Fill of a group's metadata, in percent, up to which the driver makes volumes. The rest is for tags and growth.
const FOR_VOLUMES: u64 = 90;
/// The same for snapshots: those of one tenant must not keep others from making volumes.
const FOR_SNAPSHOTS: u64 = 75;

/// The longest text that a group's metadata may have with areas of this size. Two generations share the ring of an area.
pub fn longest_metadata(area: Bytes) -> Bytes {
    Bytes(area.0 / 2)
}

/// Refuses to add an LV if the group's metadata are fuller than `percent`.
fn room_for_metadata(vg: &Vg, area: Bytes, percent: u64, what: &str) -> Result<(), Error> {
    let most = longest_metadata(area).0;
    let used = vg.metadata_bytes as u64;
    if area.0 > 0 && used.saturating_mul(100) > most.saturating_mul(percent) {
        return Err(Error::Exhausted {
            what: what.to_owned(),
            reason: format!(
                "the LVM metadata of volume group {} fill {used} of {most} bytes, and above {percent} % the driver makes no more of these; \
                 delete snapshots or volumes, or add a PV made with --metadatasize 16m, then set --metadataignore y on the small ones",
                vg.name
            ),
        });
    }
    Ok(())
}

/// Problems of a group that a person should know of before they make the driver refuse a call: what is wrong, and what to do.
pub fn remarks(inventory: &Inventory) -> Vec<(String, &'static str)> {
    let vg = &inventory.vg;
    let cramped = room_for_metadata(vg, inventory.metadata_area, FOR_SNAPSHOTS, "").is_err().then(|| {
        let (used, most) = (vg.metadata_bytes, longest_metadata(inventory.metadata_area).0);
        let reason = format!(
            "its LVM metadata fill {used} of {most} bytes: the driver makes no more snapshots, and soon no volumes either"
        );
        (reason, "delete snapshots, or add a PV made with --metadatasize 16m, then set --metadataignore y on the small ones")
    });
    cramped.into_iter().chain(blocks::mixed(inventory)).collect()
}

/// Refuses to activate or deactivate LVs of a group where LVM would refuse it on this host.
///
/// # Errors
/// [`Error::Unavailable`] naming the group and what is wrong with it.
pub fn may_use(vg: &Vg) -> Result<(), Error> {
    let away = |reason: String| Err(Error::unavailable(format!("volume group {}", vg.name), reason));
    if vg.exported {
        return away("it is exported; run vgimport".to_owned());
    }
    if let Some(kind) = &vg.lock_type {
        return away(format!("it is shared through lvmlockd ({kind}), which this driver does not join"));
    }
    if let Some(owner) = vg.system_id.as_deref().filter(|id| !id.is_empty()) {
        let reason = format!(
            "it belongs to the host with system ID {owner:?}, so LVM does not touch it here; if its disks are this host's now, run \
             vgchange --yes --config 'global/system_id_source=\"lvmlocal\" local/system_id=\"{owner}\"' --systemid \"\" {}",
            vg.name
        );
        return away(reason);
    }
    Ok(())
}

/// Refuses any change of a group that LVM would refuse to change or must not change.
///
/// # Errors
/// [`Error::Unavailable`] naming the group and what is wrong with it.
pub fn may_change(vg: &Vg) -> Result<(), Error> {
    may_use(vg)?;
    let away = |reason: String| Err(Error::unavailable(format!("volume group {}", vg.name), reason));
    if !vg.writable {
        return away("it is read-only; run vgchange -prw".to_owned());
    }
    if let Some(pv) = vg.pvs.iter().find(|pv| pv.missing) {
        return away(format!(
            "PV {} ({}) is flagged missing; bring the disk back and run vgextend --restoremissing",
            pv.uuid,
            pv.device.as_deref().unwrap_or("device unknown")
        ));
    }
    Ok(())
}

/// Refuses a thin pool that hands out blocks without zeroing them: who writes a part of a block reads another volume's old bytes in
/// the rest.
///
/// # Errors
/// Which pool, and what to do about it.
pub fn pool_zeroes(vg: &Vg, pool: &str) -> Result<(), String> {
    match vg.lv(pool).and_then(|lv| lv.segments.first()).map(|segment| &segment.kind) {
        Some(SegmentKind::ThinPool { zero_new_blocks: false, .. }) => Err(format!(
            "thin pool {vg}/{pool} does not zero new blocks, so volumes would show old bytes; run lvchange --zero y {vg}/{pool}",
            vg = vg.name
        )),
        _ => Ok(()),
    }
}

/// Refuses to resize or remove an LV while pvmove moves its extents, and to add to a pool that is being moved.
///
/// # Errors
/// [`Error::Busy`] with the pvmove LV.
pub fn may_reshape(vg: &Vg, lv: Option<&Lv>, what: &str) -> Result<(), Error> {
    let Some(mover) = lv.and_then(|lv| vg.mover(lv)) else { return Ok(()) };
    let running = format!(
        "pvmove is moving its extents ({}/{mover}); repeat the call when it has ended (lvs -a {}), or end it with pvmove --abort",
        vg.name, vg.name
    );
    Err(Error::busy(what, running))
}

#[cfg(test)]
mod tests {
    use super::testing::{Group, thin};
    use super::*;

    const EXTENT: Bytes = Bytes(4 << 20);

    fn range(required: u64, limit: u64) -> SizeRange {
        SizeRange { required: Bytes(required), limit: Bytes(limit) }
    }

    #[test]
    fn sizes_are_rounded_up_only_where_the_limit_allows() {
        let size = |r: SizeRange| r.extents("v", Bytes::GIB, EXTENT).map(|e| e.to_bytes(EXTENT));
        assert_eq!(size(range(0, 0)).unwrap(), Bytes::GIB);
        assert_eq!(size(range(1, 0)).unwrap(), EXTENT);
        assert_eq!(size(range(5 << 20, 8 << 20)).unwrap(), Bytes(8 << 20));
        assert_eq!(size(range(0, 9 << 20)).unwrap(), Bytes(8 << 20));
        assert!(matches!(size(range(5 << 20, 7 << 20)), Err(Error::OutOfRange { .. })));
        assert!(matches!(size(range(0, 1)), Err(Error::OutOfRange { .. })));
        assert!(matches!(size(range(u64::MAX, 0)), Err(Error::OutOfRange { .. })));
    }

    #[test]
    fn every_documented_group_has_room_for_its_metadata() {
        for file in ["README.md", "docs/install.md", "deploy/chart/values.yaml", "hack/testkit/src/kube.rs"] {
            let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
            let lines: Vec<&str> = text.lines().filter(|line| line.contains("vgcreate ")).collect();
            assert!(!lines.is_empty() && lines.iter().all(|line| line.contains("--metadatasize 16m")), "{file}: {lines:?}");
        }
    }

    #[test]
    fn a_thin_pool_that_does_not_zero_new_blocks_is_refused() {
        let inventory = Group::new().with(thin("pvc-1", 4, &[])).inventory();
        let mut vg = (*inventory.vg).clone();
        pool_zeroes(&vg, "pool").unwrap();
        for segment in vg.lvs.iter_mut().flat_map(|lv| &mut lv.segments) {
            if let SegmentKind::ThinPool { zero_new_blocks, .. } = &mut segment.kind {
                *zero_new_blocks = false;
            }
        }
        assert!(pool_zeroes(&vg, "pool").unwrap_err().contains("lvchange"));
    }
}
