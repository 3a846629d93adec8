//! The holders of a raw block volume. Pods get a bind mount of a holder, which also keeps the volume from being removed beneath them.
//! Writers and readers each have their own; each exists while something shows it.

use std::path::{Path, PathBuf};

use crate::device;
use crate::host::{DmAccess, DmDevice};
use crate::types::{Bytes, Error, Object};
use crate::volume::inventory::Volume;

use super::{Node, device_error};

impl Node {
    /// The holder of an active volume, of at least this size. It must not be larger than what may be shown of the volume's device.
    pub(super) fn ensure_holder(&self, volume: &Volume, size: Bytes, access: DmAccess) -> Result<DmDevice, Error> {
        self.machine.record_shown(volume, size)?;
        device::ensure_holder(self.machine.kernel(), &volume.id.vg, &volume.uuid, size, access)
            .map_err(|error| device_error(volume, "holding its device", error))
    }

    /// How much of an active volume's device one more pod may see. In the middle of an expansion the device may be ahead of the zeroes:
    /// then the pod sees as much as others do.
    pub(super) fn showable(&self, volume: &Volume, device: &DmDevice) -> Result<Bytes, Error> {
        let kernel = self.machine.kernel();
        let failed = |error| Error::failed(format!("reading the size of volume {}", volume.id), error);
        let size = kernel.device_size(&self.usable(volume, device)?).map_err(failed)?;
        let showable = volume.showable(size);
        if showable >= size.min(volume.size) {
            return Ok(showable);
        }
        let mut shown = None;
        // A holder without a table is an interrupted creation and shows nothing.
        for (_, holder) in self.holders(volume)?.iter().filter(|(_, holder)| holder.has_live_table) {
            shown = shown.max(Some(kernel.device_size(&holder.node()).map_err(failed)?));
        }
        Ok(shown.map_or(showable, |shown| shown.min(showable)))
    }

    /// The holders that a volume has now.
    pub(super) fn holders(&self, volume: &Volume) -> Result<Vec<(DmAccess, DmDevice)>, Error> {
        device::holders(self.machine.kernel(), &volume.uuid)
            .map_err(|error| device_error(volume, "looking for its holder", error))
    }

    /// Where the node of a device is bind-mounted.
    pub(super) fn bound(&self, device: &DmDevice) -> Result<Vec<PathBuf>, Error> {
        Ok(self.table()?.of_block_node(device.minor).map(|entry| entry.target.clone()).collect())
    }

    /// The holder that a path shows.
    pub(super) fn holder_at(&self, volume: &Volume, path: &Path) -> Result<Option<DmDevice>, Error> {
        for (_, holder) in self.holders(volume)? {
            if self.bound(&holder)?.iter().any(|at| at == path) {
                return Ok(Some(holder));
            }
        }
        Ok(None)
    }

    /// Removes each holder that nothing shows any more. Returns whether none is left.
    pub(super) fn drop_holders(&self, volume: &Volume) -> Result<bool, Error> {
        let mut none_left = true;
        for (access, holder) in self.holders(volume)? {
            if self.bound(&holder)?.is_empty() {
                device::remove_holder(self.machine.kernel(), &volume.uuid, access)
                    .map_err(|error| device_error(volume, "removing its holder", error))?;
            } else {
                none_left = false;
            }
        }
        Ok(none_left)
    }

    /// The error for a path that shows no volume.
    pub(super) fn not_at(volume: &Volume, path: &str) -> Error {
        Error::Missing { object: Object::Volume, id: volume.id.to_string(), hint: format!(" at path {path:?} on this node") }
    }
}
