//! The seam between deciding where and doing it there. [`Agent`] is what a controller can ask of a node; it knows nothing else of it.
//!
//! `crate::machine::Machine` implements it on the machine that has the volume groups. [`Remote`] asks the agent of another machine, which
//! [`AgentService`] serves there. All that passes the seam can cross a wire; the model of LVM's metadata stays behind it.

mod wire;

#[cfg(any(test, fuzzing))]
pub(crate) use wire::fuzz_message;
pub use wire::{AgentService, Remote};

use std::collections::HashMap;
use std::sync::Arc;

use crate::attach::{Grant, Mode, PublishContext};
use crate::types::{Bytes, Error, LvName, LvUuid, NodeId, SnapshotId, Usage, VgName, VgUuid, VolumeId};
use crate::volume::capacity::Capacity;
use crate::volume::create::VolumeSpec;
use crate::volume::inventory::{Class, Inventory, Snapshot, Volume};
use crate::volume::{SizeRange, snapshot};

/// The version of the protocol between controller and agents. A new one is needed where a field changes its meaning, not for a new field.
const PROTOCOL: u32 = 1;

/// The largest message between controller and agents, in bytes: the volumes of a group with many thousands.
pub const LARGEST_MESSAGE: usize = 64 << 20;

/// A pool that a node is configured to offer, as far as others than its agent need to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its name, as `parameters.pool` of a StorageClass gives it.
    pub name: String,
    pub vg: VgName,
    /// Size of a volume whose request names none.
    pub default_size: Bytes,
    /// Used where a StorageClass names no pool.
    pub is_default: bool,
}

/// What a volume group holds of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub vg: VgUuid,
    pub volumes: Vec<Volume>,
    pub snapshots: Vec<Snapshot>,
    /// Names of volumes whose creation was cut short: a repeat of it goes on there.
    pub unfinished: Vec<LvName>,
}

impl Contents {
    /// What an inventory says.
    pub fn of(inventory: &Inventory) -> Self {
        let unfinished = inventory.all().filter_map(|(_, class)| match class {
            Class::Unfinished(volume) => Some(volume.id.lv.clone()),
            _ => None,
        });
        Self {
            vg: inventory.vg.uuid.clone(),
            volumes: inventory.volumes().cloned().collect(),
            snapshots: inventory.snapshots().cloned().collect(),
            unfinished: unfinished.collect(),
        }
    }
}

/// The nodes that volumes are granted to, by their LVs.
pub type Holders<'a> = HashMap<&'a LvUuid, Vec<&'a NodeId>>;

/// What is in a volume group; `None` where it is not there, and an error says why that is not known.
pub type GroupReading = Result<Option<Arc<Contents>>, String>;

/// What the node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Its volume groups.
    pub groups: Vec<(VgName, GroupReading)>,
    /// Its pools by name with what is left of each; the error says why a pool is absent.
    pub pools: Vec<(String, Result<Capacity, String>)>,
    /// What a person must know of pools, by their names.
    pub notices: Vec<(String, String)>,
    /// Devices that look like a group and are not used as one, by the group's name.
    pub strangers: Vec<(VgName, String)>,
    /// Groups that it had in an earlier life of its driver, and has not seen in this one: what is in them is not known, and not gone. An agent
    /// of an earlier version tells no names.
    pub away: Vec<(Option<VgName>, VgUuid)>,
    /// The grants in force.
    pub grants: Vec<Grant>,
}

impl Holdings {
    /// Every volume.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.contents().flat_map(|contents| &contents.volumes)
    }

    /// Every snapshot.
    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.contents().flat_map(|contents| &contents.snapshots)
    }

    /// The nodes that each volume is granted to; made once for a list of them.
    pub fn holders(&self) -> Holders<'_> {
        let mut holders = Holders::new();
        for grant in &self.grants {
            holders.entry(&grant.lv).or_default().push(&grant.holder);
        }
        holders
    }

    /// The names by which the node knows a group.
    pub fn group_names(&self, vg: &VgUuid) -> Vec<&VgName> {
        let is_it =
            |known: &GroupReading| known.as_ref().is_ok_and(|known| known.as_ref().is_some_and(|contents| contents.vg == *vg));
        self.groups.iter().filter(|(_, known)| is_it(known)).map(|(name, _)| name).collect()
    }

    /// What is in the groups that are there.
    pub fn contents(&self) -> impl Iterator<Item = &Contents> {
        self.groups.iter().filter_map(|(_, state)| state.as_ref().ok()?.as_deref())
    }
}

/// The verbs. Each may be repeated: it answers from the state of the machine, and does only what is still missing.
///
/// # Errors
/// [`Error`], which says what happened, to which object, and what to do.
#[tonic::async_trait]
pub trait Agent: Send + Sync {
    /// The node.
    fn node(&self) -> &NodeId;

    /// Why it cannot be asked for now; `None` while it can.
    fn away(&self) -> Option<String> {
        None
    }

    /// Makes a volume in the pool of this name (CSI `CreateVolume`).
    async fn create(&self, pool: String, spec: VolumeSpec) -> Result<Volume, Error>;

    /// Removes a volume that no node has (CSI `DeleteVolume`).
    async fn delete(&self, id: VolumeId) -> Result<(), Error>;

    /// Makes a volume at least so large (CSI `ControllerExpandVolume`).
    async fn expand(&self, id: VolumeId, size: SizeRange) -> Result<Volume, Error>;

    /// Cuts a snapshot (CSI `CreateSnapshot`).
    async fn snapshot(&self, request: snapshot::Request) -> Result<Snapshot, Error>;

    /// Removes a snapshot (CSI `DeleteSnapshot`).
    async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), Error>;

    /// Gives a node the right to use a volume (CSI `ControllerPublishVolume`).
    async fn grant(&self, id: VolumeId, node: NodeId, mode: Mode) -> Result<PublishContext, Error>;

    /// Takes that right back, from one node or from whoever has it (CSI `ControllerUnpublishVolume`).
    async fn release(&self, id: VolumeId, node: Option<NodeId>) -> Result<(), Error>;

    /// How full the filesystems of volumes are, of those that are mounted for writing on the node.
    async fn usage(&self, ids: Vec<VolumeId>) -> Result<Vec<(VolumeId, Usage)>, Error>;

    /// The pools that the node is configured to offer.
    async fn offers(&self) -> Result<Arc<[Offer]>, Error>;

    /// What the node has: of another machine what it told last, also while it is away.
    async fn holdings(&self) -> Result<Arc<Holdings>, Error>;

    /// What the node has, no older than the call.
    async fn fresh(&self) -> Result<Arc<Holdings>, Error> {
        self.holdings().await
    }
}
