//! What the driver asks of the kernel, at the level of meaning. [`super::Linux`] is the real one.
//!
//! Paths of devices are opened as given; whether a device is the one meant is decided by `device::dm`, which compares UUIDs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::types::Bytes;

use super::openers::Openers;

/// One device-mapper device as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmDevice {
    /// The dm name, as in `/dev/mapper`.
    pub name: String,
    /// The dm UUID; `LVM-` and two 32-character ids for an LV (a suffix such as `-tpool` for LVM's layers).
    pub uuid: String,
    /// Device numbers.
    pub major: u32,
    /// Device numbers.
    pub minor: u32,
    /// How many openers the kernel counts (mounts and stacked devices count; a bind-mounted node alone does not).
    pub open_count: u32,
    /// I/O is held back.
    pub suspended: bool,
    /// There is a table that serves I/O.
    pub has_live_table: bool,
    /// A table is loaded but not yet in force.
    pub has_inactive_table: bool,
}

impl DmDevice {
    /// The kernel's own node of this device: `/dev/dm-<minor>`.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.minor))
    }

    /// Who has it open, as far as can be told.
    pub fn openers(&self) -> Openers {
        Openers::of(&self.node(), (self.major, self.minor))
    }
}

/// How udevd of the host answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Udev {
    /// There is none.
    Absent,
    /// There is one, and it does not say when it has handled the event of a dm device: nobody may wait for it.
    Silent,
    /// It says so.
    Answers {
        /// It goes by our rules, which leave tenants' bytes alone.
        hides: bool,
    },
}

/// What tells one block device from every other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// Names from the hardware or the layer beneath, each with its kind (`wwid:…`, `serial:…`, `dm:…`). They survive a reboot.
    /// Empty where the device has none, as a loop device or a partition of one.
    pub names: Vec<String>,
    /// This appearance of the device, until the kernel ends or the device goes away: a number that comes back belongs to another.
    pub instance: String,
}

/// One line of a dm table or status. Positions are in 512-byte sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmTarget {
    /// First sector.
    pub start: u64,
    /// Number of sectors.
    pub length: u64,
    /// Target type: `linear`, `thin-pool`, …
    pub kind: String,
    /// The rest of the line: parameters in a table, figures in a status.
    pub rest: String,
}

/// Whether a device of ours takes writes. The kernel refuses them with `EPERM` where it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmAccess {
    /// It does.
    ReadWrite,
    /// It does not.
    ReadOnly,
}

/// A piece of another device, mapped by a linear table of ours. In 512-byte sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearMap {
    /// The device beneath.
    pub device: PathBuf,
    /// First sector on the device beneath.
    pub offset: u64,
    /// Number of sectors.
    pub length: u64,
}

/// One line of the kernel's mount table (`/proc/self/mountinfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Mount id.
    pub id: u64,
    /// Id of the mount this one sits on.
    pub parent: u64,
    /// Device numbers of the filesystem (for a bind-mounted device node: those of devtmpfs).
    pub major: u32,
    /// Device numbers of the filesystem.
    pub minor: u32,
    /// Which part of the filesystem is mounted; `/dm-3` for a bind-mounted device node of devtmpfs.
    pub root: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// Per-mount options (`ro`, `noatime`, …).
    pub options: Vec<String>,
    /// Filesystem type.
    pub fstype: String,
    /// The source as given to mount.
    pub source: String,
    /// Options of the filesystem itself.
    pub super_options: Vec<String>,
}

/// A flag of a mount that the kernel keeps outside the data string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountFlag {
    /// Read-only.
    ReadOnly,
    /// `nodev`.
    NoDev,
    /// `nosuid`.
    NoSuid,
    /// `noexec`.
    NoExec,
    /// `noatime`.
    NoAtime,
    /// `nodiratime`.
    NoDirAtime,
    /// `relatime`.
    RelAtime,
    /// `strictatime`.
    StrictAtime,
    /// `lazytime`.
    LazyTime,
    /// `sync`.
    Synchronous,
    /// `dirsync`.
    DirSync,
}

/// What to mount where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewMount {
    /// A filesystem on a block device.
    Filesystem {
        /// The block device.
        device: PathBuf,
        /// Mount point; exists.
        target: PathBuf,
        /// Filesystem type; always named, so that the kernel never guesses.
        fstype: &'static str,
        /// Flags.
        flags: Vec<MountFlag>,
        /// Filesystem options, comma-separated.
        data: String,
    },
    /// A bind mount of a directory or a file (a device node). It is read-only where the mount that shows the source is.
    Bind {
        /// What is shown.
        source: PathBuf,
        /// Where; exists and is of the same kind.
        target: PathBuf,
    },
}

/// Figures of a mounted filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStats {
    /// Size of the filesystem.
    pub total: Bytes,
    /// Free for unprivileged users.
    pub available: Bytes,
    /// In use.
    pub used: Bytes,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

/// What device-mapper tells of its devices: a thin pool that has no free block left or changes its mode, a device made or removed.
/// It does not say of which.
pub trait DmEvents: Send {
    /// Waits for something that happened since the last wait, or since this was made; at most so long.
    ///
    /// # Errors
    /// The kernel's; nothing is known of what happened then.
    fn wait(&mut self, limit: Duration) -> io::Result<()>;
}

