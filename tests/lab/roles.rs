//! Controller and nodes as separate processes, joined by mutual TLS. Two nodes are two processes on one kernel, each with its own
//! volume group.

mod hanging;
mod usage;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::certs::{self, Authority, Files};
use testkit::client::{Accepted, Csi, create, map, mount, refused};
use testkit::driver::{Driver, NAME, Start};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::Volume;
use testkit::shim::{self, Fault};
use testkit::test_vg::TestVg;
use testkit::{lab, tool};
use tonic::{Code, Status};

use crate::rig::{DRIVER, LIMIT, MIB, POOL_MIB, Rig};

/// The topology key of a volume.
const KEY: &str = "topology.lvm-csi.dev/node";
/// Addresses of the agents, by node.
const AGENTS: [(&str, &str); 2] = [("node-a", "127.0.0.1:9811"), ("node-b", "127.0.0.1:9812")];

/// Returns the start of a node on a volume group.
pub(crate) fn node(home: &Path, vg: &str, number: usize, files: &Files) -> Start {
    let (name, address) = AGENTS[number];
    Start::on_vg(Path::new(DRIVER), home, vg).as_node(name, address, files)
}

/// Returns the start of a controller for the first `nodes` nodes.
fn controller(home: &Path, nodes: usize, files: &Files) -> Start {
    Start::controller(Path::new(DRIVER), home, &AGENTS[..nodes], files)
}

/// Returns the directory of one end's certificates.
pub(crate) fn tls(end: &str) -> PathBuf {
    Path::new(lab::ROOT).join("tls").join(end)
}

/// A node with the group of a rig, and a controller for a number of nodes.
pub(crate) struct Apart {
    pub(crate) authority: Authority,
    pub(crate) rig: Rig,
    pub(crate) controller: Driver,
}

impl Apart {
    pub(crate) fn make(nodes: usize) -> Result<Self> {
        Self::with(nodes, certs::LIFE)
    }

    /// With certificates of this lifetime.
    fn with(nodes: usize, life: Duration) -> Result<Self> {
        tool::run("ip", &["link", "set", "lo", "up"])?;
        lab::fresh("tls")?;
        let authority = Authority::new()?;
        renew(&authority, life)?;
        let rig =
            Rig::start(&[lab::disk(0)?], Some(POOL_MIB), |home, vg| Ok(node(home, &vg.name, 0, &Files::of(&tls("node-a")))))?;
        let controller = controller(&lab::fresh("controller")?, nodes, &Files::of(&tls("controller"))).start()?;
        Ok(Self { authority, rig, controller })
    }

    /// Connections to the controller and to the first node.
    pub(crate) fn csi(&self) -> Csi {
        self.rig.csi().with_controller(self.controller.csi())
    }

    /// Creates a volume on a preferred node, with this connection.
    pub(crate) fn volume(&self, csi: &Csi, preferred: &[&str]) -> Result<Volume> {
        self.volume_in(csi, "linear", preferred)
    }

    fn volume_in(&self, csi: &Csi, pool: &str, preferred: &[&str]) -> Result<Volume> {
        let name = self.rig.name();
        Volume::create(csi, &self.rig.places, &name, wish(&name, pool, preferred))
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        self.controller.stop()?;
        self.rig.finish()
    }
}

/// Issues new certificates for the controller and the first node. Returns when they have expired: their resolution is one second.
fn renew(authority: &Authority, life: Duration) -> Result<SystemTime> {
    let now = SystemTime::now();
    for (end, name) in [("controller", certs::controller(NAME)), ("node-a", certs::agent(NAME, "node-a"))] {
        authority.write(&tls(end), &name, now - Duration::from_secs(60), now + life)?;
    }
    Ok(now + life + Duration::from_secs(1))
}

fn topology(node: &str) -> csi::Topology {
    csi::Topology { segments: map(&[(KEY, node)]) }
}

pub(crate) fn wish(name: &str, pool: &str, preferred: &[&str]) -> csi::CreateVolumeRequest {
    let nodes: Vec<_> = preferred.iter().map(|node| topology(node)).collect();
    let requirement = csi::TopologyRequirement { requisite: nodes.clone(), preferred: nodes };
    csi::CreateVolumeRequest {
        accessibility_requirements: (!preferred.is_empty()).then_some(requirement),
        ..create(name, pool, 64 * MIB, mount("ext4", Mode::SingleNodeWriter))
    }
}

