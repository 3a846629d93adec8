//! The kernel and glibc calls that no crate wraps as needed here. This is the only `unsafe` code.
//!
//! The crate `devicemapper` waits for udevd without a limit in each call that causes an event. So these calls are made here:
//! removing and resuming a dm device, and the semaphore by which udevd reports a handled event.
//!
//! A mounted ext4 filesystem grows by the ioctl that resize2fs makes on a directory of the mount. resize2fs itself first opens the
//! device for writing, which kernels with `bdev_allow_write_mounted=0` refuse while it is mounted.
//!
//! glibc's allocator is set to one heap.

#![expect(unsafe_code, reason = "see above")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use devicemapper_sys::dm_ioctl;
use nix::errno::Errno;
use nix::libc;

#[allow(unreachable_pub, reason = "the macro makes public functions")]
mod ioctl {
    use devicemapper_sys::{DM_DEV_REMOVE_CMD, DM_DEV_SUSPEND_CMD, DM_IOCTL, dm_ioctl};

    nix::ioctl_readwrite!(dev_remove, DM_IOCTL, DM_DEV_REMOVE_CMD, dm_ioctl);
    nix::ioctl_readwrite!(dev_suspend, DM_IOCTL, DM_DEV_SUSPEND_CMD, dm_ioctl);
    // EXT4_IOC_RESIZE_FS (fs/ext4/ext4.h).
    nix::ioctl_write_ptr!(resize_fs, b'f', 16, u64);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Remove,
    Resume,
}

/// Changes a dm device through the open control node of device-mapper. `event` goes into the event for udevd (`DM_COOKIE`). Returns
/// whether there was an event.
pub(super) fn change(control: &File, change: Change, name: &str, event: u32) -> io::Result<bool> {
    let size = u32::try_from(size_of::<dm_ioctl>()).map_err(io::Error::other)?;
    let mut header = dm_ioctl { version: [4, 0, 0], data_size: size, data_start: size, event_nr: event, ..Default::default() };
    // The last byte stays zero.
    if name.len() >= header.name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in header.name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let data = &raw mut header;
    // SAFETY: the kernel reads and writes `data_size` bytes at the pointer, which is the size of the structure it leads to.
    match change {
        Change::Remove => unsafe { ioctl::dev_remove(control.as_raw_fd(), data) },
        Change::Resume => unsafe { ioctl::dev_suspend(control.as_raw_fd(), data) },
    }?;
    Ok(header.flags & devicemapper_sys::DM_UEVENT_GENERATED_FLAG != 0)
}

/// Grows the ext4 filesystem mounted at a directory to this number of its blocks. One that is that large already stays as it is.
/// Needs `CAP_SYS_RESOURCE`.
///
/// # Errors
/// The kernel's error, with an explanation if the kernel refuses because of the filesystem's state or type.
pub fn grow_ext4(mount_point: &Path, blocks: u64) -> io::Result<()> {
    let directory = File::open(mount_point)?;
    // SAFETY: the kernel reads one u64 through the pointer, which leads to one, and keeps nothing of it.
    let grown = unsafe { ioctl::resize_fs(directory.as_raw_fd(), &raw const blocks) };
    match grown {
        Ok(_) => Ok(()),
        Err(Errno::EPERM) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the kernel does not grow a filesystem that has errors recorded; end its pods, so that the next staging checks it \
             (EPERM)",
        )),
        Err(Errno::ENOTTY) => Err(io::Error::new(io::ErrorKind::Unsupported, "it is not ext4 (ENOTTY)")),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes all threads allocate from one heap. glibc gives each thread a heap of its own, and each keeps the memory it freed: after
/// lists of 5000 volumes that is a third of the driver's memory. Here threads seldom allocate at the same moment, because they wait
/// for LVM.
///
/// Call it before other threads exist. C libraries other than glibc keep their own ways.
pub fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes two numbers, and there is no other thread yet whose allocation it could disturb.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The fourth argument of semctl(2).
#[repr(C)]
union Argument {
    val: libc::c_int,
    _buffer: *mut libc::c_void,
}

/// A System V semaphore with the value 1, removed on drop.
#[derive(Debug)]
pub(super) struct Semaphore(libc::c_int);

impl Semaphore {
    /// Makes a semaphore with this key, which must be new.
    pub(super) fn make(key: u32) -> io::Result<Self> {
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
        // SAFETY: no memory is passed.
        let made = Self(checked(unsafe { libc::semget(libc::key_t::from_ne_bytes(key.to_ne_bytes()), 1, flags) })?);
        // SAFETY: SETVAL takes the union by value, and reads the integer of it.
        checked(unsafe { libc::semctl(made.0, 0, libc::SETVAL, Argument { val: 1 }) })?;
        Ok(made)
    }

    /// The process that last changed the semaphore with this id.
    pub(super) fn last_user(id: libc::c_int) -> io::Result<libc::pid_t> {
        // SAFETY: GETPID takes no fourth argument.
        checked(unsafe { libc::semctl(id, 0, libc::GETPID) })
    }

    /// Removes the semaphore with this id, which ends all waits for it.
    pub(super) fn remove(id: libc::c_int) -> io::Result<()> {
        // SAFETY: IPC_RMID takes no fourth argument.
        checked(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).map(drop)
    }

    pub(super) fn value(&self) -> io::Result<libc::c_int> {
        // SAFETY: GETVAL takes no fourth argument.
        checked(unsafe { libc::semctl(self.0, 0, libc::GETVAL) })
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = Self::remove(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ext4_is_told() {
        let error = grow_ext4(Path::new("/proc"), 1).unwrap_err();
        assert_eq!(error.to_string(), "it is not ext4 (ENOTTY)");
        assert_eq!(grow_ext4(Path::new("/nonexistent"), 1).unwrap_err().raw_os_error(), Some(2));
    }

    #[test]
    fn a_semaphore_is_one_and_goes_with_its_owner() {
        // Not a key of device-mapper.
        let key = 0x1c51_0000 | (std::process::id() & 0xffff);
        let first = match Semaphore::make(key) {
            // A sandbox may have no semaphores.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => return,
            made => made.unwrap(),
        };
        assert_eq!(first.value().unwrap(), 1);
        assert_eq!(Semaphore::make(key).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(first);
        let second = Semaphore::make(key).unwrap();
        assert_eq!(second.value().unwrap(), 1);
        Semaphore::remove(second.0).unwrap();
        assert!(second.value().is_err());
    }
}
