//! LVs of an earlier version.

use super::*;

/// The identity of the world's driver, as one with the default name.
fn default_identity() -> Arc<DriverIdentity> {
    Arc::new(DriverIdentity { driver: "lvm.test".to_owned(), is_default: true, ..DriverIdentity::default() })
}

/// A world with this many volumes without a driver's name, seen by a driver with this identity.
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
    Arc::get_mut(&mut world.machine).unwrap().groups.values_mut().for_each(|group| group.identity = Arc::clone(&identity));
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
    world.machine.start();
    assert_eq!(named(&world, &made), 0, "the first look waits for none of it");
    world.lvm.done();
    world.machine.adopt_all_nameless();
    let batches = world.lvm.done();
    assert!(batches.len() >= 3 && batches.iter().all(|command| command == "lvchange"), "{batches:?}");
    assert_eq!(named(&world, &made), 45);
    world.machine.adopt_all_nameless();
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
    world.machine.adopt_all_nameless();
    assert_eq!(world.lvm.done(), ["lvchange", "lvchange"]);
    assert!(made.iter().all(is_kept) && anybody() == before - 25, "others' LVs are left as they are");
    // The group itself turns autoactivation off.
    world.lvm.edit(|vg| {
        vg.autoactivation = false;
        vg.lvs.iter_mut().for_each(|lv| (lv.autoactivation, lv.activation_skip) = (true, false));
    });
    world.machine.adopt_all_nameless();
    assert_eq!(world.lvm.done(), [""; 0]);
}

#[tokio::test]
async fn the_lvs_by_which_a_driver_knows_its_own_get_their_name_last() {
    let had = |made: &[Volume]| {
        let had = made.iter().take(1).map(|volume| volume.uuid.clone()).collect();
        Arc::new(DriverIdentity { driver: "lvm.test".to_owned(), had, ..DriverIdentity::default() })
    };
    let (world, made) = nameless(Arc::new(Idle), 25, had).await;
    // The second command fails and ends the run; the next start goes on.
    world.lvm.fates([Fate::Works, Fate::Refused]);
    world.machine.adopt_all_nameless();
    assert_eq!((named(&world, &made), named(&world, &made[..1])), (20, 0));
    world.machine.adopt_nameless(&world.lvm.vg().name).await;
    assert_eq!(named(&world, &made), 25);
}

#[tokio::test]
async fn an_active_lv_without_a_grant_may_be_anothers() {
    let kernel = Arc::new(Activity::default());
    let (world, made) = nameless(Arc::<Activity>::clone(&kernel) as Arc<dyn Kernel>, 3, |_| default_identity()).await;
    let mode = Mode::new(AccessType::Block, crate::types::AccessMode::SingleNodeWriter, false);
    world.machine.grant(made[0].id.clone(), NodeId::new("node-a").unwrap(), mode).await.unwrap();
    kernel.there.store(true, Ordering::SeqCst);
    world.machine.adopt_all_nameless();
    assert_eq!((named(&world, &made), named(&world, &made[..1])), (1, 1));
    kernel.there.store(false, Ordering::SeqCst);
    world.machine.adopt_all_nameless();
    assert_eq!(named(&world, &made), 3);
}

/// A world with three unnamed LVs, and with a configured pool that nobody creates.
async fn incomplete() -> (World, Vec<Volume>, BTreeSet<String>) {
    let (mut world, made) = nameless(Arc::new(Idle), 3, |_| default_identity()).await;
    let machine = Arc::get_mut(&mut world.machine).unwrap();
    let missing = LayoutConfig::Thin(ThinPoolConfig {
        pool: Some(LvName::new("later").unwrap()),
        create: None,
        overprovision_percent: 100,
        max_snapshots: 0,
        care: PoolCare::default(),
        if_present: false,
    });
    let pool = PoolConfig { name: "missing".to_owned(), layout: missing, ..machine.pools[1].clone() };
    machine.pools = vec![machine.pools[0].clone(), pool];
    (world, made, BTreeSet::from(["missing".to_owned()]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_never_there_keeps_nothing_else_of_its_group_back() {
    let (world, made, _) = incomplete().await;
    let (sender, first) = tokio::sync::oneshot::channel();
    let begins = tokio::spawn(Arc::clone(&world.machine).begin_group(world.lvm.vg().name, sender));
    first.await.unwrap();
    let begun = std::time::Instant::now();
    while named(&world, &made) < 3 {
        assert!(begun.elapsed().as_secs() < 30, "the LVs of an earlier version were not given their name");
        tokio::task::yield_now().await;
    }
    assert!(!begins.is_finished());
    begins.abort();
}

#[tokio::test]
async fn a_pool_is_tried_again_when_it_comes_and_not_at_each_change() {
    let (world, _, missing) = incomplete().await;
    let name = world.lvm.vg().name;
    let group_too = BTreeSet::from([String::new(), "missing".to_owned()]);
    world.machine.groups[&name].inventory().unwrap();
    let (pools, group) = (world.machine.awaited(&name, &missing), world.machine.awaited(&name, &group_too));
    world.create(&wish("pvc-new", "linear", 4)).await.unwrap();
    assert_eq!(world.machine.awaited(&name, &missing), pools);
    assert_ne!(world.machine.awaited(&name, &group_too), group);
    world.lvm.edit(|vg| {
        for lv in &mut vg.lvs {
            if lv.name == "pool" {
                lv.name = "later".to_owned();
            }
        }
    });
    world.machine.groups[&name].inventory().unwrap();
    assert_ne!(world.machine.awaited(&name, &missing), pools);
}
