//! The controller service: it chooses the pool and node for a request, and answers about all volumes. It touches no device: everything
//! it does goes through [`Agent`](crate::agent::Agent).

mod begun;
mod book;
mod capacity;
mod create;
mod fleet;
mod grow;
mod holder;
mod list;
mod notifications;
mod place;
mod presence;
mod publish;
mod validate;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use crate::agent::Offer;
use crate::types::notification::Notification;
use crate::types::{Change, Changed, Error, NodeId, SnapshotId, VolumeId};
use crate::volume::inventory::{Snapshot, Volume};
use crate::volume::{SizeRange, snapshot};

use begun::Begun;

pub use book::Book;
pub use capacity::CapacityRequest;
pub use create::CreateRequest;
pub use fleet::{Agents, Fate, Fleet, Nodes};
pub use grow::{Claims, Growths};
pub use list::{Filter, Listed, Page};
pub use presence::{Presence, Presences};
pub use publish::PublishRequest;
pub use validate::ValidateRequest;

/// Segments of a topology (CSI `Topology`).
pub type Segments = BTreeMap<String, String>;

/// The controller service.
pub struct Controller {
    fleet: Fleet,
    begun: Mutex<Begun>,
    topology_key: String,
    /// Receives notifications about claims; `None` without Kubernetes.
    notifications: Option<mpsc::Sender<Notification>>,
    /// Records the chosen nodes; `None` without Kubernetes.
    book: Option<Arc<dyn Book>>,
}

impl Controller {
    /// A controller for the agents of `fleet`. `driver` is the CSI name, which is part of the topology key.
    pub fn new(fleet: Fleet, driver: &str) -> Self {
        let topology_key = topology_key(driver);
        Self { fleet, begun: Mutex::default(), topology_key, notifications: None, book: None }
    }

    /// The same controller, which sends notifications about claims that wait.
    #[must_use]
    pub fn telling(self, notifications: Option<mpsc::Sender<Notification>>) -> Self {
        Self { notifications, ..self }
    }

    /// The same controller, which records the nodes that it chooses.
    #[must_use]
    pub fn keeping(self, book: Option<Arc<dyn Book>>) -> Self {
        Self { book, ..self }
    }

    /// The topology of a node's volumes.
    pub fn topology(&self, node: &NodeId) -> Segments {
        Segments::from([(self.topology_key.clone(), node.to_string())])
    }

    /// Deletes a volume that no node has attached.
    ///
    /// # Errors
    /// It is attached, or its node cannot be reached.
    pub async fn delete(&self, id: &VolumeId) -> Result<Change, Error> {
        let delete = || self.fleet.ask(&id.vg, |agent| async move { agent.delete(id.clone()).await });
        match delete().await {
            // Kubernetes deletes only detached volumes. But a node that was away during the detach and came back without a reboot still
            // has the grant, and nobody would ever detach it again. Every replica must handle that, so none relies on its memory.
            Err(Error::Precondition { .. }) if self.fleet.detaches_unasked() => {
                self.fleet.release(id, None).await?;
                delete().await
            }
            answer => answer,
        }
    }

    /// Grows a volume to at least this size.
    ///
    /// # Errors
    /// It does not exist, cannot have that size, or its node cannot be reached.
    pub async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Changed<Volume>, Error> {
        self.fleet.ask(&id.vg, |agent| async move { agent.expand(id.clone(), size).await }).await
    }

    /// Makes a snapshot.
    ///
    /// # Errors
    /// The volume does not exist or cannot have snapshots, or its node cannot be reached.
    pub async fn cut(&self, request: &snapshot::Request) -> Result<Changed<Snapshot>, Error> {
        self.fleet.ask(&request.source.vg, |agent| async move { agent.snapshot(request.clone()).await }).await
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// Something depends on it, or its node cannot be reached.
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<Change, Error> {
        self.fleet.ask(&id.vg, |agent| async move { agent.delete_snapshot(id.clone()).await }).await
    }

    /// The offered pool with this name, or the default one.
    async fn pool(&self, name: Option<&str>) -> Result<Offer, Error> {
        let (offers, silent) = self.fleet.offers().await;
        // An agent that has not reported yet may offer it.
        Self::pool_of(&offers, name).cloned().map_err(|error| silent.unwrap_or(error))
    }

    fn pool_of<'a>(offers: &'a [Offer], name: Option<&str>) -> Result<&'a Offer, Error> {
        let names = || offers.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => offers.iter().find(|pool| pool.name == *name).ok_or_else(|| {
                Error::invalid("parameters[pool]", name, format!("there is no such pool; there are: {}", names()))
            }),
            None => offers.iter().find(|pool| pool.is_default).ok_or_else(|| {
                Error::invalid(
                    "parameters[pool]",
                    "",
                    format!("no pool is named, and none is the default; there are: {}", names()),
                )
            }),
        }
    }
}

/// The topology key of a driver's nodes.
pub fn topology_key(driver: &str) -> String {
    format!("topology.{driver}/node")
}
