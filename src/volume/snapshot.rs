//! CreateSnapshot: a thin snapshot, inactive and read-only.

use crate::lvm::command::Command;
use crate::types::{Error, Object, Pool, VolumeId};

use super::inventory::{Class, Inventory, Snapshot};
use super::tag::Marks;
use super::{Decision, FOR_SNAPSHOTS, PoolUse, Step, capacity, may_change, may_reshape, name, room_for_metadata};

/// A requested snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub name: String,
    pub source: VolumeId,
}

/// Decides the next step to make the snapshot. `pool` is the pool of the source volume; `None` if there is no such volume. `unfit` is why
/// the volume cannot be copied now. A snapshot promises as much space as its volume, since a volume that is completely
/// overwritten leaves all old blocks to the snapshot.
pub fn decide(
    inventory: &Inventory,
    pool: Option<&Pool>,
    request: &Request,
    pool_use: Option<PoolUse>,
    unfit: Option<&Error>,
) -> Decision<Snapshot> {
    next(inventory, pool, request, pool_use, unfit).unwrap_or_else(Decision::Refuse)
}

fn next(
    inventory: &Inventory,
    pool: Option<&Pool>,
    request: &Request,
    pool_use: Option<PoolUse>,
    unfit: Option<&Error>,
) -> Result<Decision<Snapshot>, Error> {
    let vg = &inventory.vg;
    let lv = name::of_snapshot(&request.name);
    let differs = |difference: String| Error::Differs { object: Object::Snapshot, id: request.name.clone(), difference };
    inventory.check_name(Object::Snapshot, &vg.uuid, &lv)?;
    match inventory.class(lv.as_str()) {
        None => {}
        Some(Class::Snapshot(snapshot)) if snapshot.of == request.source => return Ok(Decision::AlreadyThere(snapshot.clone())),
        Some(Class::Snapshot(snapshot)) => {
            return Err(differs(format!(
                "it is a snapshot of volume {}, and the request is for volume {}",
                snapshot.of, request.source
            )));
        }
        Some(_) => {
            let stranger = || format!("LV {}/{lv} is not a snapshot of this driver, which leaves it alone", vg.name);
            return Err(differs(inventory.others(&lv).unwrap_or_else(stranger)));
        }
    }
    let source = inventory.need_volume(&request.source)?;
    let what = format!("snapshot {:?} of volume {}", request.name, request.source);
    if source.placement.snapshot_kind().is_none() {
        let reason = format!("the volume is {}, and only thin volumes can have snapshots", source.placement);
        return Err(Error::precondition(what, reason));
    }
    if let Some(error) = unfit {
        return Err(error.clone());
    }
    may_change(vg)?;
    may_reshape(vg, vg.lv_by_uuid(&source.uuid), &what)?;
    room_for_metadata(vg, inventory.metadata_area, FOR_SNAPSHOTS, &what)?;
    let pool = pool.ok_or_else(|| Error::missing(Object::Volume, request.source.to_string()))?;
    check_count(inventory, pool, &request.source).map_err(|reason| Error::Exhausted { what: what.clone(), reason })?;
    capacity::check_new(inventory, pool, pool_use, source.size.to_extents_up(vg.extent_bytes()))
        .map_err(|short| short.of_new(&what))?;
    let marks = Marks { life: source.marks.life, of: Some(request.source.lv.clone()), ..inventory.new_marks(&lv) };
    Ok(Decision::Do(Step::Lvm(Command::SnapshotThin {
        vg: vg.name.clone(),
        origin: request.source.lv.clone(),
        lv,
        tags: marks.tags(),
        read_only: true,
    })))
}

