//! ListVolumes, ListSnapshots, and single volumes and snapshots by id. Entries are ordered by id, and a token is the first id of the next
//! page, so pages stay correct when objects come and go between the calls.
//!
//! Lists use what the agents reported last, which stays while an agent is away. An id is NOT_FOUND only where its group is known: otherwise
//! the volume may be on a node that has not reported.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::Arc;

use crate::agent::{Holders, Holdings};
use crate::types::{Error, NodeId, Object, SnapshotId, VgUuid, VolumeId};
use crate::volume::inventory::{Snapshot, Volume};

use super::Controller;
use super::fleet::Site;

/// Entries of the largest page: gRPC clients accept messages of 4 MiB, and fail larger ones with RESOURCE_EXHAUSTED.
const LARGEST_PAGE: usize = 5000;

#[derive(Clone, Debug)]
pub struct Page<T> {
    pub entries: Vec<T>,
    /// First id of the next page; empty at the end.
    pub next_token: String,
}

/// A volume of a list.
#[derive(Clone, Debug)]
pub struct Listed {
    pub volume: Volume,
    pub node: NodeId,
    /// The nodes with a grant of the volume.
    pub published: Vec<NodeId>,
}

/// Which snapshots to list, by ids as given. An id that no object has gives an empty list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this snapshot.
    pub snapshot: Option<String>,
    /// Only snapshots of this volume.
    pub source: Option<String>,
}

