//! Logical block sizes of the disks beneath a volume that grows.
//!
//! A device on several disks has the largest of their logical block sizes. If that size grows under a device in use, the kernel refuses
//! I/O aligned to the smaller one: filesystems with smaller blocks or sectors and programs with direct I/O fail, and a guest's partition
//! table then points to other places. LVM refuses such groups unless `allow_mixed_block_sizes` is set, but not those that arise when a
//! disk is copied onto another kind. LVM chooses the disks of new extents itself, so a decision considers every disk that it may choose.

use crate::lvm::metadata::{Lv, Pv};
use crate::types::Bytes;

use super::inventory::Inventory;

/// Refuses to extend an LV in use if its new extents may be on a disk with larger logical blocks than it has now.
///
/// # Errors
/// The disk, and what to do.
pub(super) fn check_growth(inventory: &Inventory, lv: &Lv) -> Result<(), String> {
    let vg = &inventory.vg;
    let beneath = vg.pvs_beneath(lv);
    let is_beneath = |pv: &&Pv| beneath.contains(pv.key.as_str());
    let block_size = |pv: &Pv| inventory.block_size(&pv.uuid);
    let now = vg.pvs.iter().filter(is_beneath).filter_map(block_size).flatten().max().unwrap_or_default();
    let may_be_taken = |pv: &&Pv| !is_beneath(pv) && vg.free_extents_of(pv).0 > 0;
    // LVM does not choose a disk that is away, and changes nothing then anyway.
    let larger = |pv: &&Pv| block_size(pv).is_some_and(|size| size.is_none_or(|size| size > now));
    let Some(pv) = vg.pvs.iter().filter(may_be_taken).find(larger) else { return Ok(()) };
    let size = block_size(pv).flatten().map_or_else(|| "of an unknown size".to_owned(), |Bytes(size)| format!("of {size} bytes"));
    let device = pv.device.as_deref().unwrap_or("device unknown");
    Err(format!(
        "new extents may lie on PV {} ({device}), which has logical blocks {size}, and the present data need blocks of {} bytes: they \
         would become unreadable; run pvchange --allocatable n on that PV, and add a disk with small blocks to volume group {}",
        pv.uuid, now.0, vg.name
    ))
}

/// The problem of a group with several logical block sizes, and what to do; `None` if it has one size.
pub(super) fn mixed(inventory: &Inventory) -> Option<(String, &'static str)> {
    let sizes = inventory.vg.pvs.iter().filter_map(|pv| inventory.block_size(&pv.uuid)?);
    let (least, most) = (sizes.clone().min()?, sizes.max()?);
    let reason =
        || format!("its disks have logical blocks of {} to {} bytes, and volumes on small ones do not grow", least.0, most.0);
    (least < most).then(|| (reason(), "run pvchange --allocatable n on the disks with large ones, and no pvmove onto them"))
}

#[cfg(test)]
mod tests {
    use super::super::name::VolumeName;
    use super::super::testing::{EXTENT, Group, linear_pool, lv, thin, thin_pool, vg_uuid};
    use super::super::{Decision, SizeRange, create, expand};
    use super::*;
    use crate::lvm::metadata::Vg;
    use crate::types::{AccessType, Error, Extents, LvName, Pool, PvUuid, VolumeId};

    const LIVES: [&str; 3] = ["ext4", "xfs", "raw"];

    fn second() -> PvUuid {
        PvUuid::from_compact(&"q".repeat(32)).unwrap()
    }

    /// The group with a second PV and these block sizes.
    fn on(group: Group, sizes: [Option<Option<u64>>; 2]) -> Inventory {
        let inventory = group
            .but(|vg| {
                let pv = Pv { uuid: second(), key: "pv1".into(), device: Some("/dev/sdb".into()), ..vg.pvs[0].clone() };
                vg.pvs.push(pv);
            })
            .inventory();
        let pvs = [inventory.vg.pvs[0].uuid.clone(), second()];
        let block_sizes = pvs.into_iter().zip(sizes).filter_map(|(pv, size)| Some((pv, size?.map(Bytes))));
        let block_sizes = block_sizes.collect();
        inventory.on_disks(block_sizes)
    }

    fn unlike(group: Group) -> Inventory {
        on(group, [Some(Some(512)), Some(Some(4096))])
    }

