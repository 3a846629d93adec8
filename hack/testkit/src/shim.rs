//! Controls lvm-shim (hack/xtask/src/bin/lvm-shim.rs), which replaces `lvm` in the lab: it logs each execution, then executes the real
//! one. So the count of LVM commands does not come from the driver. It can also make the next command fail or die, and hold another tool.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Result, Trouble};
use crate::{lab, tool};

/// Where every program finds `lvm`: the shim, once it is installed.
pub const LVM: &str = "/usr/sbin/lvm";
/// The real `lvm`, moved aside.
pub const REAL: &str = "/usr/sbin/lvm.real";
/// The shim's log. One line per execution: name of the parent process, tab, arguments without the program's name.
pub const LOG: &str = "/run/lvm-shim.log";
/// Names the [`Fault`] of the next mutating command, which removes the file.
pub const FAULT: &str = "/run/lvm-shim.fault";
/// A command with [`Fault::Hold`] waits while this file exists.
pub const HOLD: &str = "/run/lvm-shim.hold";

/// The ioctls of the last command with [`Fault::Trace`] or [`Fault::Kill`], one a line, as strace(1) writes them.
pub const TRACE: &str = "/run/lvm-shim.trace";
/// The other tools that the shim can replace.
pub const TOOLS: [&str; 4] = ["mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_growfs"];
/// Where the driver finds [`TOOLS`].
const SBIN: &str = "/usr/sbin";
/// A held tool waits while this file exists.
pub const HELD: &str = "/run/tool-shim.hold";
/// A held tool creates this file before it waits.
pub const WAITS: &str = "/run/tool-shim.waits";

/// What the next mutating command does instead of its work, or around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fails with status 5 and does nothing.
    Refuse,
    /// Does its work, then fails with status 5.
    LateRefuse,
    /// Dies by SIGKILL before it does anything.
    Die,
    /// Does its work, then dies by SIGKILL.
    LateDie,
    /// Waits while [`HOLD`] exists, then does its work.
    Hold,
    /// Stops itself by SIGSTOP, and does its work after SIGCONT.
    Stop,
    /// Does its work, and writes its ioctls to [`TRACE`].
    Trace,
    /// Dies by SIGKILL in place of its ioctl of this number, counted from 1.
    Kill(usize),
}

impl Fault {
    /// The faults after which the caller sees a failure.
    pub const BAD: [Fault; 4] = [Fault::Refuse, Fault::LateRefuse, Fault::Die, Fault::LateDie];

    /// The keyword in the file [`FAULT`].
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

    /// Parses the text of the file [`FAULT`].
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

/// A line of [`LOG`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The parent's name, as in `/proc/PID/comm`.
    pub parent: String,
    /// Joined by spaces.
    pub arguments: String,
}

/// Replaces `lvm` by the shim. A second call only replaces the shim.
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

/// All executions so far, without those of udev's rules, which scan each disk that changes.
///
/// # Errors
/// The log cannot be read.
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

/// The number of [`executions`] so far.
///
/// # Errors
/// The log cannot be read.
pub fn count() -> Result<usize> {
    Ok(executions()?.len())
}

/// The executions after an earlier [`count`].
///
/// # Errors
/// The log cannot be read.
pub fn since(mark: usize) -> Result<Vec<Execution>> {
    Ok(executions()?.split_off(mark))
}

/// Whether the name of a parent process is udev's.
pub fn is_udev(parent: &str) -> bool {
    parent.contains("udev")
}

/// Gives the next mutating command a fault.
///
/// # Errors
/// A file cannot be written.
pub fn arm(fault: Fault) -> Result<()> {
    if fault == Fault::Hold {
        fs::write(HOLD, "").map_err(Trouble::io(format!("writing {HOLD}")))?;
    }
    fs::write(FAULT, fault.text()).map_err(Trouble::io(format!("writing {FAULT}")))
}

