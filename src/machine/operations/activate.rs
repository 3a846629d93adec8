//! Activates and deactivates volumes for the node service, and records what they hold.
//!
//! LVM activates volumes, although its process takes most of the time of a stage and a map of a linear volume would be one ioctl: LVM
//! alone knows its locks, layers, udev rules and pools.

use std::time::Duration;

use crate::device;
use crate::host::{DmDevice, Guard};
use crate::inflight::Reservation;
use crate::lvm::command::Command;
use crate::types::{Error, LvName, Object, chain};
use crate::volume::inventory::{Class, Volume};
use crate::volume::tag::Marks;
use crate::volume::{Decision, may_change, may_use, retag};

use super::change::failed;
use crate::machine::{Machine, unknown};

/// How long to recheck an open device before it counts as in use: udev rules briefly open each device that somebody wrote to and closed.
pub(in crate::machine) const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The devices of an active volume. Their UUIDs were compared, so they belong to no other volume.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The device of the LV itself: LVM's questions, whether it is active, open or has its size, are about this one.
    pub lv: DmDevice,
    /// What carries the filesystem or lies beneath the holders of a raw volume: the LV, while no layer stands above it.
    pub top: DmDevice,
}

/// A volume with its devices.
#[derive(Clone, Debug)]
pub struct Active {
    pub volume: Volume,
    pub attached: Attached,
}

impl Machine {
    /// Activates a volume that has no device. Its tags are durable first: if a power cut took a mark back, the volume would be zeroed or
    /// formatted over a user's data.
    ///
    /// # Errors
    /// The volume cannot be activated, a device in use has its name, or a disk does not confirm the tags.
    pub fn activate(&self, _reservation: &Reservation, volume: &Volume) -> Result<Active, Error> {
        let what = format!("activating volume {}", volume.id);
        let Some((group, inventory)) = self.find_own(&volume.id.vg)? else {
            return Err(Error::missing(Object::Volume, volume.id.to_string()));
        };
        // A deactivation by a driver that died could still remove the present device.
        group.lvm.alone().map_err(|error| failed(&what, group, error))?;
        group.lvm.make_durable().map_err(|error| failed(&what, group, error))?;
        self.refuse_failed(&what, &inventory, &volume.placement)?;
        if let Some(active) = self.active(volume)? {
            return Ok(active);
        }
        let vg = &inventory.vg;
        may_use(vg)?;
        let stale = device::stale_by_name(&*self.kernel, &vg.name, &volume.id.lv, &vg.uuid, &volume.uuid);
        if let Some(stale) = stale.map_err(|error| Error::failed(&what, error))? {
            if stale.open_count > 0 {
                let reason =
                    format!("dm device {} has its name, but is another volume ({}) and is in use", stale.name, stale.uuid);
                return Err(Error::precondition(what, reason));
            }
            self.remove_orphan(&what, &stale)?;
        }
        self.hide_before_activation(volume, &device::lv_dm_uuid(&vg.uuid, &volume.uuid));
        let command = Command::Activate { vg: vg.name.clone(), lvs: vec![volume.id.lv.clone()] };
        let turn = group.turn_for(&inventory, &command).map_err(|wedged| Error::unavailable(&what, wedged.to_string()))?;
        // Another writer may have activated it in its batch.
        if let Some(active) = self.active(volume)? {
            return Ok(active);
        }
        let now = group.inventory().map_err(|error| unknown(&error))?;
        // The command names the LV only, and another LV may have that name by now.
        if now.vg.lv(volume.id.lv.as_str()).is_none_or(|lv| lv.uuid != volume.uuid) {
            return Err(Error::missing(Object::Volume, volume.id.to_string()));
        }
        let changed = group.change_with_others(&turn, &now, &command).map_err(|error| failed(&what, group, error));
        changed.map_err(|error| self.blame(&what, &now, (volume.placement.thin_pool(), true), error))?;
        drop(turn);
        self.active(volume)?
            .ok_or_else(|| Error::unavailable(what, "LVM reported success, but there is no device; see lvs and dmesg"))
    }

    /// Refuses writes to a volume whose LV somebody made read-only: the kernel would return `EPERM`, or a pod would see a read-only
    /// device as writable.
    ///
    /// # Errors
    /// [`Error::Precondition`] with what to do.
    pub fn refuse_read_only(&self, volume: &Volume) -> Result<(), Error> {
        let Some((_, inventory)) = self.find(&volume.id.vg)? else { return Ok(()) };
        let Some(lv) = inventory.vg.lv_by_uuid(&volume.uuid).filter(|lv| !lv.writable) else { return Ok(()) };
        let name = format!("{}/{}", inventory.vg.name, lv.name);
        let reason = format!("its LV {name} is read-only (lvchange -p r); run lvchange -p rw {name} to let pods use it again");
        Err(Error::precondition(format!("volume {}", volume.id), reason))
    }

    /// The volume with its device, if it is active.
    ///
    /// # Errors
    /// The kernel cannot be asked for its devices.
    pub fn active(&self, volume: &Volume) -> Result<Option<Active>, Error> {
        Ok(self.attached(volume)?.map(|attached| Active { volume: volume.clone(), attached }))
    }

    fn attached(&self, volume: &Volume) -> Result<Option<Attached>, Error> {
        Ok(self.lv_device(volume)?.map(|lv| Attached { top: lv.clone(), lv }))
    }

