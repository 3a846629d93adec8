//! Deletions that wait together.

use std::time::{Duration, Instant};

use super::*;

/// Makes volumes `pvc-<number>` in a pool and deletes all of them while somebody else has the turn. Gives the LVM commands that
/// this cost; what becomes of the first ones is in `fates`.
async fn delete_at_once(pool: &str, count: usize, fates: &[Fate]) -> Vec<String> {
    let world = world();
    let mut made = Vec::new();
    for number in 0..count {
        made.push(world.create(&wish(&format!("pvc-{number}"), pool, 8)).await.unwrap());
    }
    world.lvm.done();
    let group = world.local.groups.values().next().unwrap();
    let turn = group.lvm.turn().unwrap();
    let deletions = made.into_iter().map(|volume| {
        let local = Arc::clone(&world.local);
        tokio::spawn(async move { local.delete(volume.id).await })
    });
    let deletions: Vec<_> = deletions.collect();
    let limit = Instant::now() + Duration::from_secs(30);
    while group.removals.count() < count {
        assert!(Instant::now() < limit, "{} of {count} deletions wait", group.removals.count());
        tokio::task::yield_now().await;
    }
    world.lvm.fates(fates.iter().copied());
    drop(turn);
    for (number, deletion) in deletions.into_iter().enumerate() {
        deletion.await.unwrap().unwrap();
        assert_eq!(world.class(&format!("pvc-{number}")), None);
    }
    assert_eq!(group.removals.count(), 0);
    world.lvm.done()
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_that_wait_go_in_one_command() {
    assert_eq!(delete_at_once("linear", 10, &[]).await, ["lvremove"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_of_thin_volumes_go_one_by_one() {
    assert_eq!(delete_at_once("thin", 3, &[]).await, ["lvremove"; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_in_company_is_tried_alone() {
    // The first command removes nothing; whoever ran it goes on alone, and the next one takes the third along.
    for fate in [Fate::Refused, Fate::Nothing] {
        assert_eq!(delete_at_once("linear", 3, &[fate]).await, ["lvremove"; 3]);
    }
}
