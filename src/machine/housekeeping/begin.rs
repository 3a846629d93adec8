//! The first look at each group: cleans up after a dead lvm, and creates or activates the thin pools. Each group begins by itself and
//! retries until it succeeds: a disk that comes later needs no restart, and one that hangs delays no other group. A missing pool delays
//! nothing else in its group.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::inflight::Operation;
use crate::lvm::ReadError;
use crate::machine::{Group, Machine};
use crate::types::{PoolConfig, VgName, chain, step};
use crate::volume::inventory::Inventory;

/// How long the driver waits for the first look at its groups before it is ready without the slow ones.
const FIRST: Duration = Duration::from_secs(10);
/// Pause before a failed group is tried again, and the longest pause while nothing changes.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Stands for the group itself in a set of missing pools.
const GROUP: &str = "";
/// How often to check whether such a group has changed; reads no disk.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait for groups to say whether they hold a thin pool.
const ASKED: Duration = Duration::from_secs(5);

/// What must change before a failed group is tried again.
#[derive(Debug)]
pub(in crate::machine) enum Awaited {
    /// The group's last read; each new read differs.
    Group(Option<Arc<Inventory>>),
    /// Those of its missing pools that the group holds now.
    Pools(BTreeSet<String>),
}

impl PartialEq for Awaited {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Group(one), Self::Group(other)) => one.as_ref().map(Arc::as_ptr) == other.as_ref().map(Arc::as_ptr),
            (Self::Pools(one), Self::Pools(other)) => one == other,
            _ => false,
        }
    }
}

impl Machine {
    /// Begins all groups at once. Waits until each was tried, for a limited time: a hanging group begins when it can.
    ///
    /// # Panics
    /// Unless called on a thread of a runtime on which it may block.
    pub fn begin(self: &Arc<Self>) {
        self.make_guards();
        // Must come before any activation.
        self.hide_from_host();
        let runtime = Handle::current();
        let until = Instant::now() + FIRST;
        let firsts: Vec<_> = self
            .groups
            .keys()
            .map(|name| {
                let (sender, first) = oneshot::channel();
                runtime.spawn(Arc::clone(self).begin_group(name.clone(), sender));
                (name, first)
            })
            .collect();
        runtime.block_on(async {
            for (name, first) in firsts {
                if tokio::time::timeout_at(until, first).await.is_err() {
                    tracing::warn!(vg = %name, "the first look at the volume group takes long; serving the others meanwhile");
                }
            }
        });
        self.ready.store(true, Ordering::Release);
    }

    pub(in crate::machine) async fn begin_group(self: Arc<Self>, name: VgName, first: oneshot::Sender<()>) {
        let (mut first, mut known_missing, mut pause, mut is_adopted) = (Some(first), BTreeSet::new(), PAUSES.0, false);
        loop {
            let mut operation = Operation::new("the first look", format!("volume group {name}"), ());
            operation.writes = Vec::new();
            let (machine, group, before) = (Arc::clone(&self), name.clone(), known_missing.clone());
            let tried = self
                .inflight
                .run(operation, move |_| Ok(machine.groups.get(&group).map(|group| machine.start_group(group, &before))));
            let missing = tried.await.ok().flatten();
            if let Some(first) = first.take() {
                // Nobody may be waiting any more.
                let _ = first.send(());
            }
            if !is_adopted && missing.as_ref().is_some_and(|missing| !missing.contains(GROUP)) {
                self.adopt_nameless(&name).await;
                is_adopted = true;
            }
            match missing {
                Some(missing) if missing.is_empty() => break,
                Some(missing) => {
                    pause = if missing == known_missing { (2 * pause).min(PAUSES.1) } else { PAUSES.0 };
                    known_missing = missing;
                }
                // A panic, which the panic hook logged.
                None => pause = PAUSES.1,
            }
            self.await_change(&name, &known_missing, pause).await;
        }
    }

