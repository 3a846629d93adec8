//! Runs on the machine that has the volume groups: implements the agent's verbs and serves the node service. Decisions that depend on a
//! group's metadata are made here, inside that group's writer queue.

mod housekeeping;
mod operations;
mod pools;
mod reporting;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::agent::{Agent, Contents, GroupReading, Holdings, Offer};
use crate::attach::{Exposures, Ledger, Mode, PublishContext};
use crate::host::{Kernel, Tools};
use crate::inflight::{Inflight, Operation, Reservation};
use crate::lvm::{Commands, Engine, Lvm, ReadError, Trust, View};
use crate::types::{
    Change, Changed, Error, LvName, LvUuid, MachineId, NodeId, Object, Pool, PoolConfig, SnapshotId, ThinPoolStatus, Usage,
    VgName, VgUuid, VolumeId, Zeroing, chain, step,
};
use crate::volume::capacity::Capacity;
use crate::volume::context::VolumeContext;
use crate::volume::create::VolumeSpec;
use crate::volume::inventory::{DriverIdentity, Inventory, Snapshot, Volume};
use crate::volume::{SizeRange, owner, snapshot};

pub use housekeeping::Keeping;
pub use operations::{Active, Adopt, Adopted, Attached, Import, Imported};
pub use reporting::{Figures, Kind, NodeReport, PoolFigures, VolumeReport, register_metrics};

use housekeeping::Hiding;
use operations::{BatchQueue, Guards, Owned};
use reporting::Looks;

/// What a [`Machine`] is made of.
pub struct Setup {
    pub node: NodeId,
    /// The CSI name of the driver.
    pub driver: String,
    /// Whether `driver` is the default name.
    pub is_default: bool,
    /// LVs that the driver used before it had a state directory with its name.
    pub used: BTreeSet<LvUuid>,
    /// The machine's identity, as recorded in its groups.
    pub id: MachineId,
    pub pools: Vec<PoolConfig>,
    /// How many volumes may be attached to the node; 0 for no limit.
    pub max_volumes: usize,
    /// Directory for LVM's private configuration.
    pub run_dir: PathBuf,
    /// LVM, or why it is missing; without LVM every group is absent.
    pub lvm: Result<Arc<dyn Commands>, String>,
    /// How long one command of a group may run before the group counts as wedged.
    pub wedged_after: Duration,
    pub kernel: Arc<dyn Kernel>,
    pub tools: Arc<dyn Tools>,
    /// Which disks count as PVs.
    pub trust: Trust,
    pub ledger: Ledger,
    /// What volumes were shown as.
    pub exposures: Exposures,
    pub zeroing: Zeroing,
    /// Copies of the groups' metadata; `None` for none.
    pub keeping: Option<Keeping>,
    pub inflight: Inflight,
}

/// A configured volume group, present or not.
pub(super) struct Group {
    pub(super) name: VgName,
    pub(super) lvm: Box<dyn Lvm>,
    kernel: Arc<dyn Kernel>,
    /// The last successful read. Lists use it while the group cannot be read.
    last_read: Mutex<Option<LastRead>>,
    batches: BatchQueue,
    identity: Arc<DriverIdentity>,
    /// Notified when the metadata may have changed; the backup task waits on it.
    changed: Arc<Notify>,
    looks: Looks,
    /// Notified when a call leaves work unfinished.
    unfinished: Notify,
}

/// The last successful read of a group.
#[derive(Clone)]
struct LastRead {
    inventory: Arc<Inventory>,
    /// What the agent reports of it; built on first request.
    contents: Option<Arc<Contents>>,
}

impl Group {
    /// `lvm` changes the group only while the group belongs to this machine.
    fn new(name: VgName, lvm: Box<dyn Lvm>, kernel: Arc<dyn Kernel>, identity: Arc<DriverIdentity>, id: &MachineId) -> Self {
        let lvm = Box::new(Owned::new(lvm, id.clone()));
        let (last_read, batches, changed, looks) = (Mutex::default(), BatchQueue::default(), Arc::default(), Looks::default());
        Self { name, lvm, kernel, last_read, batches, identity, changed, looks, unfinished: Notify::new() }
    }

