//! The controller service: which pool and node a wish goes to, and answers about all volumes. It touches no device: everything it
//! does goes through [`Agent`].

mod capacity;
mod create;
mod list;
mod publish;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agent::{Agent, Holdings, Offer};
use crate::types::Error;

pub use capacity::CapacityRequest;
pub use create::CreateRequest;
pub use list::{Filter, Page};
pub use publish::PublishRequest;
pub use validate::ValidateRequest;

/// Segments of a topology (CSI `Topology`).
pub type Segments = BTreeMap<String, String>;

/// Beginnings of StorageClass keys that the sidecars add or leave in, and that say nothing to the driver.
const SIDECAR_KEYS: [&str; 4] = [
    "csi.storage.k8s.io/pvc/",
    "csi.storage.k8s.io/pv/",
    "csi.storage.k8s.io/volumesnapshot",
    "csi.storage.k8s.io/volumesnapshotcontent/",
];
/// The one key of a StorageClass.
const POOL_KEY: &str = "pool";

/// The controller service.
pub struct Controller {
    agent: Arc<dyn Agent>,
    topology_key: String,
}

impl Controller {
    /// A controller over an agent. `driver` is the CSI name, the prefix of the topology key.
    pub fn new(agent: Arc<dyn Agent>, driver: &str) -> Self {
        Self { agent, topology_key: topology_key(driver) }
    }

    /// The agent.
    pub fn agent(&self) -> &dyn Agent {
        &*self.agent
    }

    /// Where volumes of this node can be used.
    pub fn topology(&self) -> Segments {
        Segments::from([(self.topology_key.clone(), self.agent.node().to_string())])
    }

    /// Whether a topology names this node, or leaves the node open. Keys compare without case (CSI, `Topology`).
    fn is_here(&self, segments: &Segments) -> bool {
        segments.iter().all(|(key, value)| key.eq_ignore_ascii_case(&self.topology_key) && value == self.agent.node().as_str())
    }

    /// The pool of those on offer that StorageClass parameters name, or the default one.
    fn pool<'a>(offers: &'a [Offer], parameters: &BTreeMap<String, String>) -> Result<&'a Offer, Error> {
        let names = || offers.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>().join(", ");
        match parameters.get(POOL_KEY) {
            Some(name) => offers.iter().find(|pool| pool.name == *name).ok_or_else(|| {
                Error::invalid("parameters[pool]", name, format!("there is no such pool; there are: {}", names()))
            }),
            None => offers.iter().find(|pool| pool.is_default).ok_or_else(|| {
                Error::invalid("parameters[pool]", "", format!("none is named and none is the default; there are: {}", names()))
            }),
        }
    }

    /// Refuses keys that nobody knows: a misspelt one must not turn silently into a default.
    fn check_keys(field: &str, parameters: &BTreeMap<String, String>, known: &[&str]) -> Result<(), Error> {
        let foreign =
            |key: &&String| !known.contains(&key.as_str()) && !SIDECAR_KEYS.iter().any(|prefix| key.starts_with(prefix));
        match parameters.keys().find(foreign) {
            None => Ok(()),
            Some(key) => {
                let known = if known.is_empty() { "there is none".to_owned() } else { format!("known: {}", known.join(", ")) };
                Err(Error::invalid(format!("{field}[{key}]"), &parameters[key], format!("this key is not known; {known}")))
            }
        }
    }

    /// What the node has, every group known.
    async fn complete(&self) -> Result<Arc<Holdings>, Error> {
        let holdings = self.agent.holdings().await?;
        match holdings.groups.iter().find_map(|(name, state)| Some((name, state.as_ref().err()?))) {
            None => Ok(holdings),
            Some((name, reason)) => Err(Error::unavailable(format!("volume group {name}"), reason.clone())),
        }
    }
}

/// The topology key of a driver's nodes.
pub fn topology_key(driver: &str) -> String {
    format!("topology.{driver}/node")
}
