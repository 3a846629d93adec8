//! The driver's kernel calls, described by purpose. [`super::Linux`] is the real implementation.
//!
//! Device paths are opened as given. `device::dm` decides by UUID whether a device is the right one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::types::Bytes;

use super::openers::Openers;

/// A device-mapper device as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmDevice {
    /// The dm name, as in `/dev/mapper`.
    pub name: String,
    /// The dm UUID. For an LV: `LVM-` and two 32-character ids, with a suffix such as `-tpool` for LVM's layers.
    pub uuid: String,
    pub major: u32,
    pub minor: u32,
    /// Number of openers that the kernel counts. Mounts and stacked devices count; a bind-mounted node alone does not.
    pub open_count: u32,
    /// I/O is suspended.
    pub suspended: bool,
    /// A table that serves I/O is in force.
    pub has_live_table: bool,
    /// A table is loaded but not yet in force.
    pub has_inactive_table: bool,
}

impl DmDevice {
    /// The kernel's node of this device: `/dev/dm-<minor>`.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.minor))
    }

    /// Who has it open, as far as that can be seen.
    pub fn openers(&self) -> Openers {
        Openers::of(&self.node(), (self.major, self.minor))
    }
}

/// How the host's udevd answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Udev {
    /// No udevd runs.
    Absent,
    /// It runs, but does not report that it has handled the event of a dm device. Nobody may wait for it.
    Silent,
    /// It reports handled events.
    Answers {
        /// It follows the driver's rules, which leave tenants' bytes alone.
        hides: bool,
    },
}

/// What distinguishes one block device from every other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// Names from the hardware or the layer beneath, each with its kind (`wwid:…`, `serial:…`, `dm:…`). They survive a reboot.
    /// Empty if the device has none, such as a loop device or a partition of one.
    pub names: Vec<String>,
    /// This appearance of the device, valid until the machine reboots or the device goes away. A device number that comes back has
    /// another instance.
    pub instance: String,
}

/// One line of a dm table or status. Positions are in 512-byte sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmTarget {
    pub start: u64,
    pub length: u64,
    /// Target type: `linear`, `thin-pool`, …
    pub kind: String,
    /// The rest of the line: parameters in a table, figures in a status.
    pub rest: String,
}

/// Whether one of the driver's own dm devices takes writes. If not, the kernel refuses them with `EPERM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmAccess {
    ReadWrite,
    ReadOnly,
}

/// A piece of another device, mapped by a linear table of the driver. In 512-byte sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearMap {
    pub device: PathBuf,
    /// First sector on the device beneath.
    pub offset: u64,
    /// Number of sectors.
    pub length: u64,
}

/// One line of the kernel's mount table (`/proc/self/mountinfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    pub id: u64,
    /// Id of the parent mount.
    pub parent: u64,
    /// Major number of the filesystem (for a bind-mounted device node: of devtmpfs).
    pub major: u32,
    /// Minor number, likewise.
    pub minor: u32,
    /// The part of the filesystem that is mounted; `/dm-3` for a bind-mounted device node of devtmpfs.
    pub root: PathBuf,
    /// The mount point.
    pub target: PathBuf,
    /// Per-mount options (`ro`, `noatime`, …).
    pub options: Vec<String>,
    pub fstype: String,
    /// The source as given to mount.
    pub source: String,
    /// Options of the filesystem itself.
    pub super_options: Vec<String>,
}

/// A mount flag that is not part of the data string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountFlag {
    ReadOnly,
    NoDev,
    NoSuid,
    NoExec,
    NoAtime,
    NoDirAtime,
    RelAtime,
    StrictAtime,
    LazyTime,
    Synchronous,
    DirSync,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewMount {
    /// A filesystem on a block device.
    Filesystem {
        device: PathBuf,
        /// Mount point; exists.
        target: PathBuf,
        /// Filesystem type; always given, so that the kernel never guesses.
        fstype: &'static str,
        flags: Vec<MountFlag>,
        /// Filesystem options, comma-separated.
        data: String,
    },
    /// A bind mount of a directory or a file (a device node). It is read-only if the mount of the source is.
    Bind {
        /// What to show.
        source: PathBuf,
        /// Mount point; exists and is of the same kind as the source.
        target: PathBuf,
    },
}

/// Figures of a mounted filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStats {
    pub total: Bytes,
    /// Free space for unprivileged users.
    pub available: Bytes,
    /// Space in use.
    pub used: Bytes,
    /// Total number of inodes.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// Events of device-mapper: a thin pool that runs out of free blocks or changes its mode, a device made or removed. They do not say
/// which device.
pub trait DmEvents: Send {
    /// Waits up to `limit` for an event since the last wait, or since this listener was made.
    ///
    /// # Errors
    /// The kernel's error; events may have been missed.
    fn wait(&mut self, limit: Duration) -> io::Result<()>;
}

