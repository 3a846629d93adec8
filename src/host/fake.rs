//! Test kernels that implement a part of [`Kernel`]. Each module has one for its own part; other calls fail.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::types::Bytes;

use super::{
    DeviceIdentity, DmAccess, DmDevice, DmEvents, DmTarget, FsStats, Guard, Kernel, LinearMap, MountEntry, NewMount, Tools, Udev,
    Use, VolumeTools,
};

/// The answer to a call that a test double does not implement.
fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

/// [`Kernel`], with every call failing unless implemented.
pub(crate) trait Part: Send + Sync {
    fn read_at(&self, _: &Path, _: u64, _: usize) -> io::Result<Vec<u8>> {
        refused()
    }
    fn flush(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn device_size(&self, _: &Path) -> io::Result<Bytes> {
        refused()
    }
    fn logical_block_size(&self, _: &Path) -> io::Result<Bytes> {
        Ok(Bytes(512))
    }
    fn zero(&self, _: &Path, _: Bytes, _: Bytes) -> io::Result<()> {
        refused()
    }
    fn pv_candidates(&self) -> io::Result<Vec<PathBuf>> {
        refused()
    }
    fn device_identity(&self, device: &Path) -> io::Result<DeviceIdentity> {
        Ok(DeviceIdentity { names: Vec::new(), instance: device.display().to_string() })
    }
    fn dm_beneath(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn is_raw_volume(&self, _: &Path) -> io::Result<bool> {
        Ok(false)
    }
    fn device_number(&self, _: &Path) -> io::Result<Option<(u32, u32)>> {
        refused()
    }
    fn dm_find(&self, _: &str) -> io::Result<Option<DmDevice>> {
        refused()
    }
    fn dm_list(&self, _: &str) -> io::Result<Vec<DmDevice>> {
        refused()
    }
    fn dm_table(&self, _: &str) -> io::Result<Vec<DmTarget>> {
        refused()
    }
    fn dm_status(&self, _: &str) -> io::Result<Vec<DmTarget>> {
        refused()
    }
    fn dm_events(&self) -> io::Result<Box<dyn DmEvents>> {
        refused()
    }
    fn dm_create_linear(&self, _: &str, _: &str, _: &[LinearMap], _: DmAccess) -> io::Result<DmDevice> {
        refused()
    }
    fn dm_reload_linear(&self, _: &str, _: &[LinearMap], _: DmAccess) -> io::Result<()> {
        refused()
    }
    fn dm_remove(&self, _: &str) -> io::Result<()> {
        refused()
    }
    fn dm_clear_inactive(&self, _: &str) -> io::Result<()> {
        refused()
    }
    fn dm_message(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }
    fn dm_resume(&self, _: &str) -> io::Result<()> {
        refused()
    }
    fn udev(&self) -> Udev {
        Udev::Absent
    }
    fn ask_udev(&self, _: &str, _: Duration) -> Udev {
        self.udev()
    }
    fn udev_rules(&self, _: &str) -> Option<String> {
        None
    }
    fn put_udev_rules(&self, _: &str, _: &str) -> io::Result<bool> {
        Ok(false)
    }
    fn end_udev_waits(&self, _: &Path) -> io::Result<usize> {
        refused()
    }
    fn mounts(&self) -> io::Result<Vec<MountEntry>> {
        refused()
    }
    fn mount(&self, _: &NewMount) -> io::Result<()> {
        refused()
    }
    fn remount_read_only(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn unmount(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn stats(&self, _: &Path) -> io::Result<FsStats> {
        refused()
    }
}

impl<T: Part> Kernel for T {
    fn read_at(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        Part::read_at(self, device, offset, length)
    }
    fn flush(&self, device: &Path) -> io::Result<()> {
        Part::flush(self, device)
    }
    fn device_size(&self, device: &Path) -> io::Result<Bytes> {
        Part::device_size(self, device)
    }
    fn logical_block_size(&self, device: &Path) -> io::Result<Bytes> {
        Part::logical_block_size(self, device)
    }
    fn zero(&self, device: &Path, offset: Bytes, length: Bytes) -> io::Result<()> {
        Part::zero(self, device, offset, length)
    }
    fn pv_candidates(&self) -> io::Result<Vec<PathBuf>> {
        Part::pv_candidates(self)
    }
    fn device_identity(&self, device: &Path) -> io::Result<DeviceIdentity> {
        Part::device_identity(self, device)
    }
    fn device_instance(&self, device: &Path) -> io::Result<String> {
        Part::device_identity(self, device).map(|identity| identity.instance)
    }
    fn dm_beneath(&self, device: &Path) -> io::Result<Vec<String>> {
        Part::dm_beneath(self, device)
    }
    fn is_raw_volume(&self, device: &Path) -> io::Result<bool> {
        Part::is_raw_volume(self, device)
    }
    fn device_number(&self, path: &Path) -> io::Result<Option<(u32, u32)>> {
        Part::device_number(self, path)
    }
    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
        Part::dm_find(self, uuid)
    }
    fn dm_list(&self, uuid_prefix: &str) -> io::Result<Vec<DmDevice>> {
        Part::dm_list(self, uuid_prefix)
    }
    fn dm_table(&self, name: &str) -> io::Result<Vec<DmTarget>> {
        Part::dm_table(self, name)
    }
    fn dm_status(&self, name: &str) -> io::Result<Vec<DmTarget>> {
        Part::dm_status(self, name)
    }
    fn dm_events(&self) -> io::Result<Box<dyn DmEvents>> {
        Part::dm_events(self)
    }
    fn dm_create_linear(&self, name: &str, uuid: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<DmDevice> {
        Part::dm_create_linear(self, name, uuid, maps, access)
    }
    fn dm_reload_linear(&self, name: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<()> {
        Part::dm_reload_linear(self, name, maps, access)
    }
    fn dm_remove(&self, name: &str) -> io::Result<()> {
        Part::dm_remove(self, name)
    }
    fn dm_clear_inactive(&self, name: &str) -> io::Result<()> {
        Part::dm_clear_inactive(self, name)
    }
    fn dm_message(&self, name: &str, message: &str) -> io::Result<()> {
        Part::dm_message(self, name, message)
    }
    fn dm_resume(&self, name: &str) -> io::Result<()> {
        Part::dm_resume(self, name)
    }
    fn udev(&self) -> Udev {
        Part::udev(self)
    }
    fn ask_udev(&self, mark: &str, patience: Duration) -> Udev {
        Part::ask_udev(self, mark, patience)
    }
    fn udev_rules(&self, name: &str) -> Option<String> {
        Part::udev_rules(self, name)
    }
    fn put_udev_rules(&self, name: &str, text: &str) -> io::Result<bool> {
        Part::put_udev_rules(self, name, text)
    }
    fn end_udev_waits(&self, run_dir: &Path) -> io::Result<usize> {
        Part::end_udev_waits(self, run_dir)
    }
    fn mounts(&self) -> io::Result<Vec<MountEntry>> {
        Part::mounts(self)
    }
    fn mount(&self, mount: &NewMount) -> io::Result<()> {
        Part::mount(self, mount)
    }
    fn remount_read_only(&self, target: &Path) -> io::Result<()> {
        Part::remount_read_only(self, target)
    }
    fn unmount(&self, target: &Path) -> io::Result<()> {
        Part::unmount(self, target)
    }
    fn stats(&self, path: &Path) -> io::Result<FsStats> {
        Part::stats(self, path)
    }
}

/// A dm device that nobody has open.
pub(crate) fn device(name: &str, uuid: &str, minor: u32) -> DmDevice {
    DmDevice {
        name: name.to_owned(),
        uuid: uuid.to_owned(),
        major: 253,
        minor,
        open_count: 0,
        suspended: false,
        has_live_table: true,
        has_inactive_table: false,
    }
}

/// A volume for tools that do not look at it.
pub(crate) struct AnyVolume {
    guard: Guard,
    device: DmDevice,
    _directory: tempfile::TempDir,
}

impl AnyVolume {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let guard = Guard::take(&directory.path().join("volume"), std::time::Duration::ZERO).unwrap();
        Self { guard, device: device("d", "LVM-none", 3), _directory: directory }
    }

    pub(crate) fn on(&self) -> Use<'_> {
        Use { device: &self.device, guard: &self.guard }
    }

    pub(crate) fn tools<'a>(&'a self, tools: &'a dyn Tools) -> VolumeTools<'a> {
        VolumeTools { tools, on: self.on() }
    }
}
