//! Care of thin pools: the driver extends a pool before it is full. If it cannot, it makes a full pool fail writes at once.
//!
//! A pool without a free block either queues the writes that need one or fails them. Queued writes lose nothing if the pool is
//! extended in time. If nobody extends it, they hang until the kernel gives up (module parameter `no_space_timeout`, a minute) and
//! fails them anyway. So a pool queues while the group has room to extend it, and fails writes at once if it has none.
//!
//! ```text
//!              80 % data, 70 % metadata            no room in the group
//!   Fine ────────────────▶ (extended) ──▶ Fine     ───────────────────────▶ Tight ──no free block──▶ Full
//!     ▲                                            writes fail when full       │                       │
//!     └──────────────────────── vgextend, or volumes deleted ──────────────────┴───────────────────────┘
//! ```
//!
//! LVM's low water mark is not used. It comes with `thin_pool_autoextend_threshold`, and `lvcreate` refuses new volumes in a pool that
//! is fuller than that.

use std::time::Duration;

use crate::lvm::command::Command;
use crate::lvm::metadata::{Lv, SegmentKind, Vg};
use crate::types::{Error, Extents, LvName, NewThinPool, PoolMode, Sectors, ThinPoolStatus};

use super::inventory::Inventory;
use super::{Decision, Step, blocks, may_change};

/// The fill at which the driver extends a part of a pool, and the largest fill afterwards, in percent.
struct Mark {
    at: u64,
    to: u64,
}

const DATA: Mark = Mark { at: 80, to: 70 };
/// Metadata that run full need an offline repair, so they are extended earlier.
const METADATA: Mark = Mark { at: 70, to: 60 };

/// An extension adds at least one part in this many of the pool's size, since each one suspends the pool's I/O for a moment.
const STEP: u64 = 5;

/// Shortest pause between two polls of a pool.
const SHORTEST: Duration = Duration::from_secs(1);

/// The state of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing to report.
    Fine,
    /// It is not active, so nobody writes to it.
    Inactive,
    /// It should be larger, and cannot be extended.
    Tight,
    /// Its data are full: writes that need a new block do not succeed.
    Full,
    /// It needs a person: it failed, is read-only, or must be checked.
    Sick,
}

/// A pool on the machine.
#[derive(Clone, Copy, Debug)]
pub struct FoundPool<'a> {
    pub name: &'a LvName,
    /// The kernel's status; `None` while the pool is not active.
    pub status: Option<ThinPoolStatus>,
    /// Free extents of the group that are kept for other pools.
    pub reserved: Extents,
    /// Whether the driver extends it.
    pub auto_extend: bool,
}

/// Decides the next step for the pool.
pub fn decide(inventory: &Inventory, pool: &FoundPool<'_>) -> Decision<State> {
    next(inventory, pool).unwrap_or_else(Decision::Refuse)
}

fn next(inventory: &Inventory, pool: &FoundPool<'_>) -> Result<Decision<State>, Error> {
    let vg = &inventory.vg;
    let what = || format!("thin pool {}/{}", vg.name, pool.name);
    let gone = || Error::unavailable(what(), "it is no longer a thin pool");
    let lv = vg.lv(pool.name.as_str()).ok_or_else(gone)?;
    let Some(SegmentKind::ThinPool { metadata, chunk_size, .. }) = lv.segments.first().map(|segment| &segment.kind) else {
        return Err(gone());
    };
    let metadata = vg.lv(metadata).ok_or_else(gone)?;
    let Some(now) = pool.status else { return Ok(Decision::AlreadyThere(State::Inactive)) };
    if !now.is_healthy() {
        return Ok(Decision::AlreadyThere(State::Sick));
    }
    if pool.auto_extend {
        may_change(vg)?;
        if let Some(command) = command(inventory, pool, lv, metadata, *chunk_size, &now) {
            return Ok(Decision::Do(Step::Lvm(command)));
        }
    }
    Ok(Decision::AlreadyThere(match now.mode {
        PoolMode::OutOfData => State::Full,
        _ if wants_more(&now) => State::Tight,
        _ => State::Fine,
    }))
}

