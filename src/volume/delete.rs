//! DeleteVolume and DeleteSnapshot.

use crate::lvm::command::Command;
use crate::types::{Error, LvName, Object, SnapshotId, VolumeId};

use super::inventory::{Class, Inventory};
use super::{Decision, Step, may_change, may_reshape};

/// Decides the next step to delete a volume. Its thin snapshots remain (CSI: "snapshots must outlive the volume").
pub fn volume(inventory: &Inventory, id: &VolumeId) -> Decision<()> {
    if id.vg != inventory.vg.uuid {
        return Decision::AlreadyThere(());
    }
    let (of, vg, lv) = (Object::Volume, &id.vg, &id.lv);
    if let Err(error) = inventory.check_name(of, vg, lv).and_then(|()| inventory.check_owner(of, vg, lv)) {
        return Decision::Refuse(error);
    }
    match inventory.class(id.lv.as_str()) {
        Some(Class::Volume(volume) | Class::Unfinished(volume)) => {
            remove(inventory, &id.lv, &volume.uuid, "volume", &id.to_string())
        }
        Some(Class::Damaged(why)) => Decision::Refuse(Error::precondition(
            format!("volume {id}"),
            format!("the driver leaves it alone, since {why}; an administrator must mend its tags or remove it with lvremove"),
        )),
        _ => Decision::AlreadyThere(()),
    }
}

/// Decides the next step to delete a snapshot. Volumes restored from it remain.
pub fn snapshot(inventory: &Inventory, id: &SnapshotId) -> Decision<()> {
    let (of, vg, lv) = (Object::Snapshot, &id.vg, &id.lv);
    if let Err(error) = inventory.check_name(of, vg, lv).and_then(|()| inventory.check_owner(of, vg, lv)) {
        return Decision::Refuse(error);
    }
    if let (Some(Class::Damaged(_)), Err(error)) = (inventory.class(lv.as_str()), inventory.check_whole(of, vg, lv)) {
        return Decision::Refuse(error);
    }
    match inventory.snapshot(id) {
        Some(snapshot) => remove(inventory, &id.lv, &snapshot.uuid, "snapshot", &id.to_string()),
        None => Decision::AlreadyThere(()),
    }
}

pub(super) fn remove(inventory: &Inventory, lv: &LvName, uuid: &crate::types::LvUuid, object: &str, id: &str) -> Decision<()> {
    let vg = &inventory.vg;
    if let Err(error) = may_change(vg).and_then(|()| may_reshape(vg, vg.lv_by_uuid(uuid), &format!("{object} {id}"))) {
        return Decision::Refuse(error);
    }
    let dependents = vg.dependents(lv.as_str());
    if !dependents.is_empty() {
        let reason = format!("LVs of {} depend on it: {}; remove them first", vg.name, dependents.join(", "));
        return Decision::Refuse(Error::precondition(format!("{object} {id}"), reason));
    }
    Decision::Do(Step::Lvm(Command::Remove { vg: vg.name.clone(), targets: vec![(lv.clone(), uuid.clone())] }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Group, lv, thin, vg_uuid};
    use super::*;
    use crate::lvm::metadata::SegmentKind;

    fn id(name: &str) -> VolumeId {
        VolumeId { vg: vg_uuid(), lv: LvName::new(name).unwrap() }
    }

    #[test]
    fn only_our_volumes_are_removed() {
        let inventory = Group::new()
            .with(lv("pvc-1", 1, &["lvm-csi=1", "csi.fs=raw"]))
            .with(lv("root", 1, &[]))
            .with(lv("odd", 1, &["lvm-csi=1"]))
            .with(thin("snap-1", 1, &["lvm-csi=1", "csi.fs=raw", "csi.of=pvc-1"]))
            .inventory();
        assert!(
            matches!(volume(&inventory, &id("pvc-1")), Decision::Do(Step::Lvm(Command::Remove { targets, .. })) if targets.len() == 1)
        );
        for other in ["root", "gone", "pool", "snap-1"] {
            assert!(matches!(volume(&inventory, &id(other)), Decision::AlreadyThere(())), "{other}");
        }
        assert!(matches!(volume(&inventory, &id("odd")), Decision::Refuse(Error::Precondition { .. })));
        let snap = |name: &str| SnapshotId { vg: vg_uuid(), lv: LvName::new(name).unwrap() };
        assert!(matches!(snapshot(&inventory, &snap("snap-1")), Decision::Do(_)));
        assert!(matches!(snapshot(&inventory, &snap("pvc-1")), Decision::AlreadyThere(())));
        assert!(matches!(snapshot(&inventory, &snap("odd")), Decision::Refuse(Error::Precondition { .. })));
    }

    #[test]
    fn an_origin_with_dependent_lvs_stays() {
        let inventory = Group::new()
            .with(lv("pvc-1", 1, &["lvm-csi=1", "csi.fs=raw"]))
            .with(thin("clone", 1, &[]))
            .but(|vg| {
                for lv in &mut vg.lvs {
                    if let SegmentKind::Thin { external_origin, .. } = &mut lv.segments[0].kind {
                        *external_origin = Some("pvc-1".into());
                    }
                }
            })
            .inventory();
        let Decision::Refuse(Error::Precondition { reason, .. }) = volume(&inventory, &id("pvc-1")) else { panic!() };
        assert!(reason.contains("clone"), "{reason}");
    }
}
