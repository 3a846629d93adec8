//! Thin pools: finds the one that a configured pool means, creates it, keeps it active, and watches it while the driver runs.

mod undelivered;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::device;
use crate::host::DmEvents;
use crate::inflight::{Operation, Reservation};
use crate::lvm::command::{Command, PoolShape};
use crate::lvm::metadata::{Lv, SegmentKind, Vg};
use crate::machine::Machine;
use crate::types::{
    Bytes, Error, Extents, LvName, LvUuid, NewThinPool, Placement, Pool, PoolCare, PoolConfig, PoolMode, ThinPoolConfig,
    ThinPoolStatus, ThinRules, VgUuid, chain,
};
use crate::volume::capacity::{self, SICK};
use crate::volume::inventory::Inventory;
use crate::volume::thin_pool::{self, FoundPool, State};
use crate::volume::{Decision, PoolUse, Step, may_change, pool_zeroes, tag};

/// The LV that `createThinPool` makes if no name is configured.
const THIN_POOL: &str = "thinpool";

/// A thin pool at one check.
#[derive(Clone, Debug)]
struct PoolLook {
    vg: VgUuid,
    lv: LvUuid,
    /// Its name in errors and log lines.
    what: String,
    data: Bytes,
    metadata: Bytes,
    error_when_full: bool,
    /// `None` while it is not active.
    status: Option<ThinPoolStatus>,
    at: Instant,
}

impl Machine {
    /// Resolves a configured pool in its group.
    pub(in crate::machine) fn resolve(&self, config: &PoolConfig, inventory: &Inventory) -> Result<Pool, Error> {
        let vg = &inventory.vg;
        let placement = config.placement(|thin| {
            let pool = thin_pool_of(config, thin.pool.as_ref(), vg)?;
            zeroes(config, vg, &pool)?;
            Ok(pool)
        })?;
        let reserved = self.reserved(inventory, placement.thin_pool());
        let rules = config.thin().map_or_else(ThinRules::default, |thin| ThinRules {
            overprovision_percent: thin.overprovision_percent,
            max_snapshots: thin.max_snapshots,
            full_percent: thin.care.full_percent,
        });
        let (name, vg) = (config.name.clone(), config.vg.clone());
        Ok(Pool { name, vg, placement, rules, default_size: config.default_size, reserved })
    }

    /// Free extents of a group that are kept for the growth of its thin pools, except for one pool.
    pub(in crate::machine) fn reserved(&self, inventory: &Inventory, without: Option<&LvName>) -> Extents {
        let vg = &inventory.vg;
        let mut kept: BTreeMap<LvName, Extents> = BTreeMap::new();
        for config in self.pools.iter().filter(|config| config.vg == vg.name) {
            let Some(thin) = config.thin() else { continue };
            let Ok(name) = thin_pool_of(config, thin.pool.as_ref(), vg) else { continue };
            let reserve = kept.entry(name).or_default();
            *reserve = capacity::reserve(vg, thin.care.reserve).max(*reserve);
        }
        kept.retain(|name, _| Some(name) != without);
        Extents(kept.values().map(|reserve| reserve.0).fold(0, u64::saturating_add))
    }

    /// The fill of a pool's thin pool; `None` for other layouts, and while it is inactive.
    pub(in crate::machine) fn pool_use(&self, pool: &Pool, inventory: &Inventory) -> Option<PoolUse> {
        let status = self.thin_pool_status(pool.placement.thin_pool()?, inventory)?;
        Some(PoolUse::of(&status))
    }

    /// Refuses to use anything in a failed thin pool: its devices exist, but every access fails.
    pub(in crate::machine) fn refuse_failed(
        &self,
        what: &str,
        inventory: &Inventory,
        placement: &Placement,
    ) -> Result<(), Error> {
        let Some(pool) = placement.thin_pool() else { return Ok(()) };
        match self.thin_pool_status(pool, inventory) {
            Some(now) if now.mode == PoolMode::Failed => {
                Err(Error::unavailable(what, format!("thin pool {}/{pool} {SICK}", inventory.vg.name)))
            }
            _ => Ok(()),
        }
    }

