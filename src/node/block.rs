//! The holders of a raw block volume: what is bind-mounted for pods, and what keeps the volume from being removed beneath them. There
//! is one for writers and one for readers; each is there while something shows it.

use std::path::{Path, PathBuf};

use crate::device;
use crate::host::{DmAccess, DmDevice};
use crate::types::{Error, Object};
use crate::volume::inventory::Volume;

use super::{Node, device_error};

const BOTH: [DmAccess; 2] = [DmAccess::ReadWrite, DmAccess::ReadOnly];

impl Node {
    /// The holder of an active volume, as large as what may be shown of the volume's own device.
    pub(super) fn ensure_holder(&self, volume: &Volume, device: &DmDevice, access: DmAccess) -> Result<DmDevice, Error> {
        let node = self.usable(volume, device)?;
        let kernel = self.local.kernel();
        // The live table may be ahead of the zeroes: a refresh by somebody else loads it in the middle of an expansion.
        let size = kernel
            .device_size(&node)
            .map_err(|error| Error::failed(format!("reading the size of volume {}", volume.id), error))?;
        self.local.record_shown(volume, volume.showable(size))?;
        device::ensure_holder(kernel, &volume.id.vg, &volume.uuid, volume.showable(size), access)
            .map_err(|error| device_error(volume, "holding its device", error))
    }

    /// The holders that a volume has now.
    pub(super) fn holders(&self, volume: &Volume) -> Result<Vec<(DmAccess, DmDevice)>, Error> {
        let mut found = Vec::new();
        for access in BOTH {
            let holder = device::find_holder(self.local.kernel(), &volume.uuid, access)
                .map_err(|error| device_error(volume, "looking for its holder", error))?;
            found.extend(holder.map(|holder| (access, holder)));
        }
        Ok(found)
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

    /// Removes each holder that nothing shows any more. Answers whether none is left.
    pub(super) fn drop_holders(&self, volume: &Volume) -> Result<bool, Error> {
        let mut none_left = true;
        for (access, holder) in self.holders(volume)? {
            if self.bound(&holder)?.is_empty() {
                device::remove_holder(self.local.kernel(), &volume.uuid, access)
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
