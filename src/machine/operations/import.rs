//! Turns an LV that somebody made by hand into a volume. A driver may run at the same time: LVM's own lock orders the two, the command
//! carries what was decided on, and the driver rereads the group before its next step.

use crate::device;
use crate::host::{Use, VolumeTools};
use crate::inflight::{Operation, Reservation};
use crate::lvm::command::Command;
use crate::types::{Error, LvName, VgName};
use crate::volume::import::{self, Content, Expected};
use crate::volume::inventory::Volume;
use crate::volume::{Decision, Step};

use super::activate::CLOSE_LIMIT;
use crate::machine::{Group, Machine, unknown};

/// An LV to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub vg: VgName,
    pub lv: LvName,
    /// The pool that it must lie in; `None` for any.
    pub pool: Option<String>,
    /// What the caller expects on it.
    pub expected: Option<Expected>,
    /// Import it; otherwise only look.
    pub apply: bool,
}

/// The outcome of an import, done or planned.
#[derive(Clone, Debug)]
pub struct Imported {
    pub volume: Volume,
    /// The name of its pool.
    pub pool: String,
    /// Whether it is a volume now.
    pub done: bool,
}

impl Machine {
    pub fn on_import(request: &Import) -> Operation {
        let mut operation = Operation::new("import", format!("LV {}/{}", request.vg, request.lv), request.clone());
        operation.writes = vec![Self::key(&request.lv)];
        operation
    }

    /// Looks at an LV, and makes it a volume. One that is a volume already is reported unchanged.
    ///
    /// # Errors
    /// Why it cannot become a volume; it stays unchanged then.
    pub fn import(&self, reservation: &Reservation, request: &Import) -> Result<Imported, Error> {
        let what = format!("LV {}/{}", request.vg, request.lv);
        let unserved = || Error::precondition(&what, "no configured pool uses this volume group");
        let group = self.groups.get(&request.vg).ok_or_else(unserved)?;
        let inventory = group.inventory().map_err(|error| unknown(&error))?;
        let name = &request.lv;
        let there = inventory.volumes().find(|volume| volume.id.lv == *name).cloned();
        let done = there.is_some();
        let wanted = match there {
            Some(volume) => volume,
            None => {
                let lv = import::candidate(&inventory, name)?;
                // Its content may still rule it out; everything else is known.
                let volume = import::adopted(&inventory, lv, name, crate::types::Life::Raw);
                let content = self.content(reservation, group, &what, &volume)?;
                let life = content.life(request.expected).map_err(|why| Error::precondition(&what, why))?;
                import::adopted(&inventory, lv, name, life)
            }
        };
        let pool = self
            .configured_pool(group, &inventory, &wanted)
            .filter(|pool| request.pool.as_ref().is_none_or(|is| *is == pool.name));
        let pool = pool.ok_or_else(|| {
            let named = request.pool.as_ref().map_or("no configured pool is".to_owned(), |name| format!("pool {name} is not"));
            Error::precondition(&what, format!("it is {}, and {named} of that kind", wanted.placement))
        })?;
        if done || !request.apply {
            return Ok(Imported { volume: wanted, pool: pool.name, done });
        }
        self.close(reservation, group, &what, &wanted)?;
        let volume = self.settle(reservation, group, &what, None, |inventory, _| import::decide(inventory, &wanted))?.answer;
        Ok(Imported { volume, pool: pool.name, done: true })
    }

    /// Finds out what an LV holds that nobody has open. Leaves it active or inactive as before.
    fn content(&self, reservation: &Reservation, group: &Group, what: &str, volume: &Volume) -> Result<Content, Error> {
        let guard = self.guard(reservation, volume)?;
        let device = self.lv_device(volume)?;
        let was_active = device.is_some();
        let device = match device {
            Some(device) => device,
            None => {
                self.set_active(reservation, group, what, volume, true)?;
                let none = || Error::unavailable(what, "LVM reported success, but there is no device; see lvs and dmesg");
                self.lv_device(volume)?.ok_or_else(none)?
            }
        };
        let probed = self.unused(what, volume).and_then(|()| {
            let node = device::usable(self.kernel(), &device).map_err(|error| Error::failed(what, error))?;
            let tools = VolumeTools { tools: self.tools(), on: Use { device: &device, guard: &guard } };
            device::probe(self.kernel(), tools, &node)
                .map_err(|error| Error::failed(format!("looking at what is on {what}"), error))
        });
        if !was_active {
            self.close(reservation, group, what, volume)?;
            guard.retire();
        }
        probed.map(|report| Content { blank: report.blank_bytes, signatures: report.signatures })
    }

    /// Refuses an LV that is in use.
    fn unused(&self, what: &str, volume: &Volume) -> Result<(), Error> {
        let closed = device::wait_closed(self.kernel(), &volume.id.vg, &volume.uuid, CLOSE_LIMIT);
        match closed.map_err(|error| Error::failed(what, error))? {
            Some(device) if device.open_count > 0 => {
                let reason = format!(
                    "its device {} is open {} times on this node: unmount it, and end what else uses it (findmnt, lsblk)",
                    device.node().display(),
                    device.open_count
                );
                Err(Error::precondition(what, reason))
            }
            _ => Ok(()),
        }
    }

    /// Deactivates an LV that belongs to nobody yet; a volume is active only while it is staged.
    fn close(&self, reservation: &Reservation, group: &Group, what: &str, volume: &Volume) -> Result<(), Error> {
        self.unused(what, volume)?;
        self.set_active(reservation, group, what, volume, false)
    }

    /// Activates or deactivates an LV that belongs to nobody yet, by its current name.
    fn set_active(
        &self,
        reservation: &Reservation,
        group: &Group,
        what: &str,
        volume: &Volume,
        active: bool,
    ) -> Result<(), Error> {
        self.settle(reservation, group, what, None, |inventory, _| {
            let vg = inventory.vg.name.clone();
            let Some(lv) = inventory.vg.lv_by_uuid(&volume.uuid) else {
                return Decision::Refuse(Error::unavailable(what, "it is gone"));
            };
            match (self.lv_device(volume), LvName::new(&lv.name)) {
                (Err(error), _) => Decision::Refuse(error),
                (Ok(device), _) if device.is_some() == active => Decision::AlreadyThere(()),
                (_, Err(why)) => Decision::Refuse(Error::precondition(what, format!("its LV is now {}, which {why}", lv.name))),
                (_, Ok(lv)) if active => Decision::Do(Step::Lvm(Command::Activate { vg, lvs: vec![lv] })),
                (_, Ok(lv)) => Decision::Do(Step::Lvm(Command::Deactivate { vg, lvs: vec![lv] })),
            }
        })
        .map(drop)
    }
}
