//! Mounts, unmounts, and figures of mounted filesystems.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use sys_mount::{Mount, MountFlags};

use crate::types::Bytes;

use super::super::kernel::{FsStats, MountEntry, MountFlag, NewMount};
use super::super::mountinfo;

/// A mount as the log shows it.
pub(super) struct Subject<'a>(pub(super) &'a NewMount);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            NewMount::Filesystem { device, target, fstype, .. } => {
                write!(f, "{} ({fstype}) at {}", device.display(), target.display())
            }
            NewMount::Bind { source, target } => write!(f, "{} at {}", source.display(), target.display()),
        }
    }
}

pub(super) fn table() -> io::Result<Vec<MountEntry>> {
    mountinfo::parse(&fs::read("/proc/self/mountinfo")?)
}

fn flag(flag: MountFlag) -> MountFlags {
    match flag {
        MountFlag::ReadOnly => MountFlags::RDONLY,
        MountFlag::NoDev => MountFlags::NODEV,
        MountFlag::NoSuid => MountFlags::NOSUID,
        MountFlag::NoExec => MountFlags::NOEXEC,
        MountFlag::NoAtime => MountFlags::NOATIME,
        MountFlag::NoDirAtime => MountFlags::NODIRATIME,
        MountFlag::RelAtime => MountFlags::RELATIME,
        MountFlag::StrictAtime => MountFlags::STRICTATIME,
        // sys-mount has no name for this kernel flag.
        MountFlag::LazyTime => MountFlags::from_bits_retain(MsFlags::MS_LAZYTIME.bits()),
        MountFlag::Synchronous => MountFlags::SYNCHRONOUS,
        MountFlag::DirSync => MountFlags::DIRSYNC,
    }
}

#[expect(clippy::disallowed_methods, reason = "called within an effect")]
pub(super) fn mount(new: &NewMount) -> io::Result<()> {
    match new {
        NewMount::Filesystem { device, target, fstype, flags, data } => {
            let flags = flags.iter().map(|each| flag(*each)).collect();
            // Without a type sys-mount would try every type of the kernel.
            Mount::builder().fstype(*fstype).flags(flags).data(data).mount(device, target)?;
        }
        NewMount::Bind { source, target } => {
            // The kernel ignores the type of a bind mount.
            Mount::builder().fstype("none").flags(MountFlags::BIND).mount(source, target)?;
        }
    }
    Ok(())
}

/// Remounts one mount read-only. The kernel clears flags that are not given here.
#[expect(clippy::disallowed_methods, reason = "called within an effect")]
pub(super) fn make_read_only(target: &Path) -> io::Result<()> {
    let now = statvfs(target)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (there, keep) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        flags.set(keep, now.contains(there));
    }
    if !now.intersects(FsFlags::ST_NOATIME | FsFlags::ST_RELATIME) {
        flags |= MsFlags::MS_STRICTATIME;
    }
    Ok(nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?)
}

#[expect(clippy::disallowed_methods, reason = "called within an effect")]
pub(super) fn unmount(target: &Path) -> io::Result<()> {
    // nix is used here: sys-mount's NOFOLLOW is the flag of open(2), which umount2(2) refuses.
    Ok(umount2(target, MntFlags::UMOUNT_NOFOLLOW)?)
}

pub(super) fn stats(path: &Path) -> io::Result<FsStats> {
    // An XFS that was shut down still returns figures, but EIO for its files.
    fs::metadata(path)?;
    let figures = statvfs(path)?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(figures.fragment_size()));
    Ok(FsStats {
        total: bytes(figures.blocks()),
        available: bytes(figures.blocks_available()),
        used: bytes(figures.blocks().saturating_sub(figures.blocks_free())),
        inodes: figures.files(),
        inodes_free: figures.files_free(),
    })
}