/// Fails unless a call waits for a node and its message names that node.
fn waits<T>(answer: std::result::Result<T, Status>, node: &str, what: &str) -> Result<()> {
    let message = refused(answer, &[Code::Unavailable], what)?;
    ensure(message.contains(node), || format!("{what}: the message does not name {node}: {message}"))
}

pub(crate) fn delete(id: &str) -> csi::DeleteVolumeRequest {
    csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() }
}

/// Returns every volume with its node and the nodes it is published on.
pub(crate) fn list(csi: &Csi) -> Result<Vec<(String, String, Vec<String>)>> {
    let answer = csi.list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
    let entry = |entry: csi::list_volumes_response::Entry| {
        let volume = entry.volume.unwrap_or_default();
        let node = volume.accessible_topology.first().and_then(|topology| topology.segments.get(KEY)).cloned();
        (volume.volume_id, node.unwrap_or_default(), entry.status.unwrap_or_default().published_node_ids)
    };
    let mut all: Vec<_> = answer.entries.into_iter().map(entry).collect();
    all.sort();
    Ok(all)
}

fn left(csi: &Csi, node: &str) -> Result<i64> {
    let request = csi::GetCapacityRequest {
        parameters: map(&[("pool", "linear")]),
        accessible_topology: Some(topology(node)),
        ..Default::default()
    };
    Ok(csi.get_capacity(request).accepted("GetCapacity")?.available_capacity)
}

#[test]
fn a_node_that_is_away_keeps_only_its_own_volumes_waiting() -> Result<()> {
    let mut apart = Apart::make(2)?;
    let other = TestVg::make("labvg2", &[lab::disk(1)?])?;
    let files = apart.authority.issue(&tls("node-b"), &certs::agent(NAME, "node-b"))?;
    let mut second = node(&lab::fresh("node-b")?, &other.name, 1, &files).start()?;
    let on_a = apart.csi();
    let on_b = second.csi().with_controller(apart.controller.csi());
    apart.rig.until_ok("both nodes to report", |_| list(&on_a))?;

    let mut at_a = apart.volume(&on_a, &["node-a", "node-b"])?;
    let mut at_b = apart.volume(&on_b, &["node-b", "node-a"])?;
    at_b.node = "node-b".to_owned();
    // Without a preference it goes where most space is left: the first node has a thin pool in its group.
    let free = apart.volume(&on_b, &[])?;
    other.of_handle(&free.id)?;
    at_a.up("pod-a")?;
    at_b.up("pod-b")?;
    let elsewhere = csi::ControllerPublishVolumeRequest { node_id: "node-b".to_owned(), ..at_a.attach_request() };
    let hint = refused(on_a.controller_publish_volume(elsewhere), &[Code::NotFound], "the other node")?;
    assert!(hint.contains("its node is node-a"), "{hint}");
    let row = |volume: &Volume, node: &str, published: &[&str]| {
        (volume.id.clone(), node.to_owned(), published.iter().map(|&node| node.to_owned()).collect::<Vec<_>>())
    };
    let mut all = vec![row(&at_a, "node-a", &["node-a"]), row(&at_b, "node-b", &["node-b"]), row(&free, "node-b", &[])];
    all.sort();
    assert_eq!(list(&on_a)?, all);
    assert!(left(&on_a, "node-b")? > left(&on_a, "node-a")?);

    // The node's connections stay open, but nobody answers.
    second.freeze()?;
    waits(on_a.delete_volume(delete(&free.id)), "node-b", "deleting a volume of a frozen node")?;
    waits(on_a.controller_expand_volume(free.expand_request(96 * MIB)), "node-b", "expanding it")?;
    let name = apart.rig.name();
    waits(on_a.create_volume(wish(&name, "linear", &["node-b"])), "node-b", "a volume for it")?;
    // A volume of this ID may be on that node.
    let unknown = "AbCdEf-0123-4567-89ab-cdef-0123-456789/pvc-1";
    waits(on_a.delete_volume(delete(unknown)), "node-b", "deleting a volume that no node reported")?;
    assert_eq!(list(&on_a)?, all);
    assert_eq!(left(&on_a, "node-b")?, 0);
    at_a.expand(96 * MIB, "pod-a")?;
    let meanwhile = apart.volume(&on_a, &[])?;
    apart.rig.vg.of_handle(&meanwhile.id)?;
    meanwhile.delete()?;
    second.thaw()?;
    apart.rig.until_ok("the volume for the node that is back", |_| {
        on_a.create_volume(wish(&name, "linear", &["node-b"])).accepted("CreateVolume")
    })?;
    on_a.delete_volume(delete(&format!("{}/{name}", other.uuid))).accepted("DeleteVolume")?;
    on_a.delete_volume(delete(unknown)).accepted("deleting a volume that does not exist")?;

    // A controller that has never heard from the node lists the others after a while, and decides nothing about volumes that node
    // may have.
    second.kill()?;
    apart.controller.kill()?;
    apart.controller.restart()?;
    let on_a = apart.csi();
    waits(on_a.list_volumes(csi::ListVolumesRequest::default()), "node-b", "a list")?;
    let of_a = apart.rig.until_ok("a list without the node that is down", |_| list(&on_a))?;
    assert_eq!(of_a, [row(&at_a, "node-a", &["node-a"])]);
    assert!(left(&on_a, "node-a")? > 0 && left(&on_a, "node-b")? == 0);
    waits(on_a.create_volume(wish(&apart.rig.name(), "linear", &[])), "node-b", "a volume for anywhere")?;
    waits(on_a.delete_volume(delete(&free.id)), "node-b", "deleting a volume of a node that is down")?;
    let at_a = at_a.through(&on_a);
    apart.volume(&on_a, &["node-a", "node-b"])?.delete()?;
    at_a.down("pod-a")?;
    second.restart()?;
    let on_b = second.csi().with_controller(apart.controller.csi());
    apart.rig.until_ok("a list when all nodes are back", |_| {
        ensure(list(&on_b)?.iter().any(|(id, ..)| *id == free.id), || "node-b has not reported yet".to_owned())
    })?;
    at_b.through(&on_b).down("pod-b")?;
    free.through(&on_b).delete()?;
    assert!(other.lvs()?.is_empty(), "left behind: {:?}", other.lvs()?);
    second.stop()?;
    other.destroy()?;
    apart.finish()
}

