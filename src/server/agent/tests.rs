//! Both ends of the connection between controller and agent, over real sockets in one process.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::certs::Authority;
use tokio::sync::watch;
use tokio::task::JoinHandle;

mod hung;
mod large;
mod request_id;
mod silent;

use super::*;
use crate::agent::{Agent, Contents, Holdings, Offer, Remote};
use crate::attach::{Mode, PublishContext};
use crate::host::{Invocation, effect, run};
use crate::inflight::{Operation, Reservation, within};
use crate::tls::Files;
use crate::types::{Bytes, Change, Changed, Error, NodeId, SnapshotId, Usage, VgName, VgUuid, VolumeId};
use crate::volume::create::VolumeSpec;
use crate::volume::inventory::{Snapshot, Volume};
use crate::volume::name::VolumeName;
use crate::volume::tag::Marks;
use crate::volume::{SizeRange, name, snapshot};

const DRIVER: &str = "lvm-csi.dev";

/// A node that keeps its volumes in memory.
struct Fake {
    node: NodeId,
    volumes: Mutex<Vec<Volume>>,
    /// Calls that came and are never answered.
    endless: AtomicUsize,
}

impl Fake {
    fn new(node: &str) -> Self {
        Self { node: NodeId::new(node).unwrap(), volumes: Mutex::default(), endless: AtomicUsize::default() }
    }
}

fn vg() -> VgUuid {
    VgUuid::new("AbCdEf-0123-4567-89ab-cdef-0123-456789").unwrap()
}

fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: VolumeName::new(name),
        size: SizeRange::default(),
        access: vec![],
        source: None,
        parameters: crate::types::Parameters::default(),
        claim: None,
    }
}

#[tonic::async_trait]
impl Agent for Fake {
    fn node(&self) -> &NodeId {
        &self.node
    }

    async fn create(&self, _: String, spec: VolumeSpec) -> Result<Changed<Volume>, Error> {
        match spec.name.csi() {
            "endless" => {
                self.endless.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            }
            "program" => {
                let work = |_: &Reservation| {
                    let ended = effect("test.effect", &"v", || run(&Invocation::new("/bin/sh", ["-c", "exit 3"])));
                    Err(Error::busy("v", format!("it ended with {}", ended.unwrap().status)))
                };
                Inflight::default().run(Operation::new("CreateVolume", "v", ()), work).await
            }
            "full" => Err(Error::Exhausted { what: "volume full".to_owned(), reason: "nothing is left".to_owned() }),
            name => {
                let id = VolumeId { vg: vg(), lv: name::of_volume(name) };
                let uuid = crate::types::LvUuid::new(vg().as_str()).unwrap();
                let volume =
                    Volume { id, uuid, size: Bytes(7), placement: crate::types::Placement::LINEAR, marks: Marks::blank() };
                self.volumes.lock().unwrap().push(volume.clone());
                Ok(Changed { object: volume, change: Change::Made })
            }
        }
    }

    async fn delete(&self, id: VolumeId) -> Result<Change, Error> {
        self.volumes.lock().unwrap().retain(|volume| volume.id != id);
        Ok(Change::Removed)
    }

    async fn expand(&self, id: VolumeId, _: SizeRange) -> Result<Changed<Volume>, Error> {
        Err(Error::busy(format!("volume {id}"), "CreateVolume is running"))
    }