    /// Blames the thin pool for a command's error if the pool is sick, or if the command activates the pool and it stayed inactive. The
    /// error is then the same for every request.
    pub(in crate::machine) fn blame(
        &self,
        what: &str,
        inventory: &Inventory,
        (pool, activates): (Option<&LvName>, bool),
        error: Error,
    ) -> Error {
        let (Some(name), Error::Failed { .. }) = (pool, &error) else { return error };
        let inactive = || {
            let reason = "is inactive and cannot be activated; see lvs -a and dmesg, and run lvconvert --repair";
            format!("thin pool {}/{name} {reason}", inventory.vg.name)
        };
        let why = match self.thin_pool_status(name, inventory) {
            Some(status) if status.is_healthy() => return error,
            Some(_) => format!("thin pool {}/{name} {SICK}", inventory.vg.name),
            None if activates => inactive(),
            None => return error,
        };
        Error::unavailable(what, format!("{why} ({})", error.chain()))
    }

    fn thin_pool_status(&self, pool: &LvName, inventory: &Inventory) -> Option<ThinPoolStatus> {
        let lv = inventory.vg.lv(pool.as_str())?;
        match device::pool_status(&*self.kernel, &inventory.vg.uuid, &lv.uuid) {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(pool = %pool, error = chain(&error), "cannot read the state of the thin pool");
                None
            }
        }
    }

    /// Creates or activates a pool's thin pool.
    pub(in crate::machine) fn start_pool(&self, config: &PoolConfig) -> Result<(), Error> {
        if let Some(reason) = &self.without_lvm {
            return Err(Error::unavailable(format!("pool {}", config.name), reason.clone()));
        }
        let Some(group) = self.groups.get(&config.vg) else { return Ok(()) };
        if config.thin().is_none() {
            return Ok(());
        }
        self.settle_unclaimed(group, &format!("pool {}", config.name), None, None, |inventory, _| {
            self.pool_step(config, inventory).unwrap_or_else(Decision::Refuse)
        })
    }

    /// The next step towards a pool's thin pool.
    fn pool_step(&self, config: &PoolConfig, inventory: &Inventory) -> Result<Decision<()>, Error> {
        let Some(ThinPoolConfig { pool, create, if_present, .. }) = config.thin() else { return Ok(Decision::AlreadyThere(())) };
        let vg = &inventory.vg;
        let has_pools = thin_pools(vg).next().is_some();
        let active = |lv: &LvUuid, suffix: &str| {
            let uuid = format!("{}{suffix}", device::lv_dm_uuid(&vg.uuid, lv));
            self.kernel.dm_find(&uuid).is_ok_and(|device| device.is_some())
        };
        match (thin_pool_of(config, pool.as_ref(), vg), create) {
            (Ok(pool), _) => {
                zeroes(config, vg, &pool)?;
                let is_active = |suffix| vg.lv(pool.as_str()).is_some_and(|lv| active(&lv.uuid, suffix));
                // With volumes in the pool, its own device is `-pool`, which keeps the pool active when the last volume goes; without any
                // it is `-tpool`.
                if is_active("-pool") || (is_active("-tpool") && vg.thins(pool.as_str()).next().is_none()) {
                    if let Some(trouble) = thin_pool::spare_trouble(vg, &pool) {
                        tracing::warn!(vg = %vg.name, %pool, trouble, "a repair of the thin pool needs spare metadata");
                    }
                    return Ok(Decision::AlreadyThere(()));
                }
                Ok(Decision::Do(Step::Lvm(Command::Activate { vg: vg.name.clone(), lvs: vec![pool] })))
            }
            (Err(_), Some(new)) if pool.is_some() || !has_pools => {
                let lv = pool.clone().map_or_else(|| LvName::new(THIN_POOL), Ok);
                let lv = lv.map_err(|why| Error::invalid("createThinPool", THIN_POOL, why.to_string()))?;
                may_change(vg)?;
                // What an lvm left that died while it made this pool: LVM wipes a plain LV, then turns it into the pool's metadata.
                // Nothing was ever written to it.
                let is_plain =
                    |lv: &&Lv| matches!(lv.segments.first().map(|segment| &segment.kind), Some(SegmentKind::Striped { .. }));
                let left = vg.lv(lv.as_str()).filter(|lv| tag::is_pool(&lv.tags, &self.driver)).filter(is_plain);
                Ok(Decision::Do(Step::Lvm(match left {
                    Some(left) if active(&left.uuid, "") => Command::Deactivate { vg: vg.name.clone(), lvs: vec![lv] },
                    Some(left) => Command::Remove { vg: vg.name.clone(), targets: vec![(lv, left.uuid.clone())] },
                    None => {
                        let tags = tag::of_pool(&self.driver);
                        Command::CreateThinPool { vg: vg.name.clone(), lv, size: new.size, shape: shape(new), tags }
                    }
                })))
            }
            (Err(_), None) if *if_present => Ok(Decision::AlreadyThere(())),
            (Err(error), _) => Err(error),
        }
    }

    /// Starts watching the configured thin pools, each on its own thread, so that one that hangs does not delay the others. A watcher's
    /// changes are operations, so shutdown waits for them.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn watch_pools(self: &Arc<Self>) {
        let runtime = Handle::current();
        let mut watched = BTreeSet::new();
        for config in &self.pools {
            let Some(ThinPoolConfig { pool, care, .. }) = config.thin() else { continue };
            if !watched.insert((&config.vg, pool)) {
                continue;
            }
            let (machine, config, care, runtime) = (Arc::clone(self), config.clone(), *care, runtime.clone());
            let thread = std::thread::Builder::new().name("thin-pool".to_owned());
            if let Err(error) = thread.spawn(move || machine.watch(&config, &care, &runtime)) {
                tracing::error!(%error, "cannot start a thread to watch a thin pool; it is not extended");
            }
        }
    }

    fn watch(self: &Arc<Self>, config: &PoolConfig, care: &PoolCare, runtime: &Handle) {
        let mut logged: Option<State> = None;
        let mut last: Option<PoolLook> = None;
        let mut deaf = false;
        loop {
            // Opened before the check, so that an event during the check ends the wait.
            let events = self.kernel.dm_events();
            let operation = Operation::new("the watch over a thin pool", format!("pool {}", config.name), ());
            let (machine, pool, auto_extend) = (Arc::clone(self), config.clone(), care.auto_extend);
            let look = self.inflight.run(operation, move |reservation| machine.tend(reservation, &pool, auto_extend));
            let (latest, pause) = match runtime.block_on(look) {
                Ok((state, latest)) => {
                    let before = logged.replace(state);
                    if before != Some(state) {
                        self.note(&config.name, notice(state, &latest.what, care.auto_extend));
                        log_state(before, state, &latest, care.auto_extend);
                    }
                    let before = last.and_then(|last| Some((last.status?, latest.at.duration_since(last.at))));
                    let pause = latest.status.map_or(care.poll, |now| thin_pool::pause(before, &now, care.poll));
                    (Some(latest), pause)
                }
                Err(error) => {
                    if logged.take().is_some() {
                        tracing::warn!(
                            pool = config.name,
                            error = error.chain(),
                            "cannot look after the thin pool; trying again later"
                        );
                    }
                    // No event is worth repeating a command that failed just now.
                    (None, care.poll)
                }
            };
            let waited = events.and_then(|mut events| self.wait(&mut *events, latest.as_ref(), pause));
            last = latest;
            if let Err(error) = waited {
                if !std::mem::replace(&mut deaf, true) {
                    tracing::warn!(pool = config.name, %error, "cannot wait for events of device-mapper; checking the pool at intervals");
                }
                #[expect(clippy::disallowed_methods, reason = "there is no event to wait for; the pool is checked again")]
                std::thread::sleep(care.poll);
            }
        }
    }

    /// Sets the notice about a pool for people; `None` clears it.
    fn note(&self, pool: &str, notice: Option<String>) {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        match notice {
            Some(text) => notices.insert(pool.to_owned(), text),
            None => notices.remove(pool),
        };
    }

    /// Waits until the pause is over, or until an event puts the pool in a state that needs a check now.
    fn wait(&self, events: &mut dyn DmEvents, latest: Option<&PoolLook>, pause: Duration) -> io::Result<()> {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            events.wait(left)?;
            let status = latest.and_then(|latest| device::pool_status(&*self.kernel, &latest.vg, &latest.lv).ok().flatten());
            if status.is_some_and(|now| thin_pool::is_pressing(&now)) {
                return Ok(());
            }
        }
    }

    /// Checks a pool's thin pool, and does what it needs.
    fn tend(&self, reservation: &Reservation, config: &PoolConfig, auto_extend: bool) -> Result<(State, PoolLook), Error> {
        let (pool, group, _) = self.pool(&config.name)?;
        let Some(name) = pool.placement.thin_pool() else {
            return Err(Error::precondition(format!("pool {}", config.name), "it is not thin"));
        };
        let what = format!("thin pool {}/{name}", pool.vg);
        let mut looks: Option<(PoolLook, PoolLook)> = None;
        let state = self.settle(reservation, group, &what, None, |inventory, _| {
            let status = self.thin_pool_status(name, inventory);
            if let Some(now) = pool_look(&what, &inventory.vg, name, status) {
                self.note_fill(&now.lv, status);
                let first = looks.take().map_or_else(|| now.clone(), |(first, _)| first);
                looks = Some((first, now));
            }
            let reserved = self.reserved(inventory, Some(name));
            thin_pool::decide(inventory, &FoundPool { name, status, reserved, auto_extend })
        })?;
        match looks {
            Some((first, last)) => {
                log_changes(&first, &last);
                Ok((state.answer, last))
            }
            None => Err(Error::unavailable(what, "it is gone")),
        }
    }
}

