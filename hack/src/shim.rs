//! The shim around the lab's `lvm`: it writes one line per execution, then becomes the real one. So LVM commands are counted
//! by somebody else than the driver. It can also make the next command fail or die.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Result, Trouble};
use crate::lab;

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
        }
    }

    /// The fault that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        [&Self::BAD[..], &[Fault::Hold, Fault::Stop]].concat().into_iter().find(|fault| fault.word() == word)
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
    fs::write(FAULT, fault.word()).map_err(Trouble::io(format!("writing {FAULT}")))
}

/// Whether a fault is still waiting for its command.
pub fn armed() -> bool {
    Path::new(FAULT).exists()
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