    async fn snapshot(&self, request: snapshot::Request) -> Result<Changed<Snapshot>, Error> {
        Err(Error::missing(crate::types::Object::Volume, request.source.to_string()))
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<Change, Error> {
        Err(Error::failed(format!("snapshot {id}"), io::Error::other("disk on fire")))
    }

    async fn grant(&self, id: VolumeId, _: NodeId, mode: Mode) -> Result<PublishContext, Error> {
        let lv = crate::types::LvUuid::new(vg().as_str()).unwrap();
        Ok(PublishContext { vg: id.vg, lv, epoch: 9, mode })
    }

    async fn release(&self, _: VolumeId, node: Option<NodeId>) -> Result<(), Error> {
        node.map_or(Ok(()), |node| Err(Error::precondition("v", format!("{node} has it"))))
    }

    async fn usage(&self, ids: Vec<VolumeId>) -> Result<Vec<(VolumeId, Usage)>, Error> {
        match ids.as_slice() {
            [] => Err(Error::busy("the filesystems of this node", "they are being measured")),
            [id, ..] => Ok(vec![(id.clone(), Usage { used: Bytes(3), available: Bytes(4) })]),
        }
    }

    async fn offers(&self) -> Result<Arc<[Offer]>, Error> {
        let vg = VgName::new("vg0").unwrap();
        Ok([Offer { name: "fast".to_owned(), vg, default_size: Bytes(1), is_default: true }].into())
    }

    async fn holdings(&self) -> Result<Arc<Holdings>, Error> {
        let volumes = self.volumes.lock().unwrap().clone();
        let contents = Contents { vg: vg(), volumes, snapshots: vec![], unfinished: vec![] };
        let groups = vec![(VgName::new("vg0").unwrap(), Ok(Some(Arc::new(contents))))];
        let notices = vec![("fast".to_owned(), "it runs full".to_owned())];
        Ok(Arc::new(Holdings { groups, notices, ..Holdings::default() }))
    }
}

fn credentials(authority: &Authority, directory: &Path, name: &str) -> Arc<Credentials> {
    let made = authority.issue(&directory.join(name), name).unwrap();
    Arc::new(Credentials::load(Files { ca: made.ca, cert: made.cert, key: made.key }, DRIVER).unwrap())
}

/// A served node, and what a caller needs.
struct Serving {
    address: SocketAddr,
    stopping: watch::Sender<bool>,
    task: JoinHandle<()>,
    /// The credentials of the node `a`.
    door: Arc<Credentials>,
    /// The credentials of a controller.
    caller: Arc<Credentials>,
}

/// Serves an agent with the certificate of the node `a`. All certificate files lie in the directory.
async fn serving(directory: &Path, agent: &Arc<Fake>) -> Serving {
    let authority = Authority::new().unwrap();
    let door = credentials(&authority, directory, "a.node.lvm-csi.dev");
    let (address, stopping, task) = served(([127, 0, 0, 1], 0).into(), &door, agent, idle()).await;
    let caller = credentials(&authority, directory, "controller.lvm-csi.dev");
    Serving { address, stopping, task, door, caller }
}

/// No operations that a shutdown would wait for.
fn idle() -> (Inflight, Groups) {
    (Inflight::default(), Groups::none())
}

/// Serves the node `a` at an address (port 0: any free port) until the sender says stop.
async fn served(
    address: SocketAddr,
    credentials: &Arc<Credentials>,
    agent: &Arc<Fake>,
    operations: (Inflight, Groups),
) -> (SocketAddr, watch::Sender<bool>, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stopping, stops) = watch::channel(false);
    let service = AgentService::new(Arc::clone(agent) as Arc<dyn Agent>, DRIVER, stops.clone());
    let mut stopped = stops;
    let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
    let credentials = Arc::clone(credentials);
    let task = tokio::spawn(async move { serve_agent(listener, credentials, service, operations, stop).await.unwrap() });
    (address, stopping, task)
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_and_news_cross_the_wire_and_come_back_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Arc::new(Fake::new("a"));
    let Serving { address, stopping, task, door, caller } = serving(directory.path(), &agent).await;
    let remote = Remote::new(agent.node.clone(), Some(&address.to_string()), Arc::clone(&caller)).unwrap();

