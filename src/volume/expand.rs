//! ControllerExpandVolume. Nothing ever shrinks.

use crate::lvm::command::Command;
use crate::types::{Bytes, Error, Extents, Pool, VolumeId};

use super::inventory::{Inventory, Volume};
use super::tag::Marks;
use super::{Decision, PoolUse, SizeRange, Step, blocks, capacity, may_change, may_reshape, retag, zero};

/// The size requested for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub id: VolumeId,
    pub size: SizeRange,
}

/// Decides the next step towards the size. `pool` is the configured pool of the volume; `live` is the size of its device, `None` while it
/// is not active.
///
/// New extents of a linear volume hold old bytes. In a raw block volume they are zeroed afterwards, and its pods see a holder device as
/// large as the zeroed part. In a formatted volume the filesystem hides them.
pub fn decide(
    inventory: &Inventory,
    pool: &Pool,
    request: &Request,
    pool_use: Option<PoolUse>,
    live: Option<Bytes>,
) -> Decision<Volume> {
    next(inventory, pool, request, pool_use, live).unwrap_or_else(Decision::Refuse)
}

fn next(
    inventory: &Inventory,
    pool: &Pool,
    request: &Request,
    pool_use: Option<PoolUse>,
    live: Option<Bytes>,
) -> Result<Decision<Volume>, Error> {
    let what = format!("volume {}", request.id);
    let volume = inventory.need_volume(&request.id)?;
    if request.size.limit.0 > 0 && volume.size > request.size.limit {
        let reason = format!("it already has {}, limit_bytes is {}, and volumes never shrink", volume.size, request.size.limit);
        return Err(Error::OutOfRange { what, reason });
    }
    if volume.size >= request.size.required {
        return Ok(zero::after_growth(inventory, volume, live));
    }
    let vg = &inventory.vg;
    may_change(vg)?;
    may_reshape(vg, vg.lv_by_uuid(&volume.uuid), &what)?;
    let extent = vg.extent_bytes();
    let extents = request.size.extents(&what, volume.size, extent)?;
    let more = Extents(extents.0 - volume.size.to_extents_down(extent).0);
    capacity::check(inventory, pool, pool_use, more).map_err(|short| short.of_growth(&what))?;
    // An unused volume holds nothing that could become unreadable, and a thin one uses the extents of its pool.
    if let Some(lv) =
        vg.lv_by_uuid(&volume.uuid).filter(|_| volume.placement.grows_by_extents() && !volume.marks.life.is_unused())
    {
        blocks::check_growth(inventory, lv).map_err(|reason| Error::OutOfRange { what, reason })?;
    }
    if volume.marks.zeroed > volume.size {
        // Somebody shrank it. When it grows, the tag would cover extents that may have belonged to another LV meanwhile.
        if let Some(step) = retag(vg, volume, &Marks { zeroed: volume.size, ..volume.marks.clone() }) {
            return Ok(Decision::Do(step));
        }
    }
    Ok(Decision::Do(Step::Lvm(Command::Extend { vg: vg.name.clone(), lv: request.id.lv.clone(), extents })))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{EXTENT, Group, linear_pool, lv, vg_uuid};
    use super::*;
    use crate::lvm::metadata::{SegmentKind, Stripe};
    use crate::types::{LvName, Sectors};

    fn grow(life: &str, required: u64, limit: u64) -> Decision<Volume> {
        let life = format!("csi.fs={life}");
        let inventory = Group::new().with(lv("pvc-1", 3, &["lvm-csi=1", &life])).inventory();
        let bytes = |extents: u64| Extents(extents).to_bytes(EXTENT);
        let id = VolumeId { vg: vg_uuid(), lv: LvName::new("pvc-1").unwrap() };
        let size = SizeRange { required: bytes(required), limit: bytes(limit) };
        decide(&inventory, &linear_pool(), &Request { id, size }, None, None)
    }

    #[test]
    fn a_volume_does_not_grow_while_pvmove_moves_it() {
        let moved = |vg: &mut crate::lvm::metadata::Vg| {
            for lv in vg.lvs.iter_mut().filter(|lv| lv.name == "pvc-1") {
                let stripes = vec![Stripe::Lv { name: "pvmove0".into(), start: Extents(0) }];
                lv.segments[0].kind = SegmentKind::Striped { stripes, stripe_size: Sectors(0) };
            }
        };
        let inventory = Group::new().with(lv("pvc-1", 3, &["lvm-csi=1", "csi.fs=ext4"])).but(moved).inventory();
        let id = VolumeId { vg: vg_uuid(), lv: LvName::new("pvc-1").unwrap() };
        let size = SizeRange { required: Extents(5).to_bytes(EXTENT), limit: Bytes(0) };
        let decision = decide(&inventory, &linear_pool(), &Request { id, size }, None, None);
        assert!(
            matches!(&decision, Decision::Refuse(Error::Busy { running, .. }) if running.contains("pvmove0")),
            "{decision:?}"
        );
    }

    #[test]
    fn the_tag_of_a_volume_that_was_shrunk_is_corrected_before_it_grows() {
        let bytes = |extents: u64| Extents(extents).to_bytes(EXTENT);
        let id = VolumeId { vg: vg_uuid(), lv: LvName::new("pvc-1").unwrap() };
        let decide = |zeroed: u64, required: u64| {
            let tag = format!("csi.z={}", bytes(zeroed).0);
            let inventory = Group::new().with(lv("pvc-1", 3, &["lvm-csi=1", "csi.fs=raw", &tag])).inventory();
            let size = SizeRange { required: bytes(required), limit: Bytes(0) };
            decide(&inventory, &linear_pool(), &Request { id: id.clone(), size }, None, None)
        };
        let Decision::Do(Step::Lvm(Command::Retag { remove, add, .. })) = decide(5, 5) else {
            panic!("grown under a tag that says more")
        };
        let texts = |tags: &[crate::types::Tag]| tags.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&remove), [format!("csi.z={}", bytes(5).0)]);
        assert_eq!(texts(&add), [format!("csi.z={}", bytes(3).0)]);
        assert!(matches!(decide(3, 5), Decision::Do(Step::Lvm(Command::Extend { .. }))));
        assert!(matches!(decide(5, 3), Decision::AlreadyThere(volume) if volume.zeroed() == volume.size));
    }

    #[test]
    fn a_volume_grows_and_never_shrinks() {
        assert!(matches!(grow("ext4", 5, 0), Decision::Do(Step::Lvm(Command::Extend { extents: Extents(5), .. }))));
        assert!(matches!(grow("raw", 5, 0), Decision::Do(Step::Lvm(Command::Extend { extents: Extents(5), .. }))));
        assert!(matches!(grow("ext4", 2, 0), Decision::AlreadyThere(v) if v.size == Bytes(3 * EXTENT.0)));
        assert!(matches!(grow("ext4", 1, 2), Decision::Refuse(Error::OutOfRange { .. })));
        assert!(matches!(grow("ext4", 2000, 0), Decision::Refuse(Error::OutOfRange { .. })));
    }
}