    /// The device of the volume's LV, if it is active.
    ///
    /// # Errors
    /// The kernel cannot be asked for its devices.
    pub(in crate::machine) fn lv_device(&self, volume: &Volume) -> Result<Option<DmDevice>, Error> {
        device::find_lv(&*self.kernel, &volume.id.vg, &volume.uuid)
            .map_err(|error| Error::failed(format!("looking for the device of volume {}", volume.id), error))
    }

    /// The device that carries what the volume holds, if it is active: what is mounted, and what the holders lie on.
    ///
    /// # Errors
    /// The kernel cannot be asked for its devices.
    pub fn top_device(&self, volume: &Volume) -> Result<Option<DmDevice>, Error> {
        Ok(self.attached(volume)?.map(|attached| attached.top))
    }

    /// Removes the device of a volume if it has one that nobody uses.
    ///
    /// # Errors
    /// [`Error::Precondition`] while something has it open.
    pub fn deactivate(&self, _reservation: &Reservation, guard: &Guard, volume: &Volume) -> Result<(), Error> {
        self.take_device_away(volume)?;
        guard.retire();
        Ok(())
    }

    fn take_device_away(&self, volume: &Volume) -> Result<(), Error> {
        let what = format!("volume {}", volume.id);
        let closed = device::wait_closed(&*self.kernel, &volume.id.vg, &volume.uuid, CLOSE_LIMIT);
        let device = closed.map_err(|error| Error::failed(format!("looking for the device of {what}"), error))?;
        let Some(device) = device else { return Ok(()) };
        if device.open_count > 0 {
            let reason = format!(
                "its device {} ({}) is open {} times on this node{}; see what holds it with lsblk and findmnt",
                device.name,
                device.node().display(),
                device.open_count,
                device.openers()
            );
            return Err(Error::precondition(what, reason));
        }
        let Some((group, inventory)) = self.find(&volume.id.vg)? else { return Ok(()) };
        let vg = &inventory.vg;
        may_use(vg)?;
        let Some(lv) = vg.lv_by_uuid(&volume.uuid) else {
            // LVM no longer knows it, and may give its extents to others.
            return self.remove_orphan(&what, &device);
        };
        let is_not_ours = match inventory.class(&lv.name) {
            Some(Class::Foreign) => true,
            // Whoever has its grant activated it, before somebody changed or removed the driver's name on it.
            Some(Class::Others(_)) => self.ledger.state(&volume.uuid).grant.is_none(),
            _ => false,
        };
        if is_not_ours {
            tracing::warn!(lv = lv.name, device = device.name, "the LV of {what} lost its tags, so it stays active");
            return Ok(());
        }
        let name =
            LvName::new(&lv.name).map_err(|why| Error::precondition(&what, format!("its LV is now {}, which {why}", lv.name)))?;
        let command = Command::Deactivate { vg: vg.name.clone(), lvs: vec![name] };
        let turn = group.turn_for(&inventory, &command).map_err(|wedged| Error::unavailable(&what, wedged.to_string()))?;
        // Another writer may have deactivated it in its batch.
        if self.lv_device(volume)?.is_none() {
            return Ok(());
        }
        let now = group.inventory().map_err(|error| unknown(&error))?;
        let outcome = group.change_with_others(&turn, &now, &command);
        drop(turn);
        match (self.lv_device(volume)?, outcome) {
            (None, _) => Ok(()),
            (Some(_), Err(error)) => {
                let error = failed(&format!("deactivating {what}"), group, error);
                Err(self.blame(&what, &now, (volume.placement.thin_pool(), false), error))
            }
            (Some(device), Ok(())) => Err(Error::precondition(what, format!("LVM left its device {} active", device.name))),
        }
    }

    /// Removes a device that nobody has open and that LVM does not know.
    fn remove_orphan(&self, what: &str, device: &DmDevice) -> Result<(), Error> {
        let failed = |error| Error::failed(format!("{what}: removing stale dm device {}", device.name), error);
        self.kernel.dm_remove(&device.name).map_err(failed)
    }

    /// Records what a volume holds: its marks become `next`.
    ///
    /// # Errors
    /// The tags cannot be written; the old ones remain.
    pub fn mark(&self, reservation: &Reservation, volume: &Volume, next: &Marks) -> Result<Volume, Error> {
        let missing = || Error::missing(Object::Volume, volume.id.to_string());
        let Some((group, _)) = self.find(&volume.id.vg)? else { return Err(missing()) };
        let what = format!("volume {}: recording that it is {}", volume.id, next.life);
        let settled = self.settle(reservation, group, &what, None, |inventory, _| {
            let now = inventory.volume(&volume.id).or_else(|| inventory.ephemeral(&volume.id.lv));
            let Some(now) = now.filter(|now| now.uuid == volume.uuid) else {
                return Decision::Refuse(missing());
            };
            // A tag larger than the volume would be believed once the volume grows.
            let next = Marks { zeroed: next.zeroed.min(now.size), ..next.clone() };
            let Some(step) = retag(&inventory.vg, now, &next) else { return Decision::AlreadyThere(now.clone()) };
            if let Err(error) = may_change(&inventory.vg).and_then(|()| self.record_cut(now)) {
                return Decision::Refuse(error);
            }
            Decision::Do(step)
        })?;
        Ok(settled.answer)
    }

    /// Turns the failure of a device operation into an error that names the volume.
    pub fn device_failed(volume: &Volume, what: &str, error: &dyn std::error::Error) -> Error {
        Error::unavailable(format!("volume {}", volume.id), format!("{what}: {}", chain(error)))
    }
}
