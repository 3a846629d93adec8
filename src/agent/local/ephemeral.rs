//! Inline ephemeral volumes: made, found and removed by the agent of their node alone, and collected when their pod is gone.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::host::Guard;
use crate::inflight::{Operation, Reservation};
use crate::types::{EphemeralId, Error, FsKind, VgUuid};
use crate::volume::ephemeral::{self, InlineSpec, Request};
use crate::volume::inventory::Volume;
use crate::volume::tag::Marks;
use crate::volume::{Decision, name, owner};

use super::{Group, Local, unknown};

/// Records are looked after at every so many passes: what is gone is not in the way.
const RECORDS: u64 = 5;

impl Local {
    /// The operation on an inline ephemeral volume.
    pub fn on_ephemeral(
        &self,
        call: &'static str,
        id: &EphemeralId,
        request: impl PartialEq + Send + Sync + 'static,
    ) -> Operation {
        let mut operation = Operation::new(call, format!("inline ephemeral volume {id}"), request);
        operation.writes = vec![Self::key(&name::of_ephemeral(id))];
        operation
    }

    /// The inline ephemeral volume with this id, in whichever group it is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where it is in none that can be read, and may be in another.
    pub fn ephemeral(&self, id: &EphemeralId) -> Result<Option<Volume>, Error> {
        let lv = name::of_ephemeral(id);
        if let Some(reason) = &self.without_lvm {
            return Err(Error::unavailable("LVM on this node", reason.clone()));
        }
        let mut unsure = None;
        // The group that had it last comes first: the disks of the others, which may be slow or hang, are not asked then.
        let had = |group: &&Group| group.last().is_some_and(|last| last.ephemeral(&lv).is_some());
        for group in self.groups.values().filter(had).chain(self.groups.values().filter(|group| !had(group))) {
            match group.inventory() {
                Ok(inventory) => {
                    if let Some(volume) = inventory.ephemeral(&lv) {
                        return Ok(Some(volume.clone()));
                    }
                }
                Err(error) => unsure = Some(unknown(&error)),
            }
        }
        unsure.map_or(Ok(None), Err)
    }

    /// Makes an inline ephemeral volume for a pod's path, or finds it; tells beside whether it was made. `kind` is the filesystem that a
    /// new one is to have.
    ///
    /// # Errors
    /// Its pool gives none, or has no room.
    pub fn ensure_ephemeral(
        &self,
        reservation: &Reservation,
        id: &EphemeralId,
        spec: &InlineSpec,
        target: &Path,
        kind: FsKind,
    ) -> Result<(Volume, bool), Error> {
        let directory = spec.directory(target)?;
        let what = format!("inline ephemeral volume {id}");
        if let Some(volume) = self.ephemeral(id)?
            && let Some((group, _)) = self.find(&volume.id.vg)?
        {
            // An lvm that died may have left it in the metadata only.
            self.settle_new(reservation, group, &what, None, Some(&volume.id.lv), |_, _| Decision::AlreadyThere(()))?;
        }
        if let Some(volume) = self.ephemeral(id)? {
            // Kubelet may have got another root since.
            let marks = Marks { ephemeral: Some(directory), ..volume.marks.clone() };
            let volume = if marks == volume.marks { volume } else { self.mark(reservation, &volume, &marks)? };
            return Ok((volume, false));
        }
        let (config, most) = spec.pool(&self.pools)?;
        let size = spec.size(config.default_size, most, kind)?;
        let (pool, group, _) = self.pool(&config.name)?;
        let request = Request { id: id.clone(), directory, pool: pool.clone(), size };
        let lv = name::of_ephemeral(id);
        let made = self.settle_new(reservation, group, &what, Some(&pool), Some(&lv), |inventory, pool_use| {
            ephemeral::create(inventory, &request, pool_use)
        });
        made.map(|volume| (volume, true))
    }

    /// Removes an inline ephemeral volume that nobody has mounted.
    ///
    /// # Errors
    /// [`Error::Precondition`] while something has it open.
    pub fn remove_ephemeral(&self, reservation: &Reservation, guard: &Guard, volume: &Volume) -> Result<(), Error> {
        self.deactivate(reservation, guard, volume)?;
        let Some((group, inventory)) = self.find(&volume.id.vg)? else { return Ok(()) };
        if let Some(why) = owner::stranger(&inventory.vg, &self.machine) {
            // Its pod must not wait for a person; what is left is collected when the group is this machine's again.
            tracing::warn!(volume = %volume.id, why, "an inline ephemeral volume stays for now");
            return Ok(());
        }
        let what = format!("inline ephemeral volume {}", volume.id);
        self.settle(reservation, group, &what, None, |inventory, _| ephemeral::remove(inventory, volume))
    }

