//! NodeGetVolumeStats. Takes no reservation: it changes nothing, and a device that hangs must not block the volume for others.

use std::path::Path;

use crate::filesystem;
use crate::host::FsStats;
use crate::types::{Bytes, EphemeralId, Error, Object, VolumeId};
use crate::volume::inventory::Volume;

use super::{Node, fs_error};

/// The usage of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stats {
    /// A filesystem: bytes and inodes.
    Filesystem(FsStats),
    /// A block device: its size.
    Block(Bytes),
}

impl Node {
    /// The usage of a volume at a path where it is staged or published.
    ///
    /// # Errors
    /// [`Error::Missing`] if the volume does not exist or is not shown at that path.
    pub fn stats(&self, id: &VolumeId, path: &str) -> Result<Stats, Error> {
        self.stats_of(&self.machine.volume(id)?, path)
    }

    /// The same for an inline ephemeral volume.
    ///
    /// # Errors
    /// As [`Node::stats`].
    pub fn stats_of_ephemeral(&self, id: &EphemeralId, path: &str) -> Result<Stats, Error> {
        let missing = || Error::missing(Object::Volume, id.as_str());
        self.stats_of(&self.machine.ephemeral(id)?.ok_or_else(missing)?, path)
    }

    fn stats_of(&self, volume: &Volume, path: &str) -> Result<Stats, Error> {
        let absent = || Self::not_at(volume, path);
        let real = Path::new(path).parent().and_then(|parent| parent.canonicalize().ok()).zip(Path::new(path).file_name());
        let (parent, name) = real.filter(|_| Path::new(path).is_absolute()).ok_or_else(absent)?;
        let real = parent.join(name);
        let device = self.machine.top_device(volume)?.ok_or_else(absent)?;
        if let Some(holder) = self.holder_at(volume, &real)? {
            let size = self.machine.kernel().device_size(&holder.node());
            return size
                .map(Stats::Block)
                .map_err(|error| Error::failed(format!("reading the size of volume {}", volume.id), error));
        }
        if !self.mounts_of(&device)?.contains(&real) {
            return Err(absent());
        }
        filesystem::stats(self.machine.kernel(), &real)
            .map(Stats::Filesystem)
            .map_err(|error| fs_error(volume, "measuring its filesystem", error))
    }
}
