//! The agents and their reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Presences;
use super::notifications::{NodeView, Notifier};
use crate::agent::{Agent, Holdings, Offer};
use crate::types::notification::Notification;
use crate::types::{Error, NodeId, VgUuid};

/// How long a call waits for the list of agents soon after the controller's start.
const FIRST_LIST: Duration = Duration::from_secs(5);
/// Interval for noting which agents are present; it causes no calls.
const PRESENCE: Duration = Duration::from_secs(1);
/// Interval for checking whether to notify somebody; it causes no calls either.
const NOTIFICATIONS: Duration = Duration::from_secs(5);

/// How long lists wait for an agent that has never reported. An agent that connects soon after the controller's start has reported by
/// then; a list without it would make the attacher check all its volumes again.
const UNHEARD: Duration = Duration::from_secs(15);

pub type Agents = Arc<[Arc<dyn Agent>]>;

/// Whether a node will come back, as far as others than its agent know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is expected to come back, or nobody knows otherwise.
    Expected,
    /// It is no longer a node.
    Gone,
    /// A person has declared that it runs nothing and that nothing needs to wait for it.
    OutOfService,
}

/// Source of the nodes' fate.
#[tonic::async_trait]
pub trait Nodes: Send + Sync {
    /// # Errors
    /// [`Error::Unavailable`] if the source cannot be reached.
    async fn fate(&self, node: &NodeId) -> Result<Fate, Error>;
}

/// The agents of all nodes; standalone, only the local machine's.
#[derive(Clone)]
pub struct Fleet {
    /// `None` while the list is unknown.
    agents: watch::Receiver<Option<Agents>>,
    nodes: Option<Arc<dyn Nodes>>,
    /// The agents that have never reported, and when the first call wanted their report.
    unheard: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
}

/// An agent with its last report, or why there is none yet.
pub(super) struct Site {
    pub(super) agent: Arc<dyn Agent>,
    pub(super) heard: Result<Arc<Holdings>, Error>,
    /// It has never reported, and lists do not wait for it any more.
    pub(super) given_up: bool,
}

impl Site {
    pub(super) fn node(&self) -> &NodeId {
        self.agent.node()
    }

    pub(super) fn silent(&self) -> Option<Error> {
        silence(self.node(), self.heard.as_ref().err(), self.agent.away().as_deref())
    }

    /// The group of a pool, if the node has both.
    pub(super) async fn group_of(&self, pool: &str) -> Option<VgUuid> {
        let holdings = self.heard.as_ref().ok()?;
        let offers = self.agent.offers().await.ok()?;
        let name = &offers.iter().find(|offer| offer.name == pool)?.vg;
        let (_, reading) = holdings.groups.iter().find(|(vg, _)| vg == name)?;
        Some(reading.as_ref().ok()?.as_ref()?.vg.clone())
    }

    pub(super) fn has(&self, vg: &VgUuid) -> bool {
        let is_it = |holdings: &Arc<Holdings>| {
            holdings.contents().any(|contents| contents.vg == *vg) || holdings.away.iter().any(|(_, away)| away == vg)
        };
        self.heard.as_ref().is_ok_and(is_it)
    }
}

/// The error for what is unknown while an agent is silent: before its first report (`unheard` says why), and while it is away.
pub(super) fn silence(node: &NodeId, unheard: Option<&Error>, why_away: Option<&str>) -> Option<Error> {
    unheard.cloned().or_else(|| why_away.map(|reason| away(node, reason)))
}

/// The error for a call that needs an agent that is away.
fn away(node: &NodeId, reason: &str) -> Error {
    Error::unavailable(format!("node {node}"), format!("its agent is away ({reason}); this waits until it is back"))
}

impl Fleet {
    /// A fixed list of agents; without any, every call fails.
    pub fn new(agents: Vec<Arc<dyn Agent>>) -> Self {
        // The value stays in the channel after the sender is dropped.
        let (_, agents) = watch::channel(Some(agents.into()));
        Self { agents, nodes: None, unheard: Arc::default() }
    }

    /// The agents that the channel has at any time, and the source of their nodes' fate.
    pub fn following(agents: watch::Receiver<Option<Agents>>, nodes: Arc<dyn Nodes>) -> Self {
        Self { agents, nodes: Some(nodes), unheard: Arc::default() }
    }

