//! The lab machine that this runs in, and its disks.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Result, Trouble};
use crate::mounts;

/// Everything that the demo and the tests write goes below this directory, in the machine's memory.
pub const ROOT: &str = "/run/lvm-hack";

/// Fails outside the lab, so that nobody's disks are wiped and nobody's `lvm` is replaced.
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

/// A disk of the lab, counted from 0: `/dev/ubda`, `/dev/ubdb`, …
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

/// Creates an empty directory below [`ROOT`]. Unmounts and removes an existing one of that name.
///
/// # Errors
/// It cannot be created, or the existing one cannot be removed.
pub fn fresh(name: &str) -> Result<PathBuf> {
    let path = Path::new(ROOT).join(name);
    mounts::unmount_all(&path)?;
    if path.exists() {
        fs::remove_dir_all(&path).map_err(Trouble::io(format!("emptying {}", path.display())))?;
    }
    fs::create_dir_all(&path).map_err(Trouble::io(format!("creating {}", path.display())))?;
    Ok(path)
}

/// Prints a line to standard output. A closed pipe is no error.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints a line to standard error. A closed pipe is no error.
pub fn complain(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