    /// Reads the group. The model stays the same until a metadata header on the disks moves, so each change is classified once: a group
    /// may hold thousands of volumes.
    pub(super) fn inventory(&self) -> Result<Arc<Inventory>, ReadError> {
        step::in_group(&self.name);
        Ok(self.understand(&self.lvm.read()?))
    }

    /// The inventory of a view that was just read.
    fn understand(&self, view: &View) -> Arc<Inventory> {
        let mut last_read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        let is_last = |last_read: &&LastRead| {
            Arc::ptr_eq(&last_read.inventory.vg, &view.vg) && last_read.inventory.metadata_area == view.area
        };
        if let Some(last_read) = last_read.as_ref().filter(is_last) {
            return Arc::clone(&last_read.inventory);
        }
        let block_size = |device: &PathBuf| {
            let warn =
                |error: &std::io::Error| tracing::warn!(device = %device.display(), %error, "cannot read its logical block size");
            self.kernel.logical_block_size(device).inspect_err(warn).ok()
        };
        let block_sizes = view.disks.iter().map(|(pv, device)| (pv.clone(), block_size(device))).collect();
        let inventory = Arc::new(Inventory::from(Arc::clone(&view.vg), view.area, &self.identity).on_disks(block_sizes));
        *last_read = Some(LastRead { inventory: Arc::clone(&inventory), contents: None });
        inventory
    }

    fn last(&self) -> Option<Arc<Inventory>> {
        self.last_read.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|last_read| Arc::clone(&last_read.inventory))
    }

    /// What the agent reports of the last read; the same `Arc` until the group changes.
    fn contents(&self) -> Option<Arc<Contents>> {
        let mut last_read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        let LastRead { inventory, contents } = last_read.as_mut()?;
        Some(Arc::clone(contents.get_or_insert_with(|| Arc::new(Contents::of(inventory)))))
    }
}

/// The agent on this machine. Its own methods block and must run on an operation's thread; those of [`Agent`] do not block.
pub struct Machine {
    node: NodeId,
    driver: String,
    id: MachineId,
    pools: Vec<PoolConfig>,
    offers: Arc<[Offer]>,
    max_volumes: usize,
    groups: BTreeMap<VgName, Group>,
    without_lvm: Option<String>,
    kernel: Arc<dyn Kernel>,
    tools: Arc<dyn Tools>,
    ledger: Ledger,
    exposures: Exposures,
    zeroing: Zeroing,
    keeping: Option<Keeping>,
    inflight: Inflight,
    guards: Guards,
    ready: AtomicBool,
    /// Fill of the thin pools at their last check.
    fills: Mutex<BTreeMap<LvUuid, ThinPoolStatus>>,
    /// Warnings for people, by pool name.
    notices: Mutex<BTreeMap<String, String>>,
    /// Unused devices that look like a configured group, as of the last search.
    strangers: Mutex<BTreeMap<VgName, Vec<String>>>,
    hiding: Mutex<Hiding>,
    /// Holds LVM's private configuration.
    run_dir: PathBuf,
    /// Held while filesystems are measured.
    measuring: tokio::sync::Mutex<()>,
}

/// Turns a failed read of a group into the answer to a call about an object in it.
pub(super) fn unknown(error: &ReadError) -> Error {
    let what = match error {
        ReadError::Absent { vg }
        | ReadError::Away { vg, .. }
        | ReadError::Ignored { vg, .. }
        | ReadError::Duplicate { vg, .. }
        | ReadError::Unreadable { vg, .. }
        | ReadError::Ambiguous { vg, .. }
        | ReadError::Unpinned { vg, .. }
        | ReadError::Hangs { vg, .. }
        | ReadError::Slow { vg, .. }
        | ReadError::NoThread { vg, .. }
        | ReadError::Moving { vg } => {
            format!("volume group {vg}")
        }
        ReadError::Devices(_) => "the volume groups of this node".to_owned(),
    };
    Error::unavailable(what, chain(error))
}

