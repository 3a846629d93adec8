//! A simulated machine with a driver, and an orchestrator that calls it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::runtime::{Builder, Runtime};

use crate::agent::Agent;
use crate::attach::{Exposures, Ledger, PublishContext};
use crate::controller::{Controller, CreateRequest, Fleet, PublishRequest};
use crate::host::{Kernel, Moment as Edge, MountEntry, Tools, set_crash_hook};
use crate::inflight::{Inflight, Operation, Reservation};
use crate::lvm::{Commands, Pins, Trust};
use crate::machine::{Machine, Setup};
use crate::node::{Node, Publish, PublishEphemeral, Stage};
use crate::types::{
    AccessMode, AccessType, Bytes, Capability, EphemeralId, Error, FsKind, LayoutConfig, LvName, MachineId, NodeId, Parameters,
    PoolCare, PoolConfig, SnapshotId, ThinPoolConfig, VgName, VolumeId, Zeroing,
};
use crate::volume::context::VolumeContext;
use crate::volume::create::{Source, VolumeSpec};
use crate::volume::ephemeral::InlineSpec;
use crate::volume::name::VolumeName;
use crate::volume::{SizeRange, name, snapshot};

use super::doom::{Doom, Moment};
use super::host::{DM, Dm, Host, MIB, POOL, State, VG};

/// A volume that an orchestrator may want.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) pool: &'static str,
    pub(super) block: bool,
    pub(super) from: From,
}

/// The pools of the possible inline ephemeral volumes.
pub(super) const INLINE: [&str; 2] = ["linear", "thin"];

/// The source of a new volume's content, by number.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    Nothing,
    Snapshot(usize),
    Volume(usize),
}

/// One call of the orchestrator. Volumes, snapshots and pods have numbers; sizes are in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Create(usize, u64),
    Delete(usize),
    Expand(usize, u64),
    /// Takes a snapshot of a volume.
    Snapshot(usize, usize),
    DeleteSnapshot(usize),
    Attach(usize, Way),
    Detach(usize),
    Stage(usize, Way),
    Unstage(usize),
    /// Publishes a volume to a pod.
    Publish(usize, usize, Way),
    Unpublish(usize, usize),
    NodeExpand(usize, u64),
    /// Publishes an inline ephemeral volume, by its number.
    PublishInline(usize, Way),
    UnpublishInline(usize),
    /// No call: the driver continues unfinished work.
    Work,
}

impl Call {
    /// Whether its answer must survive a power cut.
    pub(super) fn lasts(self) -> bool {
        use Call::*;
        matches!(self, Create(..) | Delete(_) | Expand(..) | Snapshot(..) | DeleteSnapshot(_))
    }
}

/// How a call requests a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As planned.
    Right,
    /// Read-only; at the staging path, with the context of a former attachment.
    Odd,
    /// As a block device instead of the planned filesystem, or the other way round.
    Wrong,
}

#[derive(Debug)]
pub(super) enum Ended {
    /// With an answer, and with a size if the answer has one.
    Answered(Result<Option<Bytes>, Error>),
    /// The driver died; the text says how.
    Died(String),
}

impl Ended {
    pub(super) fn is_ok(&self) -> bool {
        matches!(self, Ended::Answered(Ok(_)))
    }
}

struct Driver {
    agent: Arc<Machine>,
    controller: Controller,
    node: Arc<Node>,
}

/// The whole simulation, and how to start it again.
pub(super) struct World {
    pub(super) host: Arc<Host>,
    pub(super) doom: Arc<Doom>,
    pub(super) plans: &'static [Plan],
    runtime: Runtime,
    directory: tempfile::TempDir,
    driver: Option<Driver>,
    boots: u32,
    /// The ledger's file before the driver's last write to it.
    unwritten: Arc<Mutex<Option<Vec<u8>>>>,
    /// Whether the orchestrator attaches volumes; otherwise attach and detach do nothing.
    pub(super) attaches: bool,
    /// The contexts that the orchestrator keeps of its attachments, also of former ones.
    contexts: BTreeMap<usize, PublishContext>,
}

