//! Inline ephemeral volumes: made, found and removed by the agent of their node alone, and collected when their pod is gone.

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
        if let Some(why) = owner::stranger(&inventory.vg, &self.id) {
            // Its pod must not wait for a person; what is left is collected when the group is this machine's again.
            tracing::warn!(volume = %volume.id, why, "an inline ephemeral volume stays for now");
            return Ok(());
        }
        let what = format!("inline ephemeral volume {}", volume.id);
        self.settle(reservation, group, &what, None, |inventory, _| ephemeral::remove(inventory, volume))
    }
}
