//! How much space a pool has left, by the same rules by which `create` and `expand` refuse.
//!
//! A thin pool promises no more than it has by default: volumes, snapshots and copies each count in full, since whoever overwrites a
//! volume keeps both. A full pool holds back or fails writes, so overbooking takes a person's decision (`overprovisionPercent`).

use crate::lvm::metadata::{SegmentKind, Vg};
use crate::types::{Bytes, Error, Extents, LvName, Pool, Reserve, ThinRules};

use super::PoolUse;
use super::inventory::Inventory;

/// What is wrong with an unhealthy thin pool, and what to do; follows its name in a text.
pub const SICK: &str = "failed, is read-only or must be checked (lvs -o+lv_health_status): detach its volumes, deactivate it and run \
                        lvconvert --repair";

/// Space left in a pool (CSI `GetCapacityResponse`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// For all further volumes together.
    pub available: Bytes,
    /// Size of the largest possible volume.
    pub maximum: Bytes,
    /// Size of the smallest possible volume: one extent.
    pub minimum: Bytes,
}

/// Space left in a pool; none if it cannot take a volume at all.
pub fn of(inventory: &Inventory, pool: &Pool, pool_use: Option<PoolUse>) -> Capacity {
    let vg = &inventory.vg;
    let extent = vg.extent_bytes();
    if super::may_change(vg).is_err() || super::room_for_metadata(vg, inventory.metadata_area, super::FOR_VOLUMES, "").is_err() {
        return Capacity { minimum: extent, ..Capacity::default() };
    }
    let takes_new = check_new(inventory, pool, pool_use, Extents(0));
    let left = takes_new.and_then(|()| pool.left(vg, pool_use)).unwrap_or(Extents(0));
    Capacity { available: left.to_bytes(extent), maximum: left.to_bytes(extent), minimum: extent }
}

/// Why a pool cannot provide the space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// It provides nothing until somebody repairs it.
    Sick(String),
    /// It provides nothing until it has more room.
    Full(String),
    /// It has less left than requested.
    TooLarge(String),
}

impl Shortage {
    /// The error for creating something: the scheduler may try another node.
    pub(super) fn of_new(self, what: &str) -> Error {
        match self {
            Self::Sick(reason) => Error::unavailable(what, reason),
            Self::Full(reason) | Self::TooLarge(reason) => Error::Exhausted { what: what.to_owned(), reason },
        }
    }

    /// The error for growing a volume: out of range if the user may request less.
    pub(super) fn of_growth(self, what: &str) -> Error {
        match self {
            Self::TooLarge(reason) => Error::OutOfRange { what: what.to_owned(), reason },
            other => other.of_new(what),
        }
    }
}

/// Refuses to make an LV of this many extents if the pool takes no new LVs or has less space left.
pub(super) fn check_new(inventory: &Inventory, pool: &Pool, pool_use: Option<PoolUse>, extents: Extents) -> Result<(), Shortage> {
    let vg = &inventory.vg;
    check(inventory, pool, pool_use, extents)?;
    match (pool.placement.thin_pool(), pool_use) {
        (Some(pool), Some(now)) => takes_new(vg, pool, &now),
        _ => Ok(()),
    }
}

/// LVM makes nothing new in a pool whose metadata have less than 25 % and less than 4 MiB free (`pool_metadata_min_threshold`).
fn takes_new(vg: &Vg, pool: &LvName, now: &PoolUse) -> Result<(), Shortage> {
    const FREE: Bytes = Bytes(4 << 20);
    let metadata = match vg.lv(pool.as_str()).and_then(|lv| lv.segments.first()).map(|segment| &segment.kind) {
        Some(SegmentKind::ThinPool { metadata, .. }) => vg.lv(metadata).map(|lv| vg.lv_size(lv)),
        _ => None,
    };
    let Some(size) = metadata.filter(|size| size.0 > 0) else { return Ok(()) };
    let most = 100 - (FREE.0 * 100 / size.0).min(25);
    if now.metadata_percent < most {
        return Ok(());
    }
    Err(Shortage::Full(format!(
        "the metadata of thin pool {vg}/{pool} are {} % full, and from {most} % on LVM creates nothing in it; the metadata grow by \
         themselves if the volume group has room (vgextend), or by lvextend --poolmetadatasize; or delete snapshots and volumes",
        now.metadata_percent,
        vg = vg.name
    )))
}

