//! Makes the driver believe that the machine was rebooted.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Result, Trouble};

/// The boot ID, by which the driver detects a reboot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A new boot ID for as long as this lives.
pub struct NextBoot;

impl NextBoot {
    /// Bind-mounts a new ID over the kernel's. Its file is in `home`, which must outlive this.
    ///
    /// # Errors
    /// The file cannot be written, or the kernel refuses the mount.
    pub fn begin(home: &Path) -> Result<Self> {
        let id = home.join("boot-id");
        let bytes = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(Trouble::io("reading a random UUID"))?;
        fs::write(&id, bytes).map_err(Trouble::io(format!("writing {}", id.display())))?;
        let bound = mount(Some(&id), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        bound.map_err(Trouble::errno(format!("binding {} over {BOOT_ID}", id.display())))?;
        Ok(Self)
    }
}

impl Drop for NextBoot {
    fn drop(&mut self) {
        let _ = umount2(BOOT_ID, MntFlags::MNT_DETACH);
    }
}
