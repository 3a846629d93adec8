//! The kernel calls themselves. [`Linux`] implements [`Kernel`]; each part has a file.
//!
//! Calls go through a wrapper of nix or std where one exists, even if an ioctl of another name is better known (noted at the call).
//! `unsafe` code is only what no crate wraps, in [`raw`].

mod block;
mod candidates;
mod dm;
mod identity;
mod mount;
mod raw;
mod udev;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::types::Bytes;

pub use identity::RAW_VOLUMES;
pub use raw::{grow_ext4, keep_one_heap};

use super::effect;
use super::kernel::{
    DeviceIdentity, DmAccess, DmDevice, DmEvents, DmTarget, FsStats, Kernel, LinearMap, MountEntry, NewMount, Udev,
};

/// Prefix of the UUIDs of the driver's own dm devices. They look like LVs of a group that does not exist. So the host's LVM ignores
/// what a guest wrote there, as it ignores the contents of an LV, unless `devices/scan_lvs` is set.
pub const OWN_DM_PREFIX: &str = "LVM-lvmcsi";
/// The prefix in earlier versions.
pub const FORMER_DM_PREFIX: &str = "LVMCSI-";
/// Prefix of the names of the driver's own dm devices: LVM would use it for LVs of volume group `lvm-csi`.
pub const HIDDEN_DM_PREFIX: &str = "lvm--csi-";
/// Prefix of the UUIDs of LVM's dm devices.
const LVM_DM_PREFIX: &str = "LVM-";

/// The kernel of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

/// The dm device with this UUID.
pub(super) fn dm_find(uuid: &str) -> io::Result<Option<DmDevice>> {
    dm::find(uuid)
}

impl Kernel for Linux {
    fn read_at(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        block::read_at(device, offset, length)
    }

    fn flush(&self, device: &Path) -> io::Result<()> {
        effect("flush", &device.display(), || block::flush(device))
    }

    fn device_size(&self, device: &Path) -> io::Result<Bytes> {
        block::size(device)
    }

    fn logical_block_size(&self, device: &Path) -> io::Result<Bytes> {
        block::logical_block_size(device)
    }

    fn zero(&self, device: &Path, offset: Bytes, length: Bytes) -> io::Result<()> {
        effect("zero", &format_args!("{} at {} for {}", device.display(), offset.0, length.0), || {
            block::zero(device, offset.0, length.0)
        })
    }

    fn pv_candidates(&self) -> io::Result<Vec<PathBuf>> {
        candidates::pv_candidates()
    }

    fn device_identity(&self, device: &Path) -> io::Result<DeviceIdentity> {
        identity::of(device)
    }

    fn device_instance(&self, device: &Path) -> io::Result<String> {
        identity::instance_of(device)
    }

    fn dm_beneath(&self, device: &Path) -> io::Result<Vec<String>> {
        identity::beneath(device)
    }

    fn is_raw_volume(&self, device: &Path) -> io::Result<bool> {
        identity::is_raw_volume(device)
    }

    fn device_number(&self, path: &Path) -> io::Result<Option<(u32, u32)>> {
        block::device_number(path)
    }

    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
        dm::find(uuid)
    }

    fn dm_list(&self, uuid_prefix: &str) -> io::Result<Vec<DmDevice>> {
        dm::list(uuid_prefix)
    }

    fn dm_table(&self, name: &str) -> io::Result<Vec<DmTarget>> {
        dm::table(name)
    }

    fn dm_status(&self, name: &str) -> io::Result<Vec<DmTarget>> {
        dm::status(name)
    }

    fn dm_events(&self) -> io::Result<Box<dyn DmEvents>> {
        Ok(Box::new(dm::Events::open()?))
    }

    fn dm_create_linear(&self, name: &str, uuid: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<DmDevice> {
        // Its steps are separate effects.
        dm::create_linear(name, uuid, maps, access)
    }

    fn dm_reload_linear(&self, name: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<()> {
        dm::reload_linear(name, maps, access)
    }

    fn dm_remove(&self, name: &str) -> io::Result<()> {
        dm::remove(name)
    }

    fn dm_clear_inactive(&self, name: &str) -> io::Result<()> {
        dm::clear_inactive(name)
    }

    fn dm_message(&self, name: &str, message: &str) -> io::Result<()> {
        dm::message(name, message)
    }

    fn dm_resume(&self, name: &str) -> io::Result<()> {
        dm::resume(name)
    }

    fn udev(&self) -> Udev {
        udev::answer()
    }

    fn ask_udev(&self, mark: &str, patience: Duration) -> Udev {
        udev::ask(mark, patience)
    }

    fn udev_rules(&self, name: &str) -> Option<String> {
        udev::rules(name)
    }

    fn put_udev_rules(&self, name: &str, text: &str) -> io::Result<bool> {
        udev::put_rules(name, text)
    }

    fn end_udev_waits(&self, run_dir: &Path) -> io::Result<usize> {
        effect("udev.end", &run_dir.display(), || udev::end_waits(run_dir))
    }

    fn mounts(&self) -> io::Result<Vec<MountEntry>> {
        mount::table()
    }

    fn mount(&self, new: &NewMount) -> io::Result<()> {
        effect("mount", &mount::Subject(new), || mount::mount(new))
    }

    fn remount_read_only(&self, target: &Path) -> io::Result<()> {
        effect("remount", &format_args!("{} (read-only)", target.display()), || mount::make_read_only(target))
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        effect("unmount", &target.display(), || mount::unmount(target))
    }

    fn stats(&self, path: &Path) -> io::Result<FsStats> {
        mount::stats(path)
    }
}