/// The kernel calls of the driver. All block; callers run on threads made for that.
///
/// # Errors
/// Every function gives the error of the call that failed, with the errno kept (`raw_os_error`).
pub trait Kernel: Send + Sync {
    /// Reads exactly `length` bytes at `offset` past the page cache (`O_DIRECT`; any alignment of the arguments).
    fn read_at(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Flushes the write cache of a block device.
    fn flush(&self, device: &Path) -> io::Result<()>;
    /// The size of a block device.
    fn device_size(&self, device: &Path) -> io::Result<Bytes>;
    /// The smallest piece that a block device reads and writes, as the kernel's queue of it says. Does not open the device.
    fn logical_block_size(&self, device: &Path) -> io::Result<Bytes>;
    /// Zeroes a range (`BLKZEROOUT`; offset and length are multiples of the logical block). Not yet flushed.
    fn zero(&self, device: &Path, offset: Bytes, length: Bytes) -> io::Result<()>;
    /// Block devices that may carry an LVM label: what udev knows as `LVM2_member`, or every disk and partition where
    /// udev knows nothing. Never an LV, nor a leg of a multipath or RAID device.
    fn pv_candidates(&self) -> io::Result<Vec<PathBuf>>;
    /// What tells a device of [`Kernel::pv_candidates`] from every other. Reads sysfs only, never the device.
    fn device_identity(&self, device: &Path) -> io::Result<DeviceIdentity>;
    /// The part of it that is asked in each call: [`DeviceIdentity::instance`].
    fn device_instance(&self, device: &Path) -> io::Result<String>;
    /// The dm UUIDs of all devices that a device lies on, through partitions, dm tables, RAID and loop devices (a file counts as
    /// lying on the device of its filesystem). Looks at the file behind a loop device, whose filesystem may hang.
    fn dm_beneath(&self, device: &Path) -> io::Result<Vec<String>>;
    /// Whether kubelet shows a device to a pod as a raw volume: it keeps a loop device over each of them.
    fn is_raw_volume(&self, device: &Path) -> io::Result<bool>;
    /// Device numbers of a block device node, or `None` when the path is not one.
    fn device_number(&self, path: &Path) -> io::Result<Option<(u32, u32)>>;

    /// The dm device with this UUID.
    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>>;
    /// The dm devices whose UUID begins so.
    fn dm_list(&self, uuid_prefix: &str) -> io::Result<Vec<DmDevice>>;
    /// The live table.
    fn dm_table(&self, name: &str) -> io::Result<Vec<DmTarget>>;
    /// The status of each target, without a flush.
    fn dm_status(&self, name: &str) -> io::Result<Vec<DmTarget>>;
    /// Begins to listen to device-mapper.
    fn dm_events(&self) -> io::Result<Box<dyn DmEvents>>;
    /// Makes and resumes a linear device that udev's rules leave alone: three effects, between which it has no table, then one that
    /// is not in force.
    fn dm_create_linear(&self, name: &str, uuid: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<DmDevice>;
    /// Puts another linear table in force. I/O under way is finished first; when this fails, the old table serves on.
    fn dm_reload_linear(&self, name: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<()>;
    /// Removes a device that nobody has open.
    fn dm_remove(&self, name: &str) -> io::Result<()>;
    /// Drops a table that was loaded but never came into force.
    fn dm_clear_inactive(&self, name: &str) -> io::Result<()>;
    /// Sends a message to the target of a device that has one target.
    fn dm_message(&self, name: &str, message: &str) -> io::Result<()>;
    /// Lets I/O go on.
    fn dm_resume(&self, name: &str) -> io::Result<()>;

    /// How udevd answered when it was asked last. The first call asks, which takes ten seconds where it does not answer.
    fn udev(&self) -> Udev;
    /// Asks it, and once more for a while until it goes by rules that set a property that begins with `mark` on the devices by which it is
    /// asked.
    fn ask_udev(&self, mark: &str, patience: Duration) -> Udev;
    /// The rules for udevd that were written under a name.
    fn udev_rules(&self, name: &str) -> Option<String>;
    /// Writes rules for udevd under a name, until the next boot, where there is one and it has not got them. Answers whether that was so.
    fn put_udev_rules(&self, name: &str, text: &str) -> io::Result<bool>;
    /// Ends the waits of the LVM of drivers with this run directory for a udevd that does not answer. Answers how many there were.
    fn end_udev_waits(&self, run_dir: &Path) -> io::Result<usize>;

    /// The mount table of this mount namespace.
    fn mounts(&self) -> io::Result<Vec<MountEntry>>;
    /// Mounts.
    fn mount(&self, mount: &NewMount) -> io::Result<()>;
    /// Makes one mount read-only; its filesystem and that one's other mounts stay as they are. A device node on it can still be
    /// opened for writing: the kernel protects files so, not devices.
    fn remount_read_only(&self, target: &Path) -> io::Result<()>;
    /// Unmounts the topmost mount at this path; never follows a symlink at its end.
    fn unmount(&self, target: &Path) -> io::Result<()>;
    /// Figures of the filesystem at this path; `EIO` for one that the kernel shut down.
    fn stats(&self, path: &Path) -> io::Result<FsStats>;
}
