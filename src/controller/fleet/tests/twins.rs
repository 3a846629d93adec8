//! Two nodes have groups with one UUID.

use super::*;
use crate::controller::{CapacityRequest, Filter, PublishRequest};
use crate::types::AccessMode::SingleNodeWriter;
use crate::volume::context::VolumeContext;

fn controller(nodes: &[&Arc<Fake>]) -> Controller {
    Controller::new(fleet(nodes), "lvm-csi.dev")
}

fn volume() -> Volume {
    let uuid = LvUuid::new(vg('l').as_str()).unwrap();
    Volume { id: id('a'), uuid, size: Bytes(1), placement: crate::types::Placement::LINEAR, marks: Marks::blank() }
}

fn snapshot() -> Snapshot {
    let id = SnapshotId { vg: vg('a'), lv: name::of_snapshot("snapshot-1") };
    Snapshot {
        id,
        of: super::id('a'),
        uuid: volume().uuid,
        size: Bytes(1),
        placement: crate::types::Placement::LINEAR,
        marks: Marks::blank(),
        created: 0,
    }
}

fn grant(holder: &str) -> Grant {
    Grant {
        vg: vg('a'),
        lv: volume().uuid,
        name: Some(id('a').lv),
        epoch: 1,
        mode: Mode::new(AccessType::Block, SingleNodeWriter, false),
        holder: NodeId::new(holder).unwrap(),
    }
}

/// A node with group `a`, the volume and a snapshot; `uses` says whether it has a grant of the volume.
fn twin(name: &str, uses: bool) -> Fake {
    Fake {
        volumes: vec![volume()],
        snapshots: vec![snapshot()],
        grants: uses.then(|| grant(name)).into_iter().collect(),
        ..node(name, Some('a'))
    }
}

fn creation(preferred: &[&str]) -> CreateRequest {
    let segments = |node: &&str| [("topology.lvm-csi.dev/node".to_owned(), (*node).to_owned())].into();
    CreateRequest {
        spec: VolumeSpec {
            name: VolumeName::new("pvc-2"),
            size: SizeRange { required: Bytes(64 << 20), limit: Bytes(0) },
            access: vec![AccessType::Block],
            source: None,
            parameters: Default::default(),
            claim: None,
        },
        claim: None,
        requisite: preferred.iter().map(segments).collect(),
        preferred: preferred.iter().map(segments).collect(),
    }
}

fn publication(node: &str) -> PublishRequest {
    let capability = Capability { access: AccessType::Block, mode: SingleNodeWriter, mount_flags: Vec::new() };
    PublishRequest { id: id('a'), node: node.to_owned(), capability, read_only: false, said: VolumeContext::default() }
}

/// Fails unless a change was refused with both nodes in the text and no agent was called.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, what: &str, nodes: &[&Arc<Fake>]) {
    let Err(Error::Precondition { what: group, reason }) = &answer else { panic!("{what}: {answer:?}") };
    assert!(group.contains("vg0") && group.contains(vg('a').as_str()), "{what}: {group}");
    assert!(
        reason.contains("a and b") && reason.contains("vgimportclone") && reason.contains("lvm-csi adopt"),
        "{what}: {reason}"
    );
    assert!(nodes.iter().all(|node| node.count() == 0), "{what}: an agent was called");
}

#[tokio::test]
async fn a_twin_of_a_group_does_not_answer_for_its_owner() {
    // Two machines of one template, or a disk that two machines see: both groups have one UUID. A pod on a has the volume.
    let attached = Error::precondition("volume v", "it is attached to node a; it must be detached first");
    let (a, b) = (Arc::new(node("a", Some('a')).answering(Err(attached))), Arc::new(node("b", Some('a'))));
    refused(delete(&[&a, &b], 'a').await, "DeleteVolume of a volume that is in use", &[&a, &b]);
    refused(delete(&[&b, &a], 'a').await.map_err(|error| swap(&error)), "in the other order", &[&a, &b]);
}

/// The error with the two nodes in the other order.
fn swap(error: &Error) -> Error {
    let Error::Precondition { what, reason } = error else { return error.clone() };
    Error::precondition(what.clone(), reason.replace("b and a", "a and b"))
}

#[tokio::test]
async fn a_twin_of_a_group_does_not_answer_for_an_owner_that_is_sick() {
    let sick = Error::unavailable("volume group vg0", "PV … is on no device of this node");
    let (a, b) = (Arc::new(node("a", Some('a')).answering(Err(sick))), Arc::new(node("b", Some('a'))));
    refused(delete(&[&a, &b], 'a').await, "DeleteVolume while the disk of its node is away", &[&a, &b]);
}