fn command(
    inventory: &Inventory,
    pool: &FoundPool<'_>,
    lv: &Lv,
    metadata: &Lv,
    chunk: Sectors,
    now: &ThinPoolStatus,
) -> Option<Command> {
    let vg = &inventory.vg;
    let room = vg.free_extents().0.saturating_sub(pool.reserved.0);
    let (group, name) = (vg.name.clone(), pool.name.clone());
    let loaded = now.total_data.saturating_add(1).saturating_mul(chunk.to_bytes().0);
    if now.mode == PoolMode::OutOfData && loaded <= vg.lv_size(lv).0 {
        // Somebody extended it in the metadata, and the kernel did not load the new size.
        return Some(Command::Refresh { vg: group, lv: name });
    }
    if now.metadata_percent() >= METADATA.at {
        let old = metadata.extents();
        let most = NewThinPool::LARGEST_METADATA.to_extents_down(vg.extent_bytes());
        let spare = vg.lvs.iter().find(|lv| is_spare(lv)).map_or(Extents(0), Lv::extents);
        let wanted = METADATA.size(old, now.used_metadata, now.total_metadata).min(most);
        if let Some(new) = with_spare(old, spare, wanted, room) {
            return Some(Command::ExtendMetadata { vg: group, lv: name, size: new.to_bytes(vg.extent_bytes()) });
        }
    }
    // The disks' logical blocks limit the growth of the data only: the kernel writes a pool's metadata in blocks of 4 KiB on any disk.
    let room = if blocks::check_growth(inventory, lv).is_ok() { room } else { 0 };
    if now.data_percent() >= DATA.at && room > 0 {
        let old = lv.extents();
        let wanted = DATA.size(old, now.used_data, now.total_data);
        let extents = wanted.min(Extents(old.0.saturating_add(room)));
        return Some(Command::Extend { vg: group, lv: name, extents });
    }
    // A pool with free blocks keeps its mode: changing it each time that room comes and goes would suspend its I/O.
    let error = room == 0 && (lv.error_when_full || now.data_percent() >= DATA.at);
    (lv.error_when_full != error).then_some(Command::ErrorWhenFull { vg: group, lv: name, error })
}

impl Mark {
    /// The size to which to extend a part of this size and fill.
    fn size(&self, old: Extents, used: u64, total: u64) -> Extents {
        let filled = u128::from(old.0) * u128::from(used) / u128::from(total.max(1));
        let enough = u64::try_from((filled * 100).div_ceil(u128::from(self.to))).unwrap_or(u64::MAX);
        Extents(enough.max(old.0.saturating_add(old.0.div_ceil(STEP))))
    }
}

/// The largest size up to `wanted` at which the metadata and a spare of the same size fit; `None` if that is no growth.
fn with_spare(old: Extents, spare: Extents, wanted: Extents, room: u64) -> Option<Extents> {
    let fits = |new: &u64| (new - old.0).saturating_add(new.saturating_sub(spare.0)) <= room;
    (old.0 + 1..=wanted.0).rev().find(fits).map(Extents)
}

/// Whether a pool should be extended, must be checked, or does not serve all reads and writes.
pub fn is_pressing(now: &ThinPoolStatus) -> bool {
    now.mode != PoolMode::ReadWrite || now.needs_check || wants_more(now)
}

fn wants_more(now: &ThinPoolStatus) -> bool {
    now.data_percent() >= DATA.at || now.metadata_percent() >= METADATA.at
}

/// The pause until the next poll: half of the time until the pool must be extended, if it continues to fill as fast as since the last
/// poll. `before` is the status at the last poll and the time since then.
pub fn pause(before: Option<(ThinPoolStatus, Duration)>, now: &ThinPoolStatus, longest: Duration) -> Duration {
    let shortest = SHORTEST.min(longest);
    let Some((before, between)) = before else { return shortest };
    let half = |mark: &Mark, was: u64, is: u64, total: u64| {
        let left = (total.saturating_mul(mark.at) / 100).saturating_sub(is);
        match is.saturating_sub(was) {
            0 => longest,
            more => Duration::try_from_secs_f64(between.as_secs_f64() * left as f64 / more as f64 / 2.0).unwrap_or(longest),
        }
    };
    let data = half(&DATA, before.used_data, now.used_data, now.total_data);
    let metadata = half(&METADATA, before.used_metadata, now.used_metadata, now.total_metadata);
    data.min(metadata).clamp(shortest, longest)
}

fn is_spare(lv: &Lv) -> bool {
    lv.name.ends_with("_pmspare")
}

