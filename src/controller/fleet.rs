//! The agents, and what they told.

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

/// How long a call waits until it is known which agents there are, soon after the controller's start.
const FIRST_LIST: Duration = Duration::from_secs(5);
/// How often it is noted which agents are there; nobody is asked for it.
const PRESENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether a person must know something; nobody is asked for it either.
const NEWS: Duration = Duration::from_secs(5);

/// How long an agent that was never heard keeps lists waiting: one that is connected to soon after the controller's start is heard by then,
/// and a list without it would have the attacher look at all its volumes anew.
const UNHEARD: Duration = Duration::from_secs(15);

/// All agents there are.
pub type Agents = Arc<[Arc<dyn Agent>]>;

/// Whether a node will come back, as far as others than its agent can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is expected, or nobody knows better.
    Expected,
    /// It is no node any more.
    Gone,
    /// A person has said that it runs nothing and that nothing waits for it.
    OutOfService,
}

/// Who knows what becomes of nodes.
#[tonic::async_trait]
pub trait Nodes: Send + Sync {
    /// What becomes of a node.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where that cannot be asked.
    async fn fate(&self, node: &NodeId) -> Result<Fate, Error>;
}

/// The agents of all nodes; in the process itself the one of its machine.
#[derive(Clone)]
pub struct Fleet {
    /// `None` as long as it is not known which there are.
    agents: watch::Receiver<Option<Agents>>,
    nodes: Option<Arc<dyn Nodes>>,
    /// The agents that were never heard, since it was first asked for their word.
    unheard: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
}

/// An agent, with what it told last or why it has told nothing yet.
pub(super) struct Site {
    pub(super) agent: Arc<dyn Agent>,
    pub(super) heard: Result<Arc<Holdings>, Error>,
    /// It was never heard, and nobody waits for its first word any more.
    pub(super) given_up: bool,
}

impl Site {
    pub(super) fn node(&self) -> &NodeId {
        self.agent.node()
    }

    pub(super) fn silent(&self) -> Option<Error> {
        silence(self.node(), self.heard.as_ref().err(), self.agent.away().as_deref())
    }

    /// The group of a pool, where the node has both.
    pub(super) async fn group_of(&self, pool: &str) -> Option<VgUuid> {
        let holdings = self.heard.as_ref().ok()?;
        let offers = self.agent.offers().await.ok()?;
        let name = &offers.iter().find(|offer| offer.name == pool)?.vg;
        let (_, known) = holdings.groups.iter().find(|(vg, _)| vg == name)?;
        Some(known.as_ref().ok()?.as_ref()?.vg.clone())
    }

    pub(super) fn has(&self, vg: &VgUuid) -> bool {
        let is_it = |holdings: &Arc<Holdings>| {
            holdings.contents().any(|contents| contents.vg == *vg) || holdings.away.iter().any(|(_, away)| away == vg)
        };
        self.heard.as_ref().is_ok_and(is_it)
    }
}

/// The error of what cannot be known while an agent is silent: before its first word (`unheard` says why), and while it is away.
pub(super) fn silence(node: &NodeId, unheard: Option<&Error>, why_away: Option<&str>) -> Option<Error> {
    unheard.cloned().or_else(|| why_away.map(|reason| away(node, reason)))
}

/// The error of a call for which an agent is needed that is away.
fn away(node: &NodeId, reason: &str) -> Error {
    Error::unavailable(format!("node {node}"), format!("its agent is away ({reason}); this waits until it is back"))
}

impl Fleet {
    /// These agents, of which there must be one at least for anything to work.
    pub fn new(agents: Vec<Arc<dyn Agent>>) -> Self {
        // What is in a channel stays when its sender goes.
        let (_, agents) = watch::channel(Some(agents.into()));
        Self { agents, nodes: None, unheard: Arc::default() }
    }

    /// Those that are in the channel at any time, and who knows what becomes of their nodes.
    pub fn following(agents: watch::Receiver<Option<Agents>>, nodes: Arc<dyn Nodes>) -> Self {
        Self { agents, nodes: Some(nodes), unheard: Arc::default() }
    }

