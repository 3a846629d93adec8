//! ListVolumes, ListSnapshots, and one of each by id. Entries come in the order of their ids; a token names the id to go on from, so
//! a page stays right when objects come and go between the calls.

use std::fmt::Display;
use std::sync::Arc;

use crate::agent::Holdings;
use crate::types::{Error, Object, SnapshotId, VolumeId};
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

/// Which snapshots to list, by the ids as given. An id that no object has gives an empty list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this one.
    pub snapshot: Option<String>,
    /// Only those of this volume.
    pub source: Option<String>,
}

impl Controller {
    /// The volumes, each with the nodes it is granted to.
    ///
    /// # Errors
    /// [`Error::Busy`] (CSI: 10 ABORTED) for a token that is none.
    pub async fn volumes(&self, max_entries: usize, token: &str) -> Result<(Arc<Holdings>, Page<Volume>), Error> {
        let from = check_token(token, VolumeId::parse)?;
        let holdings = self.complete().await?;
        let page = page(holdings.volumes().collect(), |volume| &volume.id, max_entries, from.as_ref());
        Ok((holdings, page))
    }

    /// The snapshots.
    ///
    /// # Errors
    /// [`Error::Busy`] (CSI: 10 ABORTED) for a token that is none.
    pub async fn snapshots(&self, filter: &Filter, max_entries: usize, token: &str) -> Result<Page<Snapshot>, Error> {
        let from = check_token(token, SnapshotId::parse)?;
        let holdings = self.complete().await?;
        // An id that cannot be one of ours is that of no object.
        let snapshot = filter.snapshot.as_deref().map(SnapshotId::parse);
        let source = filter.source.as_deref().map(VolumeId::parse);
        let listed = |s: &&Snapshot| {
            snapshot.as_ref().is_none_or(|wanted| wanted.as_ref() == Some(&s.id))
                && source.as_ref().is_none_or(|wanted| wanted.as_ref() == Some(&s.of))
        };
        let entries = holdings.snapshots().filter(listed).collect();
        Ok(page(entries, |snapshot| &snapshot.id, max_entries, from.as_ref()))
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub async fn volume(&self, id: &str) -> Result<(Arc<Holdings>, Volume), Error> {
        let holdings = self.complete().await?;
        let found = VolumeId::parse(id).and_then(|id| holdings.volumes().find(|volume| volume.id == id).cloned());
        found.map(|volume| (holdings, volume)).ok_or_else(|| Error::missing(Object::Volume, id))
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub async fn snapshot(&self, id: &str) -> Result<Snapshot, Error> {
        let holdings = self.complete().await?;
        let found = SnapshotId::parse(id).and_then(|id| holdings.snapshots().find(|snapshot| snapshot.id == id).cloned());
        found.ok_or_else(|| Error::missing(Object::Snapshot, id))
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

fn page<T: Clone, I: Ord + Display>(
    mut entries: Vec<&T>,
    id: impl Fn(&T) -> &I,
    max_entries: usize,
    from: Option<&I>,
) -> Page<T> {
    entries.retain(|entry| from.is_none_or(|from| id(entry) >= from));
    entries.sort_unstable_by(|one, other| id(one).cmp(id(other)));
    let most = if max_entries == 0 { entries.len() } else { max_entries };
    let next_token = entries.get(most).map_or(String::new(), |next| id(next).to_string());
    Page { entries: entries.into_iter().take(most).cloned().collect(), next_token }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(page: &Page<u32>) -> (Vec<u32>, &str) {
        (page.entries.clone(), page.next_token.as_str())
    }

    #[test]
    fn pages_meet_without_gap_or_repeat_also_when_an_entry_goes() {
        let of = |entries: &[u32], max, from| page(entries.iter().collect(), |n| n, max, from);
        let first = of(&[3, 1, 2, 4], 2, None);
        assert_eq!(ids(&first), (vec![1, 2], "3"));
        assert_eq!(ids(&of(&[1, 2, 4], 2, Some(&3))), (vec![4], ""));
        assert_eq!(ids(&of(&[1, 2, 3, 4], 0, None)), (vec![1, 2, 3, 4], ""));
        assert_eq!(ids(&of(&[1, 2], 2, None)), (vec![1, 2], ""));
        assert_eq!(ids(&of(&[], 0, Some(&9))), (vec![], ""));
    }
}
