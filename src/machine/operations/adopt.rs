//! A person says that a volume group is this machine's: its disks were moved here, or are a copy that is to live on. A driver may run
//! beside: LVM's own lock orders the two, and the driver reads the group anew before whatever it does next.

use std::path::PathBuf;

use crate::inflight::{Operation, Reservation};
use crate::types::{Error, Recorded, VgName, VgUuid};
use crate::volume::owner;

use super::change::failed;
use crate::machine::{Machine, unknown};

/// A group that shall be this machine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    pub vg: VgName,
    /// The only devices that count, where several show a group of the name.
    pub devices: Vec<PathBuf>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The UUID of the group.
    pub uuid: VgUuid,
    /// The disks that were pinned now, where they or their group were others before: the group that was, and the devices.
    pub disks: Option<(Option<VgUuid>, Vec<PathBuf>)>,
    /// The machines that were recorded.
    pub before: Vec<Recorded>,
    /// This machine.
    pub machine: Recorded,
    /// Something was changed.
    pub done: bool,
}

impl Machine {
    /// The operation of an adoption.
    pub fn on_adopt(request: &Adopt) -> Operation {
        Operation::new("adopt", format!("volume group {}", request.vg), request.clone())
    }

    /// Makes this machine the one that may change a group. One that is this machine's already is told as it is. Where the group that was
    /// pinned cannot be read, or devices are named, what is there now is pinned, also if it cannot be changed then.
    ///
    /// # Errors
    /// The group is not configured, not there, or cannot be changed by anybody; its metadata are as they were then.
    pub fn adopt(&self, _reservation: &Reservation, request: &Adopt) -> Result<Adopted, Error> {
        let what = format!("volume group {}", request.vg);
        let unserved = || Error::precondition(&what, "no pool of the configuration lies in it");
        let group = self.groups.get(&request.vg).ok_or_else(unserved)?;
        let turn = group.lvm.turn().map_err(|wedged| Error::unavailable(&what, wedged.to_string()))?;
        let (view, disks) = match group.lvm.read() {
            // What is pinned and can be read is not given up unasked, also where a disk of it is away.
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
        // Another group may have got the name meanwhile; the command passed it by then.
        if now.uuid != vg.uuid || owner::record(&now, &self.id)?.is_some() {
            return Err(Error::unavailable(
                what,
                "LVM said yes and left its tags as they were; see vgs -o +vg_tags, and try again",
            ));
        }
        Ok(adopted(true))
    }
}
