//! Which agents are called, and whose answer counts.

use std::sync::Mutex;

mod absent;
mod detached;
mod grow;
mod lists;
mod lost;
mod twins;

use super::*;
use crate::agent::Contents;
use crate::attach::{Grant, Mode, PublishContext, State, grant};
use crate::controller::{Controller, CreateRequest};
use crate::types::{AccessType, Bytes, Capability, Change, Changed, LvUuid, Object, SnapshotId, Usage, VgName, VolumeId};
use crate::volume::capacity::Capacity;
use crate::volume::create::VolumeSpec;
use crate::volume::inventory::{Snapshot, Volume};
use crate::volume::name::VolumeName;
use crate::volume::tag::Marks;
use crate::volume::{SizeRange, name, snapshot};

/// The present boot of every node.
const BOOT: &str = "boot1";

/// A node that answers every call as configured.
struct Fake {
    node: NodeId,
    vg: Option<VgUuid>,
    heard: bool,
    away: Mutex<Option<String>>,
    answer: Mutex<Result<(), Error>>,
    calls: Mutex<usize>,
    usage: Mutex<Vec<(VolumeId, Usage)>>,
    room: u64,
    volumes: Vec<Volume>,
    snapshots: Vec<Snapshot>,
    grants: Vec<Grant>,
    /// Its ledger's record of the one volume that a test detaches.
    state: Mutex<State>,
}

fn vg(letter: char) -> VgUuid {
    VgUuid::from_compact(&letter.to_string().repeat(32)).unwrap()
}

fn id(letter: char) -> VolumeId {
    VolumeId { vg: vg(letter), lv: name::of_volume("pvc-1") }
}

/// A node whose group, if any, has this letter as its UUID.
fn node(name: &str, has: Option<char>) -> Fake {
    Fake {
        node: NodeId::new(name).unwrap(),
        vg: has.map(vg),
        heard: true,
        away: Mutex::new(None),
        answer: Mutex::new(Ok(())),
        calls: Mutex::new(0),
        usage: Mutex::default(),
        room: 1 << 30,
        volumes: vec![],
        snapshots: vec![],
        grants: vec![],
        state: Mutex::default(),
    }
}

fn missing() -> Error {
    Error::missing(Object::Volume, "v")
}

impl Fake {
    fn answering(self, answer: Result<(), Error>) -> Self {
        Self { answer: Mutex::new(answer), ..self }
    }

