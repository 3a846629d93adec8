//! NodeExpandVolume: grows the filesystem of a volume, or what pods see of it, to the volume's size.

use crate::filesystem;
use crate::host::{DmDevice, Use, VolumeTools};
use crate::inflight::Reservation;
use crate::types::{Bytes, Error, FsKind, Life, VolumeId};
use crate::volume::SizeRange;
use crate::volume::inventory::Volume;

use super::{Node, fs_error, target};

impl Node {
    /// Grows the filesystem, or what a pod sees of a block device, to the size of the volume's device, and returns that size. Only the
    /// form of `path` is checked: it may be the staging path, a published one, or that of a pod that is gone.
    ///
    /// # Errors
    /// The volume is not staged here, or smaller than requested: ControllerExpandVolume must come first.
    pub fn expand(&self, reservation: &Reservation, id: &VolumeId, path: &str, size: SizeRange) -> Result<Bytes, Error> {
        let volume = self.machine.volume(id)?;
        target("volume_path", path)?;
        let what = || format!("volume {id}");
        let device = self.machine.top_device(&volume)?;
        let device =
            device.ok_or_else(|| Error::precondition(what(), "it is not staged on this node; it grows when it is staged"))?;
        let node = self.usable(&volume, &device)?;
        let kernel = self.machine.kernel();
        let live = kernel.device_size(&node).map_err(|error| Error::failed(format!("reading the size of {}", what()), error))?;
        let live = if let Life::Formatted(_) = volume.marks.life { live } else { volume.showable(live) };
        if live < size.required {
            let reason =
                format!("its device has {live}, and {} is requested; ControllerExpandVolume must succeed first", size.required);
            return Err(Error::OutOfRange { what: what(), reason });
        }
        if size.limit.0 > 0 && live > size.limit {
            let reason = format!("its device has {live}, limit_bytes is {}, and nothing shrinks", size.limit);
            return Err(Error::OutOfRange { what: what(), reason });
        }
        for (access, _) in self.holders(&volume)? {
            self.ensure_holder(&volume, volume.showable(live), access)?;
        }
        // A restored filesystem may be attached as a block device; its content is then the user's.
        let as_block = self.machine.ledger().state(&volume.uuid).grant.is_some_and(|grant| grant.mode.block);
        let Life::Formatted(kind) = volume.marks.life else { return Ok(live) };
        if as_block {
            return Ok(live);
        }
        self.grow(reservation, &volume, &device, kind)?;
        Ok(live)
    }

    fn grow(&self, reservation: &Reservation, volume: &Volume, device: &DmDevice, kind: FsKind) -> Result<(), Error> {
        self.refuse_troubled(volume, device)?;
        let table = self.table()?;
        let identity = Self::identity(device);
        let mut mounts = table.of_device(identity.major, identity.minor).filter(|entry| entry.root == identity.root);
        let Some(mount) = mounts.find(|entry| !entry.options.iter().any(|option| option == "ro")) else {
            return Err(Error::precondition(
                format!("volume {}", volume.id),
                "its filesystem is mounted nowhere for writing on this node",
            ));
        };
        let guard = self.machine.guard(reservation, volume)?;
        let tools = VolumeTools { tools: self.machine.tools(), on: Use { device, guard: &guard } };
        filesystem::grow(tools, self.machine.kernel(), kind, &device.node(), &mount.target)
            .map_err(|error| fs_error(volume, "growing its filesystem", error))
    }
}
