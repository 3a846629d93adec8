//! CreateSnapshot: a thin snapshot, inactive and read-only.

use crate::lvm::command::Command;
use crate::types::{Error, Life, Object, Pool, VolumeId};

use super::inventory::{Class, Inventory, Snapshot};
use super::tag::Marks;
use super::{Decision, PoolUse, capacity, may_change, may_reshape, name, room_for_metadata};

/// A snapshot that shall exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The CSI name.
    pub name: String,
    /// The volume.
    pub source: VolumeId,
}

/// Decides the next step towards the snapshot. `pool` is the configured pool that the volume lies in, if one is.
pub fn decide(inventory: &Inventory, pool: Option<&Pool>, request: &Request, pool_use: Option<PoolUse>) -> Decision<Snapshot> {
    match next(inventory, pool, request, pool_use) {
        Ok(Ok(snapshot)) => Decision::AlreadyThere(snapshot),
        Ok(Err(command)) => Decision::Do(command),
        Err(error) => Decision::Refuse(error),
    }
}

fn next(
    inventory: &Inventory,
    pool: Option<&Pool>,
    request: &Request,
    pool_use: Option<PoolUse>,
) -> Result<Result<Snapshot, Command>, Error> {
    let vg = &inventory.vg;
    let lv = name::of_snapshot(&request.name);
    let differs = |difference: String| Error::Differs { object: Object::Snapshot, id: request.name.clone(), difference };
    inventory.check_name(Object::Snapshot, &vg.uuid, &lv)?;
    match inventory.class(lv.as_str()) {
        None => {}
        Some(Class::Snapshot(snapshot)) if snapshot.of == request.source => return Ok(Ok(snapshot.clone())),
        Some(Class::Snapshot(snapshot)) => {
            return Err(differs(format!("it is one of volume {}, and {} is asked", snapshot.of, request.source)));
        }
        Some(_) => {
            return Err(differs(format!("LV {}/{lv} is not a snapshot of this driver and is left alone", vg.name)));
        }
    }
    let source = inventory.need_volume(&request.source)?;
    let what = format!("snapshot {:?} of volume {}", request.name, request.source);
    if source.pool.is_none() {
        let reason = "the volume is linear, and only thin volumes can be snapshotted".to_owned();
        return Err(Error::precondition(what, reason));
    }
    if let Life::Formatting(kind) = source.marks.life {
        let running = format!("its first {kind} filesystem is being made; repeat the call when its first pod runs");
        return Err(Error::busy(format!("volume {}", request.source), running));
    }
    may_change(vg)?;
    may_reshape(vg, vg.lv_by_uuid(&source.uuid), &what)?;
    room_for_metadata(vg, inventory.metadata_area, &what)?;
    if let Some(pool) = pool {
        capacity::check_fill(vg, pool, pool_use).map_err(|reason| capacity::exhausted(&what, reason))?;
    }
    let marks = Marks { life: source.marks.life, of: Some(request.source.lv.clone()), ..Marks::blank().named(&lv) };
    Ok(Err(Command::SnapshotThin {
        vg: vg.name.clone(),
        origin: request.source.lv.clone(),
        lv,
        tags: marks.tags(),
        read_only: true,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Group, lv, thin, thin_pool, vg_uuid};
    use super::*;
    use crate::types::LvName;

    fn cut(group: Group, of: &str, pool_use: Option<PoolUse>) -> Decision<Snapshot> {
        let source = VolumeId { vg: vg_uuid(), lv: LvName::new(of).unwrap() };
        let pool = thin_pool(100);
        decide(&group.inventory(), Some(&pool), &Request { name: "snapshot-1".into(), source }, pool_use)
    }

    #[test]
    fn a_snapshot_carries_what_its_volume_holds() {
        let group = || Group::new().with(thin("pvc-1", 3, &["lvm-csi=1", "csi.fs=ext4"]));
        let Decision::Do(Command::SnapshotThin { lv, tags, read_only: true, .. }) = cut(group(), "pvc-1", None) else { panic!() };
        assert_eq!(lv.as_str(), "snap-1");
        assert!(tags.iter().any(|tag| tag.as_str() == "csi.fs=ext4") && tags.iter().any(|tag| tag.as_str() == "csi.of=pvc-1"));
        let there = || group().with(thin("snap-1", 3, &["lvm-csi=1", "csi.fs=ext4", "csi.of=pvc-1"]));
        assert!(matches!(cut(there(), "pvc-1", None), Decision::AlreadyThere(_)));
        assert!(matches!(cut(there().with(thin("pvc-2", 1, &[])), "pvc-2", None), Decision::Refuse(Error::Differs { .. })));
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let with = |life: &str| {
            let life = format!("csi.fs={life}");
            Group::new().with(thin("pvc-1", 3, &["lvm-csi=1", &life]))
        };
        assert!(matches!(cut(with("raw"), "pvc-9", None), Decision::Refuse(Error::Missing { .. })));
        assert!(matches!(cut(with("formatting=xfs"), "pvc-1", None), Decision::Refuse(Error::Busy { .. })));
        let full = PoolUse { data_percent: 99, metadata_percent: 0, healthy: true };
        assert!(matches!(cut(with("raw"), "pvc-1", Some(full)), Decision::Refuse(Error::Exhausted { .. })));
        let linear = Group::new().with(lv("pvc-1", 3, &["lvm-csi=1", "csi.fs=raw"]));
        assert!(matches!(cut(linear, "pvc-1", None), Decision::Refuse(Error::Precondition { .. })));
    }
}
