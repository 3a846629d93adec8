//! Collects orphans: inline ephemeral volumes whose pods are gone, and grants of volumes that are gone.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::inflight::Operation;
use crate::machine::Machine;
use crate::types::VgUuid;
use crate::volume::inventory::Volume;
use crate::volume::owner;

/// Every how many passes to maintain records; stale ones do no harm.
const RECORDS: u64 = 5;

impl Machine {
    /// Collects orphans now and once per interval.
    pub fn keep_house(self: &Arc<Self>, interval: Duration) {
        let machine = Arc::clone(self);
        tokio::spawn(async move {
            let mut times = tokio::time::interval(interval);
            times.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for pass in 1_u64.. {
                times.tick().await;
                machine.keep_hidden(false).await;
                machine.collect().await;
                if pass.is_multiple_of(RECORDS) {
                    machine.look_after_records().await;
                }
            }
        });
    }

    /// Removes the inline ephemeral volumes whose pods are gone, and ends the grants of volumes that are gone. Failures are logged and
    /// retried later.
    async fn collect(self: &Arc<Self>) {
        let machine = Arc::clone(self);
        let look = tokio::task::spawn_blocking(move || {
            machine.look_for_strangers();
            machine.forget_all_gone();
            machine.orphans()
        });
        for volume in look.await.unwrap_or_default() {
            let mut operation =
                Operation::new("collecting", format!("inline ephemeral volume {}", volume.id), volume.uuid.clone());
            operation.writes = vec![Self::key(&volume.id.lv)];
            let (machine, orphan) = (Arc::clone(self), volume.clone());
            let collected = self.inflight.run(operation, move |reservation| {
                // A pod may have published it since.
                if !machine.is_orphan(&orphan) {
                    return Ok(());
                }
                tracing::warn!(volume = %orphan.id, "the pod of this inline ephemeral volume is gone; removing the volume");
                let guard = machine.guard(reservation, &orphan)?;
                machine.remove_ephemeral(reservation, &guard, &orphan)
            });
            if let Err(error) = collected.await {
                tracing::warn!(volume = %volume.id, error = %error.chain(), "cannot remove an orphaned inline ephemeral volume; trying again later");
            }
        }
    }

    /// Maintains the records of volumes, and corrects tags that an lvreduce made wrong.
    async fn look_after_records(self: &Arc<Self>) {
        let machine = Arc::clone(self);
        let look = tokio::task::spawn_blocking(move || {
            machine.keep_records();
            machine.wrong_tags()
        });
        for volume in look.await.unwrap_or_default() {
            let operation = self.on_volume("correcting its tags", &volume.id, volume.uuid.clone());
            let (machine, wrong) = (Arc::clone(self), volume.clone());
            let corrected = self.inflight.run(operation, move |reservation| machine.correct_tag(reservation, &wrong));
            if let Err(error) = corrected.await {
                tracing::warn!(volume = %volume.id, error = %error.chain(), "cannot correct its tag csi.z, which exceeds its size; trying again later");
            }
        }
    }

    fn orphans(&self) -> Vec<Volume> {
        let inventories = self.groups.values().filter_map(|group| group.inventory().ok());
        let inventories = inventories.filter(|inventory| owner::check(&inventory.vg, &self.id).is_ok());
        let mut orphans = Vec::new();
        for inventory in inventories {
            orphans.extend(inventory.ephemerals().filter(|volume| self.is_orphan(volume)).cloned());
        }
        orphans
    }

    /// Whether nobody will ask for an inline ephemeral volume any more: nothing has its device open, and its pod's directory is gone.
    fn is_orphan(&self, volume: &Volume) -> bool {
        let open = self.lv_device(volume).map(|device| device.is_some_and(|device| device.open_count > 0));
        let directory = volume.marks.ephemeral.as_ref().map(|directory| Path::new(directory.as_str()));
        matches!(open, Ok(false)) && directory.is_some_and(is_gone)
    }

    /// Ends the grants of volumes that are gone, in all groups.
    pub(in crate::machine) fn forget_all_gone(&self) {
        let groups: BTreeSet<VgUuid> = self.ledger.grants().into_iter().map(|grant| grant.vg).collect();
        for vg in groups {
            if let Err(error) = self.forget_gone(&vg) {
                tracing::warn!(%vg, error = %error.chain(), "cannot end grants of volumes that may be gone; keeping them");
            }
        }
    }
}

/// Whether a directory is gone for good. If its parent is missing too, its filesystem may just not be mounted yet.
fn is_gone(directory: &Path) -> bool {
    let absent = std::fs::symlink_metadata(directory).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    absent && directory.parent().is_some_and(Path::is_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_gone_only_where_the_one_above_is_there() {
        let pods = tempfile::tempdir().unwrap();
        let pod = pods.path().join("u-1");
        assert!(is_gone(&pod));
        for other in [pod.join("volumes"), pods.path().to_owned(), Path::new("/").to_owned(), Path::new("").to_owned()] {
            assert!(!is_gone(&other), "{}", other.display());
        }
        std::fs::create_dir(&pod).unwrap();
        assert!(!is_gone(&pod));
        std::fs::remove_dir(&pod).unwrap();
        // A dangling link still counts as there.
        std::os::unix::fs::symlink("/nowhere", &pod).unwrap();
        assert!(!is_gone(&pod));
    }
}
