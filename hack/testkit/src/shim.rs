//! The shim around the lab's `lvm`: it writes one line per execution, then becomes the real one. So LVM commands are counted
//! by somebody else than the driver. It can also make the next command fail or die, or stand in the place of another tool for once and
//! delay it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Result, Trouble};
use crate::{lab, tool};

/// Where every program finds `lvm`; the shim in the lab.
pub const LVM: &str = "/usr/sbin/lvm";
/// The real `lvm`, moved aside.
pub const REAL: &str = "/usr/sbin/lvm.real";
/// One line per execution: name of the parent process, a tab, the arguments without the program's name.
pub const LOG: &str = "/run/lvm-shim.log";
/// What the next execution shall do instead of its work; see [`Fault`]. Taken away by the execution that obeys.
pub const FAULT: &str = "/run/lvm-shim.fault";
/// While this file exists, an execution that obeys [`Fault::Hold`] waits.
pub const HOLD: &str = "/run/lvm-shim.hold";

/// The kernel's answers to the last command that [`Fault::Trace`] or [`Fault::Kill`] met, as strace writes them: one ioctl a line.
pub const TRACE: &str = "/run/lvm-shim.trace";
/// The tools that the shim can stand for.
pub const TOOLS: [&str; 4] = ["mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_growfs"];
/// Where the driver finds them.
const SBIN: &str = "/usr/sbin";
/// While this file exists, a held tool waits.
pub const HELD: &str = "/run/tool-shim.hold";
/// Made by a held tool when it begins to wait.
pub const WAITS: &str = "/run/tool-shim.waits";

/// What the next mutating command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ends with status 5 and does nothing.
    Refuse,
    /// Does its work, then ends with status 5.
    LateRefuse,
    /// Is killed before it does anything.
    Die,
    /// Does its work, then is killed.
    LateDie,
    /// Waits while [`HOLD`] exists, then does its work.
    Hold,
    /// Is stopped by SIGSTOP, and does its work after SIGCONT.
    Stop,
    /// Does its work, and writes its ioctls to [`TRACE`].
    Trace,
    /// Is killed instead of making its ioctl of this number, counted from 1.
    Kill(usize),
}

impl Fault {
    /// Every fault that ends a command badly.
    pub const BAD: [Fault; 4] = [Fault::Refuse, Fault::LateRefuse, Fault::Die, Fault::LateDie];

    /// The word in the file [`FAULT`].
    pub fn word(self) -> &'static str {
        match self {
            Fault::Refuse => "refuse",
            Fault::LateRefuse => "late-refuse",
            Fault::Die => "die",
            Fault::LateDie => "late-die",
            Fault::Hold => "hold",
            Fault::Stop => "stop",
            Fault::Trace => "trace",
            Fault::Kill(_) => "kill",
        }
    }

    /// The fault that the text of the file [`FAULT`] names.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(number) = text.strip_prefix("kill ") {
            return number.parse().ok().map(Fault::Kill);
        }
        let others = [Fault::Hold, Fault::Stop, Fault::Trace];
        [&Self::BAD[..], &others].concat().into_iter().find(|fault| fault.word() == text)
    }

    fn text(self) -> String {
        match self {
            Fault::Kill(number) => format!("kill {number}"),
            other => other.word().to_owned(),
        }
    }
}

/// One execution of `lvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// Name of the process that started it, as in `/proc/PID/comm`.
    pub parent: String,
    /// Its arguments, joined by spaces.
    pub arguments: String,
}

/// Puts the shim in the place of `lvm`; doing so again only renews it.
///
/// # Errors
/// This is not the lab, or a file cannot be moved or copied.
pub fn install(shim: &Path) -> Result<()> {
    lab::require()?;
    if !Path::new(REAL).exists() {
        fs::rename(LVM, REAL).map_err(Trouble::io(format!("moving {LVM} to {REAL}")))?;
    }
    let new = format!("{LVM}.new");
    fs::copy(shim, &new).map_err(Trouble::io(format!("copying {} to {new}", shim.display())))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).map_err(Trouble::io(format!("making {new} executable")))?;
    fs::rename(&new, LVM).map_err(Trouble::io(format!("moving {new} to {LVM}")))?;
    disarm()
}

/// Every execution so far, except those of udev's rules, which look at each disk that changed.
///
/// # Errors
/// The file cannot be read.
pub fn executions() -> Result<Vec<Execution>> {
    let text = match fs::read_to_string(LOG) {
        Ok(text) => text,
        Err(none) if none.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Trouble::io(format!("reading {LOG}"))(error)),
    };
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    Ok(lines
        .filter(|(parent, _)| !is_udev(parent))
        .map(|(parent, arguments)| Execution { parent: parent.to_owned(), arguments: arguments.to_owned() })
        .collect())
}

/// How often `lvm` was executed so far, udev's own executions left out.
///
/// # Errors
/// The file cannot be read.
pub fn count() -> Result<usize> {
    Ok(executions()?.len())
}

/// The executions after a [`count`] taken earlier.
///
/// # Errors
/// The file cannot be read.
pub fn since(mark: usize) -> Result<Vec<Execution>> {
    Ok(executions()?.split_off(mark))
}

/// Whether a parent process is udev's.
pub fn is_udev(parent: &str) -> bool {
    parent.contains("udev")
}