#[test]
fn work_goes_on_when_its_controller_dies_and_another_finds_it() -> Result<()> {
    let mut apart = Apart::make(1)?;
    let another = controller(&lab::fresh("controller-2")?, 1, &Files::of(&tls("controller"))).start()?;
    let mut source = apart.volume_in(&apart.csi(), "thin", &[])?;
    let made = apart.rig.name();
    type Call = Box<dyn Fn(&Csi) -> std::result::Result<(), Status> + Send>;
    let (wished, cut, expanded) = (wish(&made, "thin", &[]), source.id.clone(), source.expand_request(96 * MIB));
    let calls: [(&str, Call); 3] = [
        ("CreateVolume", Box::new(move |csi| csi.create_volume(wished.clone()).map(drop))),
        (
            "CreateSnapshot",
            Box::new(move |csi| {
                let request = csi::CreateSnapshotRequest {
                    name: "snapshot-1".to_owned(),
                    source_volume_id: cut.clone(),
                    ..Default::default()
                };
                csi.create_snapshot(request).map(drop)
            }),
        ),
        ("ControllerExpandVolume", Box::new(move |csi| csi.controller_expand_volume(expanded.clone()).map(drop))),
    ];
    for (name, call) in calls {
        shim::arm(Fault::Hold)?;
        let csi = apart.controller.csi().clone();
        let first = thread::spawn(move || (call(&csi).is_ok(), call));
        tool::wait("lvm to be held", LIMIT, || Ok((!shim::armed()).then_some(())))?;
        apart.controller.kill()?;
        let (answered, call) = first.join().map_err(|_| Trouble::wrong("the caller panicked"))?;
        ensure(!answered, || format!("{name} was answered by a controller that was killed"))?;
        // The work is running, and the other controller joins it.
        let short = another.csi().deadline(Duration::from_secs(5));
        let message = refused(call(&short), &[Code::Aborted], name)?;
        assert!(message.contains(name) && message.contains("running"), "{message}");
        shim::disarm()?;
        apart.rig.until_ok(name, |_| call(another.csi()).accepted(name))?;
        apart.controller.restart()?;
    }
    let csi = apart.csi();
    assert_eq!(list(&csi)?.len(), 2);
    let snapshots = csi.list_snapshots(csi::ListSnapshotsRequest::default()).accepted("ListSnapshots")?.entries;
    let snapshot = snapshots.into_iter().filter_map(|entry| entry.snapshot).map(|snapshot| snapshot.snapshot_id);
    for snapshot_id in snapshot {
        csi.delete_snapshot(csi::DeleteSnapshotRequest { snapshot_id, ..Default::default() }).accepted("DeleteSnapshot")?;
    }
    source = source.through(&csi);
    assert_eq!(apart.rig.vg.of_handle(&source.id)?.size, 96 * MIB);
    source.delete()?;
    csi.delete_volume(delete(&format!("{}/{made}", apart.rig.vg.uuid))).accepted("DeleteVolume")?;
    drop(another);
    apart.finish()
}

