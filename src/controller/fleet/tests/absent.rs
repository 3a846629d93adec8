//! A node that has not reported since the controller's start.

use super::*;
use crate::controller::{CapacityRequest, Filter, Segments};
use crate::types::ClaimName;

pub(super) const DRIVER: &str = "lvm-csi.dev";

pub(super) fn request(number: u32, preferred: &[&str]) -> CreateRequest {
    let key = crate::controller::topology_key(DRIVER);
    let on = |node: &&str| Segments::from([(key.clone(), (*node).to_owned())]);
    CreateRequest {
        spec: VolumeSpec {
            name: VolumeName::new(format!("pvc-{number}")),
            size: SizeRange { required: Bytes(64 << 20), limit: Bytes(0) },
            access: vec![AccessType::Block],
            source: None,
            parameters: Default::default(),
            claim: None,
        },
        claim: Some(ClaimName { namespace: "shop".to_owned(), name: format!("data-{number}"), uid: number.to_string() }),
        requisite: Vec::new(),
        preferred: preferred.iter().map(on).collect(),
    }
}

/// A node that has been off since before the controller's start.
pub(super) fn off(name: &str) -> Arc<Fake> {
    let answer = Mutex::new(Err(Error::unavailable(format!("node {name}"), "it is off")));
    Arc::new(Fake { heard: false, away: Mutex::new(Some("it is off".to_owned())), answer, ..node(name, Some('o')) })
}

pub(super) fn volume(letter: char, name: &str) -> Volume {
    let id = VolumeId { lv: name::of_volume(name), ..id(letter) };
    let uuid = LvUuid::new(id.vg.as_str()).unwrap();
    Volume { id, uuid, size: Bytes(1), placement: crate::types::Placement::LINEAR, marks: Marks::blank() }
}

#[track_caller]
pub(super) fn waits<T: std::fmt::Debug>(answer: Result<T, Error>, node: &str) {
    assert!(matches!(&answer, Err(Error::Unavailable { what, .. }) if *what == format!("node {node}")), "{answer:?}");
}

#[tokio::test]
async fn a_node_that_has_never_reported_does_not_block_the_others() {
    let a = Arc::new(Fake { volumes: vec![volume('a', "pvc-1")], ..node("a", Some('a')) });
    let silent = off("b");
    let fleet = fleet(&[&a, &silent]);
    let controller = Controller::new(fleet.clone(), DRIVER);
    // It may be about to report.
    waits(controller.volumes(0, "").await, "b");
    waits(controller.snapshots(&Filter::default(), 0, "").await, "b");
    fleet.unheard.lock().unwrap().values_mut().for_each(|since| *since -= UNHEARD);
    assert_eq!(controller.volumes(0, "").await.unwrap().entries.len(), 1);
    assert_eq!(controller.snapshots(&Filter::default(), 0, "").await.unwrap().entries.len(), 0);
    let everywhere = CapacityRequest { pool: None, topology: None };
    assert_eq!(controller.capacity(&everywhere).await.unwrap().available, Bytes(1 << 30));
    // An object that it may have is not reported missing; one in another node's group is.
    let snapshot = |letter| Filter { snapshot: Some(format!("{}/snap-1", vg(letter))), source: None };
    waits(controller.snapshots(&snapshot('z'), 0, "").await, "b");
    assert!(controller.snapshots(&snapshot('a'), 0, "").await.unwrap().entries.is_empty());
    waits(controller.volume(&id('z').to_string()).await, "b");
    let gone = VolumeId { lv: name::of_volume("pvc-9"), ..id('a') };
    assert!(matches!(controller.volume(&gone.to_string()).await, Err(Error::Missing { .. })));
    // Without a book, it may already have a volume whose request names no node.
    waits(controller.create(request(7, &[])).await, "b");
    assert_eq!(a.count(), 0);
    assert_eq!(controller.create(request(2, &["a"])).await.unwrap().0.as_str(), "a");
    // If no node has reported, every list fails.
    let alone = super::fleet(&[&silent]);
    let controller = Controller::new(alone.clone(), DRIVER);
    waits(controller.volumes(0, "").await, "b");
    alone.unheard.lock().unwrap().values_mut().for_each(|since| *since -= UNHEARD);
    waits(controller.volumes(0, "").await, "b");
}
