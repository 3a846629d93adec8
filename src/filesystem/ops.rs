//! Makes, checks, grows and measures filesystems.
//!
//! After a tool ends well, the driver still looks at its work: a tag that says more than mkfs did would keep a volume from ever being
//! formatted.

use std::io;
use std::path::{Path, PathBuf};

use super::Kind;
use super::superblock::summary;
use crate::host::{FsStats, Kernel, MountEntry, Tool, ToolError, VolumeTools};
use crate::types::Bytes;

/// Why a filesystem could not be read, made, checked, grown or measured.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The device gave an error.
    #[error("cannot read {} at byte {}", device.display(), offset.0)]
    Unreadable {
        device: PathBuf,
        /// The offset of the read.
        offset: Bytes,
        source: io::Error,
    },
    /// There is no valid superblock.
    #[error("{} has no usable superblock of {kind}: {what}", device.display())]
    Superblock {
        device: PathBuf,
        /// The expected filesystem.
        kind: Kind,
        what: &'static str,
    },
    /// The kernel cannot query or flush the device.
    #[error("{what} of {} failed", device.display())]
    Device {
        device: PathBuf,
        /// The operation, as a noun.
        what: &'static str,
        source: io::Error,
    },
    /// mkfs failed. A retry recognises what it left by its UUID, and makes it again.
    #[error("cannot make {kind} on {}", device.display())]
    Make { device: PathBuf, kind: Kind, source: ToolError },
    /// mkfs succeeded, but its filesystem is not there; a retry makes it again.
    #[error("making {kind} on {} is said to have succeeded, but {what}", device.display())]
    NotMade { device: PathBuf, kind: Kind, what: String },
    /// The check succeeded, but the superblock still asks for one.
    #[error(
        "the check of {kind} on {} is said to have succeeded, but its superblock still records errors: a person must look at it \
         (dumpe2fs -h, e2fsck -f)",
        device.display()
    )]
    Unrepaired { device: PathBuf, kind: Kind },
    /// The check failed, or found damage that it must not repair without a person's decision.
    #[error("the check that {kind} on {} needs failed: a person must repair it", device.display())]
    Check { device: PathBuf, kind: Kind, source: ToolError },
    /// The filesystem did not grow; it is still valid at its old size.
    #[error("cannot grow {kind} on {}, mounted at {}", device.display(), mount_point.display())]
    Grow { device: PathBuf, mount_point: PathBuf, kind: Kind, source: ToolError },
    /// The tool succeeded, but the filesystem has not grown.
    #[error(
        "growing {kind} on {}, mounted at {}, is said to have succeeded, but it has {size} of {wanted}",
        device.display(), mount_point.display()
    )]
    NotGrown {
        device: PathBuf,
        mount_point: PathBuf,
        kind: Kind,
        /// The size of the filesystem.
        size: Bytes,
        /// The size of its device.
        wanted: Bytes,
    },
    #[error("cannot measure the filesystem at {}", mount_point.display())]
    Stats { mount_point: PathBuf, source: io::Error },
}

/// Makes a filesystem over whatever the device holds, and flushes it, so that the data are durable before the tag "formatted" is
/// committed. Call it only for [`super::next_step`]. It reads the device afterwards: if the tag promised what mkfs left out, the
/// volume could never be formatted.
///
/// # Errors
/// mkfs or the flush failed, or the filesystem is not there.
pub fn make(tools: VolumeTools<'_>, kernel: &dyn Kernel, device: &Path, kind: Kind, uuid: &str) -> Result<(), FsError> {
    let (path, text) = (device.to_owned(), uuid.to_owned());
    let tool = match kind {
        Kind::Ext4 => Tool::MakeExt4 { device: path, uuid: text },
        Kind::Xfs => Tool::MakeXfs { device: path, uuid: text },
    };
    tools.run(&tool).map_err(|source| FsError::Make { device: device.to_owned(), kind, source })?;
    kernel.flush(device).map_err(|source| FsError::Device { device: device.to_owned(), what: "the flush", source })?;
    let not_made = |what| Err(FsError::NotMade { device: device.to_owned(), kind, what });
    let made = match summary(kernel, device, kind) {
        Ok(made) => made,
        Err(FsError::Superblock { what, .. }) => return not_made(what.to_owned()),
        Err(error) => return Err(error),
    };
    let size = size_of(kernel, device)?;
    if made.uuid != uuid {
        return not_made(format!("its UUID is {}, not {uuid}", made.uuid));
    }
    let slack = if kind == Kind::Xfs { XFS_GROUP } else { Bytes(0) };
    if made.gains_on(size, Bytes(made.size.0.saturating_add(slack.0))) || made.size > size {
        return not_made(format!("it has {} of {size}", made.size));
    }
    Ok(())
}