    /// Starts to record which agents are present and which are away.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn track_presence(&self) -> Presences {
        let (presences, agents) = (Presences::default(), self.agents.clone());
        let noted = presences.clone();
        tokio::spawn(async move {
            let mut checks = tokio::time::interval(PRESENCE);
            loop {
                checks.tick().await;
                let list = agents.borrow().clone();
                let all = list.iter().flat_map(|agents| agents.iter());
                noted.look(SystemTime::now(), all.map(|agent| (agent.node().clone(), agent.away())));
            }
        });
        presences
    }

    /// Starts to send notifications about the nodes.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn report(&self, presences: Presences, notifications: mpsc::Sender<Notification>) {
        let fleet = self.clone();
        tokio::spawn(async move {
            let mut notifier = Notifier::default();
            let mut checks = tokio::time::interval(NOTIFICATIONS);
            loop {
                checks.tick().await;
                // The list of nodes may be unknown yet.
                let Ok(sites) = fleet.sites().await else { continue };
                let mut offers = Vec::with_capacity(sites.len());
                for site in &sites {
                    offers.push(site.agent.offers().await.unwrap_or_else(|_| Arc::new([])));
                }
                let (presences, nothing) = (presences.all(), Holdings::default());
                let views = sites.iter().zip(&offers).filter_map(|(site, offers)| {
                    let holdings = site.heard.as_deref().unwrap_or(&nothing);
                    Some(NodeView { node: site.node(), presence: presences.get(site.node())?, offers, holdings })
                });
                for notification in notifier.look(SystemTime::now(), &views.collect::<Vec<_>>()) {
                    // A notification that cannot be sent is lost; the log of the process that noticed the trouble has it.
                    let _ = notifications.try_send(notification);
                }
            }
        });
    }

    /// # Errors
    /// [`Error::Unavailable`] while the list is unknown.
    pub(super) async fn agents(&self) -> Result<Agents, Error> {
        let mut agents = self.agents.clone();
        let list = agents.borrow().clone();
        if let Some(list) = list {
            return Ok(list);
        }
        // However the wait ends, the value afterwards counts.
        let _ = tokio::time::timeout(FIRST_LIST, agents.wait_for(Option::is_some)).await;
        let list = agents.borrow().clone();
        list.ok_or_else(|| {
            Error::unavailable("the nodes", "the API server has not said yet which nodes run lvm-csi; this waits until it does")
        })
    }

    /// The fate of a node; [`Fate::Expected`] if its agent can be reached.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it is unknown.
    pub(super) async fn fate(&self, node: &NodeId) -> Result<Fate, Error> {
        let Some(nodes) = &self.nodes else { return Ok(Fate::Expected) };
        let agents = self.agents().await?;
        match agents.iter().find(|agent| agent.node() == node) {
            Some(agent) if agent.away().is_none() => Ok(Fate::Expected),
            _ => nodes.fate(node).await,
        }
    }

    /// Whether volumes may be detached from nodes without a call to them: only if there is a source of the nodes' fate.
    pub(super) fn detaches_unasked(&self) -> bool {
        self.nodes.is_some()
    }

    /// Every agent with its last report.
    ///
    /// # Errors
    /// As [`Fleet::agents`].
    pub(super) async fn sites(&self) -> Result<Vec<Site>, Error> {
        let agents = self.agents().await?;
        // All at once, since the first report of each may take a while.
        let asked = agents.iter().map(|agent| {
            let asked = Arc::clone(agent);
            (Arc::clone(agent), tokio::spawn(async move { asked.holdings().await }))
        });
        let asked: Vec<_> = asked.collect();
        let mut sites = Vec::with_capacity(asked.len());
        for (agent, heard) in asked {
            let heard = heard.await.unwrap_or_else(|_| Err(away(agent.node(), "the call to it failed, see the log")));
            let given_up = self.is_given_up(agent.node(), heard.is_ok());
            sites.push(Site { agent, heard, given_up });
        }
        Ok(sites)
    }

    fn is_given_up(&self, node: &NodeId, heard: bool) -> bool {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard {
            unheard.remove(node);
            return false;
        }
        unheard.entry(node.clone()).or_insert_with(Instant::now).elapsed() >= UNHEARD
    }

    /// The pools of all nodes, by name, and the error of the first agent that has not reported its pools yet.
    pub(super) async fn offers(&self) -> (Vec<Offer>, Option<Error>) {
        let (mut all, mut silent) = (Vec::<Offer>::new(), None);
        let agents = match self.agents().await {
            Ok(agents) => agents,
            Err(error) => return (all, Some(error)),
        };
        for agent in agents.iter() {
            match agent.offers().await {
                Ok(offers) => {
                    let new = offers.iter().filter(|offer| !all.iter().any(|listed| listed.name == offer.name)).cloned();
                    let new: Vec<Offer> = new.collect();
                    all.extend(new);
                }
                Err(error) => silent = silent.or(Some(error)),
            }
        }
        (all, silent)
    }
}

/// The error if there is no agent at all.
pub(super) fn none() -> Error {
    let reason = "there are none: no lvm-csi node runs, or --agent NODE=https://ADDRESS:PORT is missing";
    Error::unavailable("the nodes", reason)
}

#[cfg(test)]
mod tests;
