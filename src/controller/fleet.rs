//! The agents, and which of them a call goes to. What is in a volume group decides its agent; who does not know of a group may not have
//! heard of it yet, so an id that nobody has told of is put to all agents, and they decide.

use std::sync::Arc;

use crate::agent::{Agent, Holdings, Offer};
use crate::types::{Error, NodeId, VgUuid};

/// The agents of all nodes; in the process itself the one of its machine.
pub struct Fleet {
    agents: Vec<Arc<dyn Agent>>,
}

/// An agent, with what it told last or why it has told nothing yet.
pub(super) struct Site {
    pub(super) agent: Arc<dyn Agent>,
    pub(super) heard: Result<Arc<Holdings>, Error>,
}

impl Site {
    pub(super) fn node(&self) -> &NodeId {
        self.agent.node()
    }

    fn silent(&self) -> Option<Error> {
        silence(self.node(), self.heard.as_ref().err(), self.agent.away().as_deref())
    }

    fn has(&self, vg: &VgUuid) -> bool {
        self.heard.as_ref().is_ok_and(|holdings| holdings.contents().any(|contents| contents.vg == *vg))
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

/// How much an answer says: `known` where the agents that were asked have told of the group.
fn weight<T>(answer: &Result<T, Error>, known: bool) -> u8 {
    match answer {
        Err(Error::Missing { .. }) => 0,
        // To delete what one agent does not have is no answer for those who cannot tell.
        Ok(_) if !known => 1,
        Err(_) => 2,
        Ok(_) => 3,
    }
}

impl Fleet {
    /// These agents, of which there must be one at least for anything to work.
    pub fn new(agents: Vec<Arc<dyn Agent>>) -> Self {
        Self { agents }
    }

    /// The agents.
    pub(super) fn agents(&self) -> &[Arc<dyn Agent>] {
        &self.agents
    }

    /// Every agent with what it has told.
    pub(super) async fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::with_capacity(self.agents.len());
        for agent in &self.agents {
            sites.push(Site { agent: Arc::clone(agent), heard: agent.holdings().await });
        }
        sites
    }

    /// The pools of all nodes, by name; an error of the first agent that has not told its own yet beside.
    pub(super) async fn offers(&self) -> (Vec<Offer>, Option<Error>) {
        let (mut all, mut silent) = (Vec::<Offer>::new(), None);
        for agent in &self.agents {
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

    /// The agents to ask about a group, and whether they have told of it; all of them, where none has.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the group may be that of an agent that cannot be asked.
    pub(super) async fn of_group(&self, vg: &VgUuid) -> Result<(Vec<Arc<dyn Agent>>, bool), Error> {
        // One agent decides about everything, whatever it has told.
        if let [only] = self.agents.as_slice() {
            return Ok((vec![Arc::clone(only)], true));
        }
        let sites = self.sites().await;
        let holders: Vec<_> = sites.iter().filter(|site| site.has(vg)).map(|site| Arc::clone(&site.agent)).collect();
        if !holders.is_empty() {
            return Ok((holders, true));
        }
        match sites.iter().find_map(Site::silent) {
            Some(error) => Err(error),
            None => Ok((self.agents.clone(), false)),
        }
    }

    /// Puts a call to the agent that has a group, or to all where nobody has told of it; the answer that says most counts.
    ///
    /// # Errors
    /// As [`Fleet::of_group`], and those of the call.
    pub(super) async fn ask<T, F>(&self, vg: &VgUuid, call: impl Fn(Arc<dyn Agent>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (agents, known) = self.of_group(vg).await?;
        let mut best = None;
        for agent in agents {
            let answer = call(agent).await;
            if best.as_ref().is_none_or(|best| weight(&answer, known) > weight(best, known)) {
                best = Some(answer);
            }
        }
        best.unwrap_or_else(|| Err(none()))
    }
}

/// The error where there is no agent at all.
pub(super) fn none() -> Error {
    Error::unavailable("the nodes", "the controller knows of none; give it --agent NODE=https://ADDRESS:PORT for each")
}

#[cfg(test)]
mod tests;