    fn with(life: &str) -> Group {
        let life = format!("csi.fs={life}");
        Group::new().with(lv("pvc-1", 3, &["lvm-csi=1", &life])).with(thin("pvc-2", 3, &["lvm-csi=1", &life]))
    }

    fn grow(inventory: &Inventory, lv: &str, pool: &Pool) -> Result<(), String> {
        let id = VolumeId { vg: vg_uuid(), lv: LvName::new(lv).unwrap() };
        let size = SizeRange { required: Extents(5).to_bytes(EXTENT), limit: Bytes(0) };
        match expand::decide(inventory, pool, &expand::Request { id, size }, None, None) {
            Decision::Do(_) => Ok(()),
            Decision::Refuse(Error::OutOfRange { reason, .. }) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_volume_in_use_never_grows_onto_larger_blocks() {
        for life in LIVES {
            let reason = grow(&unlike(with(life)), "pvc-1", &linear_pool()).unwrap_err();
            assert!(["/dev/sdb", "4096", "512", "pvchange"].iter().all(|word| reason.contains(word)), "{life}: {reason}");
        }
        // Unknown blocks may be larger.
        assert!(grow(&on(with("ext4"), [Some(Some(512)), Some(None)]), "pvc-1", &linear_pool()).is_err());
        // A thin volume takes blocks of its pool, whose own growth is checked.
        assert_eq!(grow(&unlike(with("ext4")), "pvc-2", &thin_pool(100)), Ok(()));
    }

    #[test]
    fn a_mixed_group_is_reported() {
        let remark = |first, second| mixed(&on(with("ext4"), [Some(Some(first)), second]));
        assert!(remark(512, Some(Some(4096))).unwrap().0.contains("512 to 4096"));
        for second in [Some(Some(512)), Some(None), None] {
            assert_eq!(remark(512, second), None);
        }
        assert_eq!(mixed(&Group::new().inventory()), None);
    }

    #[test]
    fn growth_onto_suitable_blocks_is_allowed() {
        let sizes = |first, second| on(with("ext4"), [Some(Some(first)), Some(Some(second))]);
        for inventory in [sizes(512, 512), sizes(4096, 4096), sizes(4096, 512)] {
            assert_eq!(grow(&inventory, "pvc-1", &linear_pool()), Ok(()));
        }
        for unused in ["blank", "formatting=ext4", "formatting=xfs"] {
            assert_eq!(grow(&unlike(with(unused)), "pvc-1", &linear_pool()), Ok(()));
        }
        assert_eq!(grow(&on(with("ext4"), [Some(None), None]), "pvc-1", &linear_pool()), Ok(()));
        let kept_off = with("ext4");
        let mut inventory = unlike(kept_off);
        let mut vg = (*inventory.vg).clone();
        vg.pvs[1].allocatable = false;
        inventory.vg = vg.into();
        assert_eq!(grow(&inventory, "pvc-1", &linear_pool()), Ok(()));
        // A new volume is formatted for the blocks that it has.
        let size = SizeRange { required: EXTENT, limit: Bytes(0) };
        let spec = create::VolumeSpec {
            name: VolumeName::new("pvc-3"),
            size,
            access: vec![AccessType::Block],
            source: None,
            parameters: crate::types::Parameters::default(),
            claim: None,
        };
        assert!(matches!(create::decide(&unlike(with("ext4")), &linear_pool(), &spec, None, None), Decision::Do(_)));
    }

    #[test]
    fn the_disks_beneath_are_found_through_all_layers() {
        let inventory = unlike(with("ext4"));
        let beneath = |vg: &Vg, name: &str| vg.pvs_beneath(vg.lv(name).unwrap()).into_iter().collect::<Vec<_>>().join(" ");
        for name in ["pvc-1", "pvc-2", "pool", "pool_tdata"] {
            assert_eq!(beneath(&inventory.vg, name), "pv0", "{name}");
        }
        for (text, lv, expected) in [
            (include_str!("../../tests/fixtures/lvm/snapshots.txt"), "pool", true),
            (include_str!("../../tests/fixtures/lvm/external-origin.txt"), "pool", true),
        ] {
            let vg = Vg::parse(text).unwrap();
            assert_eq!(vg.lv(lv).is_some_and(|lv| !vg.pvs_beneath(lv).is_empty()), expected);
        }
    }
}
