//! Growing a mounted ext4 filesystem: the ioctl that resize2fs makes on a directory of the mount.
//!
//! resize2fs itself opens the device for writing first, which kernels with `bdev_allow_write_mounted=0` refuse while it is mounted.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

/// `EXT4_IOC_RESIZE_FS` (fs/ext4/ext4.h).
#[allow(unsafe_code, reason = "nix declares ioctls as unsafe functions, and wraps none of ext4's")]
mod ioctl {
    nix::ioctl_write_ptr!(resize_fs, b'f', 16, u64);
}

/// Grows the ext4 filesystem that is mounted at a directory to a number of its blocks; one that has them already stays as it is. Needs
/// `CAP_SYS_RESOURCE`.
///
/// # Errors
/// The kernel's; where it refuses an ext4 for its state, with words on that.
pub fn grow_ext4(mount_point: &Path, blocks: u64) -> io::Result<()> {
    let directory = File::open(mount_point)?;
    #[expect(
        unsafe_code,
        reason = "no crate wraps this ioctl: the kernel reads one u64 through the pointer and keeps nothing of it"
    )]
    // SAFETY: the descriptor is open and the pointer leads to a u64, both until the call has returned.
    let grown = unsafe { ioctl::resize_fs(directory.as_raw_fd(), &raw const blocks) };
    match grown {
        Ok(_) => Ok(()),
        Err(Errno::EPERM) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the kernel does not grow a filesystem that has errors recorded; end its pods, so that it is checked when it is staged \
             again (EPERM)",
        )),
        Err(Errno::ENOTTY) => Err(io::Error::new(io::ErrorKind::Unsupported, "it is not ext4 (ENOTTY)")),
        Err(errno) => Err(errno.into()),
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
}
