//! LVs of an earlier version.

use super::*;

/// The identity of the world's driver, as one with the default name.
fn default_identity() -> Arc<DriverIdentity> {
    Arc::new(DriverIdentity { driver: "lvm.test".to_owned(), is_default: true, ..DriverIdentity::default() })
}

/// A world with so many volumes without a driver's name, seen by the driver of this identity.
async fn nameless(
    kernel: Arc<dyn Kernel>,
    volumes: usize,
    identity: impl FnOnce(&[Volume]) -> Arc<DriverIdentity>,
) -> (World, Vec<Volume>) {
    let mut world = world_on(kernel);
    let mut made = Vec::new();
    for number in 0..volumes {
        made.push(world.create(&wish(&format!("pvc-{number}"), "thin", 4)).await.unwrap());
    }
    world.lvm.edit(|vg| vg.lvs.iter_mut().for_each(|lv| lv.tags.retain(|tag| !tag.starts_with("csi.d="))));
    world.lvm.done();
    let identity = identity(&made);
    Arc::get_mut(&mut world.local).unwrap().groups.values_mut().for_each(|group| group.identity = Arc::clone(&identity));
    (world, made)
}

fn named(world: &World, volumes: &[Volume]) -> usize {
    let vg = world.lvm.vg();
    let has_name =
        |volume: &&Volume| vg.lv_by_uuid(&volume.uuid).is_some_and(|lv| lv.tags.iter().any(|tag| tag == "csi.d=lvm.test"));
    volumes.iter().filter(has_name).count()
}

#[tokio::test]
async fn many_lvs_of_an_earlier_version_get_their_name_in_batches() {
    let (world, made) = nameless(Arc::new(Idle), 45, |_| default_identity()).await;
    let others = world.inventory().nameless().count();
    assert_eq!(others, 0, "a driver that is new here has none");
    world.local.start();
    assert_eq!(named(&world, &made), 0, "the first look waits for none of it");
    world.lvm.done();
    world.local.adopt_all_nameless();
    let batches = world.lvm.done();
    assert!(batches.len() >= 3 && batches.iter().all(|command| command == "lvchange"), "{batches:?}");
    assert_eq!(named(&world, &made), 45);
    world.local.adopt_all_nameless();
    assert_eq!(world.lvm.done(), [""; 0]);
}

#[tokio::test]
async fn the_hosts_boot_activates_no_lv_of_an_earlier_version() {
    let world = world();
    let mut made = Vec::new();
    for number in 0..25 {
        made.push(world.create(&wish(&format!("pvc-{number}"), "thin", 4)).await.unwrap());
    }
    let is_kept = |volume: &Volume| {
        let vg = world.lvm.vg();
        let lv = vg.lv_by_uuid(&volume.uuid).unwrap();
        !lv.autoactivation || lv.activation_skip
    };
    assert!(made.iter().all(is_kept), "a new one is kept from it");
    let anybody = || world.lvm.vg().lvs.iter().filter(|lv| lv.autoactivation).count();
    world.lvm.edit(|vg| {
        vg.autoactivation = true;
        vg.lvs.iter_mut().for_each(|lv| (lv.autoactivation, lv.activation_skip) = (true, false));
    });
    world.lvm.done();
    let before = anybody();
    world.local.adopt_all_nameless();
    assert_eq!(world.lvm.done(), ["lvchange", "lvchange"]);
    assert!(made.iter().all(is_kept) && anybody() == before - 25, "others' LVs are left as they are");
    // The group says no for all.
    world.lvm.edit(|vg| {
        vg.autoactivation = false;
        vg.lvs.iter_mut().for_each(|lv| (lv.autoactivation, lv.activation_skip) = (true, false));
    });
    world.local.adopt_all_nameless();
    assert_eq!(world.lvm.done(), [""; 0]);
}

#[tokio::test]
async fn the_lvs_by_which_a_driver_knows_its_own_get_their_name_last() {
    let had = |made: &[Volume]| {
        let had = made.iter().take(1).map(|volume| volume.uuid.clone()).collect();
        Arc::new(DriverIdentity { driver: "lvm.test".to_owned(), had, ..DriverIdentity::default() })
    };
    let (world, made) = nameless(Arc::new(Idle), 25, had).await;
    // The second command fails, and with it what runs: the next start goes on.
    world.lvm.fates([Fate::Works, Fate::Refused]);
    world.local.adopt_all_nameless();
    assert_eq!((named(&world, &made), named(&world, &made[..1])), (20, 0));
    world.local.adopt_nameless(&world.lvm.vg().name).await;
    assert_eq!(named(&world, &made), 25);
}

#[tokio::test]
async fn an_active_lv_without_a_grant_may_be_anothers() {
    let kernel = Arc::new(Active::default());
    let (world, made) = nameless(Arc::<Active>::clone(&kernel) as Arc<dyn Kernel>, 3, |_| default_identity()).await;
    let mode = Mode::new(AccessType::Block, crate::types::AccessMode::SingleNodeWriter, false);
    world.local.grant(made[0].id.clone(), NodeId::new("node-a").unwrap(), mode).await.unwrap();
    kernel.there.store(true, Ordering::SeqCst);
    world.local.adopt_all_nameless();
    assert_eq!((named(&world, &made), named(&world, &made[..1])), (1, 1));
    kernel.there.store(false, Ordering::SeqCst);
    world.local.adopt_all_nameless();
    assert_eq!(named(&world, &made), 3);
}