impl Controller {
    /// The volumes, each with its node and the nodes with a grant of it.
    ///
    /// # Errors
    /// [`Error::Busy`] (CSI: 10 ABORTED) for an invalid token; [`Error::Unavailable`] while no agent has reported, and soon after the start
    /// while one has not.
    pub async fn volumes(&self, max_entries: usize, token: &str) -> Result<Page<Listed>, Error> {
        let from = check_token(token, VolumeId::parse)?;
        let HeardNodes { nodes, .. } = self.heard_nodes().await?;
        let grants: Vec<_> = nodes.iter().map(|(_, holdings)| holdings.holders()).collect();
        let granted = nodes.iter().zip(&grants);
        let all = granted.flat_map(|((node, holdings), grants)| holdings.volumes().map(move |volume| (node, grants, volume)));
        let mut all: Vec<_> = all.collect();
        // If two nodes have one group, the node that uses a volume comes first, and its entry is kept.
        let is_free = |(_, grants, volume): &(&NodeId, &Holders<'_>, &Volume)| !grants.contains_key(&volume.uuid);
        let several = has_twins(&nodes);
        if several {
            all.sort_by(|one, other| one.2.id.cmp(&other.2.id).then_with(|| is_free(one).cmp(&is_free(other))));
            all.dedup_by(|later, kept| later.2.id == kept.2.id);
        }
        let page = page(all, |(_, _, volume)| &volume.id, max_entries, from.as_ref());
        let entries = page.entries.into_iter().map(|(node, own, volume)| {
            let mut entry = listed(node, own, volume);
            for (_, other) in nodes.iter().zip(&grants).filter(|((other, _), _)| several && other != node) {
                entry.published.extend(holders(other, volume));
            }
            if several {
                entry.published.sort();
                entry.published.dedup();
            }
            entry
        });
        Ok(Page { entries: entries.collect(), next_token: page.next_token })
    }

    /// # Errors
    /// As [`Controller::volumes`]; [`Error::Unavailable`] also if snapshots requested by an id may be on a node that has not reported.
    pub async fn snapshots(&self, filter: &Filter, max_entries: usize, token: &str) -> Result<Page<Snapshot>, Error> {
        let from = check_token(token, SnapshotId::parse)?;
        let heard = self.heard_nodes().await?;
        let nodes = &heard.nodes;
        // An id that cannot be ours matches no object.
        let snapshot = filter.snapshot.as_deref().map(SnapshotId::parse);
        let source = filter.source.as_deref().map(VolumeId::parse);
        let listed = |s: &&Snapshot| {
            snapshot.as_ref().is_none_or(|wanted| wanted.as_ref() == Some(&s.id))
                && source.as_ref().is_none_or(|wanted| wanted.as_ref() == Some(&s.of))
        };
        let mut entries: Vec<&Snapshot> = nodes.iter().flat_map(|(_, holdings)| holdings.snapshots()).filter(listed).collect();
        if has_twins(nodes) {
            entries.sort_by(|one, other| one.id.cmp(&other.id));
            entries.dedup_by(|later, kept| later.id == kept.id);
        }
        let page = page(entries, |snapshot: &&Snapshot| &snapshot.id, max_entries, from.as_ref());
        let page = Page { entries: page.entries.into_iter().cloned().collect::<Vec<_>>(), next_token: page.next_token };
        if page.entries.is_empty() {
            let vg = snapshot.as_ref().map(|id| id.as_ref().map(|id| &id.vg));
            let vg = vg.or(source.as_ref().map(|id| id.as_ref().map(|id| &id.vg)));
            heard.sure_of(vg.flatten())?;
        }
        Ok(page)
    }

    /// # Errors
    /// [`Error::Missing`]; [`Error::Unavailable`] if the volume may be on a node or in a group that cannot be read now.
    pub async fn volume(&self, id: &str) -> Result<Listed, Error> {
        let missing = || Error::missing(Object::Volume, id);
        let id = VolumeId::parse(id).ok_or_else(missing)?;
        let find = |node: &NodeId, holdings: &Holdings| {
            let volume = holdings.volumes().find(|volume| volume.id == id)?;
            Some(listed(node, &holdings.holders(), volume))
        };
        let mut entries = self.find(&id.vg, find).await?.into_iter();
        let first = entries.next().ok_or_else(missing)?;
        // If two nodes have one group, the entry of the node that uses the volume is kept.
        Ok(entries.fold(first, |mut kept: Listed, mut other| {
            if kept.published.is_empty() {
                std::mem::swap(&mut kept, &mut other);
            }
            other.published.retain(|node| !kept.published.contains(node));
            kept.published.append(&mut other.published);
            kept
        }))
    }

    /// # Errors
    /// As [`Controller::volume`].
    pub async fn snapshot(&self, id: &str) -> Result<Snapshot, Error> {
        let missing = || Error::missing(Object::Snapshot, id);
        let id = SnapshotId::parse(id).ok_or_else(missing)?;
        let find = |_: &NodeId, holdings: &Holdings| holdings.snapshots().find(|snapshot| snapshot.id == id).cloned();
        self.find(&id.vg, find).await?.into_iter().next().ok_or_else(missing)
    }

    /// Finds an object of a group in the last report of every node. If none has it, fetches a fresh report from the nodes that have the
    /// group, or from all nodes if none has it.
    async fn find<T>(&self, vg: &VgUuid, find: impl Fn(&NodeId, &Holdings) -> Option<T>) -> Result<Vec<T>, Error> {
        let sites = self.fleet.sites().await?;
        let reported = sites.iter().filter_map(|site| find(site.node(), site.heard.as_ref().ok()?)).collect::<Vec<T>>();
        if !reported.is_empty() {
            return Ok(reported);
        }
        let has = |site: &&Site| site.heard.as_ref().is_ok_and(|holdings| holdings.contents().any(|held| held.vg == *vg));
        let holders: Vec<&Site> = sites.iter().filter(has).collect();
        for site in if holders.is_empty() { sites.iter().collect() } else { holders } {
            let holdings = site.agent.fresh().await?;
            is_complete(&holdings)?;
            if let Some(object) = find(site.node(), &holdings) {
                return Ok(vec![object]);
            }
        }
        Ok(Vec::new())
    }

    /// The last report of each node, if there is one.
    ///
    /// A list contains what the plugin knows about (CSI, `ListVolumes`). It omits the volumes of a node that has been away since before the
    /// controller's start, and of a group that has been unreadable since before its agent's start. If the list failed instead, one node
    /// that is off would prevent lists for all. The attacher calls ControllerPublishVolume for missing volumes and gets the reason for the
    /// wait. No client treats a volume that is missing from a list as deleted.
    async fn heard_nodes(&self) -> Result<HeardNodes, Error> {
        let (mut nodes, mut unknown) = (Vec::new(), None);
        for site in self.fleet.sites().await? {
            match site.heard {
                Ok(holdings) => {
                    unknown = unknown.or(is_complete(&holdings).err());
                    nodes.push((site.agent.node().clone(), holdings));
                }
                Err(error) if site.given_up => unknown = unknown.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        if nodes.is_empty() { Err(unknown.unwrap_or_else(super::fleet::none)) } else { Ok(HeardNodes { nodes, unknown }) }
    }
}

/// The reports of the nodes.
struct HeardNodes {
    nodes: Vec<(NodeId, Arc<Holdings>)>,
    /// Why there may be more objects.
    unknown: Option<Error>,
}

impl HeardNodes {
    /// Refuses to say that an object does not exist if its group `vg` may be on a node that has not reported it. `None` is for an object
    /// in no group.
    fn sure_of(self, vg: Option<&VgUuid>) -> Result<(), Error> {
        let is_reported =
            |vg: &VgUuid| self.nodes.iter().flat_map(|(_, holdings)| holdings.contents()).any(|held| held.vg == *vg);
        match (self.unknown, vg) {
            (Some(error), Some(vg)) if !is_reported(vg) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether two nodes have groups with one UUID.
fn has_twins(nodes: &[(NodeId, Arc<Holdings>)]) -> bool {
    let mut seen = BTreeSet::new();
    nodes.iter().flat_map(|(_, holdings)| holdings.contents()).any(|contents| !seen.insert(&contents.vg))
}

fn listed(node: &NodeId, grants: &Holders<'_>, volume: &Volume) -> Listed {
    Listed { volume: volume.clone(), node: node.clone(), published: holders(grants, volume).collect() }
}

/// The nodes with a grant of a volume.
fn holders(grants: &Holders<'_>, volume: &Volume) -> impl Iterator<Item = NodeId> {
    grants.get(&volume.uuid).into_iter().flatten().map(|node| NodeId::clone(node))
}

/// Refuses a report in which a group is unknown.
fn is_complete(holdings: &Holdings) -> Result<(), Error> {
    match holdings.groups.iter().find_map(|(name, state)| Some((name, state.as_ref().err()?))) {
        None => Ok(()),
        Some((name, reason)) => Err(Error::unavailable(format!("volume group {name}"), reason.clone())),
    }
}

/// The id in a token; `None` for the first page.
fn check_token<I>(token: &str, parse: impl Fn(&str) -> Option<I>) -> Result<Option<I>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    parse(token).map(Some).ok_or_else(|| {
        Error::busy(format!("starting_token {token:?}"), "this driver gave no such token; list again from the beginning")
    })
}

fn page<T, I: Ord + Display>(mut entries: Vec<T>, id: impl Fn(&T) -> &I, max_entries: usize, from: Option<&I>) -> Page<T> {
    entries.retain(|entry| from.is_none_or(|from| id(entry) >= from));
    entries.sort_unstable_by(|one, other| id(one).cmp(id(other)));
    let most = if max_entries == 0 { LARGEST_PAGE } else { max_entries.min(LARGEST_PAGE) };
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
    fn pages_have_no_gap_and_no_repeat_even_if_an_entry_goes() {
        let of = |entries: &[u32], max, from| page(entries.to_vec(), |n| n, max, from);
        let first = of(&[3, 1, 2, 4], 2, None);
        assert_eq!(ids(&first), (vec![1, 2], "3"));
        assert_eq!(ids(&of(&[1, 2, 4], 2, Some(&3))), (vec![4], ""));
        assert_eq!(ids(&of(&[1, 2, 3, 4], 0, None)), (vec![1, 2, 3, 4], ""));
        assert_eq!(ids(&of(&[1, 2], 2, None)), (vec![1, 2], ""));
        assert_eq!(ids(&of(&[], 0, Some(&9))), (vec![], ""));
        // A request for all entries gets a page that gRPC clients accept.
        let all: Vec<u32> = (0..6000).collect();
        for max in [0, 5500] {
            let first = of(&all, max, None);
            assert_eq!((first.entries.len(), first.next_token.as_str()), (LARGEST_PAGE, "5000"));
        }
        assert_eq!(of(&all, 0, Some(&5000)).entries.len(), 1000);
    }
}
