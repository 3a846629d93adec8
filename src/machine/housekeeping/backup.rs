//! When copies of the groups' metadata are kept: at the start, at the end, after each commit of the driver, and once in an interval
//! because of what others commit.
//!
//! No answer waits for a copy: it is one read of the text and one durable write of a file, begun right after the commit. While commits
//! follow each other there is one copy a second, or one in [`SHARE`] times what it takes, and the last one is never left out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::lvm::Backups;
use crate::machine::Machine;
use crate::types::{VgName, chain};

/// How long the end waits for the last copies: a disk that hangs must not keep the driver from ending.
const LAST: Duration = Duration::from_secs(5);

/// The least time between two copies of one group.
const REST: Duration = Duration::from_secs(1);
/// A large text rests so many times longer than its copy takes, so that copying has a small share of the disk and of a processor.
const SHARE: u32 = 20;

/// Copies of the metadata of all groups.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Where they are kept.
    pub backups: Backups,
    /// How often others' changes are looked for, and how far older copies lie apart.
    pub interval: Duration,
}

impl Machine {
    /// Keeps copies for as long as the driver runs. Each group has a task of its own, so that one whose disks hang costs the others
    /// nothing.
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
                    // A panic in it is logged by the panic hook.
                    let _ = machine.back_up(&name).await;
                    tokio::time::sleep(REST.max(begun.elapsed() * SHARE)).await;
                }
            });
        }
    }

    /// Keeps the last copies, at the end.
    pub async fn last_backups(self: &Arc<Self>) {
        let begun: Vec<_> = self.groups.keys().map(|name| self.back_up(name)).collect();
        let all = async {
            for one in begun {
                let _ = one.await;
            }
        };
        if tokio::time::timeout(LAST, all).await.is_err() {
            tracing::warn!("the last copies of the metadata are not complete; a disk may hang");
        }
    }

    fn back_up(self: &Arc<Self>, name: &VgName) -> JoinHandle<()> {
        let (machine, name) = (Arc::clone(self), name.clone());
        tokio::task::spawn_blocking(move || {
            let (Some(group), Some(keeping)) = (machine.groups.get(&name), &machine.keeping) else { return };
            if let Err(error) = group.lvm.back_up(&keeping.backups) {
                tracing::warn!(vg = %name, error = chain(&error), "no copy of the metadata was kept");
            }
        })
    }
}