/// Whether no command has taken the fault yet.
pub fn armed() -> bool {
    Path::new(FAULT).exists()
}

/// The numbers of the ioctls in [`TRACE`] that send a message to a thin pool, counted from 1.
///
/// # Errors
/// The trace cannot be read.
pub fn messages() -> Result<Vec<usize>> {
    ioctls(|line| line.contains("DM_TARGET_MSG"))
}

/// The numbers of the ioctls in [`TRACE`] that change a device or a thin pool, counted from 1.
///
/// # Errors
/// The trace cannot be read.
pub fn changes() -> Result<Vec<usize>> {
    const CHANGING: [&str; 5] = ["DM_DEV_CREATE", "DM_DEV_REMOVE", "DM_DEV_SUSPEND", "DM_TABLE_LOAD", "DM_TARGET_MSG"];
    ioctls(|line| CHANGING.iter().any(|name| line.contains(name)))
}

fn ioctls(wanted: impl Fn(&str) -> bool) -> Result<Vec<usize>> {
    let text = fs::read_to_string(TRACE).map_err(Trouble::io(format!("reading {TRACE}")))?;
    let lines = text.lines().filter(|line| line.starts_with("ioctl("));
    Ok(lines.enumerate().filter(|(_, line)| wanted(line)).map(|(at, _)| at + 1).collect())
}

/// Whether the last command with [`Fault::Kill`] died at a message to a thin pool.
///
/// # Errors
/// The trace cannot be read.
pub fn died_at_a_message() -> Result<bool> {
    let text = fs::read_to_string(TRACE).map_err(Trouble::io(format!("reading {TRACE}")))?;
    Ok(text.lines().rfind(|line| line.starts_with("ioctl(")).is_some_and(|line| line.contains("DM_TARGET_MSG")))
}

/// Holds the next run of a tool. Dropping it lets that run continue.
pub struct HeldTool {
    name: &'static str,
}

impl HeldTool {
    /// Replaces a tool by the shim until its next run.
    ///
    /// # Errors
    /// This is not the lab, or a file cannot be moved or created.
    pub fn next(name: &'static str) -> Result<Self> {
        lab::require()?;
        fs::write(HELD, "").map_err(Trouble::io(format!("writing {HELD}")))?;
        let (path, real) = (Path::new(SBIN).join(name), real_tool(name));
        fs::rename(&path, &real).map_err(Trouble::io(format!("moving {} to {}", path.display(), real.display())))?;
        symlink(LVM, &path).map_err(Trouble::io(format!("creating {}", path.display())))?;
        Ok(Self { name })
    }

    /// Waits until the tool runs and is held, then restores the real one, so that later runs are not held.
    ///
    /// # Errors
    /// The tool does not run in time.
    pub fn wait(&self, limit: std::time::Duration) -> Result<()> {
        tool::wait(&format!("{} to be held", self.name), limit, || Ok(Path::new(WAITS).exists().then_some(())))?;
        self.restore();
        Ok(())
    }

    fn restore(&self) {
        restore(self.name);
    }
}

fn restore(name: &str) {
    let real = real_tool(name);
    if real.exists() {
        // Replaces the link or script.
        let _ = fs::rename(&real, Path::new(SBIN).join(name));
    }
}

/// A tool that a script replaces until this is dropped.
pub struct ReplacedTool {
    name: &'static str,
}

impl ReplacedTool {
    /// Replaces a tool by a script for `sh`.
    ///
    /// # Errors
    /// This is not the lab, or a file cannot be moved or created.
    pub fn with(name: &'static str, script: &str) -> Result<Self> {
        lab::require()?;
        let (path, real) = (Path::new(SBIN).join(name), real_tool(name));
        let failed = || format!("replacing {} by a script", path.display());
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

/// Where the real tool is while something replaces it.
pub fn real_tool(name: &str) -> PathBuf {
    Path::new(SBIN).join(format!("{name}.real"))
}

/// Removes a pending fault and lets held commands continue.
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
