//! The seam between choosing a node and doing the work there. [`Agent`] is all that a controller can ask of a node.
//!
//! `crate::machine::Machine` implements it on the machine that has the volume groups. [`Remote`] calls the agent of another machine,
//! which [`AgentService`] serves there. Everything that passes the seam can cross a wire; the model of LVM's metadata stays behind it.

mod wire;

#[cfg(any(test, fuzzing))]
pub(crate) use wire::fuzz_message;
pub use wire::{AgentService, Remote};

use std::collections::HashMap;
use std::sync::Arc;

use crate::attach::{Grant, Mode, PublishContext};
use crate::types::{Bytes, Change, Changed, Error, LvName, LvUuid, NodeId, SnapshotId, Usage, VgName, VgUuid, VolumeId};
use crate::volume::capacity::Capacity;
use crate::volume::create::VolumeSpec;
use crate::volume::inventory::{Class, Inventory, Snapshot, Volume};
use crate::volume::{SizeRange, snapshot};

/// The version of the protocol between controller and agents. A field that changes its meaning needs a new version; a new field does not.
const PROTOCOL: u32 = 1;

/// The largest message between controller and agents, in bytes: enough for a group with many thousands of volumes.
pub const LARGEST_MESSAGE: usize = 64 << 20;

/// A configured pool, as far as anyone but its agent needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its name, as `parameters.pool` of a StorageClass gives it.
    pub name: String,
    pub vg: VgName,
    /// Size of a volume whose request names none.
    pub default_size: Bytes,
    /// Used if a StorageClass names no pool.
    pub is_default: bool,
}

/// Our volumes and snapshots in a volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub vg: VgUuid,
    pub volumes: Vec<Volume>,
    pub snapshots: Vec<Snapshot>,
    /// Names of volumes whose creation was interrupted: a repeated call continues on this node.
    pub unfinished: Vec<LvName>,
}

impl Contents {
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

/// The nodes that volumes are granted to, by LV.
pub type Holders<'a> = HashMap<&'a LvUuid, Vec<&'a NodeId>>;

/// What is in a volume group; `None` if the group does not exist. An error says why its state is unknown.
pub type GroupReading = Result<Option<Arc<Contents>>, String>;

/// What the node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    pub groups: Vec<(VgName, GroupReading)>,
    /// Its pools by name, with the room left in each; the error says why a pool is absent.
    pub pools: Vec<(String, Result<Capacity, String>)>,
    /// Warnings for people, by pool name.
    pub notices: Vec<(String, String)>,
    /// Unused devices that look like a group, by the group's name.
    pub strangers: Vec<(VgName, String)>,
    /// Groups that an earlier run of its driver had and this one has not seen: their contents are unknown, not gone. Agents of an earlier
    /// version send no names.
    pub away: Vec<(Option<VgName>, VgUuid)>,
    /// The grants in force.
    pub grants: Vec<Grant>,
}

impl Holdings {
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.contents().flat_map(|contents| &contents.volumes)
    }

    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.contents().flat_map(|contents| &contents.snapshots)
    }

    /// The nodes that each volume is granted to; build it once for a whole list.
    pub fn holders(&self) -> Holders<'_> {
        let mut holders = Holders::new();
        for grant in &self.grants {
            holders.entry(&grant.lv).or_default().push(&grant.holder);
        }
        holders
    }

    /// The names under which the node knows a group.
    pub fn group_names(&self, vg: &VgUuid) -> Vec<&VgName> {
        let is_it =
            |known: &GroupReading| known.as_ref().is_ok_and(|known| known.as_ref().is_some_and(|contents| contents.vg == *vg));
        self.groups.iter().filter(|(_, known)| is_it(known)).map(|(name, _)| name).collect()
    }

    /// The contents of the groups that exist.
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
    fn node(&self) -> &NodeId;

    /// Why it cannot be asked now; `None` while it can.
    fn away(&self) -> Option<String> {
        None
    }

    /// Creates a volume in the pool of this name (CSI `CreateVolume`).
    async fn create(&self, pool: String, spec: VolumeSpec) -> Result<Changed<Volume>, Error>;

    /// Removes a volume that no node uses (CSI `DeleteVolume`).
    async fn delete(&self, id: VolumeId) -> Result<Change, Error>;

    /// Grows a volume to at least this size (CSI `ControllerExpandVolume`).
    async fn expand(&self, id: VolumeId, size: SizeRange) -> Result<Changed<Volume>, Error>;

    /// Creates a snapshot (CSI `CreateSnapshot`).
    async fn snapshot(&self, request: snapshot::Request) -> Result<Changed<Snapshot>, Error>;

    /// Removes a snapshot (CSI `DeleteSnapshot`).
    async fn delete_snapshot(&self, id: SnapshotId) -> Result<Change, Error>;

    /// Grants a volume to a node (CSI `ControllerPublishVolume`).
    async fn grant(&self, id: VolumeId, node: NodeId, mode: Mode) -> Result<PublishContext, Error>;

    /// Takes the grant back, from one node or from any holder (CSI `ControllerUnpublishVolume`).
    async fn release(&self, id: VolumeId, node: Option<NodeId>) -> Result<(), Error>;

    /// The usage of the volumes' filesystems, of those that are mounted for writing on the node.
    async fn usage(&self, ids: Vec<VolumeId>) -> Result<Vec<(VolumeId, Usage)>, Error>;

    /// The pools that the node is configured to offer.
    async fn offers(&self) -> Result<Arc<[Offer]>, Error>;

    /// What the node has. Another machine's last known state remains while it is away.
    async fn holdings(&self) -> Result<Arc<Holdings>, Error>;

    /// What the node has, no older than the call.
    async fn fresh(&self) -> Result<Arc<Holdings>, Error> {
        self.holdings().await
    }
}
