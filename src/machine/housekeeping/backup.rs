//! Copies the groups' metadata: at start, at shutdown, after each commit of the driver, and once per interval because of others' commits.
//!
//! No answer waits for a copy: one read of the text and one durable write of a file, begun right after the commit. During a series of
//! commits there is at most one copy per second, or one per [`SHARE`] times the duration of a copy. The last commit is always copied.
//!
//! So the newest copy may lack the last commits before an accident. `prepare-metadata` (`lvm/restore.rs`) compares a copy with
//! the thin pools.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::lvm::Backups;
use crate::machine::Machine;
use crate::types::{VgName, chain};

/// How long shutdown waits for the last copies: a hanging disk must not keep the driver from ending.
const LAST: Duration = Duration::from_secs(5);

/// Shortest pause between two copies of a group.
const REST: Duration = Duration::from_secs(1);
/// The pause after a copy lasts at least this many times as long as the copy, so that copying takes a small share of disk and processor.
const SHARE: u32 = 20;

/// Copies of the metadata of all groups.
#[derive(Clone, Debug)]
pub struct Keeping {
    pub backups: Backups,
    /// How often to look for others' changes, and how far apart older copies lie.
    pub interval: Duration,
}

impl Machine {
    /// Keeps copies while the driver runs. Each group has its own task, so a hanging disk delays no other group.
    pub fn keep_backups(self: &Arc<Self>) {
        let Some(keeping) = &self.keeping else { return };
        for (name, group) in &self.groups {
            let (machine, name, interval) = (Arc::clone(self), name.clone(), keeping.interval);
            let changed = Arc::clone(&group.changed);
            tokio::spawn(async move {
                let mut times = tokio::time::interval(interval);
                times.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    tokio::select! {
                        _ = times.tick() => {}
                        () = changed.notified() => {}
                    }
                    let begun = Instant::now();
                    // The panic hook logs a panic.
                    let _ = machine.back_up(&name).await;
                    tokio::time::sleep(REST.max(begun.elapsed() * SHARE)).await;
                }
            });
        }
    }

    /// Makes the last copies, at shutdown.
    pub async fn last_backups(self: &Arc<Self>) {
        let begun: Vec<_> = self.groups.keys().map(|name| self.back_up(name)).collect();
        let all = async {
            for one in begun {
                let _ = one.await;
            }
        };
        if tokio::time::timeout(LAST, all).await.is_err() {
            tracing::warn!("could not finish the last metadata copies; a disk may hang");
        }
    }

    fn back_up(self: &Arc<Self>, name: &VgName) -> JoinHandle<()> {
        let (machine, name) = (Arc::clone(self), name.clone());
        tokio::task::spawn_blocking(move || {
            let (Some(group), Some(keeping)) = (machine.groups.get(&name), &machine.keeping) else { return };
            if let Err(error) = group.lvm.back_up(&keeping.backups) {
                tracing::warn!(vg = %name, error = chain(&error), "cannot keep a copy of the metadata");
            }
        })
    }
}