    fn called(&self) -> Result<(), Error> {
        *self.calls.lock().unwrap() += 1;
        self.answer.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

#[tonic::async_trait]
impl Agent for Arc<Fake> {
    fn node(&self) -> &NodeId {
        &self.node
    }

    fn away(&self) -> Option<String> {
        self.away.lock().unwrap().clone()
    }

    async fn create(&self, _: String, spec: VolumeSpec) -> Result<Changed<Volume>, Error> {
        let vg = self.vg.clone().ok_or_else(missing)?;
        let id = VolumeId { lv: spec.name.lv().clone(), vg };
        let uuid = LvUuid::new(id.vg.as_str()).unwrap();
        let placement = crate::types::Placement::LINEAR;
        let object = Volume { id, uuid, size: Bytes(1), placement, marks: Marks::blank() };
        self.called().map(|()| Changed { object, change: Change::Made })
    }

    async fn delete(&self, id: VolumeId) -> Result<Change, Error> {
        self.called()?;
        match &self.state.lock().unwrap().grant {
            Some(_) => Err(Error::precondition(format!("volume {id}"), "it must be detached first")),
            None => Ok(Change::Removed),
        }
    }

    async fn expand(&self, _: VolumeId, _: SizeRange) -> Result<Changed<Volume>, Error> {
        self.called()?;
        Err(missing())
    }

    async fn snapshot(&self, _: snapshot::Request) -> Result<Changed<Snapshot>, Error> {
        self.called()?;
        Err(missing())
    }

    async fn delete_snapshot(&self, _: SnapshotId) -> Result<Change, Error> {
        self.called().map(|()| Change::Removed)
    }

    async fn grant(&self, _: VolumeId, _: NodeId, _: Mode) -> Result<PublishContext, Error> {
        self.called()?;
        Err(missing())
    }

    async fn release(&self, id: VolumeId, node: Option<NodeId>) -> Result<(), Error> {
        self.called()?;
        let mut state = self.state.lock().unwrap();
        if grant::release(&state, &id, node.as_ref(), BOOT)? {
            *state = State::default();
        }
        Ok(())
    }

    async fn usage(&self, ids: Vec<VolumeId>) -> Result<Vec<(VolumeId, Usage)>, Error> {
        self.called()?;
        Ok(self.usage.lock().unwrap().iter().filter(|(id, _)| ids.contains(id)).cloned().collect())
    }

    async fn offers(&self) -> Result<Arc<[Offer]>, Error> {
        let vg = VgName::new("vg0").unwrap();
        Ok([Offer { name: "fast".to_owned(), vg, default_size: Bytes::GIB, is_default: true }].into())
    }

    async fn holdings(&self) -> Result<Arc<Holdings>, Error> {
        if !self.heard {
            return Err(Error::unavailable(format!("node {}", self.node), "it has not said anything yet"));
        }
        let contents = |vg: &VgUuid| Contents {
            vg: vg.clone(),
            volumes: self.volumes.clone(),
            snapshots: self.snapshots.clone(),
            unfinished: vec![],
        };
        let known = self.vg.as_ref().map(|vg| Arc::new(contents(vg)));
        let left = Capacity { available: Bytes(self.room), maximum: Bytes(self.room), minimum: Bytes(1) };
        Ok(Arc::new(Holdings {
            groups: vec![(VgName::new("vg0").unwrap(), Ok(known))],
            pools: vec![("fast".to_owned(), Ok(left))],
            grants: self.grants.clone(),
            ..Holdings::default()
        }))
    }
}

fn fleet(nodes: &[&Arc<Fake>]) -> Fleet {
    Fleet::new(nodes.iter().map(|node| Arc::new(Arc::clone(node)) as Arc<dyn Agent>).collect())
}

async fn delete(nodes: &[&Arc<Fake>], letter: char) -> Result<(), Error> {
    fleet(nodes).ask(&vg(letter), |agent| async move { agent.delete(id(letter)).await }).await.map(drop)
}

#[tokio::test]
async fn only_the_node_that_reported_a_group_is_called() {
    let (a, b) = (Arc::new(node("a", Some('a'))), Arc::new(node("b", Some('b')).answering(Err(missing()))));
    let silent = Arc::new(Fake { heard: false, ..node("c", None) });
    delete(&[&a, &b, &silent], 'a').await.unwrap();
    assert_eq!((a.count(), b.count(), silent.count()), (1, 0, 0));
    // Its answer is final, even that it no longer has the volume.
    assert!(matches!(delete(&[&a, &b, &silent], 'b').await, Err(Error::Missing { .. })));
    assert_eq!((a.count(), b.count(), silent.count()), (0, 1, 0));
}

#[tokio::test]
async fn a_group_that_no_node_reported_waits_for_silent_nodes_and_then_all_are_called() {
    let (a, b) = (Arc::new(node("a", Some('a'))), Arc::new(node("b", Some('b'))));
    let silent = Arc::new(Fake { heard: false, ..node("c", None) });
    let error = delete(&[&a, &b, &silent], 'z').await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { what, .. } if what == "node c"), "{error}");
    *b.away.lock().unwrap() = Some("it is off".to_owned());
    let error = delete(&[&a, &b], 'z').await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { what, reason } if what == "node b" && reason.contains("it is off")), "{error}");
    assert_eq!((a.count(), b.count(), silent.count()), (0, 0, 0));
    *b.away.lock().unwrap() = None;
    delete(&[&a, &b], 'z').await.unwrap();
    assert_eq!((a.count(), b.count()), (1, 1));
    // A node that cannot tell whether it has the volume outweighs those that do not have it.
    let unsure = Error::unavailable("volume group vg0", "its disks are away");
    let unsure = Arc::new(node("d", None).answering(Err(unsure)));
    assert!(matches!(delete(&[&a, &unsure, &b], 'z').await, Err(Error::Unavailable { .. })));
    let none = Arc::new(node("e", None).answering(Err(missing())));
    delete(&[&none, &a], 'z').await.unwrap();
    assert!(matches!(delete(&[&none, &none], 'z').await, Err(Error::Missing { .. })));
    assert!(matches!(delete(&[], 'z').await, Err(Error::Unavailable { .. })));
}

/// The same fate for every node.
struct Said(Result<Fate, Error>);

#[tonic::async_trait]
impl Nodes for Said {
    async fn fate(&self, _: &NodeId) -> Result<Fate, Error> {
        self.0.clone()
    }
}