/// The shape of a thin pool to create.
fn shape(new: &NewThinPool) -> PoolShape {
    let suits = new.chunk.map_or_else(|| PoolShape::of(new.size), |chunk| PoolShape::with_chunk(new.size, chunk));
    PoolShape { metadata: new.metadata.unwrap_or(suits.metadata), ..suits }
}

fn thin_pools(vg: &Vg) -> impl Iterator<Item = &str> {
    let is_pool = |kind: Option<&SegmentKind>| matches!(kind, Some(SegmentKind::ThinPool { .. }));
    vg.lvs.iter().filter(move |lv| is_pool(lv.segments.first().map(|segment| &segment.kind))).map(|lv| lv.name.as_str())
}

/// The thin pool that a configured pool means: the one it names, or the only one of the group.
fn thin_pool_of(config: &PoolConfig, named: Option<&LvName>, vg: &Vg) -> Result<LvName, Error> {
    let absent = |reason: String| Err(Error::unavailable(format!("pool {}", config.name), reason));
    let pools: Vec<&str> = thin_pools(vg).collect();
    match (named, pools.as_slice()) {
        (Some(name), pools) if pools.contains(&name.as_str()) => Ok(name.clone()),
        (Some(name), _) => absent(format!("volume group {} holds no thin pool {name}", vg.name)),
        (None, [only]) => LvName::new(*only).or_else(|why| absent(format!("the name of thin pool {only} {why}"))),
        (None, []) => absent(format!("volume group {} holds no thin pool", vg.name)),
        (None, several) => {
            absent(format!("volume group {} holds several thin pools ({}); name one", vg.name, several.join(", ")))
        }
    }
}

