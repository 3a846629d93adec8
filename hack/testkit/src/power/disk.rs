//! A disk that records its writes, a disk on trial, and the two parts that both have: a filesystem for the driver's state, and a
//! physical volume. One record over both keeps the order between them.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::error::{Result, Trouble};
use crate::signature::device_size;
use crate::{cleanup, mounts, tool};

/// Size of the part with the driver's state, in sectors. It comes first, so that LVM finds no label at the beginning of the whole.
const STATE: u64 = 64 << 11;

/// A device-mapper device of ours; removed when dropped.
struct Device(String);

impl Device {
    fn make(name: &str, table: &str) -> Result<Self> {
        tool::run("dmsetup", &["create", name, "--table", table])?;
        Ok(Self(name.to_owned()))
    }

    fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.0)
    }

    fn remove(&mut self) -> Result<()> {
        tool::run("dmsetup", &["remove", "--retry", &std::mem::take(&mut self.0)]).map(drop)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let _ = tool::run("dmsetup", &["remove", "--force", "--retry", &self.0]);
        }
    }
}

/// A disk in two parts.
pub struct Disk {
    state: Device,
    pv: Device,
    whole: Device,
}

impl Disk {
    /// A disk whose writes are recorded in a log on another one.
    ///
    /// # Errors
    /// The kernel has no such target, or refuses the table.
    pub fn recorded(disk: &Path, log: &Path) -> Result<Self> {
        tool::run("modprobe", &["dm-log-writes"])?;
        let target = format!("log-writes {} {}", disk.display(), log.display());
        Self::make("power", device_size(disk)?, &target)
    }

    /// A disk that looks like another one and keeps what is written to it elsewhere. Removed, it leaves no trace.
    ///
    /// # Errors
    /// The kernel has no such target, or refuses the table.
    pub fn on_trial(disk: &Path, changes: &Path) -> Result<Self> {
        tool::run("modprobe", &["dm-snapshot"])?;
        // N: what is written is not found again by another snapshot; 8 sectors are copied at once.
        let target = format!("snapshot {} {} N 8", disk.display(), changes.display());
        Self::make("power", device_size(disk)?, &target)
    }

    fn make(name: &str, bytes: u64, target: &str) -> Result<Self> {
        let sectors = bytes / 512;
        let whole = Device::make(name, &format!("0 {sectors} {target}"))?;
        let part = |part: &str, begin: u64, sectors: u64| {
            Device::make(&format!("{name}-{part}"), &format!("0 {sectors} linear {} {begin}", whole.path().display()))
        };
        let state = part("state", 0, STATE)?;
        let pv = part("pv", STATE, sectors.saturating_sub(STATE))?;
        tool::settle()?;
        Ok(Self { state, pv, whole })
    }

    /// The part that is for a physical volume.
    pub fn pv(&self) -> PathBuf {
        self.pv.path()
    }

    /// Makes the filesystem for the driver's state.
    ///
    /// # Errors
    /// mkfs failed.
    pub fn format_state(&self) -> Result<()> {
        tool::run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), self.state.path().as_os_str()]).map(drop)
    }

    /// Mounts the filesystem with the driver's state.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mount_state(&self, at: &Path) -> Result<()> {
        std::fs::create_dir_all(at).map_err(Trouble::io(format!("making {}", at.display())))?;
        let device = self.state.path();
        let mounted = mount(Some(&device), at, Some("ext4"), MsFlags::empty(), None::<&str>);
        mounted.map_err(Trouble::errno(format!("mounting {} at {}", device.display(), at.display())))
    }

    /// Leaves a mark, one word, in the log of a recorded disk.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mark(&self, text: &str) -> Result<()> {
        tool::run("dmsetup", &["message", &self.whole.0, "0", "mark", text]).map(drop)
    }

    /// Unmounts the state at its place and takes the disk down. A recording ends with that.
    ///
    /// # Errors
    /// Somebody still uses it.
    pub fn remove(mut self, state_at: &Path) -> Result<()> {
        mounts::unmount_all(state_at)?;
        // Rules of udev open each device that somebody wrote to and closed, for a moment.
        tool::settle()?;
        self.state.remove()?;
        self.pv.remove()?;
        self.whole.remove()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.whole.0.is_empty() {
            // A test has failed and says why; the next one needs the disk beneath.
            let _ = cleanup::everything();
        }
    }
}
