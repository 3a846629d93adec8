//! The whole inventory of a node travels in one message.

use super::*;
use crate::types::{LvName, LvUuid};

/// gRPC's default limit for a message, in bytes.
const ORDINARY: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_volumes_with_long_names_are_heard_at_once() {
    let uuid = |number: usize| LvUuid::from_compact(&format!("{number:032}")).unwrap();
    let volume = |number: usize| Volume {
        id: VolumeId { vg: vg(), lv: LvName::new(format!("pvc-{number:059}")).unwrap() },
        uuid: uuid(number),
        size: Bytes(7),
        placement: crate::types::Placement::in_pool(LvName::new("p".repeat(63)).ok()),
        marks: Marks::blank(),
    };
    // Eight times as many as a group is promised to hold.
    let volumes: Vec<Volume> = (0..40_000).map(volume).collect();
    let named: usize = volumes.iter().map(|volume| volume.id.to_string().len() + volume.uuid.as_str().len()).sum();
    assert!(named > ORDINARY, "{named}");

    let directory = tempfile::tempdir().unwrap();
    let agent = Arc::new(Fake { volumes: Mutex::new(volumes), ..Fake::new("a") });
    let Serving { address, stopping: _stopping, caller, .. } = serving(directory.path(), &agent).await;
    let remote = Remote::new(agent.node.clone(), Some(&address.to_string()), caller).unwrap();
    until("all volumes are heard", async || remote.holdings().await.is_ok()).await;
    assert!(remote.holdings().await.unwrap() == agent.holdings().await.unwrap());
}
