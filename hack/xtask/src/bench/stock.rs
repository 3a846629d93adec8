//! Runs LVM as Debian ships it, with its unmodified lvm.conf, one process for each command.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::error::{Result, Trouble, ensure};
use testkit::tool;

const LVM: &str = "/usr/sbin/lvm";
const CONFIG: &str = "/etc/lvm/lvm.conf";
/// The file that overrides settings of lvm.conf in the same directory.
pub(crate) const LOCAL: &str = "lvmlocal.conf";
/// Makes LVM change only metadata, since the kernel may have no device-mapper.
pub(crate) const METADATA_ONLY: &str = "global {\n\tactivation = 0\n}\n";

/// The version of Debian's package.
///
/// # Errors
/// LVM is not installed, or its lvm.conf is not the package's.
pub(crate) fn version() -> Result<String> {
    let files = tool::run("dpkg-query", &["--show", "--showformat=${Conffiles}", "lvm2"])?;
    let line = files.lines().find_map(|line| line.trim().strip_prefix(CONFIG));
    let shipped = line.and_then(|line| line.split_whitespace().next()).unwrap_or_default();
    let sum = tool::run("md5sum", &[CONFIG])?;
    ensure(!shipped.is_empty() && sum.starts_with(shipped), || {
        format!("{CONFIG} differs from that of the package lvm2: md5 {sum:?} instead of {shipped:?}")
    })?;
    Ok(tool::run("dpkg-query", &["--show", "--showformat=${Version}", "lvm2"])?.trim().to_owned())
}

/// Writes [`METADATA_ONLY`] into a configuration directory.
pub(crate) fn metadata_only(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(Trouble::io(format!("making {}", directory.display())))?;
    let path = directory.join(LOCAL);
    fs::write(&path, METADATA_ONLY).map_err(Trouble::io(format!("writing {}", path.display())))
}

/// Runs one LVM command.
///
/// # Errors
/// LVM cannot be started, or fails.
pub(crate) fn lvm(arguments: &[&str]) -> Result<()> {
    run(LVM, arguments)
}

/// As [`lvm`] with another configuration directory. With the driver's this is a call's time if everything but LVM cost nothing.
///
/// # Errors
/// LVM cannot be started, or fails.
pub(crate) fn lvm_configured(directory: &Path, arguments: &[&str]) -> Result<()> {
    let mut command: Command = tool::command(LVM);
    finish(command.env("LVM_SYSTEM_DIR", directory), LVM, arguments)
}

/// Runs a program as a shell would, without the thread and time limit of [`tool::run`], which would count.
///
/// # Errors
/// The program cannot be started, or fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    finish(&mut tool::command(program), program, arguments)
}

fn finish(command: &mut Command, program: &str, arguments: &[&str]) -> Result<()> {
    command.args(arguments).env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1").stdin(Stdio::null());
    let output = command.output().map_err(Trouble::io(format!("running {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    let command = format!("{program} {}", arguments.join(" "));
    Err(Trouble::Tool { command, status: output.status.to_string(), output: tool::said(&output) })
}
