//! A disk that records its writes, and a disk that discards them later. Both have two parts: a filesystem for the driver's state and a PV.
//! One record of the whole disk keeps the order of writes between the parts.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::error::{Result, Trouble};
use crate::signature::device_size;
use crate::{cleanup, mounts, tool};

/// Size in sectors of the part for the driver's state. It comes first, so that LVM finds no label at the start of the whole disk.
const STATE: u64 = 64 << 11;

/// A device-mapper device, removed on drop.
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

/// A disk with a part for the driver's state and a part for a PV.
pub struct Disk {
    state: Device,
    pv: Device,
    whole: Device,
}

impl Disk {
    /// A disk whose writes dm-log-writes records on another disk.
    ///
    /// # Errors
    /// The kernel lacks the target, or refuses the table.
    pub fn recorded(disk: &Path, log: &Path) -> Result<Self> {
        tool::run("modprobe", &["dm-log-writes"])?;
        let target = format!("log-writes {} {}", disk.display(), log.display());
        Self::make("power", device_size(disk)?, &target)
    }

    /// A snapshot of a disk, whose writes go to another disk. Removing it leaves the first disk unchanged.
    ///
    /// # Errors
    /// The kernel lacks the target, or refuses the table.
    pub fn on_trial(disk: &Path, changes: &Path) -> Result<Self> {
        tool::run("modprobe", &["dm-snapshot"])?;
        // N: not persistent, so a later snapshot does not find these writes. Chunks of 8 sectors.
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

    /// The part for a PV.
    pub fn pv(&self) -> PathBuf {
        self.pv.path()
    }

    /// Formats the part for the driver's state.
    ///
    /// # Errors
    /// mkfs fails.
    pub fn format_state(&self) -> Result<()> {
        tool::run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), self.state.path().as_os_str()]).map(drop)
    }

    /// Mounts the part with the driver's state at a directory, which this creates.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mount_state(&self, at: &Path) -> Result<()> {
        std::fs::create_dir_all(at).map_err(Trouble::io(format!("making {}", at.display())))?;
        let device = self.state.path();
        let mounted = mount(Some(&device), at, Some("ext4"), MsFlags::empty(), None::<&str>);
        mounted.map_err(Trouble::errno(format!("mounting {} at {}", device.display(), at.display())))
    }

    /// Writes a mark of one word into the log of a recorded disk.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mark(&self, text: &str) -> Result<()> {
        tool::run("dmsetup", &["message", &self.whole.0, "0", "mark", text]).map(drop)
    }

    /// Unmounts the state and removes the devices. This completes a recording.
    ///
    /// # Errors
    /// Somebody still uses a device.
    pub fn remove(mut self, state_at: &Path) -> Result<()> {
        mounts::unmount_all(state_at)?;
        // After a writer closes a device, udev's rules open it for a moment.
        tool::settle()?;
        self.state.remove()?;
        self.pv.remove()?;
        self.whole.remove()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.whole.0.is_empty() {
            // Only after a failed test, which has reported why. The next one needs the disk beneath.
            let _ = cleanup::everything();
        }
    }
}
