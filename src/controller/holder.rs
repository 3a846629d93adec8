//! Which agent answers for a volume group: the only one that has it. Two nodes may have groups with one UUID (machines of one template, a
//! copied disk, disks that two machines see). Then the controller trusts neither: it changes nothing in them, and a volume in use can
//! only be released, at the node that uses it.

use std::sync::Arc;

use crate::agent::Agent;
use crate::types::{Error, NodeId, VgUuid, VolumeId};

use super::fleet::{Fate, Fleet, Site, none};

/// How much an answer counts. An error other than "missing" counts most: if one agent deletes what it does not have, that is no answer for
/// agents that have it or cannot tell.
fn weight<T>(answer: &Result<T, Error>) -> u8 {
    match answer {
        Err(Error::Missing { .. }) => 0,
        Ok(_) => 1,
        Err(_) => 2,
    }
}

/// What to do about two groups with one UUID.
pub(super) fn remedy(node: &str) -> String {
    format!(
        "take the disks away from one of them, or give the copy a UUID of its own (vgimportclone, or vgchange --uuid) and run lvm-csi \
         adopt there; if they were moved from {node} for good, restart its driver"
    )
}

/// The error for a change in a group with several holders; `None` if there is at most one.
pub(super) fn contested(vg: &VgUuid, holders: &[&Site]) -> Option<Error> {
    let [first, _, ..] = holders else { return None };
    let names: Vec<&str> = holders.iter().map(|site| site.node().as_str()).collect();
    let name = holders.iter().find_map(|site| site.heard.as_ref().ok()?.group_names(vg).first().map(ToString::to_string));
    let what = name.map_or_else(|| format!("volume group {vg}"), |name| format!("volume group {name} ({vg})"));
    // A node that is away may still have it, and use it.
    if let Some((site, why)) = holders.iter().find_map(|site| Some((site, site.agent.away()?))) {
        let node = site.node();
        let others: Vec<&str> = names.iter().filter(|name| **name != node.as_str()).copied().collect();
        let reason = format!(
            "node {node} had it in its last report and is away ({why}), and node {} has it too; this waits until node {node} is back or \
             no longer a node (if its disks were moved, delete it or set the out-of-service taint)",
            others.join(", ")
        );
        return Some(Error::unavailable(what, reason));
    }
    let reason = format!(
        "nodes {} each have a group with this UUID, from copied disks or disks that both see, and nothing in it is changed on any of \
         them: {}",
        names.join(" and "),
        remedy(&format!("node {}", first.node()))
    );
    Some(Error::precondition(what, reason))
}

impl Fleet {
    /// The sites that had a group in their last report. A node that is gone for good counts only if no other has the group.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the fate of a node is unknown.
    pub(super) async fn holders<'a>(&self, sites: &'a [Site], vg: &VgUuid) -> Result<Vec<&'a Site>, Error> {
        let all: Vec<&Site> = sites.iter().filter(|site| site.has(vg)).collect();
        if all.len() < 2 {
            return Ok(all);
        }
        let mut expected = Vec::with_capacity(all.len());
        for site in &all {
            if site.agent.away().is_none() || self.fate(site.node()).await? == Fate::Expected {
                expected.push(*site);
            }
        }
        Ok(if expected.is_empty() { all } else { expected })
    }

    /// The agents to call for a change in a group: the one that has it, or all if none has reported it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if an agent that cannot be reached may have the group; [`Error::Precondition`] if several have it.
    pub(super) async fn of_group(&self, vg: &VgUuid) -> Result<Vec<Arc<dyn Agent>>, Error> {
        let agents = self.agents().await?;
        // A single agent decides about everything, whatever it has reported.
        if agents.len() == 1 {
            return Ok(agents.to_vec());
        }
        let sites = self.sites().await?;
        let holders = self.holders(&sites, vg).await?;
        match (contested(vg, &holders), holders.first()) {
            (Some(error), _) => Err(error),
            (None, Some(only)) => Ok(vec![Arc::clone(&only.agent)]),
            (None, None) => everybody(&sites),
        }
    }

    /// Calls the agent that has a group, or all agents if none has reported it; the answer with the highest [`weight`] counts.
    ///
    /// # Errors
    /// As [`Fleet::of_group`], and those of the call.
    pub(super) async fn ask<T, F>(&self, vg: &VgUuid, call: impl Fn(Arc<dyn Agent>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        weigh(self.of_group(vg).await?, call).await
    }

    /// Ends the right of one node, or of every node, to use a volume. It calls the node itself, whose ledger has the grant. Groups with one
    /// UUID do not prevent a release.
    ///
    /// # Errors
    /// A node still uses the volume, or cannot be reached.
    pub(super) async fn release(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<(), Error> {
        let agents = self.agents().await?;
        let asked = if agents.len() == 1 {
            agents.to_vec()
        } else {
            let sites = self.sites().await?;
            let may_have = |site: &&Site| match &site.heard {
                Ok(holdings) => site.has(&id.vg) || holdings.grants.iter().any(|grant| grant.is_of(id)),
                Err(_) => true,
            };
            match node.and_then(|node| sites.iter().find(|site| site.node() == node)).filter(may_have) {
                Some(site) => vec![Arc::clone(&site.agent)],
                None => {
                    let holders = self.holders(&sites, &id.vg).await?;
                    if holders.is_empty() {
                        everybody(&sites)?
                    } else {
                        holders.iter().map(|site| Arc::clone(&site.agent)).collect()
                    }
                }
            }
        };
        weigh(asked, |agent| async move { agent.release(id.clone(), node.cloned()).await }).await
    }
}

/// All agents, if each has reported and can be reached.
fn everybody(sites: &[Site]) -> Result<Vec<Arc<dyn Agent>>, Error> {
    match sites.iter().find_map(Site::silent) {
        Some(error) => Err(error),
        None => Ok(sites.iter().map(|site| Arc::clone(&site.agent)).collect()),
    }
}

async fn weigh<T, F>(agents: Vec<Arc<dyn Agent>>, call: impl Fn(Arc<dyn Agent>) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut best = None;
    for agent in agents {
        let answer = call(agent).await;
        if best.as_ref().is_none_or(|best| weight(&answer) > weight(best)) {
            best = Some(answer);
        }
    }
    best.unwrap_or_else(|| Err(none()))
}