/// What is wrong with the spare metadata LV, which a repair of the pool needs; `None` if nothing is.
pub fn spare_trouble(vg: &Vg, pool: &LvName) -> Option<String> {
    let Some(SegmentKind::ThinPool { metadata, .. }) = vg.lv(pool.as_str())?.segments.first().map(|segment| &segment.kind) else {
        return None;
    };
    let metadata = vg.lv(metadata)?.extents();
    let spare = vg.lvs.iter().find(|lv| is_spare(lv)).map(Lv::extents);
    let lacks = match spare {
        None => "there is none".to_owned(),
        Some(spare) if spare < metadata => format!("it has {spare}, and the metadata have {metadata}"),
        Some(_) => return None,
    };
    let size = vg.extent_bytes().0;
    Some(format!("{lacks}; run lvextend --poolmetadatasize +{size}b {}/{pool}, which makes a large enough one", vg.name))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{EXTENT, Group, lv};
    use super::*;
    use crate::types::Bytes;

    /// Data blocks of the test group's pool: 100 extents of 4 MiB in chunks of 64 KiB.
    const BLOCKS: u64 = 6400;

    fn status(data: u64, metadata: u64) -> ThinPoolStatus {
        ThinPoolStatus {
            mode: PoolMode::ReadWrite,
            used_data: BLOCKS * data / 100,
            total_data: BLOCKS,
            used_metadata: metadata * 10,
            total_metadata: 1000,
            error_if_no_space: false,
            needs_check: false,
        }
    }

    /// The test group with two extents of metadata and a spare for its pool, and `room` free extents.
    fn group(room: u64) -> Group {
        let group = Group::new().with(lv("pool_tmeta", 2, &[])).with(lv("lvol0_pmspare", 2, &[]));
        group.with(lv("other", 896 - room, &[]))
    }

    fn found(name: &LvName, status: ThinPoolStatus) -> FoundPool<'_> {
        FoundPool { name, status: Some(status), reserved: Extents(0), auto_extend: true }
    }

    fn decided(group: Group, status: ThinPoolStatus) -> Decision<State> {
        decide(&group.inventory(), &found(&LvName::new("pool").unwrap(), status))
    }

    fn step(group: Group, status: ThinPoolStatus) -> Command {
        match decided(group, status) {
            Decision::Do(Step::Lvm(command)) => command,
            other => panic!("{other:?}"),
        }
    }

    fn state(group: Group, status: ThinPoolStatus) -> State {
        match decided(group, status) {
            Decision::AlreadyThere(state) => state,
            other => panic!("{other:?}"),
        }
    }

    fn error_when_full(vg: &mut Vg) {
        vg.lvs.iter_mut().find(|lv| lv.name == "pool").unwrap().error_when_full = true;
    }

    fn extended(command: &Command) -> u64 {
        match command {
            Command::Extend { lv, extents, .. } if lv.as_str() == "pool" => extents.0,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_pool_grows_at_its_marks_and_not_before() {
        assert_eq!(state(group(500), status(79, 69)), State::Fine);
        assert_eq!(extended(&step(group(500), status(80, 0))), 120);
        // A full pool grows until it is 70 % full.
        assert_eq!(extended(&step(group(500), status(100, 0))), 143);
        assert_eq!(extended(&step(group(7), status(100, 0))), 107);
        let command = step(group(500), status(100, 70));
        assert!(matches!(command, Command::ExtendMetadata { size: Bytes(size), .. } if size == 3 * EXTENT.0), "{command}");
    }

    #[test]
    fn without_room_a_full_pool_fails_writes_and_with_room_it_queues_them() {
        let command = step(group(0), status(80, 99));
        assert!(matches!(command, Command::ErrorWhenFull { error: true, .. }), "{command}");
        assert_eq!(state(group(0), status(79, 1)), State::Fine);
        assert_eq!(state(group(0).but(error_when_full), status(79, 1)), State::Fine);
        assert_eq!(state(group(0).but(error_when_full), status(80, 1)), State::Tight);
        assert_eq!(state(group(0).but(error_when_full), status(1, 70)), State::Tight);
        let full = ThinPoolStatus { mode: PoolMode::OutOfData, ..status(100, 1) };
        assert_eq!(state(group(0).but(error_when_full), full), State::Full);
        // When there is room again, first the extension, then the mode.
        assert_eq!(extended(&step(group(896).but(error_when_full), full)), 143);
        let command = step(group(1).but(error_when_full), status(50, 1));
        assert!(matches!(command, Command::ErrorWhenFull { error: false, .. }), "{command}");
    }

    #[test]
    fn the_data_of_a_pool_do_not_grow_onto_larger_blocks() {
        let decided = |data, metadata, second: u64| {
            let two = group(0).but(|vg| {
                let uuid = crate::types::PvUuid::from_compact(&"q".repeat(32)).unwrap();
                let pv = crate::lvm::metadata::Pv { uuid, key: "pv1".into(), ..vg.pvs[0].clone() };
                vg.pvs.push(pv);
            });
            let inventory = two.inventory();
            let sizes = [512, second].map(|size| Some(Bytes(size)));
            let pvs = inventory.vg.pvs.iter().map(|pv| pv.uuid.clone());
            let sizes = pvs.zip(sizes).collect();
            decide(&inventory.on_disks(sizes), &found(&LvName::new("pool").unwrap(), status(data, metadata)))
        };
        assert!(matches!(decided(80, 0, 512), Decision::Do(Step::Lvm(Command::Extend { .. }))));
        let refused = decided(80, 0, 4096);
        assert!(matches!(refused, Decision::Do(Step::Lvm(Command::ErrorWhenFull { error: true, .. }))), "{refused:?}");
        assert!(matches!(decided(80, 70, 4096), Decision::Do(Step::Lvm(Command::ExtendMetadata { .. }))));
    }

    #[test]
    fn space_kept_for_other_pools_is_no_room() {
        let name = LvName::new("pool").unwrap();
        let pool = |reserved| FoundPool { reserved: Extents(reserved), ..found(&name, status(80, 0)) };
        let decided = |reserved| decide(&group(50).inventory(), &pool(reserved));
        assert!(matches!(decided(45), Decision::Do(Step::Lvm(Command::Extend { extents: Extents(105), .. }))));
        assert!(matches!(decided(50), Decision::Do(Step::Lvm(Command::ErrorWhenFull { error: true, .. }))));
    }

    #[test]
    fn pools_without_auto_extend_and_inactive_or_sick_pools_are_left_alone() {
        let name = LvName::new("pool").unwrap();
        let by_hand = FoundPool { auto_extend: false, ..found(&name, status(80, 0)) };
        assert!(matches!(decide(&group(50).inventory(), &by_hand), Decision::AlreadyThere(State::Tight)));
        let idle = FoundPool { status: None, ..found(&name, status(80, 0)) };
        assert!(matches!(decide(&group(50).inventory(), &idle), Decision::AlreadyThere(State::Inactive)));
        for sick in [
            ThinPoolStatus { needs_check: true, ..status(99, 99) },
            ThinPoolStatus { mode: PoolMode::ReadOnly, ..status(99, 99) },
            ThinPoolStatus { mode: PoolMode::Failed, ..status(0, 0) },
        ] {
            assert_eq!(state(group(50), sick), State::Sick);
            assert!(is_pressing(&sick));
        }
        let away = group(50).but(|vg| vg.pvs[0].missing = true);
        assert!(matches!(decided(away, status(80, 0)), Decision::Refuse(Error::Unavailable { .. })));
    }

    #[test]
    fn an_extension_that_the_kernel_has_not_loaded_is_loaded() {
        let full = ThinPoolStatus { mode: PoolMode::OutOfData, used_data: 3200, total_data: 3200, ..status(0, 1) };
        assert!(matches!(step(group(0), full), Command::Refresh { .. }));
        // A remainder smaller than a chunk is nothing to load.
        let almost = ThinPoolStatus { used_data: BLOCKS, total_data: BLOCKS, ..full };
        assert!(!matches!(step(group(0), almost), Command::Refresh { .. }));
    }

    #[test]
    fn metadata_grow_as_far_as_their_spare_can_follow() {
        let grown = |spare, wanted, room| with_spare(Extents(10), Extents(spare), Extents(wanted), room).map(|size| size.0);
        assert_eq!((grown(10, 12, 100), grown(10, 12, 3), grown(10, 12, 1)), (Some(12), Some(11), None));
        // A larger spare, as for another pool.
        assert_eq!((grown(20, 15, 5), grown(12, 20, 8)), (Some(15), Some(15)));
        // A missing or small spare takes room first.
        assert_eq!((grown(0, 12, 12), grown(0, 12, 11), grown(8, 12, 4)), (Some(11), None, Some(11)));
        // LVM's limit is reached.
        assert_eq!(grown(10, 10, 100), None);
    }

    #[test]
    fn a_pool_that_fills_fast_is_polled_sooner() {
        let (second, usual) = (Duration::from_secs(1), Duration::from_secs(10));
        let next = |before: u64, now: u64| pause(Some((status(before, 1), second)), &status(now, 1), usual);
        assert_eq!(pause(None, &status(1, 1), usual), second);
        assert_eq!(next(40, 40), usual);
        assert_eq!(next(41, 40), usual);
        assert_eq!(next(30, 40), Duration::from_secs(2));
        assert_eq!(next(10, 79), second);
        assert_eq!(pause(None, &status(1, 1), second / 4), second / 4);
    }

    #[test]
    fn a_missing_or_small_spare_is_reported() {
        let trouble = |group: Group| spare_trouble(&group.inventory().vg, &LvName::new("pool").unwrap());
        assert_eq!(trouble(group(0)), None);
        let without = trouble(group(0).but(|vg| vg.lvs.retain(|lv| !is_spare(lv)))).unwrap();
        assert!(without.contains("there is none") && without.contains("lvextend --poolmetadatasize +4194304b vg0/pool"));
        let small = group(0).but(|vg| vg.lvs.iter_mut().find(|lv| is_spare(lv)).unwrap().segments[0].count = Extents(1));
        assert!(trouble(small).unwrap().contains("it has 1 extents"));
    }
}