/// The driver's kernel calls. All block; callers run on threads for blocking work.
///
/// # Errors
/// Every function returns the error of the failed call, with its errno (`raw_os_error`).
pub trait Kernel: Send + Sync {
    /// Reads exactly `length` bytes at `offset` past the page cache (`O_DIRECT`; any alignment of the arguments).
    fn read_at(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Flushes the write cache of a block device.
    fn flush(&self, device: &Path) -> io::Result<()>;
    /// The size of a block device.
    fn device_size(&self, device: &Path) -> io::Result<Bytes>;
    /// The smallest unit that a block device reads and writes, from its queue in sysfs. Does not open the device.
    fn logical_block_size(&self, device: &Path) -> io::Result<Bytes>;
    /// Zeroes a range (`BLKZEROOUT`). Offset and length are multiples of the logical block size. Does not flush.
    fn zero(&self, device: &Path, offset: Bytes, length: Bytes) -> io::Result<()>;
    /// Block devices that may carry an LVM label: those that udev knows as `LVM2_member`, or every disk and partition where udev
    /// knows nothing. Never an LV, nor a leg of a multipath or RAID device.
    fn pv_candidates(&self) -> io::Result<Vec<PathBuf>>;
    /// The identity of a device of [`Kernel::pv_candidates`]. Reads only sysfs, never the device.
    fn device_identity(&self, device: &Path) -> io::Result<DeviceIdentity>;
    /// The part of the identity that each call checks: [`DeviceIdentity::instance`].
    fn device_instance(&self, device: &Path) -> io::Result<String>;
    /// The dm UUIDs of all devices beneath a device, through partitions, dm tables, RAID and loop devices. A file counts as lying
    /// on the device of its filesystem. Accesses the file behind a loop device, whose filesystem may hang.
    fn dm_beneath(&self, device: &Path) -> io::Result<Vec<String>>;
    /// Whether kubelet shows a device to a pod as a raw volume. Kubelet keeps a loop device over each raw volume.
    fn is_raw_volume(&self, device: &Path) -> io::Result<bool>;
    /// Device numbers of a block device node; `None` if the path is not one.
    fn device_number(&self, path: &Path) -> io::Result<Option<(u32, u32)>>;

    /// The dm device with this UUID.
    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>>;
    /// The dm devices whose UUID begins with this prefix.
    fn dm_list(&self, uuid_prefix: &str) -> io::Result<Vec<DmDevice>>;
    /// The live table.
    fn dm_table(&self, name: &str) -> io::Result<Vec<DmTarget>>;
    /// The status of each target. Does not flush.
    fn dm_status(&self, name: &str) -> io::Result<Vec<DmTarget>>;
    /// Starts listening to device-mapper.
    fn dm_events(&self) -> io::Result<Box<dyn DmEvents>>;
    /// Creates and resumes a linear device that udev's rules leave alone. These are three effects; between them the device first
    /// has no table, then one that is not in force.
    fn dm_create_linear(&self, name: &str, uuid: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<DmDevice>;
    /// Replaces a linear table. I/O in flight finishes first. On failure the old table stays in force.
    fn dm_reload_linear(&self, name: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<()>;
    /// Removes a device that nobody has open.
    fn dm_remove(&self, name: &str) -> io::Result<()>;
    /// Drops a table that was loaded but is not in force.
    fn dm_clear_inactive(&self, name: &str) -> io::Result<()>;
    /// Sends a message to the target of a device that has one target.
    fn dm_message(&self, name: &str, message: &str) -> io::Result<()>;
    /// Resumes I/O.
    fn dm_resume(&self, name: &str) -> io::Result<()>;

    /// udevd's last answer. The first call asks it, which takes ten seconds if it does not answer.
    fn udev(&self) -> Udev;
    /// Asks udevd, and repeats that for up to `patience` until it follows rules that set a property beginning with `mark` on the
    /// devices used for asking.
    fn ask_udev(&self, mark: &str, patience: Duration) -> Udev;
    /// The rules for udevd written under this name.
    fn udev_rules(&self, name: &str) -> Option<String>;
    /// Writes rules for udevd under this name, valid until the next boot, if udevd runs and lacks them. Returns whether it wrote
    /// any.
    fn put_udev_rules(&self, name: &str, text: &str) -> io::Result<bool>;
    /// Ends the waits of LVM processes of drivers with this run directory for a udevd that does not answer. Returns how many there
    /// were.
    fn end_udev_waits(&self, run_dir: &Path) -> io::Result<usize>;

    /// The mount table of this mount namespace.
    fn mounts(&self) -> io::Result<Vec<MountEntry>>;
    fn mount(&self, mount: &NewMount) -> io::Result<()>;
    /// Makes one mount read-only; the filesystem and its other mounts stay as they are. A device node on it can still be opened for
    /// writing: the kernel protects files that way, not devices.
    fn remount_read_only(&self, target: &Path) -> io::Result<()>;
    /// Unmounts the topmost mount at this path. Never follows a symlink at the end of the path.
    fn unmount(&self, target: &Path) -> io::Result<()>;
    /// Figures of the filesystem at this path; `EIO` if the kernel has shut it down.
    fn stats(&self, path: &Path) -> io::Result<FsStats>;
}
