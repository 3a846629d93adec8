//! The content of disks and volumes, as runs of cells, and what of it a power cut takes back.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::types::LvUuid;

/// The content of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Zero,
    /// Leftovers of a former user of the disk.
    Old,
    /// Data written for a user; every write has another number.
    Data(u32),
    /// The start of an ext4 filesystem.
    Super(Super),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Super {
    /// Number of the mkfs that made it; each has another.
    pub(super) serial: u32,
    pub(super) uuid: [u8; 16],
    pub(super) size: u64,
    /// Whether mkfs finished.
    pub(super) whole: bool,
    pub(super) mounted: bool,
}

/// Length of a superblock, in bytes.
pub(super) const HEAD: u64 = 4096;

/// Cells by position, and the fill between them.
#[derive(Clone, Debug)]
pub(super) struct Content {
    runs: BTreeMap<u64, (u64, Cell)>,
    fill: Cell,
}

impl Content {
    pub(super) fn of(fill: Cell) -> Self {
        Self { runs: BTreeMap::new(), fill }
    }

    /// The pieces of a range, in order and without gaps.
    pub(super) fn get(&self, at: &Range<u64>) -> Vec<(Range<u64>, Cell)> {
        let mut pieces = Vec::new();
        let mut done = at.start;
        for (start, (end, cell)) in self.runs.range(..at.end) {
            let (start, end) = ((*start).max(done), (*end).min(at.end));
            if start >= end {
                continue;
            }
            if done < start {
                pieces.push((done..start, self.fill));
            }
            pieces.push((start..end, *cell));
            done = end;
        }
        if done < at.end {
            pieces.push((done..at.end, self.fill));
        }
        pieces
    }

    pub(super) fn set(&mut self, at: &Range<u64>, cell: Cell) {
        let meets: Vec<u64> =
            self.runs.range(..at.end).filter(|(_, (end, _))| *end > at.start).map(|(start, _)| *start).collect();
        for start in meets {
            if let Some((end, old)) = self.runs.remove(&start) {
                if start < at.start {
                    self.runs.insert(start, (at.start, old));
                }
                if end > at.end {
                    self.runs.insert(at.end, (end, old));
                }
            }
        }
        if cell != self.fill && at.start < at.end {
            self.runs.insert(at.start, (at.end, cell));
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Store {
    /// A PV, by its index in the group.
    Pv(usize),
    Thin(LvUuid),
}

/// All stores, with their content at the last flush.
#[derive(Clone, Debug, Default)]
pub(super) struct Stores {
    now: BTreeMap<Store, Content>,
    flushed: BTreeMap<Store, Content>,
}

impl Stores {
    pub(super) fn put(&mut self, store: Store, content: Content) {
        self.flushed.remove(&store);
        self.now.insert(store, content);
    }

    pub(super) fn has(&self, store: &Store) -> bool {
        self.now.contains_key(store)
    }

    /// Returns whether it existed.
    pub(super) fn remove(&mut self, store: &Store) -> bool {
        self.flushed.remove(store);
        self.now.remove(store).is_some()
    }

    pub(super) fn get(&self, store: &Store) -> &Content {
        self.now.get(store).unwrap_or_else(|| panic!("{store:?} holds nothing"))
    }

    pub(super) fn set(&mut self, store: &Store, at: &Range<u64>, cell: Cell) {
        let content = self.now.get_mut(store).unwrap_or_else(|| panic!("{store:?} holds nothing"));
        self.flushed.entry(store.clone()).or_insert_with(|| content.clone());
        content.set(at, cell);
    }

    pub(super) fn flush(&mut self, store: &Store) {
        self.flushed.remove(store);
    }

    pub(super) fn flush_all(&mut self) {
        self.flushed.clear();
    }

    pub(super) fn power_cut(&mut self) {
        self.now.append(&mut self.flushed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_covers_what_was_there_and_leaves_the_rest() {
        let mut content = Content::of(Cell::Old);
        content.set(&(10..20), Cell::Data(1));
        content.set(&(15..30), Cell::Zero);
        content.set(&(17..18), Cell::Old);
        let expected =
            [(5..10, Cell::Old), (10..15, Cell::Data(1)), (15..17, Cell::Zero), (17..18, Cell::Old), (18..25, Cell::Zero)];
        assert_eq!(content.get(&(5..25)), expected);
    }

    #[test]
    fn a_power_cut_takes_back_what_was_not_flushed() {
        let mut stores = Stores::default();
        let store = Store::Pv(0);
        stores.put(store.clone(), Content::of(Cell::Old));
        stores.set(&store, &(0..4), Cell::Zero);
        stores.flush(&store);
        stores.set(&store, &(0..2), Cell::Data(1));
        stores.power_cut();
        assert_eq!(stores.get(&store).get(&(0..4)), [(0..4, Cell::Zero)]);
    }
}