/// Makes the next mutating command misbehave.
///
/// # Errors
/// The file cannot be written.
pub fn arm(fault: Fault) -> Result<()> {
    if fault == Fault::Hold {
        fs::write(HOLD, "").map_err(Trouble::io(format!("writing {HOLD}")))?;
    }
    fs::write(FAULT, fault.text()).map_err(Trouble::io(format!("writing {FAULT}")))
}

/// Whether a fault is still waiting for its command.
pub fn armed() -> bool {
    Path::new(FAULT).exists()
}

/// The numbers of the ioctls in [`TRACE`] by which messages went to a thin pool, counted from 1.
///
/// # Errors
/// The file cannot be read.
pub fn messages() -> Result<Vec<usize>> {
    ioctls(|line| line.contains("DM_TARGET_MSG"))
}

/// The numbers of the ioctls in [`TRACE`] by which devices or thin pools were changed, counted from 1.
///
/// # Errors
/// The file cannot be read.
pub fn changes() -> Result<Vec<usize>> {
    const CHANGING: [&str; 5] = ["DM_DEV_CREATE", "DM_DEV_REMOVE", "DM_DEV_SUSPEND", "DM_TABLE_LOAD", "DM_TARGET_MSG"];
    ioctls(|line| CHANGING.iter().any(|name| line.contains(name)))
}

fn ioctls(wanted: impl Fn(&str) -> bool) -> Result<Vec<usize>> {
    let text = fs::read_to_string(TRACE).map_err(Trouble::io(format!("reading {TRACE}")))?;
    let lines = text.lines().filter(|line| line.starts_with("ioctl("));
    Ok(lines.enumerate().filter(|(_, line)| wanted(line)).map(|(at, _)| at + 1).collect())
}

/// Whether the last command that [`Fault::Kill`] met was killed at a message to a thin pool.
///
/// # Errors
/// The file cannot be read.
pub fn died_at_a_message() -> Result<bool> {
    let text = fs::read_to_string(TRACE).map_err(Trouble::io(format!("reading {TRACE}")))?;
    Ok(text.lines().rfind(|line| line.starts_with("ioctl(")).is_some_and(|line| line.contains("DM_TARGET_MSG")))
}

/// A tool whose next run waits; it and all others go on when this is dropped.
pub struct HeldTool {
    name: &'static str,
}

impl HeldTool {
    /// Holds the next run of a tool.
    ///
    /// # Errors
    /// A file cannot be moved or made.
    pub fn next(name: &'static str) -> Result<Self> {
        lab::require()?;
        fs::write(HELD, "").map_err(Trouble::io(format!("writing {HELD}")))?;
        let (path, real) = (Path::new(SBIN).join(name), real_tool(name));
        fs::rename(&path, &real).map_err(Trouble::io(format!("moving {} to {}", path.display(), real.display())))?;
        symlink(LVM, &path).map_err(Trouble::io(format!("making {}", path.display())))?;
        Ok(Self { name })
    }

    /// Waits until the tool was started, and puts the real one back in its place: that one run is held, and no other.
    ///
    /// # Errors
    /// It was not started in time.
    pub fn wait(&self, limit: std::time::Duration) -> Result<()> {
        tool::wait(&format!("{} to be held", self.name), limit, || Ok(Path::new(WAITS).exists().then_some(())))?;
        self.restore();
        Ok(())
    }

    fn restore(&self) {
        restore(self.name);
    }
}

/// Puts a real tool back in its place.
fn restore(name: &str) {
    let real = real_tool(name);
    if real.exists() {
        // In the place of the link or script.
        let _ = fs::rename(&real, Path::new(SBIN).join(name));
    }
}

/// A tool in whose place a script stands until this is dropped.
pub struct ReplacedTool {
    name: &'static str,
}

impl ReplacedTool {
    /// Puts a script of `sh` in the place of a tool.
    ///
    /// # Errors
    /// A file cannot be moved or made.
    pub fn with(name: &'static str, script: &str) -> Result<Self> {
        lab::require()?;
        let (path, real) = (Path::new(SBIN).join(name), real_tool(name));
        let failed = || format!("putting a script in the place of {}", path.display());
        fs::rename(&path, &real).map_err(Trouble::io(failed()))?;
        let replaced = Self { name };
        let written = fs::write(&path, format!("#!/bin/sh\n{script}\n"));
        written.and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755))).map_err(Trouble::io(failed()))?;
        Ok(replaced)
    }
}

impl Drop for ReplacedTool {
    fn drop(&mut self) {
        restore(self.name);
    }
}

impl Drop for HeldTool {
    fn drop(&mut self) {
        self.restore();
        for path in [HELD, WAITS] {
            let _ = fs::remove_file(path);
        }
    }
}

/// Where the real tool is while the shim stands in its place.
pub fn real_tool(name: &str) -> PathBuf {
    Path::new(SBIN).join(format!("{name}.real"))
}

/// Takes every fault back and lets held commands go on.
///
/// # Errors
/// A file cannot be removed.
pub fn disarm() -> Result<()> {
    for path in [FAULT, HOLD] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Trouble::io(format!("removing {path}"))(error)),
            _ => {}
        }
    }
    Ok(())
}
