//! Assembles what the node reports from one look at each group. Each group has its own task, with one look at a time, so that a group
//! whose disks hang does not delay the others: its last state is reported until its look ends. The engine ends a look after the group's
//! patience, with an error that says what hangs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent::{GroupReading, Holdings};
use crate::lvm::ReadError;
use crate::machine::{Group, Machine};
use crate::types::{PoolConfig, chain};
use crate::volume::capacity::{self, Capacity};

/// How long anybody waits for a look.
const LIMIT: Duration = Duration::from_secs(1);
/// Reported for a group until its first look has ended.
const FIRST: &str = "its disks have not answered yet";

/// The result of a look at a group.
#[derive(Debug)]
pub(in crate::machine) struct Look {
    reading: GroupReading,
    /// The pools in it, by name.
    pools: Vec<(String, Result<Capacity, String>)>,
}

#[derive(Debug)]
pub(in crate::machine) struct Looks {
    state: Mutex<State>,
    /// The number of the last request that was answered, and the look that answered it.
    taken: watch::Sender<(u64, Option<Arc<Look>>)>,
}

#[derive(Debug, Default)]
struct State {
    /// Requests so far.
    asked: u64,
    /// When the current look began.
    since: Option<Instant>,
}

impl Default for Looks {
    fn default() -> Self {
        Self { state: Mutex::default(), taken: watch::Sender::new((0, None)) }
    }
}

impl Looks {
    /// Requests a look that begins from now on. Returns the number of the request, the time to wait until, and whether no look is
    /// running.
    fn ask(&self) -> (u64, Instant, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked += 1;
        let idle = state.since.is_none();
        let since = *state.since.get_or_insert_with(Instant::now);
        (state.asked, since + LIMIT, idle)
    }

    /// The number of the last request that a look beginning now answers; `None` if all are answered, and then no look runs.
    fn begin(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.taken.borrow().0 < state.asked;
        state.since = open.then(Instant::now);
        open.then_some(state.asked)
    }

    /// The last look, and whether it answers this request.
    async fn wait(&self, number: u64, until: Instant) -> (Option<Arc<Look>>, bool) {
        let mut taken = self.taken.subscribe();
        // Even after a timeout, what is there then counts.
        let _ = tokio::time::timeout_at(until, taken.wait_for(|(done, _)| *done >= number)).await;
        let (done, last) = taken.borrow().clone();
        (last, done >= number)
    }
}

impl Machine {
    /// What the node has, no older than the call; for a group with slow disks, what was read last. The driver's own changes are in it,
    /// since a change is read before it is answered.
    pub(in crate::machine) async fn look(self: &Arc<Self>) -> Holdings {
        let asked: Vec<_> = self.groups.values().map(|group| (group, self.ask_for_look(group))).collect();
        let mut looks = Vec::with_capacity(asked.len());
        for (group, (number, until)) in asked {
            let (look, is_new) = group.looks.wait(number, until).await;
            looks.push((group, look, is_new));
        }
        let groups = match &self.without_lvm {
            Some(reason) => self.pools.iter().map(|config| (config.vg.clone(), Err(reason.clone()))).collect(),
            None => looks
                .iter()
                .map(|(group, look, is_new)| (group.name.clone(), self.reading(group, look.as_deref(), *is_new)))
                .collect(),
        };
        let state = |config: &PoolConfig| {
            let Some((_, look, _)) = looks.iter().find(|(group, ..)| group.name == config.vg) else {
                return self.pool_state(config);
            };
            let found = look.as_ref().and_then(|look| look.pools.iter().find(|(name, _)| *name == config.name));
            found.map_or_else(|| Err(format!("volume group {}: {FIRST}", config.vg)), |(_, state)| state.clone())
        };
        let pools = self.pools.iter().map(|config| (config.name.clone(), state(config))).collect();
        self.holdings_of(groups, pools)
    }

    /// Returns the number of the request, and the time to wait until.
    fn ask_for_look(self: &Arc<Self>, group: &Group) -> (u64, Instant) {
        let (number, until, idle) = group.looks.ask();
        if idle {
            let (machine, name) = (Arc::clone(self), group.name.clone());
            tokio::spawn(async move {
                let Some(group) = machine.groups.get(&name) else { return };
                while let Some(number) = group.looks.begin() {
                    let (looker, name) = (Arc::clone(&machine), name.clone());
                    let look = tokio::task::spawn_blocking(move || Some(Arc::new(looker.look_at(looker.groups.get(&name)?))));
                    // The panic hook logs a panic; the last look stays.
                    let found = look.await.ok().flatten();
                    group.looks.taken.send_modify(|(done, last)| {
                        *done = number;
                        *last = found.or_else(|| last.take());
                    });
                }
            });
        }
        (number, until)
    }

    fn look_at(&self, group: &Group) -> Look {
        let reading = match (group.inventory(), group.contents()) {
            (Ok(inventory), contents) => Ok(contents.filter(|_| !self.is_another(group, &inventory))),
            // Volumes still exist, and stay attached, while their disks are away.
            (Err(_), Some(last)) => Ok(Some(last)),
            // A group that was there before is reported as away.
            (Err(ReadError::Absent { .. } | ReadError::Away { .. } | ReadError::Ignored { .. }), None) => Ok(None),
            (Err(error), None) => Err(chain(&error)),
        };
        let of_group = self.pools.iter().filter(|config| config.vg == group.name);
        let pools = of_group.map(|config| (config.name.clone(), self.pool_state(config))).collect();
        Look { reading, pools }
    }

    /// What is left of a pool, or why it is not on offer.
    fn pool_state(&self, config: &PoolConfig) -> Result<Capacity, String> {
        let (pool, group, inventory) = self.pool(&config.name).map_err(|error| error.chain())?;
        // A pool that cannot be changed is not on offer: the scheduler chooses another node meanwhile.
        if let Some(trouble) = self.trouble(group) {
            return Err(trouble);
        }
        Ok(capacity::of(&inventory, &pool, self.pool_use(&pool, &inventory)))
    }

    /// The contents of a group by its last look, or by a later read.
    fn reading(&self, group: &Group, look: Option<&Look>, is_new: bool) -> GroupReading {
        match (look, group.last()) {
            (Some(look), _) if is_new => look.reading.clone(),
            (_, Some(last)) => Ok(group.contents().filter(|_| !self.is_another(group, &last))),
            (Some(look), None) => look.reading.clone(),
            (None, None) => Err(FIRST.to_owned()),
        }
    }
}