/// mkfs.xfs omits a last group that is smaller; the kernel uses it when it grows the filesystem.
const XFS_GROUP: Bytes = Bytes(16 << 20);

fn size_of(kernel: &dyn Kernel, device: &Path) -> Result<Bytes, FsError> {
    let failed = |source| FsError::Device { device: device.to_owned(), what: "asking the size", source };
    kernel.device_size(device).map_err(failed)
}

/// Checks a filesystem before its mount, if necessary.
///
/// Both kinds replay their journal at the mount, which is all a crash requires. A full check of a large ext4 takes minutes, so it
/// does not run each time. ext4 is checked if its superblock records errors, which the kernel found while it was mounted; only
/// damage that needs no decision is repaired. XFS has no such repair: the kernel refuses to mount a damaged one.
///
/// # Errors
/// The device is unreadable, or the check failed, or the superblock still records errors after it.
pub fn check(tools: VolumeTools<'_>, kernel: &dyn Kernel, device: &Path, kind: Kind) -> Result<(), FsError> {
    if !summary(kernel, device, kind)?.needs_check {
        return Ok(());
    }
    let device = device.to_owned();
    match tools.run(&Tool::CheckExt4 { device: device.clone() }) {
        Ok(_) if summary(kernel, &device, kind)?.needs_check => Err(FsError::Unrepaired { device, kind }),
        Ok(_) => Ok(()),
        Err(source) => Err(FsError::Check { device, kind, source }),
    }
}

/// Whether growing the filesystem to its device gains something. May be true for a mounted filesystem that has just grown;
/// growing twice does no harm.
///
/// # Errors
/// The device is unreadable or has no such filesystem.
pub fn needs_growth(kernel: &dyn Kernel, device: &Path, kind: Kind) -> Result<bool, FsError> {
    let filesystem = summary(kernel, device, kind)?;
    Ok(filesystem.gains_on(size_of(kernel, device)?, filesystem.size))
}

/// Grows a mounted filesystem to its device. Both kinds grow while in use, and ext4 would require a full check before it grew
/// unmounted; so a restored volume too is first mounted, then grown. A filesystem that fills its device stays as it is.
///
/// The result of `xfs_growfs` is compared with what the kernel says about the mounted filesystem, since the superblock on the
/// device lags behind. For ext4 the child returns the kernel's answer.
///
/// # Errors
/// The tool failed, or did nothing; the filesystem keeps its size.
pub fn grow(tools: VolumeTools<'_>, kernel: &dyn Kernel, kind: Kind, device: &Path, mount_point: &Path) -> Result<(), FsError> {
    let filesystem = summary(kernel, device, kind)?;
    let wanted = size_of(kernel, device)?;
    let mount_point = mount_point.to_owned();
    let tool = match kind {
        Kind::Ext4 => Tool::GrowExt4 { mount_point: mount_point.clone(), blocks: filesystem.blocks_on(wanted) },
        Kind::Xfs => Tool::GrowXfs { mount_point: mount_point.clone() },
    };
    let device = device.to_owned();
    if let Err(source) = tools.run(&tool) {
        return Err(FsError::Grow { device, mount_point, kind, source });
    }
    if kind == Kind::Xfs {
        let size = Bytes(stats(kernel, &mount_point)?.total.0.saturating_add(filesystem.log.0));
        if filesystem.gains_on(wanted, size) {
            return Err(FsError::NotGrown { device, mount_point, kind, size, wanted });
        }
    }
    Ok(())
}

