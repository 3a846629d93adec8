//! The place this runs in: a kernel of the lab, with disks to spare.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Result, Trouble};
use crate::mounts;

/// Directory of everything that the demo and the tests write; in memory, gone with the lab.
pub const ROOT: &str = "/run/lvm-hack";

/// Refuses to go on outside the lab: what follows wipes disks and replaces `lvm`.
///
/// # Errors
/// This is not a User-Mode Linux kernel.
pub fn require() -> Result<()> {
    let cpu = fs::read_to_string("/proc/cpuinfo").map_err(Trouble::io("reading /proc/cpuinfo"))?;
    if cpu.contains("User Mode Linux") {
        return Ok(());
    }
    Err(Trouble::wrong("this wipes disks and runs inside the lab only: start it with `hack/lab run --disk 4G -- COMMAND`"))
}

/// A disk of the lab, by number from 0: `/dev/ubda`, `/dev/ubdb`, …
///
/// # Errors
/// The lab was booted with fewer disks.
pub fn disk(number: u8) -> Result<PathBuf> {
    let path = PathBuf::from(format!("/dev/ubd{}", char::from(b'a' + number)));
    if path.exists() {
        return Ok(path);
    }
    Err(Trouble::wrong(format!("{} is missing: boot the lab with one more `--disk 2G`", path.display())))
}

/// A fresh, empty directory below [`ROOT`]; what is mounted in an older one is unmounted first.
///
/// # Errors
/// It cannot be made, or an older one cannot be removed.
pub fn fresh(name: &str) -> Result<PathBuf> {
    let path = Path::new(ROOT).join(name);
    mounts::unmount_all(&path)?;
    if path.exists() {
        fs::remove_dir_all(&path).map_err(Trouble::io(format!("emptying {}", path.display())))?;
    }
    fs::create_dir_all(&path).map_err(Trouble::io(format!("making {}", path.display())))?;
    Ok(path)
}

/// Prints one line to standard output; a reader that went away is no error.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints one line to standard error; a reader that went away is no error.
pub fn complain(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
