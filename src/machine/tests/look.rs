//! What a node reports while a disk of one of its groups hangs.

use std::time::{Duration, Instant};

use super::*;

const LONG: Duration = Duration::from_secs(30);

/// The groups and pools that a node reports, by name, with the number of volumes in each group.
async fn reported(world: &World) -> (Vec<(String, usize)>, Vec<(String, bool)>) {
    let holdings = world.machine.holdings().await.unwrap();
    let groups = holdings.groups.iter().filter_map(|(name, known)| {
        let contents = known.as_ref().ok()?.as_ref()?;
        Some((name.to_string(), contents.volumes.len()))
    });
    (groups.collect(), holdings.pools.iter().map(|(name, state)| (name.clone(), state.is_ok())).collect())
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::await_holding_lock, reason = "it is the disk that hangs meanwhile")]
async fn a_group_that_hangs_keeps_nothing_back_of_the_others() {
    let mut world = world();
    let sick = Simulated::new(GROUP);
    let name = VgName::new("sick").unwrap();
    sick.edit(|vg| {
        record(vg, "a");
        vg.name = name.clone();
        vg.uuid = VgUuid::from_compact(&"s".repeat(32)).unwrap();
    });
    let identity = Arc::new(DriverIdentity { driver: "lvm.test".to_owned(), ..DriverIdentity::default() });
    let machine = Arc::get_mut(&mut world.machine).unwrap();
    let group = Group::new(name.clone(), Box::new(Arc::clone(&sick)), Arc::clone(&machine.kernel), identity, &machine_id("a"));
    machine.groups.insert(name.clone(), group);
    let pool = PoolConfig { name: "sick".to_owned(), vg: name, ..machine.pools[0].clone() };
    machine.pools.push(pool);
    world.create(&wish("pvc-1", "linear", 8)).await.unwrap();
    let begun = Instant::now();
    for seen in [false, true] {
        let held = sick.hang();
        for count in 2..32 {
            world.create(&wish(&format!("pvc-{seen}-{count}"), "linear", 8)).await.unwrap();
            let (groups, pools) = reported(&world).await;
            let expected = count + if seen { 30 } else { 0 };
            assert!(groups.contains(&("vg".to_owned(), expected)), "{groups:?}");
            // A group that was read before keeps its last state.
            assert_eq!((groups.iter().any(|(name, _)| name == "sick"), pools.last().unwrap().1), (seen, seen));
        }
        drop(held);
        loop {
            let (groups, pools) = reported(&world).await;
            if groups.iter().any(|(name, _)| name == "sick") && pools.iter().all(|(_, there)| *there) {
                break;
            }
            assert!(begun.elapsed() < LONG, "{groups:?} {pools:?}");
        }
    }
    // It is waited for once, for a second, and not by each of the sixty.
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
}