    /// Waits until what is missing may be there, at most `limit`. Relies on the health checks to read the group.
    async fn await_change(&self, name: &VgName, missing: &BTreeSet<String>, limit: Duration) {
        let (before, until) = (self.awaited(name, missing), Instant::now() + limit);
        while Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            if self.awaited(name, missing) != before {
                return;
            }
        }
    }

    /// What must change before a retry is worthwhile: the group's last read if the group itself failed; otherwise the set of missing
    /// pools that it holds, because every new volume changes the group.
    pub(in crate::machine) fn awaited(&self, name: &VgName, missing: &BTreeSet<String>) -> Awaited {
        let group = self.groups.get(name).and_then(Group::last);
        if missing.is_empty() || missing.contains(GROUP) {
            return Awaited::Group(group);
        }
        let Some(inventory) = group else { return Awaited::Pools(BTreeSet::new()) };
        let configured = self.pools.iter().filter(|config| config.vg == *name && missing.contains(&config.name));
        let there = configured.filter(|config| self.resolve(config, &inventory).is_ok());
        Awaited::Pools(there.map(|config| config.name.clone()).collect())
    }

    /// Begins all groups, one after the other.
    #[cfg(test)]
    pub(crate) fn start(&self) {
        self.make_guards();
        for group in self.groups.values() {
            self.start_group(group, &BTreeSet::new());
        }
        self.forget_all_gone();
        self.ready.store(true, Ordering::Release);
    }

    /// Finishes the work of a dead lvm, creates configured thin pools that are missing, and activates the others: creating a thin volume
    /// is several times faster in an active pool. Returns what is still missing, and logs what was not missing before.
    fn start_group(&self, group: &Group, before: &BTreeSet<String>) -> BTreeSet<String> {
        step::in_group(&group.name);
        let mut missing = BTreeSet::new();
        let turn = group.lvm.turn();
        let recovered = turn.map_err(|wedged| wedged.to_string()).and_then(|turn| {
            group.lvm.recover(&turn).map_err(|error| chain(&error))?;
            let view = group.lvm.read().map_err(|error| chain(&error))?;
            self.remove_private_maps(&turn, &view.vg).map_err(|error| error.chain())?;
            self.record(group, &turn, &view).map_err(|error| error.chain())
        });
        if let Err(error) = recovered {
            if !before.contains(GROUP) {
                tracing::warn!(vg = %group.name, error, "cannot use the volume group yet; trying again");
            }
            missing.insert(GROUP.to_owned());
        }
        for config in self.pools.iter().filter(|config| config.vg == group.name) {
            if let Err(error) = self.start_pool(config) {
                if !before.contains(&config.name) {
                    tracing::warn!(pool = %config.name, vg = %config.vg, error = %error.chain(), "cannot use the pool yet; trying again");
                }
                missing.insert(config.name.clone());
            }
        }
        if missing.is_empty() && !before.is_empty() {
            tracing::info!(vg = %group.name, "the volume group and its pools are ready");
        }
        missing
    }

    /// Whether any pool may offer snapshots: one configured as thin, or one that `--vg` found. A group that cannot be read now counts as
    /// one that does: a sidecar asks only once, and the call itself fails if there is no such pool.
    pub async fn offers_snapshots(self: &Arc<Self>) -> bool {
        let asked = self.pools.iter().map(|config| {
            let (machine, config) = (Arc::clone(self), config.clone());
            tokio::task::spawn_blocking(move || machine.may_hold_snapshots(&config))
        });
        let (asked, until) = (asked.collect::<Vec<_>>(), Instant::now() + ASKED);
        let mut offers = false;
        for one in asked {
            offers |= tokio::time::timeout_at(until, one).await.map_or(true, |held| held.unwrap_or(false));
        }
        offers
    }

    fn may_hold_snapshots(&self, config: &PoolConfig) -> bool {
        let Some(thin) = config.thin() else { return false };
        if !thin.if_present {
            return true;
        }
        match self.groups.get(&config.vg).map(Group::inventory) {
            Some(Ok(inventory)) => self.resolve(config, &inventory).is_ok(),
            Some(Err(ReadError::Absent { .. })) | None => false,
            Some(Err(_)) => true,
        }
    }
}