    assert_eq!(remote.offers().await.unwrap(), agent.offers().await.unwrap());
    assert_eq!(remote.holdings().await.unwrap(), agent.holdings().await.unwrap());
    // The controller sees a change by the time the call answers. Fifty rounds rule out luck.
    for number in 0..50 {
        let made = remote.create("fast".to_owned(), spec(&format!("pvc-x{number}"))).await.unwrap();
        assert_eq!(made.change, Change::Made);
        let made = made.object;
        assert!(remote.holdings().await.unwrap().volumes().any(|volume| *volume == made), "{number}");
        assert_eq!(remote.delete(made.id.clone()).await.unwrap(), Change::Removed);
        assert!(!remote.holdings().await.unwrap().volumes().any(|volume| *volume == made), "{number}");
    }
    let volume = remote.create("fast".to_owned(), spec("pvc-1")).await.unwrap().object;
    assert_eq!(remote.holdings().await.unwrap().volumes().collect::<Vec<_>>(), [&volume]);
    let mode = Mode::parse("ro,block,SINGLE_NODE_WRITER").unwrap();
    let context = remote.grant(volume.id.clone(), agent.node.clone(), mode.clone()).await.unwrap();
    assert_eq!((context.epoch, context.mode), (9, mode));
    let full = Usage { used: Bytes(3), available: Bytes(4) };
    assert_eq!(
        remote.usage(vec![volume.id.clone(), VolumeId { vg: vg(), lv: name::of_volume("pvc-2") }]).await.unwrap(),
        [(volume.id.clone(), full)]
    );
    assert!(matches!(remote.usage(vec![]).await, Err(Error::Busy { .. })));
    // Errors keep their kind and text.
    let error = remote.create("fast".to_owned(), spec("full")).await.unwrap_err();
    assert!(matches!(&error, Error::Exhausted { reason, .. } if reason == "nothing is left"), "{error}");
    let error = remote.expand(volume.id.clone(), SizeRange::default()).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    let error = remote.snapshot(snapshot::Request { name: "s".into(), source: volume.id.clone() }).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    let id = SnapshotId { vg: vg(), lv: volume.id.lv.clone() };
    assert!(remote.delete_snapshot(id).await.unwrap_err().chain().ends_with("disk on fire"));
    remote.release(volume.id.clone(), None).await.unwrap();
    assert!(matches!(remote.release(volume.id.clone(), Some(agent.node.clone())).await, Err(Error::Precondition { .. })));
    // A caller with a deadline gets an answer within it.
    let late = within(Duration::from_millis(50), remote.create("fast".to_owned(), spec("endless"))).await.unwrap_err();
    assert!(matches!(&late, Error::Unavailable { what, .. } if what == "node a"), "{late}");

    // The controller also sees changes that it did not make.
    agent.volumes.lock().unwrap().clear();
    until("the volume is seen to be gone", async || remote.holdings().await.unwrap().volumes().next().is_none()).await;
    agent.create("fast".to_owned(), spec("pvc-2")).await.unwrap();
    assert_eq!(remote.fresh().await.unwrap().volumes().count(), 1);

    // The server ends although somebody watches it, and the controller keeps its last known state.
    stopping.send_replace(true);
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    until("the agent is seen to be away", async || remote.away().is_some()).await;
    let refused = remote.create("fast".to_owned(), spec("pvc-3")).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Unavailable { what, reason } if what == "node a" && reason.contains(&address.to_string())),
        "{refused}"
    );
    assert_eq!(remote.holdings().await.unwrap().volumes().count(), 1);

    agent.create("fast".to_owned(), spec("pvc-4")).await.unwrap();
    let (_, stopping, task) = served(address, &door, &agent, idle()).await;
    until("the agent is heard again", async || {
        remote.away().is_none() && remote.holdings().await.unwrap().volumes().count() == 2
    })
    .await;
    remote.delete(volume.id).await.unwrap();
    drop(remote);
    stopping.send_replace(true);
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_somebody_else_is_never_heard() {
    let directory = tempfile::tempdir().unwrap();
    // The certificate says a, the agent says b.
    let agent = Arc::new(Fake::new("b"));
    let Serving { address, stopping: _stopping, caller, .. } = serving(directory.path(), &agent).await;
    for (node, word) in [("a", "says that it is node \"b\""), ("c", "not valid for name \"c.node.lvm-csi.dev\"")] {
        let remote = Remote::new(NodeId::new(node).unwrap(), Some(&address.to_string()), Arc::clone(&caller)).unwrap();
        let error = remote.holdings().await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable { reason, .. } if reason.contains(word)), "{error}");
    }
}