/// Refuses `extents` more if the pool has less space left.
pub(super) fn check(inventory: &Inventory, pool: &Pool, pool_use: Option<PoolUse>, extents: Extents) -> Result<(), Shortage> {
    let vg = &inventory.vg;
    let extent = vg.extent_bytes();
    let left = pool.left(vg, pool_use)?;
    if extents > left {
        return Err(Shortage::TooLarge(format!(
            "{} more {} needed, and pool {} has {} left{}",
            extents.to_bytes(extent),
            if extents.0 == 1 { "is" } else { "are" },
            pool.name,
            left.to_bytes(extent),
            pool.limit(vg)
        )));
    }
    Ok(())
}

/// Free extents of a group that are not kept for the growth of another pool.
pub(super) fn unreserved(vg: &Vg, pool: &Pool) -> Extents {
    Extents(vg.free_extents().0.saturating_sub(pool.reserved.0))
}

/// A reserve in extents of a group.
pub fn reserve(vg: &Vg, reserve: Reserve) -> Extents {
    match reserve {
        Reserve::Bytes(bytes) => bytes.to_extents_up(vg.extent_bytes()),
        Reserve::Percent(percent) => {
            let all: u64 = vg.pvs.iter().map(|pv| pv.pe_count.0).fold(0, u64::saturating_add);
            Extents(u64::try_from((u128::from(all) * u128::from(percent)).div_ceil(100)).unwrap_or(u64::MAX))
        }
    }
}