#[tokio::test]
async fn a_volume_is_detached_from_a_permanently_lost_node_without_a_call() {
    let (a, b) = (Arc::new(node("a", Some('a'))), Arc::new(node("b", Some('b'))));
    let agents: Agents = [&a, &b].map(|node| Arc::new(Arc::clone(node)) as Arc<dyn Agent>).into();
    let (_sender, agents) = watch::channel(Some(agents));
    let controller = |said| Controller::new(Fleet::following(agents.clone(), Arc::new(Said(said))), "lvm-csi.dev");
    let off = || Error::unavailable("node b", "the API server cannot be asked");
    // While the node can be reached, it is called.
    for said in [Ok(Fate::Gone), Ok(Fate::OutOfService), Ok(Fate::Expected), Err(off())] {
        controller(said).unpublish(id('b'), "b").await.unwrap();
        assert_eq!(b.count(), 1);
    }
    *b.away.lock().unwrap() = Some("it is off".to_owned());
    for (said, freed) in
        [(Ok(Fate::Gone), true), (Ok(Fate::OutOfService), true), (Ok(Fate::Expected), false), (Err(off()), false)]
    {
        *b.answer.lock().unwrap() = Err(off());
        let answer = controller(said.clone()).unpublish(id('b'), "b").await;
        assert_eq!(answer.is_ok(), freed, "{said:?}: {answer:?}");
        assert_eq!(b.count(), usize::from(matches!(said, Ok(Fate::Expected))), "{said:?}");
    }
    // A node that has no agent any more.
    controller(Ok(Fate::Gone)).unpublish(id('z'), "z").await.unwrap();
    assert_eq!((a.count(), b.count()), (0, 0));
}

#[tokio::test]
async fn every_call_waits_for_the_list_of_agents() {
    let (sender, agents) = watch::channel(None);
    let controller = Controller::new(Fleet::following(agents, Arc::new(Said(Ok(Fate::Gone)))), "lvm-csi.dev");
    let gone = id('a');
    let (deleted, freed, listed) =
        tokio::join!(controller.delete(&gone), controller.unpublish(id('a'), "a"), controller.volumes(0, ""));
    for answer in [deleted.map(drop), freed, listed.map(drop)] {
        assert!(matches!(&answer, Err(Error::Unavailable { what, .. }) if what == "the nodes"), "{answer:?}");
    }
    let a = Arc::new(node("a", Some('a')));
    sender.send_replace(Some([Arc::new(Arc::clone(&a)) as Arc<dyn Agent>].into()));
    controller.delete(&id('a')).await.unwrap();
    assert_eq!(a.count(), 1);
}

#[tokio::test]
async fn a_single_agent_decides_about_everything_whatever_it_reported() {
    let only = Arc::new(Fake { heard: false, ..node("a", None) });
    delete(&[&only], 'z').await.unwrap();
    assert_eq!(only.count(), 1);
}

#[tokio::test]
async fn a_creation_with_an_unknown_result_is_repeated_on_the_same_node() {
    let large = Arc::new(node("a", Some('a')));
    let small = Arc::new(Fake { room: 1 << 20, ..node("b", Some('b')) });
    let controller = Controller::new(fleet(&[&large, &small]), "lvm-csi.dev");
    let request = || CreateRequest {
        spec: VolumeSpec {
            name: VolumeName::new("pvc-1"),
            size: SizeRange { required: Bytes(64 << 20), limit: Bytes(0) },
            access: vec![AccessType::Block],
            source: None,
            parameters: Default::default(),
            claim: None,
        },
        claim: None,
        requisite: Vec::new(),
        preferred: Vec::new(),
    };
    *large.answer.lock().unwrap() = Err(Error::unavailable("node a", "the connection broke"));
    controller.create(request()).await.unwrap_err();
    *large.away.lock().unwrap() = Some("it is off".to_owned());
    controller.create(request()).await.unwrap_err();
    assert_eq!((large.count(), small.count()), (2, 0));
    // After a final answer the next try may go to another node.
    *large.answer.lock().unwrap() = Err(Error::Exhausted { what: "volume".to_owned(), reason: "full".to_owned() });
    controller.create(request()).await.unwrap_err();
    let (node, _) = controller.create(request()).await.unwrap();
    assert_eq!((node.as_str(), large.count(), small.count()), ("b", 1, 1));
}