/// Lifetime of a certificate that is renewed. Half of it is left at the renewal.
const SHORT: Duration = Duration::from_secs(12);

fn wait_until(when: SystemTime) -> Result<()> {
    tool::wait("a certificate to age", LIMIT, || Ok((SystemTime::now() > when).then_some(())))
}

#[test]
fn volumes_are_made_while_certificates_come_and_go_and_strangers_are_refused() -> Result<()> {
    let mut apart = Apart::with(1, SHORT)?;
    let mut ends = SystemTime::now() + SHORT + Duration::from_secs(1);
    let mut kept = apart.volume(&apart.csi(), &[])?;
    kept.up("pod")?;
    for round in 0..3 {
        wait_until(ends - SHORT / 2)?;
        let next = renew(&apart.authority, SHORT)?;
        apart.volume(&apart.csi(), &[])?.delete()?;
        // A new connection has only the new certificate, at both ends.
        wait_until(ends)?;
        if round == 1 {
            apart.rig.driver.kill()?;
            apart.rig.driver.restart()?;
        } else {
            apart.controller.kill()?;
            apart.controller.restart()?;
        }
        let csi = apart.csi();
        apart.rig.until_ok("a volume with the new certificate", |_| apart.volume(&csi, &[])?.delete())?;
        ends = next;
    }
    // The certificate is not renewed in time.
    wait_until(ends)?;
    apart.controller.kill()?;
    apart.controller.restart()?;
    let csi = apart.csi();
    let message = refused(
        csi.list_volumes(csi::ListVolumesRequest::default()),
        &[Code::Unavailable],
        "a list with an expired certificate",
    )?;
    assert!(message.contains("node-a") && message.to_lowercase().contains("expired"), "{message}");
    renew(&apart.authority, certs::LIFE)?;
    apart.rig.until_ok("a list after the renewal", |_| list(&csi))?;

    let wrong = Authority::new()?;
    for (name, authority, word) in [
        (certs::agent(NAME, "node-b"), &apart.authority, "no certificate of controller.lvm-csi.dev"),
        ("shop.default.pod".to_owned(), &apart.authority, "no certificate of controller.lvm-csi.dev"),
        (certs::controller("other.dev"), &apart.authority, "no certificate of controller.lvm-csi.dev"),
        (certs::controller(NAME), &wrong, "TLS handshake"),
    ] {
        let files = authority.issue(&tls("stranger"), &name)?;
        std::fs::copy(tls("controller").join("ca.pem"), &files.ca).map_err(Trouble::io("copying the authority's certificate"))?;
        let before = apart.rig.driver.log()?.len();
        let mut stranger = controller(&lab::fresh("stranger")?, 1, &files).start()?;
        waits(stranger.csi().list_volumes(csi::ListVolumesRequest::default()), "node-a", &name)?;
        stranger.stop()?;
        let log = apart.rig.driver.log()?;
        assert!(log[before..].contains(word), "{name}: the node's log says: {}", &log[before..]);
    }
    // The agent of another node answers at this node's address.
    apart.authority.issue(&tls("node-a"), &certs::agent(NAME, "node-b"))?;
    apart.controller.kill()?;
    apart.controller.restart()?;
    let csi = apart.csi();
    let message =
        refused(csi.list_volumes(csi::ListVolumesRequest::default()), &[Code::Unavailable], "a list with another node's agent")?;
    assert!(message.contains("node-a.node.lvm-csi.dev"), "{message}");
    renew(&apart.authority, certs::LIFE)?;
    apart.rig.until_ok("a list after the mistake is corrected", |_| list(&csi))?;
    kept.through(&csi).down("pod")?;
    apart.finish()
}