/// Refuses a snapshot if the volume has as many as its pool allows.
fn check_count(inventory: &Inventory, pool: &Pool, source: &VolumeId) -> Result<(), String> {
    let max_snapshots = pool.rules.max_snapshots;
    let count = inventory.snapshots().filter(|snapshot| snapshot.of == *source).count();
    if max_snapshots == 0 || count < max_snapshots {
        return Ok(());
    }
    Err(format!(
        "volume {source} has {count} snapshots, and pool {} allows {max_snapshots} per volume (maxSnapshotsPerVolume); delete some, or \
         raise the limit",
        pool.name
    ))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Group, lv, thin, thin_pool, vg_uuid};
    use super::*;
    use crate::types::{FsKind, LvName};

    fn cut(group: Group, of: &str, pool_use: Option<PoolUse>) -> Decision<Snapshot> {
        let source = VolumeId { vg: vg_uuid(), lv: LvName::new(of).unwrap() };
        let pool = thin_pool(100);
        decide(&group.inventory(), Some(&pool), &Request { name: "snapshot-1".into(), source }, pool_use, None)
    }

    #[test]
    fn a_snapshot_carries_what_its_volume_holds() {
        let group = || Group::new().with(thin("pvc-1", 3, &["lvm-csi=1", "csi.fs=ext4"]));
        let Decision::Do(Step::Lvm(Command::SnapshotThin { lv, tags, read_only: true, .. })) = cut(group(), "pvc-1", None) else {
            panic!()
        };
        assert_eq!(lv.as_str(), "snap-1");
        assert!(tags.iter().any(|tag| tag.as_str() == "csi.fs=ext4") && tags.iter().any(|tag| tag.as_str() == "csi.of=pvc-1"));
        let there = || group().with(thin("snap-1", 3, &["lvm-csi=1", "csi.fs=ext4", "csi.of=pvc-1"]));
        assert!(matches!(cut(there(), "pvc-1", None), Decision::AlreadyThere(_)));
        assert!(matches!(cut(there().with(thin("pvc-2", 1, &[])), "pvc-2", None), Decision::Refuse(Error::Differs { .. })));
    }

    #[test]
    fn a_snapshot_that_cannot_be_made_is_refused() {
        let with = |life: &str| {
            let life = format!("csi.fs={life}");
            Group::new().with(thin("pvc-1", 3, &["lvm-csi=1", &life]))
        };
        assert!(matches!(cut(with("raw"), "pvc-9", None), Decision::Refuse(Error::Missing { .. })));
        let full = PoolUse { data_percent: 99, metadata_percent: 0, healthy: true };
        assert!(matches!(cut(with("raw"), "pvc-1", Some(full)), Decision::Refuse(Error::Exhausted { .. })));
        let source = VolumeId { vg: vg_uuid(), lv: LvName::new("pvc-1").unwrap() };
        let unfit = super::super::create::half_made_source(&source, FsKind::Xfs);
        let request = Request { name: "snapshot-1".into(), source };
        let with_source = |unfit| decide(&with("formatting=xfs").inventory(), Some(&thin_pool(100)), &request, None, unfit);
        assert!(matches!(with_source(Some(&unfit)), Decision::Refuse(Error::Busy { .. })));
        assert!(matches!(with_source(None), Decision::Do(_)), "it is empty until mkfs begins");
        let unknown = Request { name: "s".into(), source: VolumeId { vg: vg_uuid(), lv: LvName::new("pvc-1").unwrap() } };
        assert!(matches!(decide(&with("raw").inventory(), None, &unknown, None, None), Decision::Refuse(Error::Missing { .. })));
        let linear = Group::new().with(lv("pvc-1", 3, &["lvm-csi=1", "csi.fs=raw"]));
        assert!(matches!(cut(linear, "pvc-1", None), Decision::Refuse(Error::Precondition { .. })));
    }

    /// Why there is no room for a snapshot of `pvc-1`.
    fn no_room(group: Group) -> String {
        match cut(group, "pvc-1", Some(PoolUse { data_percent: 76, metadata_percent: 5, healthy: true })) {
            Decision::Refuse(Error::Exhausted { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_snapshot_counts_with_the_full_size_of_its_volume() {
        // The pool has 100 extents, and may promise all of them.
        let of = |extents| Group::new().with(thin("pvc-1", extents, &["lvm-csi=1", "csi.fs=ext4"]));
        for extents in [76, 51] {
            let reason = no_room(of(extents));
            assert!(
                reason.contains("overprovisionPercent") && reason.contains("100 %") && reason.contains("vg0/pool"),
                "{reason}"
            );
        }
        let snapshot = ["lvm-csi=1", "csi.fs=ext4", "csi.of=pvc-1"];
        assert!(matches!(cut(of(50), "pvc-1", None), Decision::Do(_)));
        no_room(of(50).with(thin("snap-0", 50, &snapshot)));
        // Another LV promises a part of the other half.
        no_room(of(50).with(thin("somebodys", 1, &[])));
        // An existing snapshot is still returned, even if its source is gone.
        let there = Group::new().with(thin("snap-1", 100, &snapshot)).with(thin("pvc-2", 50, &["lvm-csi=1", "csi.fs=ext4"]));
        assert!(matches!(cut(there, "pvc-1", None), Decision::AlreadyThere(_)));
    }

    #[test]
    fn a_volume_has_no_more_snapshots_than_its_pool_allows() {
        let with = |names: &[&'static str]| {
            let group = Group::new().with(thin("pvc-1", 3, &["lvm-csi=1", "csi.fs=ext4"]));
            let of_another = thin("snap-other", 3, &["lvm-csi=1", "csi.fs=ext4", "csi.of=pvc-2"]);
            let snapshot = |name| thin(name, 3, &["lvm-csi=1", "csi.fs=ext4", "csi.of=pvc-1"]);
            names.iter().fold(group.with(of_another), |group, name| group.with(snapshot(name)))
        };
        assert!(matches!(cut(with(&["snap-a", "snap-b"]), "pvc-1", None), Decision::Do(_)));
        let reason = no_room(with(&["snap-a", "snap-b", "snap-c"]));
        assert!(
            ["pvc-1 has 3 snapshots", "maxSnapshotsPerVolume", "pool thin"].iter().all(|word| reason.contains(word)),
            "{reason}"
        );
        assert!(matches!(cut(with(&["snap-a", "snap-b", "snap-1"]), "pvc-1", None), Decision::AlreadyThere(_)));
        let unlimited = |pool: &mut Pool| {
            pool.rules.max_snapshots = 0;
        };
        let mut pool = thin_pool(100);
        unlimited(&mut pool);
        let request =
            Request { name: "snapshot-1".into(), source: VolumeId { vg: vg_uuid(), lv: LvName::new("pvc-1").unwrap() } };
        let many = with(&["snap-a", "snap-b", "snap-c"]).inventory();
        assert!(matches!(decide(&many, Some(&pool), &request, None, None), Decision::Do(_)));
    }

    #[test]
    fn snapshots_leave_room_in_the_metadata_for_volumes() {
        // A text may take half of an area of 1 MiB: 75 % of that are 393,216 bytes, 90 % are 471,859.
        let with =
            |bytes: usize| Group::new().with(thin("pvc-1", 3, &["lvm-csi=1", "csi.fs=ext4"])).but(|vg| vg.metadata_bytes = bytes);
        assert!(matches!(cut(with(393_216), "pvc-1", None), Decision::Do(_)));
        assert!(no_room(with(393_217)).contains("--metadatasize"));
        assert_ne!(capacity::of(&with(471_859).inventory(), &thin_pool(100), None).available.0, 0);
        assert_eq!(capacity::of(&with(471_860).inventory(), &thin_pool(100), None).available.0, 0);
    }
}
