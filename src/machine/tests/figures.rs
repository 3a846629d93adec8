//! What the machine reports between calls.

use super::*;
use crate::types::{AccessMode, PoolMode, ThinPoolStatus};

fn pool<'a>(figures: &'a crate::machine::Figures, name: &str) -> &'a crate::machine::PoolFigures {
    figures.pools.iter().find(|pool| pool.name == name).unwrap()
}

#[tokio::test]
async fn figures_follow_what_is_there() {
    const MIB: u64 = 1 << 20;
    let world = world();
    // Nothing was read yet.
    assert_eq!(world.machine.figures(), crate::machine::Figures { grants: free(0, 0), ..Default::default() });
    let made = world.create(&wish("pvc-1", "linear", 64)).await.unwrap();
    let before = world.machine.figures();
    let thin = world.create(&wish("pvc-2", "thin", 64)).await.unwrap();
    let now = world.machine.figures();
    let linear = pool(&now, "linear");
    assert_eq!((linear.provisioned, linear.used), (Bytes(64 * MIB), None));
    assert_eq!(linear.available.0 + linear.provisioned.0, pool(&before, "linear").available.0 + 64 * MIB);
    assert!(linear.size > pool(&now, "thin").size);
    assert_eq!(pool(&now, "thin").provisioned.0, pool(&before, "thin").provisioned.0 + 64 * MIB);
    let told = |id, pool: &str| (id, pool.to_owned(), Bytes(64 * MIB));
    assert!(now.volumes.contains(&told(made.id.clone(), "linear")) && now.volumes.contains(&told(thin.id, "thin")), "{now:?}");

    let vg = world.lvm.vg();
    let lv = vg.lv("pool").unwrap();
    let status = ThinPoolStatus {
        mode: PoolMode::ReadWrite,
        used_data: 96,
        total_data: 100,
        used_metadata: 1,
        total_metadata: 4,
        error_if_no_space: false,
        needs_check: false,
    };
    world.machine.note_fill(&lv.uuid, Some(status));
    let full = world.machine.figures();
    assert_eq!((pool(&full, "thin").used, pool(&full, "thin").available), (Some((0.96, 0.25)), Bytes(0)));
    world.machine.note_fill(&lv.uuid, None);
    assert_eq!(world.machine.figures().pools, now.pools);

    let mode = Mode::new(AccessType::Block, AccessMode::SingleNodeWriter, false);
    let count = now.volumes.len() as u64;
    assert_eq!(now.grants, free(count, 0));
    world.machine.grant(made.id.clone(), world.machine.node.clone(), mode).await.unwrap();
    assert_eq!(world.machine.figures().grants, free(count - 1, 1));
    world.machine.release(made.id.clone(), None).await.unwrap();
    world.machine.delete(made.id.clone()).await.unwrap();
    // A series ends with its volume.
    assert!(!world.machine.figures().volumes.iter().any(|(id, _, _)| *id == made.id));
}

fn free(free: u64, granted: u64) -> Vec<(&'static str, u64)> {
    vec![("free", free), ("granted", granted), ("staged", 0), ("releasing", 0)]
}