#[tokio::test]
async fn nothing_is_changed_in_groups_with_one_uuid() {
    let (a, b, c) = (Arc::new(twin("a", true)), Arc::new(twin("b", false)), Arc::new(node("c", Some('c'))));
    let all = [&a, &b, &c];
    let controller = controller(&all);
    let size = SizeRange { required: Bytes(2), limit: Bytes(0) };
    refused(controller.delete(&id('a')).await, "DeleteVolume", &all);
    refused(controller.expand(&id('a'), size).await, "ControllerExpandVolume", &all);
    let cut = snapshot::Request { name: "snapshot-2".to_owned(), source: id('a') };
    refused(controller.cut(&cut).await, "CreateSnapshot", &all);
    refused(controller.delete_snapshot(&snapshot().id).await, "DeleteSnapshot", &all);
    for node in ["a", "b"] {
        refused(controller.publish(publication(node)).await, "ControllerPublishVolume", &all);
        refused(controller.create(creation(&[node])).await, "CreateVolume", &all);
    }
    let mut there = creation(&[]);
    there.spec.name = VolumeName::new("pvc-1");
    refused(controller.create(there).await, "CreateVolume of one that is there", &all);
    // If the request names no node, another node gets the volume.
    assert_eq!(controller.create(creation(&[])).await.unwrap().0.as_str(), "c");
    let room = |node: &str| CapacityRequest { pool: None, topology: Some(controller.topology(&NodeId::new(node).unwrap())) };
    for (node, available) in [("a", 0), ("b", 0), ("c", 1 << 30)] {
        assert_eq!(controller.capacity(&room(node)).await.unwrap().available, Bytes(available), "{node}");
    }
    assert_eq!((a.count(), b.count(), c.count()), (0, 0, 1));
    // Other groups are not affected.
    controller.delete(&id('c')).await.unwrap();
    assert_eq!((a.count(), b.count(), c.count()), (0, 0, 1));
}

#[tokio::test]
async fn a_volume_that_two_nodes_have_is_listed_once_with_the_node_that_uses_it() {
    for order in [[true, false], [false, true]] {
        let (a, b) = (Arc::new(twin("a", order[0])), Arc::new(twin("b", order[1])));
        let user = if order[0] { "a" } else { "b" };
        let controller = controller(&[&a, &b]);
        for most in [0, 1] {
            let page = controller.volumes(most, "").await.unwrap();
            let rows: Vec<_> = page.entries.iter().map(|entry| (entry.node.as_str(), entry.published.len())).collect();
            assert_eq!((rows, page.next_token.as_str()), (vec![(user, 1)], ""));
        }
        let one = controller.volume(&id('a').to_string()).await.unwrap();
        assert_eq!((one.node.as_str(), one.published.len()), (user, 1));
        assert_eq!(controller.snapshots(&Filter::default(), 0, "").await.unwrap().entries.len(), 1);
        assert_eq!(controller.snapshot(&snapshot().id.to_string()).await.unwrap().id, snapshot().id);
    }
    // Both have a grant of it.
    let (a, b) = (Arc::new(twin("a", true)), Arc::new(twin("b", true)));
    let controller = controller(&[&a, &b]);
    let published: Vec<NodeId> = controller.volumes(0, "").await.unwrap().entries.swap_remove(0).published;
    assert_eq!(published.iter().map(NodeId::as_str).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(controller.volume(&id('a').to_string()).await.unwrap().published.len(), 2);
}

#[tokio::test]
async fn a_volume_is_released_at_the_node_that_uses_it() {
    let used = || Error::precondition("volume v", "node a still has it staged");
    let (a, b) = (Arc::new(twin("a", true).answering(Err(used()))), Arc::new(twin("b", false)));
    let (elsewhere, silent) = (Arc::new(node("c", Some('c'))), Arc::new(Fake { heard: false, ..node("d", None) }));
    let controller = controller(&[&a, &b, &elsewhere, &silent]);
    let counts = || (a.count(), b.count(), elsewhere.count(), silent.count());
    assert!(matches!(controller.unpublish(id('a'), "a").await, Err(Error::Precondition { .. })));
    assert_eq!(counts(), (1, 0, 0, 0));
    controller.unpublish(id('a'), "b").await.unwrap();
    assert_eq!(counts(), (0, 1, 0, 0));
    // From every node: the success of one says nothing about the other.
    assert!(matches!(controller.unpublish(id('a'), "").await, Err(Error::Precondition { .. })));
    assert_eq!(counts(), (1, 1, 0, 0));
    // A node that cannot have it is not called; a node that has never reported may have it.
    assert!(controller.unpublish(id('a'), "c").await.is_err());
    assert_eq!(counts(), (1, 1, 0, 0));
    controller.unpublish(id('a'), "d").await.unwrap();
    assert_eq!(counts(), (0, 0, 0, 1));
    *a.answer.lock().unwrap() = Ok(());
    for node in ["a", ""] {
        controller.unpublish(id('a'), node).await.unwrap();
    }
}

#[tokio::test]
async fn a_silent_node_that_had_the_group_blocks_changes() {
    // The disks of a were moved to b, or b has a copy. Whether a ever had the volume is unknown.
    let (a, b) = (Arc::new(node("a", Some('a'))), Arc::new(twin("b", false)));
    *a.away.lock().unwrap() = Some("it is off".to_owned());
    let agents: Agents = [&a, &b].map(|node| Arc::new(Arc::clone(node)) as Arc<dyn Agent>).into();
    let (_sender, agents) = watch::channel(Some(agents));
    let controller = |said| Controller::new(Fleet::following(agents.clone(), Arc::new(Said(said))), "lvm-csi.dev");
    let error = controller(Ok(Fate::Expected)).delete(&id('a')).await.unwrap_err();
    let Error::Unavailable { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.contains("node a") && reason.contains("it is off") && reason.contains("node b"), "{reason}");
    controller(Ok(Fate::Expected)).create(creation(&["b"])).await.unwrap_err();
    let unsure = Error::unavailable("node a", "the API server cannot be asked");
    assert!(matches!(controller(Err(unsure)).delete(&id('a')).await, Err(Error::Unavailable { .. })));
    assert_eq!((a.count(), b.count()), (0, 0));
    // A node that is gone for good uses nothing.
    controller(Ok(Fate::OutOfService)).delete(&id('a')).await.unwrap();
    assert_eq!((a.count(), b.count()), (0, 1));
}
