//! device-mapper, through the crate `devicemapper` except for the calls that cause an event. Those calls return when udevd has
//! handled the event, or does not answer ([`udev`]).

use std::os::fd::AsFd;
use std::time::Duration;
use std::{fs, io};

use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUuid, errors};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::effect;
use super::super::kernel::{DmAccess, DmDevice, DmEvents, DmTarget, LinearMap};
use super::raw::Change;
use super::{LVM_DM_PREFIX, OWN_DM_PREFIX, udev};

/// The kernel's error when no device has the name or UUID.
const NO_DEVICE: i32 = nix::libc::ENXIO;

/// A table line as the crate takes and returns it: first sector, sectors, type, parameters.
type Line = (u64, u64, String, String);

pub(super) fn failed(error: DmError) -> io::Error {
    match error {
        DmError::Core(errors::Error::Ioctl(_, _, _, errno)) => io::Error::from(*errno),
        other => io::Error::other(other.to_string()),
    }
}

fn open() -> io::Result<DM> {
    DM::new().map_err(failed)
}

/// Like [`open`], for queries that have an answer without device-mapper too: such a kernel has no dm devices.
fn open_if_any() -> io::Result<Option<DM>> {
    match open() {
        Ok(dm) => Ok(Some(dm)),
        // Opening the node loads the module if there is one.
        Err(_) if fs::read_to_string("/proc/misc").is_ok_and(|drivers| !is_registered(&drivers)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether device-mapper is among the kernel's drivers (`/proc/misc`: one number and name per line).
fn is_registered(drivers: &str) -> bool {
    drivers.lines().any(|line| line.split_whitespace().nth(1) == Some("device-mapper"))
}

fn by_name(name: &str) -> io::Result<&DmName> {
    DmName::new(name).map_err(failed)
}

fn by_uuid(uuid: &str) -> io::Result<&DmUuid> {
    DmUuid::new(uuid).map_err(failed)
}

/// `None` if there is no such device.
fn if_there<T>(result: Result<T, DmError>) -> io::Result<Option<T>> {
    match result.map_err(failed) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.raw_os_error() == Some(NO_DEVICE) => Ok(None),
        Err(error) => Err(error),
    }
}

fn device(info: &DeviceInfo) -> DmDevice {
    let flags = info.flags();
    DmDevice {
        name: info.name().map(ToString::to_string).unwrap_or_default(),
        uuid: info.uuid().map(ToString::to_string).unwrap_or_default(),
        major: info.device().major,
        minor: info.device().minor,
        open_count: u32::try_from(info.open_count()).unwrap_or(0),
        suspended: flags.contains(DmFlags::DM_SUSPEND),
        has_live_table: flags.contains(DmFlags::DM_ACTIVE_PRESENT),
        has_inactive_table: flags.contains(DmFlags::DM_INACTIVE_PRESENT),
    }
}

/// The udev flags for a device. udevd leaves the driver's own devices alone: it does not scan a tenant's bytes, make links from
/// what it finds there, or activate a volume group within. For LVM's devices it keeps the flags that LVM gave at activation.
fn flags(uuid: &str) -> Option<u32> {
    (uuid.starts_with(OWN_DM_PREFIX) || !uuid.starts_with(LVM_DM_PREFIX)).then_some(udev::PRIVATE)
}

pub(super) fn find(uuid: &str) -> io::Result<Option<DmDevice>> {
    let Some(dm) = open_if_any()? else { return Ok(None) };
    let found = if_there(dm.device_info(&DevId::Uuid(by_uuid(uuid)?)))?;
    Ok(found.as_ref().map(device))
}

pub(super) fn list(uuid_prefix: &str) -> io::Result<Vec<DmDevice>> {
    let Some(dm) = open_if_any()? else { return Ok(Vec::new()) };
    let mut devices = Vec::new();
    for (name, _, _) in dm.list_devices().map_err(failed)? {
        // It vanished since.
        if let Some(info) = if_there(dm.device_info(&DevId::Name(&name)))? {
            devices.push(device(&info));
        }
    }
    devices.retain(|device| device.uuid.starts_with(uuid_prefix));
    Ok(devices)
}

fn targets(name: &str, flags: DmFlags) -> io::Result<Vec<DmTarget>> {
    let id = DevId::Name(by_name(name)?);
    let (_, lines) = open()?.table_status(&id, DmOptions::default().set_flags(flags)).map_err(failed)?;
    Ok(lines.into_iter().map(|(start, length, kind, rest)| DmTarget { start, length, kind, rest }).collect())
}

pub(super) fn table(name: &str) -> io::Result<Vec<DmTarget>> {
    targets(name, DmFlags::DM_STATUS_TABLE)
}

pub(super) fn status(name: &str) -> io::Result<Vec<DmTarget>> {
    // Without this flag the status of a thin pool commits its metadata first, and waits if the pool is full.
    targets(name, DmFlags::DM_NOFLUSH)
}

/// The table for pieces laid end to end.
fn lines(maps: &[LinearMap]) -> io::Result<Vec<Line>> {
    let mut start = 0;
    let mut lines = Vec::with_capacity(maps.len());
    for map in maps {
        let Some((major, minor)) = super::block::device_number(&map.device)? else {
            return Err(io::Error::other(format!("{} is not a block device", map.device.display())));
        };
        lines.push((start, map.length, "linear".to_owned(), format!("{major}:{minor} {}", map.offset)));
        start += map.length;
    }
    Ok(lines)
}

fn loading(access: DmAccess) -> DmOptions {
    match access {
        DmAccess::ReadWrite => DmOptions::default(),
        DmAccess::ReadOnly => DmOptions::default().set_flags(DmFlags::DM_READONLY),
    }
}

pub(super) fn create_linear(name: &str, uuid: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<DmDevice> {
    let lines = lines(maps)?;
    let dm = open()?;
    let (dm_name, dm_uuid) = (by_name(name)?, by_uuid(uuid)?);
    let id = DevId::Uuid(dm_uuid);
    #[expect(clippy::disallowed_methods, reason = "within an effect")]
    effect("dm.create", &name, || dm.device_create(dm_name, Some(dm_uuid), DmOptions::default()).map_err(failed))
        .map_err(taken)?;
    let made = load(&dm, name, &lines, access)
        .and_then(|()| put_in_force(&dm, name, Some(udev::PRIVATE)))
        .and_then(|()| dm.device_info(&id).map_err(failed));
    match made {
        Ok(info) => Ok(device(&info)),
        Err(error) => {
            // Nobody knows of the device yet. The first error is the one to report; a leftover device is found by its UUID.
            let _ = remove(name);
            Err(error)
        }
    }
}

/// The kernel reports a taken name as busy. At the load it reports the same for a device beneath that another process has
/// exclusively open.
fn taken(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(nix::libc::EBUSY) => {
            io::Error::new(io::ErrorKind::AlreadyExists, "another device has that name or that UUID (EBUSY)")
        }
        _ => error,
    }
}

/// Loads a table without putting it in force.
fn load(dm: &DM, name: &str, lines: &[Line], access: DmAccess) -> io::Result<()> {
    let id = DevId::Name(by_name(name)?);
    #[expect(clippy::disallowed_methods, reason = "within an effect")]
    effect("dm.load", &name, || dm.table_load(&id, lines, loading(access)).map(drop).map_err(failed))
}

/// Resumes a device, with the table that was loaded last.
fn put_in_force(dm: &DM, name: &str, flags: Option<u32>) -> io::Result<()> {
    effect("dm.resume", &name, || udev::change(dm.file(), Change::Resume, name, flags))
}

pub(super) fn reload_linear(name: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<()> {
    let lines = lines(maps)?;
    let dm = open()?;
    load(&dm, name, &lines, access)?;
    // Resuming a device with a new table suspends it first, within the same call: a driver that dies here leaves no device
    // suspended.
    let swapped = put_in_force(&dm, name, Some(udev::PRIVATE));
    if swapped.is_err() {
        // The old table is still in force, but the device may be suspended.
        let _ = clear_inactive(name);
        let _ = put_in_force(&dm, name, Some(udev::PRIVATE));
    }
    swapped
}

pub(super) fn remove(name: &str) -> io::Result<()> {
    let dm = open()?;
    effect("dm.remove", &name, || udev::change(dm.file(), Change::Remove, name, Some(udev::PRIVATE)))
}

pub(super) fn clear_inactive(name: &str) -> io::Result<()> {
    let (dm, id) = (open()?, DevId::Name(by_name(name)?));
    #[expect(clippy::disallowed_methods, reason = "within an effect")]
    effect("dm.clear", &name, || dm.table_clear(&id).map(drop).map_err(failed))
}

pub(super) fn message(name: &str, message: &str) -> io::Result<()> {
    let (dm, id) = (open()?, DevId::Name(by_name(name)?));
    #[expect(clippy::disallowed_methods, reason = "within an effect")]
    effect("dm.message", &format_args!("{name} {message}"), || dm.target_msg(&id, None, message).map(drop).map_err(failed))
}

pub(super) fn resume(name: &str) -> io::Result<()> {
    let dm = open()?;
    let id = DevId::Name(by_name(name)?);
    let uuid = device(&dm.device_info(&id).map_err(failed)?).uuid;
    put_in_force(&dm, name, flags(&uuid))
}

/// The kernel counts events of all devices. A descriptor of its control device is readable once the count has grown since it was
/// opened or armed.
pub(super) struct Events(DM);

impl Events {
    pub(super) fn open() -> io::Result<Self> {
        open().map(Self)
    }
}

impl DmEvents for Events {
    fn wait(&mut self, limit: Duration) -> io::Result<()> {
        let mut descriptors = [PollFd::new(self.0.file().as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            // Arms before the caller looks, so that no event is missed between its look and its next wait.
            Ok(_) => self.0.arm_poll().map(drop).map_err(failed),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_device_mapper_is_told_apart() {
        assert!(is_registered("235 autofs\n236 device-mapper\n237 loop-control\n"));
        assert!(!is_registered("235 autofs\n237 loop-control\n"));
        assert!(!is_registered(""));
    }
}