impl Machine {
    /// Builds the agent. Touches nothing before [`Machine::begin`].
    pub fn new(setup: Setup) -> Self {
        let Setup { node, id, driver, is_default, pools, max_volumes, run_dir, lvm, wedged_after, kernel, tools, .. } = setup;
        let Setup { used, trust, ledger, exposures, zeroing, keeping, inflight, .. } = setup;
        let had = ledger.grants().into_iter().map(|grant| grant.lv).chain(exposures.all()).collect();
        let identity = Arc::new(DriverIdentity { driver, is_default, had, used });
        let (commands, without_lvm) = match lvm {
            Ok(commands) => (Some(commands), None),
            Err(reason) => (None, Some(reason)),
        };
        let names = pools.iter().map(|pool| pool.vg.clone());
        let groups = commands.map_or_else(BTreeMap::new, |commands| {
            names
                .map(|name| {
                    let (commands, kernel) = (Arc::clone(&commands), Arc::clone(&kernel));
                    let mut engine =
                        Engine::new(commands, Arc::clone(&kernel), &run_dir, name.clone(), wedged_after, trust.clone());
                    if let Some(known) = keeping.as_ref().and_then(|keeping| keeping.backups.last_named(&name)) {
                        engine.remember(&known);
                    }
                    let changed = Arc::new(Notify::new());
                    if keeping.is_some() {
                        let changed = Arc::clone(&changed);
                        engine.on_commit(move || changed.notify_one());
                    }
                    let group = Group::new(name.clone(), Box::new(engine), kernel, Arc::clone(&identity), &id);
                    (name, Group { changed, ..group })
                })
                .collect()
        });
        let offer = |pool: &PoolConfig| Offer {
            name: pool.name.clone(),
            vg: pool.vg.clone(),
            default_size: pool.default_size,
            is_default: pool.is_default,
        };
        Self {
            node,
            driver: identity.driver.clone(),
            id,
            offers: pools.iter().map(offer).collect(),
            pools,
            max_volumes,
            groups,
            without_lvm,
            kernel,
            tools,
            ledger,
            exposures,
            zeroing,
            keeping,
            inflight,
            guards: Guards::new(&run_dir),
            ready: AtomicBool::new(false),
            fills: Mutex::default(),
            notices: Mutex::default(),
            strangers: Mutex::default(),
            hiding: Mutex::default(),
            run_dir,
            measuring: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the first look at the groups is over.
    ///
    /// # Errors
    /// [`Error::Precondition`] if this node has no LVM.
    pub fn is_ready(&self) -> Result<bool, Error> {
        match &self.without_lvm {
            Some(reason) => Err(Error::precondition("LVM on this node", reason)),
            None => Ok(self.ready.load(Ordering::Acquire)),
        }
    }

    pub fn pools(&self) -> &[PoolConfig] {
        &self.pools
    }

    pub fn inflight(&self) -> &Inflight {
        &self.inflight
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    pub fn tools(&self) -> &dyn Tools {
        &*self.tools
    }

    /// Looks up a volume by its handle.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none; [`Error::Precondition`] if its LV was renamed, or moved to another group (`vgsplit`);
    /// [`Error::Unavailable`] if a group cannot be read.
    pub fn volume(&self, id: &VolumeId) -> Result<Volume, Error> {
        let Some((group, inventory)) = self.find(&id.vg)? else { return Err(Error::missing(Object::Volume, id.to_string())) };
        match inventory.need_volume(id) {
            Err(Error::Missing { .. }) => Err(Self::split_off(group, &id.lv, &format!("volume {id}"))
                .err()
                .unwrap_or_else(|| Error::missing(Object::Volume, id.to_string()))),
            other => other.cloned(),
        }
    }

    /// Checks that an LV missing from its group did not move to another group with a PV (`vgsplit`): it lives on there.
    ///
    /// # Errors
    /// [`Error::Precondition`] with the other group.
    pub(super) fn split_off(group: &Group, lv: &LvName, what: &str) -> Result<(), Error> {
        let groups = group.lvm.split_off().map_err(|error| unknown(&error))?;
        let Some(other) = groups.iter().find(|other| other.lvs.iter().any(|there| there.name == lv.as_str())) else {
            return Ok(());
        };
        let reason = format!(
            "its LV is in volume group {} now, on a disk that {} had (vgsplit); bring it back with vgmerge {} {}",
            other.name, group.name, group.name, other.name
        );
        Err(Error::precondition(what, reason))
    }

    /// Checks the volume context that came with a handle against the volume's group.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the key that contradicts the group.
    pub fn check_said(&self, id: &VolumeId, said: &VolumeContext) -> Result<(), Error> {
        if *said == VolumeContext::default() {
            return Ok(());
        }
        let Some((group, inventory)) = self.find(&id.vg)? else { return Ok(()) };
        said.check(id, &[&inventory.vg.name, &group.name])
    }

    /// Adds the node to an error about room, since a caller may see errors of several nodes.
    fn here(&self, error: Error) -> Error {
        let on = |what: String| format!("{what} on node {}", self.node);
        match error {
            Error::Exhausted { what, reason } => Error::Exhausted { what: on(what), reason },
            Error::OutOfRange { what, reason } => Error::OutOfRange { what: on(what), reason },
            other => other,
        }
    }

    /// The key of a volume or snapshot in reservations: its LV name, which follows from the CSI name and from the handle. LVs of the same
    /// name in two groups wait for each other, at no noticeable cost.
    pub(super) fn key(lv: &LvName) -> String {
        lv.to_string()
    }

    /// An operation on a volume, for any service.
    pub fn on_volume(&self, call: &'static str, id: &VolumeId, request: impl PartialEq + Send + Sync + 'static) -> Operation {
        let mut operation = Operation::new(call, format!("volume {id}"), request);
        operation.writes = vec![Self::key(&id.lv)];
        operation
    }

    /// Like [`Machine::find`], for a change: refuses a group of another machine.
    pub(super) fn find_own(&self, uuid: &VgUuid) -> Result<Option<(&Group, Arc<Inventory>)>, Error> {
        let found = self.find(uuid)?;
        found.as_ref().map_or(Ok(()), |(_, inventory)| owner::check(&inventory.vg, &self.id))?;
        Ok(found)
    }

    /// The group with this UUID and its inventory; `None` if every group could be read and none matches.
    pub(super) fn find(&self, uuid: &VgUuid) -> Result<Option<(&Group, Arc<Inventory>)>, Error> {
        if let Some(reason) = &self.without_lvm {
            return Err(Error::unavailable("LVM on this node", reason.clone()));
        }
        let mut unsure = None;
        // Try the group that last had this UUID first, so that no slow or hanging disk of another group is read.
        let was = |group: &&Group| group.last().is_some_and(|last| last.vg.uuid == *uuid);
        for group in self.groups.values().filter(was).chain(self.groups.values().filter(|group| !was(group))) {
            match group.inventory() {
                Ok(inventory) if inventory.vg.uuid == *uuid && !self.is_another(group, &inventory) => {
                    return Ok(Some((group, inventory)));
                }
                Ok(_) => {}
                Err(error) => unsure = Some(unknown(&error)),
            }
        }
        match unsure {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    /// Whether the group was renamed to the name of another configured group.
    fn is_another(&self, group: &Group, inventory: &Inventory) -> bool {
        inventory.vg.name != group.name && self.groups.contains_key(&inventory.vg.name)
    }

    /// Resolves a configured pool, with its group and inventory. Refuses a renamed group, so that nothing new is created in it: whoever
    /// renamed it may soon give the old name to another group.
    pub(super) fn pool(&self, name: &str) -> Result<(Pool, &Group, Arc<Inventory>), Error> {
        let config = self.pools.iter().find(|config| config.name == name).ok_or_else(|| Error::missing(Object::Pool, name))?;
        if let Some(reason) = &self.without_lvm {
            return Err(Error::unavailable(format!("pool {name}"), reason.clone()));
        }
        let group = self.groups.get(&config.vg).ok_or_else(|| Error::missing(Object::Pool, name))?;
        let inventory = group.inventory().map_err(|error| unknown(&error))?;
        let now = &inventory.vg.name;
        if *now != config.vg {
            let reason = format!(
                "its volume group {} is now called {now}; set volumeGroup: {now} in the configuration and restart the driver, or rename \
                 it back (vgrename {now} {})",
                config.vg, config.vg
            );
            return Err(Error::unavailable(format!("pool {name}"), reason));
        }
        let pool = self.resolve(config, &inventory)?;
        Ok((pool, group, inventory))
    }

    /// Adds what does not belong to a single group to the node's groups and pools.
    fn holdings_of(&self, groups: Vec<(VgName, GroupReading)>, pools: Vec<(String, Result<Capacity, String>)>) -> Holdings {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner).clone().into_iter().collect();
        let strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let strangers = strangers.into_iter().filter(|(_, texts)| !texts.is_empty()).map(|(vg, texts)| (vg, texts.join("; ")));
        let unseen = self.groups.values().filter(|group| group.last().is_none());
        let away = unseen.filter_map(|group| Some((Some(group.name.clone()), group.lvm.pinned_group()?))).collect();
        Holdings { groups, pools, notices, strangers: strangers.collect(), away, grants: self.ledger.grants() }
    }
}

/// Runs every verb as an operation of its own.
#[tonic::async_trait]
impl Agent for Arc<Machine> {
    fn node(&self) -> &NodeId {
        &self.node
    }

    async fn create(&self, pool: String, spec: VolumeSpec) -> Result<Changed<Volume>, Error> {
        let machine = Arc::clone(self);
        let operation = Machine::create_operation(&pool, &spec);
        let create = move |reservation: &Reservation| {
            machine.create_volume(reservation, &pool, &spec).map_err(|error| machine.here(error))
        };
        self.inflight.run(operation, create).await
    }

    async fn delete(&self, id: VolumeId) -> Result<Change, Error> {
        let machine = Arc::clone(self);
        let operation = self.on_volume("DeleteVolume", &id, ());
        self.inflight.run(operation, move |reservation| machine.delete_volume(reservation, &id)).await
    }

    async fn expand(&self, id: VolumeId, size: SizeRange) -> Result<Changed<Volume>, Error> {
        let machine = Arc::clone(self);
        let operation = self.on_volume("ControllerExpandVolume", &id, size);
        self.inflight
            .run(operation, move |reservation| machine.expand_volume(reservation, &id, size).map_err(|error| machine.here(error)))
            .await
    }

    async fn snapshot(&self, request: snapshot::Request) -> Result<Changed<Snapshot>, Error> {
        let machine = Arc::clone(self);
        let operation = Machine::snapshot_operation(&request);
        self.inflight
            .run(operation, move |reservation| {
                machine.create_snapshot(reservation, &request).map_err(|error| machine.here(error))
            })
            .await
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<Change, Error> {
        let machine = Arc::clone(self);
        let mut operation = Operation::new("DeleteSnapshot", format!("snapshot {id}"), ());
        operation.writes = vec![Machine::key(&id.lv)];
        self.inflight.run(operation, move |reservation| machine.remove_snapshot(reservation, &id)).await
    }

    async fn grant(&self, id: VolumeId, node: NodeId, mode: Mode) -> Result<PublishContext, Error> {
        let machine = Arc::clone(self);
        let operation = self.on_volume("ControllerPublishVolume", &id, (node.clone(), mode.clone()));
        self.inflight.run(operation, move |reservation| machine.grant_volume(reservation, &id, &node, &mode)).await
    }

    async fn release(&self, id: VolumeId, node: Option<NodeId>) -> Result<(), Error> {
        let machine = Arc::clone(self);
        let operation = self.on_volume("ControllerUnpublishVolume", &id, node.clone());
        self.inflight.run(operation, move |reservation| machine.release_volume(reservation, &id, node.as_ref())).await
    }

    async fn usage(&self, ids: Vec<VolumeId>) -> Result<Vec<(VolumeId, Usage)>, Error> {
        let machine = Arc::clone(self);
        let measured = tokio::task::spawn_blocking(move || machine.measure(&ids));
        measured.await.map_err(|error| Error::failed("measuring the filesystems of this node", error))?
    }

    async fn offers(&self) -> Result<Arc<[Offer]>, Error> {
        Ok(Arc::clone(&self.offers))
    }

    async fn holdings(&self) -> Result<Arc<Holdings>, Error> {
        Ok(Arc::new(self.look().await))
    }
}

#[cfg(test)]
mod tests;