/// Figures of the filesystem mounted at this path. Blocks as long as the device does: call it where that delays nobody.
///
/// # Errors
/// The kernel's error, `ENOENT` if the path is gone.
pub fn stats(kernel: &dyn Kernel, mount_point: &Path) -> Result<FsStats, FsError> {
    kernel.stats(mount_point).map_err(|source| FsError::Stats { mount_point: mount_point.to_owned(), source })
}

/// What the kernel did to a mounted filesystem because of errors; `None` for a healthy one.
///
/// With `errors=remount-ro` older kernels make the filesystem read-only beneath its mount, which stays writable; newer ones (from
/// 6.14) report `emergency_ro` instead. An XFS that was shut down shows nothing in the mount table, and even returns its figures:
/// only access to its files fails, with `EIO`, which [`Kernel::stats`] checks too.
pub fn trouble(kernel: &dyn Kernel, mounted: &MountEntry) -> Option<&'static str> {
    let shows = |name: &str| mounted.super_options.iter().any(|option| option == name);
    let was_asked = mounted.options.iter().any(|option| option == "ro");
    // Access to a filesystem that was shut down fails with this.
    let is_down = || kernel.stats(&mounted.target).is_err_and(|error| error.raw_os_error() == Some(nix::libc::EIO));
    if shows("shutdown") || is_down() {
        Some("the kernel shut it down after an error")
    } else if shows("emergency_ro") || (shows("ro") && !was_asked) {
        Some("the kernel made it read-only after an error")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Memory, Noted};
    use super::*;
    use crate::host::fake::AnyVolume;

    const DEVICE: &str = "/dev/dm-3";

    const UUID: &str = "75757575-7575-7575-7575-757575757575";

    /// An ext4 of 64 MiB with this state, on a device of 128 MiB.
    fn device(state: u8) -> Memory {
        let mut block = vec![0; 1024];
        for (at, bytes) in
            [(0x04, &16384u32.to_le_bytes()[..]), (0x18, &[2]), (0x38, &[0x53, 0xef, state]), (0x5c, &[4]), (0x68, &[0x75; 16])]
        {
            block[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Memory { pieces: vec![(1024, block)], size: 128 << 20, ..Memory::default() }
    }

    /// An XFS of 64 MiB with a log of 8 MiB, on a device of 128 MiB.
    fn xfs_device() -> Memory {
        let mut block = vec![0; 512];
        let fields: [(usize, &[u8]); 7] = [
            (0, b"XFSB"),
            (4, &4096u32.to_be_bytes()),
            (8, &16384u64.to_be_bytes()),
            (32, &[0x75; 16]),
            (48, &4100u64.to_be_bytes()),
            (84, &4096u32.to_be_bytes()),
            (96, &2048u32.to_be_bytes()),
        ];
        for (at, bytes) in fields {
            block[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Memory { pieces: vec![(0, block)], size: 128 << 20, ..Memory::default() }
    }

    fn entry(super_options: &str) -> MountEntry {
        MountEntry {
            id: 1,
            parent: 0,
            major: 253,
            minor: 3,
            root: PathBuf::from("/"),
            target: PathBuf::from("/t"),
            options: vec!["rw".to_owned()],
            fstype: "ext4".to_owned(),
            source: DEVICE.to_owned(),
            super_options: super_options.split(',').map(str::to_owned).collect(),
        }
    }

    #[test]
    fn making_is_mkfs_and_then_a_flush() {
        let (volume, device) = (AnyVolume::new(), Path::new(DEVICE));
        for kind in Kind::ALL {
            let made = match kind {
                Kind::Ext4 => Memory { size: 64 << 20, ..self::device(1) },
                Kind::Xfs => Memory { size: 64 << 20, ..xfs_device() },
            };
            let tools = Noted::default();
            make(volume.tools(&tools), &made, device, kind, UUID).unwrap();
            let expected = match kind {
                Kind::Ext4 => Tool::MakeExt4 { device: device.to_owned(), uuid: UUID.to_owned() },
                Kind::Xfs => Tool::MakeXfs { device: device.to_owned(), uuid: UUID.to_owned() },
            };
            assert_eq!(*tools.asked.lock().unwrap(), [expected]);
            let unflushed = Memory { broken: Some(0), ..Memory::default() };
            assert!(matches!(make(volume.tools(&tools), &unflushed, device, kind, UUID), Err(FsError::Device { .. })));
            let failing = Noted { fail: true, ..Noted::default() };
            assert!(matches!(make(volume.tools(&failing), &made, device, kind, UUID), Err(FsError::Make { .. })));
        }
    }

    #[test]
    fn a_mkfs_that_falsely_reports_success_is_detected() {
        let (volume, path) = (AnyVolume::new(), Path::new(DEVICE));
        for kind in Kind::ALL {
            let half = if kind == Kind::Ext4 { device(1) } else { xfs_device() };
            let blank = Memory { size: 64 << 20, ..Memory::default() };
            let made = |memory: &Memory, uuid| make(volume.tools(&Noted::default()), memory, path, kind, uuid);
            for (memory, uuid, why) in [
                (&blank, UUID, "the magic number of "),
                (&half, UUID, "it has 67108864 (64MiB) of 134217728 (128MiB)"),
                (&Memory { size: 64 << 20, ..half.clone() }, "11111111-2222-8333-8444-555555555555", "its UUID is 7575"),
            ] {
                let error = made(memory, uuid).unwrap_err().to_string();
                assert!(error.contains("is said to have succeeded, but ") && error.contains(why), "{error}");
            }
        }
    }

    #[test]
    fn only_recorded_errors_cost_a_check() {
        let (volume, path) = (AnyVolume::new(), Path::new(DEVICE));
        let (clean, damaged) = (device(1), device(3));
        let tools = Noted { fail: true, ..Noted::default() };
        check(volume.tools(&tools), &clean, path, Kind::Ext4).unwrap();
        assert!(tools.asked.lock().unwrap().is_empty());
        let error = check(volume.tools(&tools), &damaged, path, Kind::Ext4).unwrap_err();
        assert!(error.to_string().contains("a person must repair it"), "{error}");
        let error = check(volume.tools(&Noted::default()), &damaged, path, Kind::Ext4).unwrap_err();
        assert!(error.to_string().contains("still records errors"), "{error}");
    }

    #[test]
    fn a_larger_device_asks_for_growth() {
        let (volume, path) = (AnyVolume::new(), Path::new(DEVICE));
        assert!(needs_growth(&device(1), path, Kind::Ext4).unwrap());
        for size in [64 << 20, (64 << 20) + 4095] {
            let same = Memory { size, ..device(1) };
            assert!(!needs_growth(&same, path, Kind::Ext4).unwrap());
        }
        let tools = Noted::default();
        let grown = Memory { total: 120 << 20, ..xfs_device() };
        grow(volume.tools(&tools), &grown, Kind::Xfs, path, Path::new("/t")).unwrap();
        grow(volume.tools(&tools), &device(1), Kind::Ext4, path, Path::new("/t")).unwrap();
        let expected = [Tool::GrowXfs { mount_point: "/t".into() }, Tool::GrowExt4 { mount_point: "/t".into(), blocks: 32768 }];
        assert_eq!(*tools.asked.lock().unwrap(), expected);
        let same = Memory { total: 56 << 20, ..xfs_device() };
        let error = grow(volume.tools(&tools), &same, Kind::Xfs, path, Path::new("/t")).unwrap_err();
        assert!(error.to_string().ends_with("it has 67108864 (64MiB) of 134217728 (128MiB)"), "{error}");
    }

    #[test]
    fn what_the_kernel_did_after_an_error_is_detected() {
        let trouble = |entry: &MountEntry| super::trouble(&Memory::default(), entry);
        let read_only = |entry: MountEntry| MountEntry { options: vec!["ro".to_owned()], ..entry };
        assert_eq!(trouble(&entry("rw,errors=remount-ro")), None);
        assert_eq!(trouble(&read_only(entry("ro"))), None);
        assert!(trouble(&entry("ro")).unwrap().contains("read-only"));
        assert!(trouble(&read_only(entry("rw,emergency_ro"))).unwrap().contains("read-only"));
        assert!(trouble(&entry("rw,shutdown")).unwrap().contains("shut it down"));
        let down = Memory { broken: Some(0), ..Memory::default() };
        assert!(super::trouble(&down, &entry("rw")).unwrap().contains("shut it down"));
    }
}