    /// Notes from now on which agents are there and which are away.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn track_presence(&self) -> Presences {
        let (presences, agents) = (Presences::default(), self.agents.clone());
        let noted = presences.clone();
        tokio::spawn(async move {
            let mut looks = tokio::time::interval(PRESENCE);
            loop {
                looks.tick().await;
                let known = agents.borrow().clone();
                let all = known.iter().flat_map(|agents| agents.iter());
                noted.look(SystemTime::now(), all.map(|agent| (agent.node().clone(), agent.away())));
            }
        });
        presences
    }

    /// Tells from now on what a person must know of the nodes.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn report(&self, presences: Presences, notifications: mpsc::Sender<Notification>) {
        let fleet = self.clone();
        tokio::spawn(async move {
            let mut room = Notifier::default();
            let mut looks = tokio::time::interval(NEWS);
            loop {
                looks.tick().await;
                // Nothing is known of nodes that are not known yet.
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
                for told in room.look(SystemTime::now(), &views.collect::<Vec<_>>()) {
                    // What cannot be told is lost: it is in the log of whoever noticed it.
                    let _ = notifications.try_send(told);
                }
            }
        });
    }

    /// The agents.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while it is not known which there are.
    pub(super) async fn agents(&self) -> Result<Agents, Error> {
        let mut agents = self.agents.clone();
        let known = agents.borrow().clone();
        if let Some(known) = known {
            return Ok(known);
        }
        // Whatever ends the wait, what is there then counts.
        let _ = tokio::time::timeout(FIRST_LIST, agents.wait_for(Option::is_some)).await;
        let known = agents.borrow().clone();
        known.ok_or_else(|| {
            Error::unavailable("the nodes", "the API server has not told yet which nodes run lvm-csi; this waits until it does")
        })
    }

    /// What becomes of a node whose agent cannot be asked; one that can be is expected.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where that is not known.
    pub(super) async fn fate(&self, node: &NodeId) -> Result<Fate, Error> {
        let Some(nodes) = &self.nodes else { return Ok(Fate::Expected) };
        let agents = self.agents().await?;
        match agents.iter().find(|agent| agent.node() == node) {
            Some(agent) if agent.away().is_none() => Ok(Fate::Expected),
            _ => nodes.fate(node).await,
        }
    }

    /// Whether volumes may be detached from nodes that were not asked: only where somebody knows that these do not come back.
    pub(super) fn detaches_unasked(&self) -> bool {
        self.nodes.is_some()
    }

    /// Every agent with what it has told.
    ///
    /// # Errors
    /// As [`Fleet::agents`].
    pub(super) async fn sites(&self) -> Result<Vec<Site>, Error> {
        let agents = self.agents().await?;
        // All at once: each that was not heard yet may take a while to be.
        let asked = agents.iter().map(|agent| {
            let asked = Arc::clone(agent);
            (Arc::clone(agent), tokio::spawn(async move { asked.holdings().await }))
        });
        let asked: Vec<_> = asked.collect();
        let mut sites = Vec::with_capacity(asked.len());
        for (agent, heard) in asked {
            let heard = heard.await.unwrap_or_else(|_| Err(away(agent.node(), "asking it failed, see the log")));
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

    /// The pools of all nodes, by name; an error of the first agent that has not told its own yet beside.
    pub(super) async fn offers(&self) -> (Vec<Offer>, Option<Error>) {
        let (mut all, mut silent) = (Vec::<Offer>::new(), None);
        let agents = match self.agents().await {
            Ok(agents) => agents,
            Err(error) => return (all, Some(error)),
        };
        for agent in agents.iter() {
            match agent.offers().await {
                Ok(offers) => {
                    let new = offers.iter().filter(|offer| !all.iter().any(|known| known.name == offer.name)).cloned();
                    let new: Vec<Offer> = new.collect();
                    all.extend(new);
                }
                Err(error) => silent = silent.or(Some(error)),
            }
        }
        (all, silent)
    }
}

/// The error where there is no agent at all.
pub(super) fn none() -> Error {
    let reason = "there is none: no lvm-csi node runs, or --agent NODE=https://ADDRESS:PORT is not given for each";
    Error::unavailable("the nodes", reason)
}

#[cfg(test)]
mod tests;