/// Extents that a thin pool may still promise, or why it takes no new LVs.
pub(super) fn promisable(vg: &Vg, name: &LvName, rules: &ThinRules, pool_use: Option<PoolUse>) -> Result<Extents, Shortage> {
    let ThinRules { overprovision_percent, full_percent, .. } = *rules;
    let lv = vg
        .lv(name.as_str())
        .filter(|lv| matches!(lv.segments.first().map(|s| &s.kind), Some(SegmentKind::ThinPool { .. })))
        .ok_or_else(|| Shortage::Sick(format!("volume group {} has no thin pool {name}", vg.name)))?;
    if let Some(now) = pool_use {
        if !now.healthy {
            return Err(Shortage::Sick(format!("thin pool {}/{name} {SICK}", vg.name)));
        }
        for (what, percent) in [("data", now.data_percent), ("metadata", now.metadata_percent)] {
            if percent >= full_percent {
                return Err(Shortage::Full(format!(
                    "the {what} of thin pool {}/{name} are {percent} % full, and from {full_percent} % on the driver creates nothing in \
                     it; add a disk to the volume group with vgextend, or delete volumes and snapshots",
                    vg.name
                )));
            }
        }
    }
    let most = u128::from(lv.extents().0) * u128::from(overprovision_percent) / 100;
    let promised = vg.provisioned(name.as_str()).to_extents_up(vg.extent_bytes()).0;
    Ok(Extents(u64::try_from(most).unwrap_or(u64::MAX).saturating_sub(promised)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{EXTENT, Group, linear_pool, lv, thin, thin_pool};
    use super::*;

    const OURS: [&str; 2] = ["lvm-csi=1", "csi.fs=blank"];

    fn bytes(extents: u64) -> Bytes {
        Extents(extents).to_bytes(EXTENT)
    }

    #[test]
    fn a_linear_pool_has_what_the_group_has_free() {
        let inventory = Group::new().with(lv("pvc-1", 100, &OURS)).inventory();
        assert_eq!(of(&inventory, &linear_pool(), None).available, bytes(800));
        assert!(check(&inventory, &linear_pool(), None, Extents(800)).is_ok());
        let Err(Shortage::TooLarge(reason)) = check(&inventory, &linear_pool(), None, Extents(801)) else { panic!() };
        assert!(reason.contains("3200MiB"), "{reason}");
    }

    #[test]
    fn space_kept_for_a_thin_pool_is_for_nobody_else() {
        let inventory = Group::new().inventory();
        let pool = Pool { reserved: Extents(300), ..linear_pool() };
        assert_eq!(of(&inventory, &pool, None).available, bytes(600));
        assert!(check(&inventory, &pool, None, Extents(600)).is_ok());
        let Err(Shortage::TooLarge(reason)) = check(&inventory, &pool, None, Extents(601)) else { panic!() };
        assert!(reason.contains("kept for its thin pools"), "{reason}");
        let all = Pool { reserved: Extents(901), ..linear_pool() };
        assert_eq!(of(&inventory, &all, None).available, Bytes(0));
        // What a thin pool promises depends on its own size only.
        assert_eq!(of(&inventory, &Pool { reserved: Extents(900), ..thin_pool(100) }, None).available, bytes(100));
        assert_eq!(reserve(&inventory.vg, Reserve::Bytes(Bytes(EXTENT.0 + 1))), Extents(2));
        assert_eq!(reserve(&inventory.vg, Reserve::Percent(15)), Extents(150));
    }

    #[test]
    fn a_thin_pool_promises_no_more_than_allowed() {
        let inventory = Group::new().with(thin("pvc-1", 70, &OURS)).inventory();
        assert_eq!(of(&inventory, &thin_pool(100), None).maximum, bytes(30));
        assert_eq!(of(&inventory, &thin_pool(250), None).maximum, bytes(180));
        assert_eq!(of(&inventory, &thin_pool(50), None).maximum, bytes(0));
    }

    #[test]
    fn a_full_or_sick_pool_or_group_has_nothing() {
        let full = PoolUse { data_percent: 95, metadata_percent: 1, healthy: true };
        let sick = PoolUse { data_percent: 1, metadata_percent: 1, healthy: false };
        let inventory = Group::new().inventory();
        for now in [full, sick, PoolUse { data_percent: 0, metadata_percent: 99, healthy: true }] {
            assert_eq!(of(&inventory, &thin_pool(100), Some(now)).available, Bytes(0));
            assert!(check(&inventory, &thin_pool(100), Some(now), Extents(0)).is_err());
        }
        let refused = |now| check(&inventory, &thin_pool(100), Some(now), Extents(1)).unwrap_err();
        assert!(matches!(refused(sick).of_new("v"), Error::Unavailable { .. }));
        assert!(matches!(refused(sick).of_growth("v"), Error::Unavailable { .. }));
        assert!(matches!(refused(full).of_new("v"), Error::Exhausted { .. }));
        assert!(matches!(refused(full).of_growth("v"), Error::Exhausted { .. }));
        let large = check(&inventory, &thin_pool(100), None, Extents(101)).unwrap_err();
        assert!(matches!(large.clone().of_new("v"), Error::Exhausted { .. }));
        assert!(matches!(large.of_growth("v"), Error::OutOfRange { .. }));
        let missing = Group::new().but(|vg| vg.pvs[0].missing = true).inventory();
        assert_eq!(of(&missing, &linear_pool(), None).available, Bytes(0));
        let cramped = Group::new().but(|vg| vg.metadata_bytes = 500_000).inventory();
        assert_eq!(of(&cramped, &linear_pool(), None).available, Bytes(0));
    }
    #[test]
    fn lvms_own_limit_for_pool_metadata_means_no_room() {
        let fill = |percent| Some(PoolUse { data_percent: 1, metadata_percent: percent, healthy: true });
        let room = |extents, percent| {
            let inventory = Group::new().with(lv("pool_tmeta", extents, &[])).inventory();
            let checked = check_new(&inventory, &thin_pool(100), fill(percent), Extents(1));
            assert_eq!(of(&inventory, &thin_pool(100), fill(percent)).available == Bytes(0), checked.is_err());
            checked.map_err(|short| short.of_new("v"))
        };
        // 8 MiB, and 40 MiB, of which 4 MiB are a tenth.
        assert!(room(2, 74).is_ok() && room(10, 89).is_ok());
        for full in [room(2, 75), room(10, 90)] {
            assert!(matches!(&full, Err(Error::Exhausted { reason, .. }) if reason.contains("vgextend")), "{full:?}");
        }
        // An existing volume may grow.
        let inventory = Group::new().with(lv("pool_tmeta", 2, &[])).inventory();
        assert!(check(&inventory, &thin_pool(100), fill(80), Extents(1)).is_ok());
    }
}
