//! ListVolumes, ListSnapshots, and one of each by id. Entries come in the order of their ids; a token names the id to go on from, so
//! a page stays right when objects come and go between the calls.

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
        let from = check_token(token, |text| VolumeId::parse(text).is_some())?;
        let holdings = self.complete().await?;
        let page = page(holdings.volumes().cloned().collect(), |volume| volume.id.to_string(), max_entries, from);
        Ok((holdings, page))
    }

    /// The snapshots.
    ///
    /// # Errors
    /// [`Error::Busy`] (CSI: 10 ABORTED) for a token that is none.
    pub async fn snapshots(&self, filter: &Filter, max_entries: usize, token: &str) -> Result<Page<Snapshot>, Error> {
        let from = check_token(token, |text| SnapshotId::parse(text).is_some())?;
        let holdings = self.complete().await?;
        let is = |wanted: &Option<String>, id: String| wanted.as_ref().is_none_or(|wanted| *wanted == id);
        let listed = |s: &&Snapshot| is(&filter.snapshot, s.id.to_string()) && is(&filter.source, s.of.to_string());
        let entries = holdings.snapshots().filter(listed).cloned().collect();
        Ok(page(entries, |snapshot| snapshot.id.to_string(), max_entries, from))
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub async fn volume(&self, id: &str) -> Result<(Arc<Holdings>, Volume), Error> {
        let holdings = self.complete().await?;
        let found = holdings.volumes().find(|volume| volume.id.to_string() == id).cloned();
        found.map(|volume| (holdings, volume)).ok_or_else(|| Error::missing(Object::Volume, id))
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub async fn snapshot(&self, id: &str) -> Result<Snapshot, Error> {
        let holdings = self.complete().await?;
        let found = holdings.snapshots().find(|snapshot| snapshot.id.to_string() == id).cloned();
        found.ok_or_else(|| Error::missing(Object::Snapshot, id))
    }
}

fn check_token(token: &str, is_one: impl Fn(&str) -> bool) -> Result<&str, Error> {
    if token.is_empty() || is_one(token) {
        return Ok(token);
    }
    Err(Error::busy(format!("starting_token {token:?}"), "it is not one that this driver gave; list again from the beginning"))
}

fn page<T>(mut entries: Vec<T>, id: impl Fn(&T) -> String, max_entries: usize, from: &str) -> Page<T> {
    entries.sort_by_key(&id);
    let mut rest = entries.into_iter().skip_while(|entry| id(entry).as_str() < from);
    let most = if max_entries == 0 { usize::MAX } else { max_entries };
    let entries: Vec<T> = rest.by_ref().take(most).collect();
    Page { entries, next_token: rest.next().map_or(String::new(), |next| id(&next)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(page: &Page<u32>) -> (Vec<u32>, &str) {
        (page.entries.clone(), page.next_token.as_str())
    }

    #[test]
    fn pages_meet_without_gap_or_repeat_also_when_an_entry_goes() {
        let of = |entries: Vec<u32>, max, from| page(entries, |n| n.to_string(), max, from);
        let first = of(vec![3, 1, 2, 4], 2, "");
        assert_eq!(ids(&first), (vec![1, 2], "3"));
        assert_eq!(ids(&of(vec![1, 2, 4], 2, "3")), (vec![4], ""));
        assert_eq!(ids(&of(vec![1, 2, 3, 4], 0, "")), (vec![1, 2, 3, 4], ""));
        assert_eq!(ids(&of(vec![], 0, "9")), (vec![], ""));
    }
}
