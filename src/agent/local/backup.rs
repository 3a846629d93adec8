//! When copies of the groups' metadata are kept: at the start, at the end, and at most once in an interval between.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::lvm::Backups;
use crate::types::{VgName, chain};

use super::Local;

/// How long the end waits for the last copies: a disk that hangs must not keep the driver from ending.
const LAST: Duration = Duration::from_secs(5);

/// Copies of the metadata of all groups.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Where they are kept.
    pub backups: Backups,
    /// How often one is looked for.
    pub interval: Duration,
}

impl Local {
    /// Keeps copies for as long as the driver runs. Each group has a task of its own, so that one whose disks hang costs the others
    /// nothing.
    pub fn keep_backups(self: &Arc<Self>) {
        let Some(keeping) = &self.keeping else { return };
        for name in self.groups.keys() {
            let (local, name, interval) = (Arc::clone(self), name.clone(), keeping.interval);
            tokio::spawn(async move {
                let mut times = tokio::time::interval(interval);
                times.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    times.tick().await;
                    // A panic in it is logged by the panic hook.
                    let _ = local.back_up(&name).await;
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
        let (local, name) = (Arc::clone(self), name.clone());
        tokio::task::spawn_blocking(move || {
            let (Some(group), Some(keeping)) = (local.groups.get(&name), &local.keeping) else { return };
            if let Err(error) = group.lvm.back_up(&keeping.backups) {
                tracing::warn!(vg = %name, error = chain(&error), "no copy of the metadata was kept");
            }
        })
    }
}
