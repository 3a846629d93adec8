//! One node's volume groups, in volume verbs. [`Agent`] is the seam between deciding where and doing it there: the controller
//! knows nothing of a machine beyond it. [`Local`] is the agent of this machine.

mod local;

pub use local::{Keeping, Local, Setup};

use std::sync::Arc;

use crate::attach::{Grant, Mode, PublishContext};
use crate::types::{AccessType, Error, NodeId, PoolConfig, SnapshotId, VgName, VolumeId};
use crate::volume::capacity::Capacity;
use crate::volume::create::Source;
use crate::volume::inventory::{Inventory, Snapshot, Volume};
use crate::volume::{SizeRange, snapshot};

/// A volume that shall exist in a pool of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    /// The CSI name.
    pub name: String,
    /// The pool, by its name.
    pub pool: String,
    /// The size.
    pub size: SizeRange,
    /// How it is to be used.
    pub access: Vec<AccessType>,
    /// Its content.
    pub source: Option<Source>,
}

/// What is in a volume group; `None` where it is not there, and an error says why that is not known.
pub type Known = Result<Option<Arc<Inventory>>, String>;

/// What the node has.
#[derive(Clone, Debug)]
pub struct Holdings {
    /// Its volume groups.
    pub groups: Vec<(VgName, Known)>,
    /// Its pools with what is left of each; the error says why a pool is absent.
    pub pools: Vec<(PoolConfig, Result<Capacity, String>)>,
    /// The grants in force.
    pub grants: Vec<Grant>,
}

impl Holdings {
    /// Every volume.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.inventories().flat_map(Inventory::volumes)
    }

    /// Every snapshot.
    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.inventories().flat_map(Inventory::snapshots)
    }

    /// The nodes that a volume is granted to.
    pub fn published(&self, volume: &Volume) -> Vec<&NodeId> {
        self.grants.iter().filter(|grant| grant.lv == volume.uuid).map(|grant| &grant.holder).collect()
    }

    fn inventories(&self) -> impl Iterator<Item = &Inventory> {
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

    /// Makes a volume (CSI `CreateVolume`).
    async fn create(&self, request: CreateVolume) -> Result<Volume, Error>;

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

    /// What the node has now.
    async fn holdings(&self) -> Result<Arc<Holdings>, Error>;
}
