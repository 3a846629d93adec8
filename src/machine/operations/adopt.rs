//! A person declares that a volume group belongs to this machine: its disks were moved here, or are a copy that is to be kept. A driver
//! may run at the same time: LVM's own lock orders the two, and the driver rereads the group before its next step.

use std::path::PathBuf;

use crate::inflight::{Operation, Reservation};
use crate::types::{Error, Recorded, VgName, VgUuid};
use crate::volume::owner;

use super::change::failed;
use crate::machine::{Machine, unknown};

/// A group to adopt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    pub vg: VgName,
    /// The only devices to use if several show a group of this name; empty for any.
    pub devices: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    pub uuid: VgUuid,
    /// The group that was pinned before, if any, and the devices pinned now; `None` if the pins stayed.
    pub disks: Option<(Option<VgUuid>, Vec<PathBuf>)>,
    /// The machines recorded before.
    pub before: Vec<Recorded>,
    /// This machine.
    pub machine: Recorded,
    /// Whether the record in the group was changed.
    pub done: bool,
}

impl Machine {
    pub fn on_adopt(request: &Adopt) -> Operation {
        Operation::new("adopt", format!("volume group {}", request.vg), request.clone())
    }

    /// Makes this machine the owner of a group. A group that it owns already is reported unchanged. If the pinned group cannot be read,
    /// or devices are named, pins what is there now, even if the group then cannot be changed.
    ///
    /// # Errors
    /// The group is not configured, not there, or cannot be changed by anybody; its metadata then stay unchanged.
    pub fn adopt(&self, _reservation: &Reservation, request: &Adopt) -> Result<Adopted, Error> {
        let what = format!("volume group {}", request.vg);
        let unserved = || Error::precondition(&what, "no configured pool uses it");
        let group = self.groups.get(&request.vg).ok_or_else(unserved)?;
        let turn = group.lvm.turn().map_err(|wedged| Error::unavailable(&what, wedged.to_string()))?;
        let (view, disks) = match group.lvm.read() {
            // A pinned group that can be read is not given up unasked, even while one of its disks is away.
            Ok(view) if request.devices.is_empty() => (view, None),
            _ => {
                let only = (!request.devices.is_empty()).then(|| request.devices.clone());
                let (view, before) = group.lvm.adopt(only).map_err(|error| unknown(&error))?;
                let devices = view.disks.values().cloned().collect();
                (view, Some((before.map(|pin| pin.vg), devices)))
            }
        };
        let vg = &view.vg;
        let before: Vec<Recorded> = owner::recorded(vg).collect();
        let adopted = |done| Adopted { uuid: vg.uuid.clone(), disks, before, machine: self.id.record(), done };
        let Some(command) = owner::record(vg, &self.id)? else { return Ok(adopted(false)) };
        group.lvm.check_present(&view).map_err(|why| Error::unavailable(&what, why))?;
        group.lvm.change(&turn, &command).map_err(|error| failed(&what, group, error))?;
        let now = group.lvm.read().map_err(|error| unknown(&error))?.vg;
        // Another group may have taken the name meanwhile; the command then skipped it.
        if now.uuid != vg.uuid || owner::record(&now, &self.id)?.is_some() {
            return Err(Error::unavailable(
                what,
                "LVM reported success, but left its tags unchanged; see vgs -o +vg_tags, and try again",
            ));
        }
        Ok(adopted(true))
    }
}