fn zeroes(config: &PoolConfig, vg: &Vg, pool: &LvName) -> Result<(), Error> {
    pool_zeroes(vg, pool.as_str()).map_err(|why| Error::precondition(format!("pool {}", config.name), why))
}

fn pool_look(what: &str, vg: &Vg, pool: &LvName, status: Option<ThinPoolStatus>) -> Option<PoolLook> {
    let lv = vg.lv(pool.as_str())?;
    let Some(SegmentKind::ThinPool { metadata, .. }) = lv.segments.first().map(|segment| &segment.kind) else { return None };
    Some(PoolLook {
        vg: vg.uuid.clone(),
        lv: lv.uuid.clone(),
        what: what.to_owned(),
        data: vg.lv_size(lv),
        metadata: vg.lv(metadata).map(|lv| vg.lv_size(lv)).unwrap_or_default(),
        error_when_full: lv.error_when_full,
        status,
        at: Instant::now(),
    })
}

/// Logs what was done for a pool.
fn log_changes(first: &PoolLook, last: &PoolLook) {
    let pool = &last.what;
    for (part, from, to) in [("data", first.data, last.data), ("metadata", first.metadata, last.metadata)] {
        if to > from {
            tracing::info!(pool, part, %from, %to, fill = fill(last), "extended the thin pool before it is full");
        }
    }
    match (first.error_when_full, last.error_when_full) {
        (false, true) => tracing::warn!(
            pool,
            fill = fill(last),
            "its volume group has no room left to extend it: once it is full, writes fail at once instead of waiting for room; give \
             the group a disk with vgextend"
        ),
        (true, false) => tracing::info!(
            pool,
            fill = fill(last),
            "its volume group has room to extend it again: should it run full, writes wait for the extension"
        ),
        _ => {}
    }
}