/// Everything that outlives a driver, at one moment.
pub(super) struct Saved {
    state: State,
    mounts: Vec<MountEntry>,
    ledger: Option<Vec<u8>>,
    /// The exposure records. Only their names matter.
    exposed: Vec<PathBuf>,
    mount_points: Vec<(PathBuf, bool)>,
    contexts: BTreeMap<usize, PublishContext>,
    boots: u32,
}

const NODE: &str = "node-a";
/// Path of the ledger's file in the directory of the world.
const LEDGER: &str = "state/attachments";

fn this_node() -> NodeId {
    NodeId::new(NODE).unwrap()
}

pub(super) fn mib(size: u64) -> SizeRange {
    SizeRange { required: Bytes(size * MIB), limit: Bytes(0) }
}

impl World {
    /// A machine whose driver has not started.
    pub(super) fn new(plans: &'static [Plan]) -> Self {
        // In memory, because the ledger waits for its disk at each write.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(place).unwrap();
        for below in ["state", "state/exposed", "run", "locks", "staging", "pods", "binds"] {
            std::fs::create_dir(directory.path().join(below)).unwrap();
        }
        let doom = Arc::new(Doom::default());
        let host = Arc::new(Host::new(Arc::clone(&doom), directory.path().join("locks")));
        let (looker, killer) = (Arc::clone(&host), Arc::clone(&doom));
        let (unwritten, file) = (Arc::<Mutex<Option<Vec<u8>>>>::default(), directory.path().join(LEDGER));
        let before = Arc::clone(&unwritten);
        let mut runtime = Builder::new_current_thread();
        runtime.max_blocking_threads(2).on_thread_start(move || {
            let (looker, killer) = (Arc::clone(&looker), Arc::clone(&killer));
            let (before, file) = (Arc::clone(&before), file.clone());
            set_crash_hook(Some(Arc::new(move |edge, name, subject| {
                if edge == Edge::After {
                    looker.look();
                } else if name.starts_with("ledger.") {
                    *before.lock().unwrap() = std::fs::read(&file).ok();
                }
                killer.edge(edge, name, subject);
            })));
        });
        let runtime = runtime.build().unwrap();
        Self {
            host,
            doom,
            plans,
            runtime,
            directory,
            driver: None,
            boots: 0,
            unwritten,
            attaches: true,
            contexts: BTreeMap::new(),
        }
    }

    /// Name of a volume's LV.
    pub(super) fn volume_name(&self, volume: usize) -> LvName {
        name::of_volume(self.plans[volume].name)
    }

    /// Name of a snapshot's LV.
    pub(super) fn snapshot_name(&self, snapshot: usize) -> LvName {
        name::of_snapshot(&Self::csi_snapshot(snapshot))
    }

    fn volume(&self, volume: usize) -> VolumeId {
        VolumeId { vg: self.host.state().vg().uuid.clone(), lv: self.volume_name(volume) }
    }

    fn snapshot(&self, snapshot: usize) -> SnapshotId {
        SnapshotId { vg: self.host.state().vg().uuid.clone(), lv: self.snapshot_name(snapshot) }
    }

    fn inline(inline: usize) -> EphemeralId {
        EphemeralId::parse(&format!("csi-{inline:064x}")).unwrap()
    }

    /// Name of an inline volume's LV.
    pub(super) fn inline_name(inline: usize) -> LvName {
        name::of_ephemeral(&Self::inline(inline))
    }

    fn csi_snapshot(snapshot: usize) -> String {
        format!("snapshot-{snapshot}")
    }

    /// Whether the driver has a grant of a volume.
    pub(super) fn is_granted(&self, volume: usize) -> bool {
        let lv = self.host.state().vg().lv(self.volume_name(volume).as_str()).map(|lv| lv.uuid.clone());
        let state = self.driver.as_ref().zip(lv).map(|(driver, lv)| driver.agent.ledger().state(&lv));
        state.is_some_and(|state| state.grant.is_some())
    }

    pub(super) fn staging(&self, volume: usize) -> PathBuf {
        self.directory.path().join("staging").join(volume.to_string())
    }

