//! What to zero in a raw volume before pods see it: the new extents of a thick LV hold old bytes from the disk.

use crate::lvm::command::Command;
use crate::types::{Bytes, Error, Life, LvUuid, Object, VolumeId};

use super::inventory::{Inventory, Volume};
use super::tag::Marks;
use super::{Decision, Step, Zero, may_change, pool_zeroes, retag};

/// The device of an active volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    pub size: Bytes,
    /// Pods have it as a block device.
    pub is_shown: bool,
}

/// Decides the next step before pods may see a raw volume. If they see it already, its expansion zeroes what it grows by, and this
/// function does not wait for that.
pub fn before_shown(inventory: &Inventory, id: &VolumeId, lv: &LvUuid, live: Live) -> Decision<Volume> {
    next(inventory, id, lv, live).unwrap_or_else(Decision::Refuse)
}

fn next(inventory: &Inventory, id: &VolumeId, lv: &LvUuid, live: Live) -> Result<Decision<Volume>, Error> {
    let volume = inventory.volume(id).filter(|volume| volume.uuid == *lv);
    let volume = volume.ok_or_else(|| Error::missing(Object::Volume, id.to_string()))?;
    let life = volume.marks.life;
    if let Some(pool) = volume.placement.thin_pool() {
        pool_zeroes(&inventory.vg, pool.as_str()).map_err(|why| Error::precondition(format!("volume {id}"), why))?;
    } else if volume.zeroed() < volume.size && !live.is_shown {
        if !life.is_unused() && life != Life::Raw {
            let reason = format!("it holds {life}, and the driver never zeroes that");
            return Err(Error::precondition(format!("zeroing volume {id}"), reason));
        }
        // Extents of an unfinished expansion that the kernel has not loaded are zeroed when the expansion continues.
        let to = live.size.min(volume.size);
        if volume.zeroed() < to {
            return Ok(Decision::Do(Step::Zero(Box::new(Zero { volume: volume.clone(), to }))));
        }
    }
    // mkfs of a volume that was to hold a filesystem may have begun. No user has seen that, and no stage formats a raw volume.
    if !life.is_unused() {
        return Ok(Decision::AlreadyThere(volume.clone()));
    }
    may_change(&inventory.vg)?;
    let raw = Marks { life: Life::Raw, zeroed: volume.zeroed(), ..volume.marks.clone() };
    Ok(retag(&inventory.vg, volume, &raw).map_or_else(|| Decision::AlreadyThere(volume.clone()), Decision::Do))
}

/// Decides the next step before pods may see all of a volume that has grown. `live` is the size of its device; `None` while it is not
/// active.
pub fn after_growth(inventory: &Inventory, volume: &Volume, live: Option<Bytes>) -> Decision<Volume> {
    let there = || Decision::AlreadyThere(volume.clone());
    // Any other volume has its extents already, or gets them when it is staged.
    let Some(live) = live.filter(|_| volume.must_not_show_growth()) else { return there() };
    if live < volume.size {
        // An lvextend died between its commit and the new table.
        return Decision::Do(Step::Lvm(Command::Refresh { vg: inventory.vg.name.clone(), lv: volume.id.lv.clone() }));
    }
    if volume.zeroed() < volume.size {
        Decision::Do(Step::Zero(Box::new(Zero { volume: volume.clone(), to: volume.size })))
    } else {
        there()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{EXTENT, Group, lv, vg_uuid};
    use super::*;
    use crate::types::{Extents, LvName};

    fn size(extents: u64) -> Bytes {
        Extents(extents).to_bytes(EXTENT)
    }

    fn volume(life: &str, zeroed: u64) -> (Inventory, Volume) {
        let (life, zeroed) = (format!("csi.fs={life}"), format!("csi.z={}", size(zeroed).0));
        let inventory = Group::new().with(lv("pvc-1", 4, &["lvm-csi=1", &life, &zeroed])).inventory();
        let id = VolumeId { vg: vg_uuid(), lv: LvName::new("pvc-1").unwrap() };
        let volume = inventory.volume(&id).unwrap().clone();
        (inventory, volume)
    }

    fn shown(life: &str, zeroed: u64, live: Live) -> Decision<Volume> {
        let (inventory, volume) = volume(life, zeroed);
        before_shown(&inventory, &volume.id, &volume.uuid, live)
    }

    #[test]
    fn a_volume_that_no_pod_sees_is_zeroed_first_and_one_that_is_shown_does_not_wait() {
        let live = |extents, is_shown| Live { size: size(extents), is_shown };
        for (life, zeroed) in [("blank", 0), ("blank", 2), ("formatting=ext4", 0), ("formatting=xfs", 2), ("raw", 2)] {
            let Decision::Do(Step::Zero(zero)) = shown(life, zeroed, live(4, false)) else { panic!("{life} {zeroed}") };
            assert_eq!((zero.volume.zeroed(), zero.to), (size(zeroed), size(4)));
        }
        // If a growth is not loaded, only up to the end of the device.
        assert!(matches!(shown("raw", 2, live(3, false)), Decision::Do(Step::Zero(zero)) if zero.to == size(3)));
        assert!(matches!(shown("raw", 2, live(2, false)), Decision::AlreadyThere(_)));
        assert!(matches!(shown("raw", 2, live(4, true)), Decision::AlreadyThere(_)));
        for unused in ["blank", "formatting=ext4"] {
            assert!(matches!(shown(unused, 4, live(4, false)), Decision::Do(Step::Lvm(Command::Retag { .. }))), "{unused}");
        }
        assert!(matches!(shown("ext4", 0, live(4, false)), Decision::Refuse(Error::Precondition { .. })));
        let (inventory, volume) = volume("raw", 4);
        let other = LvUuid::from_compact(&"O".repeat(32)).unwrap();
        assert!(matches!(before_shown(&inventory, &volume.id, &other, live(4, false)), Decision::Refuse(Error::Missing { .. })));
    }

    #[test]
    fn a_growth_is_loaded_then_zeroed_then_there() {
        let next = |life: &str, zeroed, extents: u64| {
            let (inventory, volume) = volume(life, zeroed);
            after_growth(&inventory, &volume, Some(size(extents)))
        };
        assert!(matches!(next("raw", 2, 2), Decision::Do(Step::Lvm(Command::Refresh { .. }))));
        assert!(matches!(next("raw", 2, 4), Decision::Do(Step::Zero(zero)) if zero.to == size(4)));
        assert!(matches!(next("raw", 4, 4), Decision::AlreadyThere(_)));
        assert!(matches!(next("ext4", 0, 2), Decision::AlreadyThere(_)));
        let (inventory, volume) = volume("raw", 2);
        assert!(matches!(after_growth(&inventory, &volume, None), Decision::AlreadyThere(_)));
    }
}
