//! ListVolumes, ListSnapshots, and one of each by id. Entries come in the order of their ids; a token names the id to go on from, so
//! a page stays right when objects come and go between the calls.

use std::fmt::Display;
use std::sync::Arc;

use crate::agent::Holdings;
use crate::types::{Error, NodeId, Object, SnapshotId, VolumeId};
use crate::volume::inventory::{Snapshot, Volume};

use super::Controller;

/// One page.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Where the next page begins; empty at the end.
    pub next_token: String,
}

/// A volume of a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The volume.
    pub volume: Volume,
    /// Its node.
    pub node: NodeId,
    /// The nodes that it is granted to.
    pub published: Vec<NodeId>,
}

/// Which snapshots to list, by the ids as given. An id that no object has gives an empty list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this one.
    pub snapshot: Option<String>,
    /// Only those of this volume.
    pub source: Option<String>,
}

impl Controller {
    /// The volumes, each with its node and the nodes it is granted to.
    ///
    /// # Errors
    /// [`Error::Busy`] (CSI: 10 ABORTED) for a token that is none; [`Error::Unavailable`] while a group is not known.
    pub async fn volumes(&self, max_entries: usize, token: &str) -> Result<Page<Listed>, Error> {
        let from = check_token(token, VolumeId::parse)?;
        let nodes = self.complete().await?;
        let all = nodes.iter().flat_map(|(node, holdings)| holdings.volumes().map(move |volume| (node, holdings, volume)));
        let found = page(all.collect(), |(_, _, volume)| &volume.id, max_entries, from.as_ref());
        let entries = found.entries.into_iter().map(|(node, holdings, volume)| listed(node, holdings, volume)).collect();
        Ok(Page { entries, next_token: found.next_token })
    }

    /// The snapshots.
    ///
    /// # Errors
    /// [`Error::Busy`] (CSI: 10 ABORTED) for a token that is none.
    pub async fn snapshots(&self, filter: &Filter, max_entries: usize, token: &str) -> Result<Page<Snapshot>, Error> {
        let from = check_token(token, SnapshotId::parse)?;
        let nodes = self.complete().await?;
        // An id that cannot be one of ours is that of no object.
        let snapshot = filter.snapshot.as_deref().map(SnapshotId::parse);
        let source = filter.source.as_deref().map(VolumeId::parse);
        let listed = |s: &&Snapshot| {
            snapshot.as_ref().is_none_or(|wanted| wanted.as_ref() == Some(&s.id))
                && source.as_ref().is_none_or(|wanted| wanted.as_ref() == Some(&s.of))
        };
        let entries = nodes.iter().flat_map(|(_, holdings)| holdings.snapshots()).filter(listed).collect();
        let found = page(entries, |snapshot: &&Snapshot| &snapshot.id, max_entries, from.as_ref());
        Ok(Page { entries: found.entries.into_iter().cloned().collect(), next_token: found.next_token })
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub async fn volume(&self, id: &str) -> Result<Listed, Error> {
        let missing = || Error::missing(Object::Volume, id);
        let id = VolumeId::parse(id).ok_or_else(missing)?;
        let find = |node: &NodeId, holdings: &Holdings| {
            let volume = holdings.volumes().find(|volume| volume.id == id)?;
            Some(listed(node, holdings, volume))
        };
        self.find(find).await?.ok_or_else(missing)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub async fn snapshot(&self, id: &str) -> Result<Snapshot, Error> {
        let missing = || Error::missing(Object::Snapshot, id);
        let id = SnapshotId::parse(id).ok_or_else(missing)?;
        let find = |_: &NodeId, holdings: &Holdings| holdings.snapshots().find(|snapshot| snapshot.id == id).cloned();
        self.find(find).await?.ok_or_else(missing)
    }

    /// Finds an object that a node has told of; what nobody has told of is looked for at each node once more.
    async fn find<T>(&self, find: impl Fn(&NodeId, &Holdings) -> Option<T>) -> Result<Option<T>, Error> {
        for site in self.fleet.sites().await? {
            if let Some(found) = site.heard.as_ref().ok().and_then(|holdings| find(site.node(), holdings)) {
                return Ok(Some(found));
            }
        }
        for agent in self.fleet.agents().await?.iter() {
            let holdings = agent.fresh().await?;
            known(&holdings)?;
            if let Some(found) = find(agent.node(), &holdings) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What every node has, every group known.
    async fn complete(&self) -> Result<Vec<(NodeId, Arc<Holdings>)>, Error> {
        let mut nodes = Vec::new();
        for site in self.fleet.sites().await? {
            let holdings = site.heard?;
            known(&holdings)?;
            nodes.push((site.agent.node().clone(), holdings));
        }
        if nodes.is_empty() { Err(super::fleet::none()) } else { Ok(nodes) }
    }
}

fn listed(node: &NodeId, holdings: &Holdings, volume: &Volume) -> Listed {
    let published = holdings.published(volume).into_iter().cloned().collect();
    Listed { volume: volume.clone(), node: node.clone(), published }
}

/// Refuses to speak of what a node has while it does not know that of a group.
fn known(holdings: &Holdings) -> Result<(), Error> {
    match holdings.groups.iter().find_map(|(name, state)| Some((name, state.as_ref().err()?))) {
        None => Ok(()),
        Some((name, reason)) => Err(Error::unavailable(format!("volume group {name}"), reason.clone())),
    }
}

/// The id that a token names; `None` at the beginning.
fn check_token<I>(token: &str, parse: impl Fn(&str) -> Option<I>) -> Result<Option<I>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    parse(token).map(Some).ok_or_else(|| {
        Error::busy(format!("starting_token {token:?}"), "it is not one that this driver gave; list again from the beginning")
    })
}

fn page<T, I: Ord + Display>(mut entries: Vec<T>, id: impl Fn(&T) -> &I, max_entries: usize, from: Option<&I>) -> Page<T> {
    entries.retain(|entry| from.is_none_or(|from| id(entry) >= from));
    entries.sort_unstable_by(|one, other| id(one).cmp(id(other)));
    let most = if max_entries == 0 { entries.len() } else { max_entries };
    let next_token = entries.get(most).map_or(String::new(), |next| id(next).to_string());
    entries.truncate(most);
    Page { entries, next_token }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(page: &Page<u32>) -> (Vec<u32>, &str) {
        (page.entries.clone(), page.next_token.as_str())
    }

    #[test]
    fn pages_meet_without_gap_or_repeat_also_when_an_entry_goes() {
        let of = |entries: &[u32], max, from| page(entries.to_vec(), |n| n, max, from);
        let first = of(&[3, 1, 2, 4], 2, None);
        assert_eq!(ids(&first), (vec![1, 2], "3"));
        assert_eq!(ids(&of(&[1, 2, 4], 2, Some(&3))), (vec![4], ""));
        assert_eq!(ids(&of(&[1, 2, 3, 4], 0, None)), (vec![1, 2, 3, 4], ""));
        assert_eq!(ids(&of(&[1, 2], 2, None)), (vec![1, 2], ""));
        assert_eq!(ids(&of(&[], 0, Some(&9))), (vec![], ""));
    }
}
