//! A reboot without one.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Result, Trouble};

/// The number of the running kernel's boot, by which the driver tells a reboot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Another boot of the kernel, as far as the driver can tell.
pub struct NextBoot;

impl NextBoot {
    /// Begins it; the id is kept in a directory, which must outlive it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn begin(home: &Path) -> Result<Self> {
        let id = home.join("boot-id");
        let bytes = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(Trouble::io("asking for a UUID"))?;
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
