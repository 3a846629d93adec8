//! Inline ephemeral volumes: only the agent of their node creates, finds and removes them, and collects them when their pod is gone.

use std::path::Path;

use crate::host::Guard;
use crate::inflight::{Operation, Reservation};
use crate::machine::{Group, Machine, unknown};
use crate::types::{EphemeralId, Error, FsKind};
use crate::volume::ephemeral::{self, InlineSpec, Request};
use crate::volume::inventory::Volume;
use crate::volume::tag::Marks;
use crate::volume::{Decision, name, owner};

impl Machine {
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

    /// The inline ephemeral volume with this id, in any group.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no group that can be read has it, and another may.
    pub fn ephemeral(&self, id: &EphemeralId) -> Result<Option<Volume>, Error> {
        let lv = name::of_ephemeral(id);
        if let Some(reason) = &self.without_lvm {
            return Err(Error::unavailable("LVM on this node", reason.clone()));
        }
        let mut unsure = None;
        // Try the group that had it last first, so that no slow or hanging disk of another group is read.
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

    /// Creates an inline ephemeral volume for a pod's path, or finds it; also returns whether it was created. A new one gets the
    /// filesystem `kind`.
    ///
    /// # Errors
    /// Its pool allows none, or has no room.
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
            // A dead lvm may have left it in the metadata only.
            self.settle_new(reservation, group, &what, None, Some(&volume.id.lv), |_, _| Decision::AlreadyThere(()))?;
        }
        if let Some(volume) = self.ephemeral(id)? {
            // Kubelet's root directory may have changed since.
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
        made.map(|settled| (settled.answer, true))
    }

    /// Removes an inline ephemeral volume that nobody has mounted.
    ///
    /// # Errors
    /// [`Error::Precondition`] while something has it open.
    pub fn remove_ephemeral(&self, reservation: &Reservation, guard: &Guard, volume: &Volume) -> Result<(), Error> {
        self.deactivate(reservation, guard, volume)?;
        let Some((group, inventory)) = self.find(&volume.id.vg)? else { return Ok(()) };
        if let Some(why) = owner::stranger(&inventory.vg, &self.id) {
            // Its pod must not wait for a person. It is collected once the group belongs to this machine again.
            tracing::warn!(volume = %volume.id, why, "keeping an inline ephemeral volume whose group is not this machine's");
            return Ok(());
        }
        let what = format!("inline ephemeral volume {}", volume.id);
        self.settle(reservation, group, &what, None, |inventory, _| ephemeral::remove(inventory, volume)).map(drop)
    }
}