/// Why a filling pool is not extended, and what to do.
fn remedy(auto_extend: bool) -> &'static str {
    if auto_extend {
        "its volume group has no room left, or only on a disk with larger logical blocks than the pool's (lsblk -o NAME,LOG-SEC), or its \
         metadata are as large as they can be; give the group a disk with vgextend, or delete volumes or snapshots"
    } else {
        "autoExtend is off; extend it with lvextend"
    }
}

/// The notice about a pool for people who do not read this log. It has no figures, so that it changes only with the state.
fn notice(state: State, pool: &str, auto_extend: bool) -> Option<String> {
    let remedy = remedy(auto_extend);
    match state {
        State::Fine | State::Inactive => None,
        State::Tight => Some(format!("{pool} runs full and is not extended: {remedy}")),
        State::Full => Some(format!("{pool} is full, and new data are not written: {remedy}")),
        State::Sick => Some(format!("{pool} {SICK}")),
    }
}

/// Logs a pool's state when it changes.
fn log_state(before: Option<State>, state: State, latest: &PoolLook, auto_extend: bool) {
    let (pool, fill) = (&latest.what, fill(latest));
    let remedy = remedy(auto_extend);
    match state {
        State::Fine if matches!(before, Some(State::Tight | State::Full | State::Sick)) => {
            tracing::info!(pool, fill, "the thin pool is in order again");
        }
        State::Fine => tracing::debug!(pool, fill, "the thin pool is in order"),
        State::Inactive => tracing::debug!(pool, "the thin pool is inactive; it is looked after once it is active"),
        State::Tight => tracing::warn!(pool, fill, remedy, "the thin pool runs full and is not extended"),
        State::Full => tracing::error!(pool, fill, remedy, "the thin pool is full; new data are not written"),
        State::Sick => tracing::error!(pool, fill, "the thin pool {SICK}"),
    }
}

fn fill(latest: &PoolLook) -> String {
    match &latest.status {
        Some(now) => format!("data {} %, metadata {} %", now.data_percent(), now.metadata_percent()),
        None => "not known".to_owned(),
    }
}
