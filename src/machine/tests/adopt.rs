//! A group of another machine.

use super::*;
use crate::types::Recorded;

/// The tags of the group that name machines.
fn recorded(world: &World) -> Vec<Recorded> {
    owner::recorded(&world.lvm.vg()).collect()
}

impl World {
    async fn adopt(&self) -> Result<Adopted, Error> {
        let (machine, request) = (Arc::clone(&self.machine), Adopt { vg: self.lvm.vg().name, devices: Vec::new() });
        self.machine.inflight.run(Machine::on_adopt(&request), move |reservation| machine.adopt(reservation, &request)).await
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) {
    let Err(Error::Precondition { reason, .. }) = &answer else { panic!("{answer:?}") };
    for word in ["node-b", "node-a", "lvm-csi adopt --vg vg"] {
        assert!(reason.contains(word), "{word}: {reason}");
    }
}

#[tokio::test]
async fn the_group_of_another_machine_is_read_and_given_up_and_never_changed() {
    let world = world();
    let volume = world.create(&wish("pvc-1", "thin", 8)).await.unwrap();
    let cut = snapshot::Request { name: "snapshot-1".to_owned(), source: volume.id.clone() };
    let snapshot = world.machine.snapshot(cut.clone()).await.unwrap();
    let node = NodeId::new("node-a").unwrap();
    let mode = Mode::new(AccessType::Block, crate::types::AccessMode::SingleNodeWriter, false);
    let context = world.machine.grant(volume.id.clone(), node.clone(), mode.clone()).await.unwrap();
    let other = world.create(&wish("pvc-2", "thin", 8)).await.unwrap();
    world.lvm.edit(|vg| record(vg, "b"));
    world.lvm.done();
    let (before, listed) = (world.lvm.vg(), world.inventory().volumes().count());

    refused(world.create(&wish("pvc-3", "linear", 8)).await);
    refused(world.create(&wish("pvc-1", "thin", 8)).await);
    refused(world.machine.delete(other.id.clone()).await);
    // What this copy lacks may exist in another.
    let lost = VolumeId { lv: LvName::new("pvc-9").unwrap(), ..other.id.clone() };
    refused(world.machine.delete(lost).await);
    let larger = SizeRange { required: Bytes(16 << 20), limit: Bytes(0) };
    refused(world.machine.expand(volume.id.clone(), larger).await);
    refused(world.machine.expand(volume.id.clone(), SizeRange::default()).await);
    refused(world.machine.snapshot(snapshot::Request { name: "snapshot-2".to_owned(), ..cut }).await);
    refused(world.machine.delete_snapshot(snapshot.object.id.clone()).await);
    refused(world.machine.grant(other.id.clone(), node.clone(), mode.clone()).await);
    let machine = Arc::clone(&world.machine);
    let (staged, marked) = (volume.clone(), volume.clone());
    let operation = || world.machine.on_volume("NodeStageVolume", &volume.id, ());
    refused(world.machine.inflight.run(operation(), move |reservation| machine.activate(reservation, &staged).map(drop)).await);
    let machine = Arc::clone(&world.machine);
    let next = crate::volume::tag::Marks { life: crate::types::Life::Raw, ..marked.marks.clone() };
    refused(
        world.machine.inflight.run(operation(), move |reservation| machine.mark(reservation, &marked, &next).map(drop)).await,
    );
    // The start of a driver, and its housekeeping.
    world.machine.start();
    for config in world.machine.pools() {
        if config.thin().is_some() {
            refused(world.machine.start_pool(config));
        }
    }
    assert_eq!(world.lvm.done(), [""; 0]);
    assert_eq!(world.lvm.vg(), before);

    let holdings = world.machine.holdings().await.unwrap();
    assert_eq!(holdings.volumes().count(), listed);
    for (pool, state) in &holdings.pools {
        assert!(state.as_ref().is_err_and(|why| why.contains("lvm-csi adopt")), "{pool}: {state:?}");
    }
    let state = world.machine.group_state(&before.name);
    assert!(matches!(&state, crate::types::GroupState::Foreign(why) if why.contains("node-b")), "{state:?}");
    // The attachment is unchanged, and can be released.
    assert_eq!(world.machine.grant(volume.id.clone(), node.clone(), mode).await.unwrap(), context);
    world.machine.release(volume.id.clone(), Some(node)).await.unwrap();
    assert!(world.machine.ledger().grants().is_empty());

    let adopted = world.adopt().await.unwrap();
    assert_eq!((adopted.done, adopted.before), (true, vec![machine_id("b").record()]));
    assert_eq!((recorded(&world), world.lvm.done()), (vec![machine_id("a").record()], vec!["vgchange".to_owned()]));
    world.machine.delete(other.id).await.unwrap();
    assert_eq!(world.lvm.done(), ["lvremove"]);
    assert!(!world.adopt().await.unwrap().done);
    assert_eq!(world.lvm.done(), [""; 0]);
}

#[tokio::test]
async fn grants_of_what_a_copy_lacks_are_kept() {
    let world = world();
    let volume = world.create(&wish("pvc-1", "linear", 8)).await.unwrap();
    let mode = Mode::new(AccessType::Block, crate::types::AccessMode::SingleNodeWriter, false);
    world.machine.grant(volume.id.clone(), NodeId::new("node-a").unwrap(), mode).await.unwrap();
    world.lvm.edit(|vg| {
        vg.lvs.retain(|lv| lv.uuid != volume.uuid);
        record(vg, "b");
    });
    world.machine.start();
    assert_eq!(world.machine.ledger().grants().len(), 1);
    world.adopt().await.unwrap();
    world.machine.start();
    assert!(world.machine.ledger().grants().is_empty());
}

#[tokio::test]
async fn this_machine_is_recorded_once_at_the_start_or_before_the_first_change() {
    for starts in [true, false] {
        let world = world();
        world.lvm.edit(|vg| vg.tags.clear());
        if starts {
            world.machine.start();
            assert_eq!(recorded(&world), [machine_id("a").record()]);
            world.lvm.done();
        }
        world.create(&wish("pvc-1", "linear", 8)).await.unwrap();
        world.create(&wish("pvc-2", "linear", 8)).await.unwrap();
        let expected: &[&str] = if starts { &["lvcreate", "lvcreate"] } else { &["vgchange", "lvcreate", "lvcreate"] };
        assert_eq!(
            (world.lvm.done(), recorded(&world)),
            (expected.iter().map(|&c| c.to_owned()).collect(), vec![machine_id("a").record()])
        );
    }
}

#[tokio::test]
async fn nothing_is_changed_before_this_machine_is_recorded() {
    let world = world();
    world.lvm.edit(|vg| vg.tags.clear());
    // LVM refuses the tag, or reports success and does nothing; a repeat tries again.
    for fate in [Fate::Refused, Fate::Late] {
        world.lvm.fates([fate, fate, fate]);
        world.create(&wish("pvc-1", "linear", 8)).await.unwrap_err();
        assert!(world.class("pvc-1").is_none(), "{fate:?}");
        world.lvm.fates([]);
        world.lvm.edit(|vg| vg.tags.clear());
    }
    world.create(&wish("pvc-1", "linear", 8)).await.unwrap();
}

#[tokio::test]
async fn what_makes_no_sense_is_not_adopted() {
    let world = world();
    let other = Adopt { vg: VgName::new("elsewhere").unwrap(), devices: Vec::new() };
    let machine = Arc::clone(&world.machine);
    let told = world.machine.inflight.run(Machine::on_adopt(&other), move |reservation| machine.adopt(reservation, &other)).await;
    assert!(matches!(&told, Err(Error::Precondition { what, .. }) if what.contains("elsewhere")), "{told:?}");
    world.lvm.edit(|vg| {
        record(vg, "b");
        vg.exported = true;
    });
    let told = world.adopt().await;
    assert!(matches!(&told, Err(Error::Unavailable { reason, .. }) if reason.contains("vgimport")), "{told:?}");
    world.lvm.edit(|vg| vg.exported = false);
    world.lvm.fates([Fate::Nothing]);
    let told = world.adopt().await;
    assert!(matches!(&told, Err(Error::Unavailable { .. })), "{told:?}");
    world.lvm.away(true);
    assert!(matches!(world.adopt().await, Err(Error::Unavailable { .. })));
    assert_eq!(recorded(&world), [machine_id("b").record()]);
}