    /// Looks for what nobody wants any more, now and once in each interval.
    pub fn keep_house(self: &Arc<Self>, interval: Duration) {
        let local = Arc::clone(self);
        tokio::spawn(async move {
            let mut times = tokio::time::interval(interval);
            times.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for pass in 1_u64.. {
                times.tick().await;
                local.keep_hidden(false).await;
                local.collect().await;
                if pass.is_multiple_of(RECORDS) {
                    local.look_after_records().await;
                }
            }
        });
    }

    /// Removes the inline ephemeral volumes whose pods are gone, and ends the grants of volumes that are gone. What cannot be done now
    /// is logged, and done another time.
    async fn collect(self: &Arc<Self>) {
        let local = Arc::clone(self);
        let look = tokio::task::spawn_blocking(move || {
            local.look_for_strangers();
            local.forget_all_gone();
            local.orphans()
        });
        for volume in look.await.unwrap_or_default() {
            let mut operation =
                Operation::new("collecting", format!("inline ephemeral volume {}", volume.id), volume.uuid.clone());
            operation.writes = vec![Self::key(&volume.id.lv)];
            let (local, orphan) = (Arc::clone(self), volume.clone());
            let collected = self.inflight.run(operation, move |reservation| {
                // It may have been published since.
                if !local.is_orphan(&orphan) {
                    return Ok(());
                }
                tracing::warn!(volume = %orphan.id, "the pod of this inline ephemeral volume is gone; removing the volume");
                let guard = local.guard(reservation, &orphan)?;
                local.remove_ephemeral(reservation, &guard, &orphan)
            });
            if let Err(error) = collected.await {
                tracing::warn!(volume = %volume.id, error = %error.chain(), "an inline ephemeral volume without its pod stays for now");
            }
        }
    }

    /// Looks after what is recorded of volumes, and after tags that somebody's lvreduce made wrong.
    async fn look_after_records(self: &Arc<Self>) {
        let local = Arc::clone(self);
        let look = tokio::task::spawn_blocking(move || {
            local.keep_records();
            local.wrong_tags()
        });
        for volume in look.await.unwrap_or_default() {
            let operation = self.on_volume("correcting its tags", &volume.id, volume.uuid.clone());
            let (local, wrong) = (Arc::clone(self), volume.clone());
            let corrected = self.inflight.run(operation, move |reservation| local.correct_tag(reservation, &wrong));
            if let Err(error) = corrected.await {
                tracing::warn!(volume = %volume.id, error = %error.chain(), "its tag csi.z says more than there is; trying again later");
            }
        }
    }

    fn orphans(&self) -> Vec<Volume> {
        let inventories = self.groups.values().filter_map(|group| group.inventory().ok());
        let inventories = inventories.filter(|inventory| owner::check(&inventory.vg, &self.machine).is_ok());
        let mut found = Vec::new();
        for inventory in inventories {
            found.extend(inventory.ephemerals().filter(|volume| self.is_orphan(volume)).cloned());
        }
        found
    }

    /// Whether nobody will ask for an inline ephemeral volume any more: nothing has its device open, and its pod's directory is gone.
    fn is_orphan(&self, volume: &Volume) -> bool {
        let open = self.device_of(volume).map(|device| device.is_some_and(|device| device.open_count > 0));
        let directory = volume.marks.ephemeral.as_ref().map(|directory| Path::new(directory.as_str()));
        matches!(open, Ok(false)) && directory.is_some_and(is_gone)
    }

    /// Ends the grants of volumes that are gone, in all groups.
    pub(super) fn forget_all_gone(&self) {
        let groups: BTreeSet<VgUuid> = self.ledger.grants().into_iter().map(|grant| grant.vg).collect();
        for vg in groups {
            if let Err(error) = self.forget_gone(&vg) {
                tracing::warn!(%vg, error = %error.chain(), "grants of volumes that may be gone are kept");
            }
        }
    }
}

/// Whether a directory is gone for good. Where the one above it is missing too, its filesystem may only not be mounted yet.
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
        // Whatever is there, it is not nothing.
        std::os::unix::fs::symlink("/nowhere", &pod).unwrap();
        assert!(!is_gone(&pod));
    }
}
