//! Measures the filesystems of volumes. Asks the kernel, and no disk.
//!
//! Afterwards it reads the mount table again. Where a mount went away meanwhile, the figures are those of the filesystem beneath, such
//! as the node's own, and a claim must not grow by them.

use crate::host::{FsStats, MountEntry};
use crate::machine::Machine;
use crate::mount::Table;
use crate::types::{Error, Usage, VolumeId};

impl Machine {
    /// The usage of these volumes' filesystems, of those that are mounted for writing here.
    pub(in crate::machine) fn measure(&self, ids: &[VolumeId]) -> Result<Vec<(VolumeId, Usage)>, Error> {
        let what = "the filesystems of this node";
        // A filesystem that hangs must not take another thread with each request.
        let Ok(_alone) = self.measuring.try_lock() else {
            return Err(Error::busy(what, "they are being measured, or one of them hangs; see dmesg"));
        };
        let table = || Table::read(&*self.kernel).map_err(|error| Error::failed(format!("measuring {what}"), error));
        let before = table()?;
        let measured = ids.iter().filter_map(|id| self.measure_one(id, &before).map(|(mount, stats)| (id, mount, stats)));
        let measured: Vec<_> = measured.collect();
        // If a mount went away meanwhile, the filesystem beneath it was measured.
        let after = table()?;
        let stays = measured.into_iter().filter(|(_, mount, _)| after.at(&mount.target) == Some(*mount));
        Ok(stays.map(|(id, _, stats)| (id.clone(), Usage { used: stats.used, available: stats.available })).collect())
    }

    /// The statistics of a volume's filesystem, and the mount that shows it; `None` if no mount is writable, or it cannot be measured.
    fn measure_one<'a>(&self, id: &VolumeId, table: &'a Table) -> Option<(&'a MountEntry, FsStats)> {
        let inventory =
            self.groups.values().filter_map(crate::machine::Group::last).find(|inventory| inventory.vg.uuid == id.vg)?;
        let device = self.top_device(inventory.volume(id)?).ok()??;
        let writable = |mount: &&MountEntry| !mount.options.iter().chain(&mount.super_options).any(|option| option == "ro");
        let mut mounts = table.of_device(device.major, device.minor).filter(writable);
        let mount = mounts.find(|mount| table.at(&mount.target) == Some(*mount))?;
        let stats = self.kernel.stats(&mount.target);
        stats
            .inspect_err(|error| tracing::warn!(volume = %id, %error, "cannot measure its filesystem"))
            .ok()
            .map(|stats| (mount, stats))
    }
}