    pub(super) fn target(&self, volume: usize, pod: usize) -> PathBuf {
        self.directory.path().join("pods").join(format!("{volume}-{pod}"))
    }

    pub(super) fn inline_target(&self, inline: usize) -> PathBuf {
        self.directory.path().join("pods").join(format!("inline-{inline}"))
    }

    fn pools() -> Vec<PoolConfig> {
        let pool = |name: &str, layout| PoolConfig {
            name: name.to_owned(),
            vg: VgName::new(VG).unwrap(),
            layout,
            default_size: Bytes(16 * MIB),
            is_default: false,
            ephemeral: Some(Bytes(64 * MIB)),
        };
        let thin = LvName::new(POOL).ok();
        let care = PoolCare::default();
        let thin = LayoutConfig::Thin(ThinPoolConfig {
            pool: thin,
            create: None,
            overprovision_percent: 300,
            max_snapshots: 0,
            care,
            if_present: false,
        });
        vec![pool("linear", LayoutConfig::LINEAR), pool("thin", thin)]
    }

    pub(super) fn ledger(&self) -> Ledger {
        Ledger::open_in_boot(&self.directory.path().join("state"), format!("boot-{}", self.boots)).unwrap()
    }

    /// Starts a driver, replacing a running one.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        self.driver = None;
        self.unwritten.lock().unwrap().take();
        // A driver starts nothing while an lvm of an earlier one is at work.
        self.let_lvm_end();
        let inflight = Inflight::default();
        let commands: Arc<dyn Commands> = Arc::<Host>::clone(&self.host);
        let kernel: Arc<dyn Kernel> = Arc::<Host>::clone(&self.host);
        let tools: Arc<dyn Tools> = Arc::<Host>::clone(&self.host);
        let agent = Arc::new(
            Machine::new(Setup {
                node: this_node(),
                id: MachineId::new(this_node(), []),
                pools: Self::pools(),
                max_volumes: 0,
                run_dir: self.directory.path().join("run"),
                lvm: Ok(commands),
                wedged_after: std::time::Duration::from_secs(30),
                kernel,
                tools,
                trust: Trust { pins: Pins::kept(self.directory.path()), ..Trust::default() },
                ledger: self.ledger(),
                driver: "lvm.test".to_owned(),
                is_default: false,
                used: BTreeSet::new(),
                exposures: Exposures::open(&self.directory.path().join("state")).unwrap(),
                // No disk gets a rest.
                zeroing: Zeroing { percent: 100, ..Zeroing::default() },
                keeping: None,
                inflight,
            })
            .impatient(),
        );
        let start = Arc::clone(&agent);
        let _ = self.runtime.block_on(self.runtime.spawn_blocking(move || {
            start.start();
            start.adopt_all_nameless();
        }));
        if let Some(how) = self.doom.died() {
            return Err(how);
        }
        let offered: Arc<dyn Agent> = Arc::new(Arc::clone(&agent));
        let node = Arc::new(Node::new(Arc::clone(&agent), this_node(), self.directory.path().join("binds"), self.attaches));
        self.driver = Some(Driver { agent, controller: Controller::new(Fleet::new(vec![offered]), "lvm.test"), node });
        Ok(())
    }

    /// Whether a driver is running.
    pub(super) fn is_up(&self) -> bool {
        self.driver.is_some()
    }

    /// Cuts driver and power. If the driver died at the end of a write to the ledger, only these sectors of each changed block have
    /// reached the disk.
    pub(super) fn power_cut_amid(&mut self, sectors: u8) {
        let died = self.doom.died().is_some_and(|how| how.starts_with("After ledger."));
        let before = self.unwritten.lock().unwrap().take().filter(|_| died && !self.is_up());
        if let Some(mut before) = before {
            let mut now = std::fs::read(self.ledger_file()).unwrap();
            before.resize(now.len(), 0);
            for (at, (new, old)) in now.chunks_mut(512).zip(before.chunks(512)).enumerate() {
                if sectors & 1 << (at % 8) == 0 {
                    new.copy_from_slice(old);
                }
            }
            std::fs::write(self.ledger_file(), now).unwrap();
        }
        self.power_cut();
    }

    /// Cuts driver and power.
    pub(super) fn power_cut(&mut self) {
        self.driver = None;
        self.host.power_cut();
        self.boots += 1;
    }

    /// Makes a call. The driver dies if the doom says so, and then stays down.
    pub(super) fn call(&mut self, call: Call, last: Option<(usize, Moment)>) -> Ended {
        self.doom.arm(last);
        let driver = self.driver.as_ref().expect("a driver was begun");
        let answer = self.runtime.block_on(self.answer(driver, call));
        if let Some(how) = self.doom.died() {
            self.driver = None;
            return Ended::Died(how);
        }
        if let (Call::Attach(volume, _), Ok(Answer::Context(context))) = (call, &answer) {
            self.contexts.insert(volume, context.clone());
        }
        if answer.is_ok() {
            self.check_born(call);
        }
        Ended::Answered(answer.map(|answer| if let Answer::Size(size) = answer { Some(size) } else { None }))
    }

    /// Checks that what was reported as made exists for good.
    fn check_born(&self, call: Call) {
        let name = match call {
            Call::Create(volume, _) => self.volume_name(volume),
            Call::Snapshot(snapshot, _) => self.snapshot_name(snapshot),
            Call::PublishInline(inline, _) => Self::inline_name(inline),
            _ => return,
        };
        let mut state = self.host.state();
        if state.vg().lv(name.as_str()).is_none_or(|lv| !state.is_born(lv)) {
            state.wrong.push(format!("{call:?} succeeded, but the thin pool has not made {name}"));
        }
    }

    fn capability(&self, volume: usize, way: Way) -> Capability {
        let block = self.plans[volume].block != (way == Way::Wrong);
        let access = if block { AccessType::Block } else { AccessType::Mount(Some(FsKind::Ext4)) };
        Capability { access, mode: AccessMode::SingleNodeMultiWriter, mount_flags: Vec::new() }
    }

    fn stage(&self, volume: usize, way: Way) -> Result<Stage, Error> {
        let mut context = self.contexts.get(&volume).cloned();
        match &mut context {
            Some(context) if way == Way::Odd => context.epoch -= 1,
            None if self.attaches => return Err(Error::invalid("publish_context", "", "the orchestrator has none")),
            _ => {}
        }
        let staging = self.staging(volume).display().to_string();
        Ok(Stage {
            id: self.volume(volume),
            staging,
            capability: self.capability(volume, way),
            context,
            said: VolumeContext::default(),
        })
    }

    async fn on_node<T: Clone + Send + Sync + 'static>(
        &self,
        driver: &Driver,
        volume: usize,
        work: impl FnOnce(&Node, &Reservation) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let operation = driver.agent.on_volume("a call of the node", &self.volume(volume), volume);
        run(driver, operation, work).await
    }

    async fn answer(&self, driver: &Driver, call: Call) -> Result<Answer, Error> {
        let controller = &driver.controller;
        match call {
            Call::Create(volume, size) => {
                let plan = self.plans[volume];
                let source = match plan.from {
                    From::Nothing => None,
                    From::Snapshot(of) => Some(Source::Snapshot(self.snapshot(of))),
                    From::Volume(of) => Some(Source::Volume(self.volume(of))),
                };
                let access = vec![self.capability(volume, Way::Right).access];
                let class = BTreeMap::from([("pool".to_owned(), plan.pool.to_owned())]);
                let parameters = Parameters::read("parameters", &class)?;
                let request = CreateRequest {
                    spec: VolumeSpec {
                        name: VolumeName::new(plan.name),
                        size: mib(size),
                        access,
                        source,
                        parameters,
                        claim: None,
                    },
                    claim: None,
                    requisite: Vec::new(),
                    preferred: Vec::new(),
                };
                controller.create(request).await.map(|(_, made)| Answer::Size(made.object.size))
            }
            Call::Delete(volume) => controller.delete(&self.volume(volume)).await.map(|_| Answer::Nothing),
            Call::Expand(volume, size) => {
                controller.expand(&self.volume(volume), mib(size)).await.map(|now| Answer::Size(now.object.size))
            }
            Call::Snapshot(snapshot, volume) => {
                let request = snapshot::Request { name: Self::csi_snapshot(snapshot), source: self.volume(volume) };
                controller.cut(&request).await.map(|made| Answer::Size(made.object.size))
            }
            Call::DeleteSnapshot(snapshot) => controller.delete_snapshot(&self.snapshot(snapshot)).await.map(|_| Answer::Nothing),
            Call::Attach(..) | Call::Detach(_) if !self.attaches => Ok(Answer::Nothing),
            Call::Attach(volume, way) => {
                let request = PublishRequest {
                    id: self.volume(volume),
                    node: NODE.to_owned(),
                    capability: self.capability(volume, way),
                    read_only: way == Way::Odd,
                    said: VolumeContext::default(),
                };
                controller.publish(request).await.map(Answer::Context)
            }
            Call::Detach(volume) => controller.unpublish(self.volume(volume), NODE).await.map(|_| Answer::Nothing),
            Call::Stage(volume, way) => {
                let stage = self.stage(volume, way)?;
                self.on_node(driver, volume, move |node, reservation| node.stage(reservation, &stage))
                    .await
                    .map(|()| Answer::Nothing)
            }
            Call::Unstage(volume) => {
                let (id, staging) = (self.volume(volume), self.staging(volume).display().to_string());
                let unstage = move |node: &Node, reservation: &Reservation| node.unstage(reservation, &id, &staging);
                self.on_node(driver, volume, unstage).await.map(|_| Answer::Nothing)
            }
            Call::Publish(volume, pod, way) => {
                let target = self.target(volume, pod).display().to_string();
                let staged = self.stage(volume, if way == Way::Odd { Way::Right } else { way })?;
                let publish = Publish { staged, target, read_only: way == Way::Odd };
                self.on_node(driver, volume, move |node, reservation| node.publish(reservation, &publish))
                    .await
                    .map(|()| Answer::Nothing)
            }
            Call::Unpublish(volume, pod) => {
                let (id, target) = (self.volume(volume), self.target(volume, pod).display().to_string());
                let unpublish = move |node: &Node, reservation: &Reservation| node.unpublish(reservation, &id, &target);
                self.on_node(driver, volume, unpublish).await.map(|_| Answer::Nothing)
            }
            Call::NodeExpand(volume, size) => {
                let (id, path) = (self.volume(volume), self.staging(volume).display().to_string());
                let expand = move |node: &Node, reservation: &Reservation| node.expand(reservation, &id, &path, mib(size));
                self.on_node(driver, volume, expand).await.map(Answer::Size)
            }
            Call::PublishInline(inline, way) => {
                let access = if way == Way::Wrong { AccessType::Block } else { AccessType::Mount(Some(FsKind::Ext4)) };
                let publish = PublishEphemeral {
                    id: Self::inline(inline),
                    target: self.inline_target(inline).display().to_string(),
                    capability: Capability { access, mode: AccessMode::SingleNodeWriter, mount_flags: Vec::new() },
                    read_only: way == Way::Odd,
                    spec: InlineSpec { pool: Some(INLINE[inline].to_owned()), size: None, pod: None },
                };
                let operation = driver.agent.on_ephemeral("a call of the node", &publish.id, publish.clone());
                run(driver, operation, move |node, reservation| node.publish_ephemeral(reservation, &publish))
                    .await
                    .map(|()| Answer::Nothing)
            }
            Call::UnpublishInline(inline) => {
                let (id, target) = (Self::inline(inline), self.inline_target(inline).display().to_string());
                let operation = driver.agent.on_ephemeral("a call of the node", &id, target.clone());
                let unpublish = move |node: &Node, reservation: &Reservation| node.unpublish_ephemeral(reservation, &id, &target);
                run(driver, operation, unpublish).await.map(|_| Answer::Nothing)
            }
            Call::Work => {
                driver
                    .agent
                    .work(&VgName::new(VG).map_err(|why| Error::invalid("vg", VG, why.to_string()))?, &mut BTreeMap::new())
                    .await;
                Ok(Answer::Nothing)
            }
        }
    }

    /// A pod with write access writes to one of eight places of its volume, and is told that the data is on the disks.
    pub(super) fn write(&mut self, volume: usize, pod: usize, place: u64) {
        self.write_at(&self.target(volume, pod), place);
    }

    /// The same at a given path.
    pub(super) fn write_at(&self, target: &Path, place: u64) {
        let entries = self.host.entries();
        let shown = entries.iter().rev().find(|entry| entry.target == target && entry.options[0] == "rw");
        let Some(entry) = shown else { return };
        let node = entry.root.to_str().and_then(|root| root.strip_prefix("/dm-")?.parse().ok());
        let minor = node.unwrap_or(entry.minor);
        let mut state = self.host.state();
        let size = match state.head((DM, minor)) {
            Some(head) if node.is_none() => head.size,
            _ => state.size((DM, minor)),
        };
        let begin = place * size / 8 + MIB;
        state.tenant_writes(minor, &(begin..begin + MIB));
    }

    /// The size of the device shown to a pod.
    pub(super) fn shown(&self, volume: usize, pod: usize) -> u64 {
        let (target, entries) = (self.target(volume, pod), self.host.entries());
        let entry = entries.iter().find(|entry| entry.target == target);
        let minor = entry.and_then(|entry| entry.root.to_str()?.strip_prefix("/dm-")?.parse().ok());
        minor.map_or(0, |minor| self.host.state().size((DM, minor)))
    }

    /// Whether anything of a volume is mounted.
    pub(super) fn is_mounted(&self, volume: usize) -> bool {
        let name = self.volume_name(volume);
        self.account().mounts.iter().any(|(_, what)| what.contains(&format!(" {name} ")))
    }

    fn let_lvm_end(&self) {
        let mounts = self.host.entries();
        self.host.state().finish(&mounts);
    }

    /// What is wrong once the last call is answered.
    pub(super) fn wrong(&self) -> Vec<String> {
        let state = self.host.state();
        state.wrong.iter().cloned().chain(state.lost_data()).chain(state.disorder(|_| true)).collect()
    }

    /// What is wrong regardless of calls in flight.
    pub(super) fn wrong_at_once(&self) -> Vec<String> {
        let state = self.host.state();
        state.wrong.iter().cloned().chain(state.lost_data()).collect()
    }

    /// What is wrong, ignoring holder devices: those that a driver left half-made are repaired when needed, or removed.
    pub(super) fn wrong_but_holders(&self) -> Vec<String> {
        let state = self.host.state();
        state.wrong.iter().cloned().chain(state.lost_data()).chain(state.disorder(Dm::is_lvms)).collect()
    }

    /// The existing mount points, and whether each is a directory.
    fn mount_points(&self, of: &str) -> Vec<(PathBuf, bool)> {
        let there = std::fs::read_dir(self.directory.path().join(of)).unwrap().map(|entry| entry.unwrap().path());
        there.map(|path| (path.clone(), path.is_dir())).collect()
    }

    fn all_mount_points(&self) -> Vec<(PathBuf, bool)> {
        let mut all = self.mount_points("pods");
        all.extend(self.mount_points("staging"));
        all.extend(self.mount_points("binds"));
        all
    }

    fn ledger_file(&self) -> PathBuf {
        self.directory.path().join(LEDGER)
    }

    /// The records of exposed volumes.
    fn exposed(&self) -> Vec<PathBuf> {
        let records = std::fs::read_dir(self.directory.path().join("state/exposed"));
        records.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// The present state of everything but the driver.
    pub(super) fn save(&self) -> Saved {
        let (state, mounts) = (self.host.state().clone(), self.host.entries());
        let ledger = std::fs::read(self.ledger_file()).ok();
        let (mount_points, contexts, boots) = (self.all_mount_points(), self.contexts.clone(), self.boots);
        let exposed = self.exposed();
        Saved { state, mounts, ledger, exposed, mount_points, contexts, boots }
    }

    /// Restores everything, with a new driver.
    pub(super) fn restore(&mut self, saved: &Saved) {
        self.driver = None;
        self.boots = saved.boots;
        *self.host.state() = saved.state.clone();
        self.host.mounts.change(|entries| entries.clone_from(&saved.mounts));
        match &saved.ledger {
            Some(ledger) => std::fs::write(self.ledger_file(), ledger).unwrap(),
            None => drop(std::fs::remove_file(self.ledger_file())),
        }
        for record in self.exposed() {
            std::fs::remove_file(record).unwrap();
        }
        for record in &saved.exposed {
            std::fs::write(record, "").unwrap();
        }
        for (path, is_directory) in self.all_mount_points() {
            if is_directory { std::fs::remove_dir(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
        }
        for (path, is_directory) in &saved.mount_points {
            if *is_directory { std::fs::create_dir(path).unwrap() } else { std::fs::write(path, "").unwrap() }
        }
        self.contexts.clone_from(&saved.contexts);
        self.doom.arm(None);
        self.restart().unwrap();
    }

    /// The visible state of the machine, without numbers and UUIDs that are drawn at random.
    pub(super) fn account(&self) -> Account {
        let mounts = self.host.entries();
        let state = self.host.state();
        let vg = state.vg();
        let named = |minor: u32| {
            let dm = state.dm.get(&minor)?;
            let lv = dm.lv().and_then(|lv| vg.lv_by_uuid(&lv)).map_or("nothing", |lv| &lv.name);
            let kind = if dm.is_lvms() { &dm.uuid[68..] } else { dm.name.trim_end_matches(char::is_alphanumeric) };
            Some(format!("{kind} {lv}"))
        };
        let device = |minor: &u32| {
            let dm = &state.dm[minor];
            let live = dm.live.as_ref().map(|table| (table.size() / MIB, table.read_only));
            (named(*minor).unwrap(), format!("{live:?} {:?} {}", dm.inactive, dm.suspended))
        };
        let shown = |entry: &MountEntry| {
            let root = entry.root.to_string_lossy();
            let minor = root.strip_prefix("/dm-").map_or(Some(entry.minor), |node| node.parse().ok());
            let what = minor.and_then(named).unwrap_or_else(|| "nothing".to_owned());
            (entry.target.clone(), format!("{} {what} {}", entry.fstype, entry.options.join(",")))
        };
        let ledger = self.ledger();
        let grant = |grant: crate::attach::Grant| {
            let staged = ledger.state(&grant.lv).staged(ledger.boot());
            (vg.lv_by_uuid(&grant.lv).map_or("nothing", |lv| &lv.name).to_owned(), format!("{:?} {staged}", grant.mode))
        };
        Account {
            lvs: vg.lvs.iter().map(|lv| (lv.name.clone(), vg.lv_size(lv).0 / MIB)).collect(),
            tags: vg.lvs.iter().map(|lv| (lv.name.clone(), lv.tags.iter().cloned().collect())).collect(),
            devices: state.dm.keys().map(device).filter(|(name, _)| !name.contains(POOL)).collect(),
            mounts: mounts[2..].iter().map(shown).collect(),
            grants: ledger.grants().into_iter().map(grant).collect(),
            targets: self.mount_points("pods").into_iter().collect(),
        }
    }
}

/// Makes a call of the node service.
async fn run<T: Clone + Send + Sync + 'static>(
    driver: &Driver,
    operation: Operation,
    work: impl FnOnce(&Node, &Reservation) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let node = Arc::clone(&driver.node);
    driver.agent.inflight().run(operation, move |reservation| work(&node, reservation)).await
}

/// The answer of a call.
enum Answer {
    Nothing,
    Size(Bytes),
    Context(PublishContext),
}

/// See [`World::account`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) lvs: BTreeMap<String, u64>,
    pub(super) tags: BTreeMap<String, BTreeSet<String>>,
    pub(super) devices: BTreeMap<String, String>,
    pub(super) mounts: BTreeSet<(PathBuf, String)>,
    pub(super) grants: BTreeMap<String, String>,
    pub(super) targets: BTreeSet<(PathBuf, bool)>,
}
