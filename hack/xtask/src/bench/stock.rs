//! LVM as Debian ships it: its `lvm` with its unmodified lvm.conf, one process for each command.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::error::{Result, Trouble, ensure};
use testkit::tool;

/// Where it is.
const LVM: &str = "/usr/sbin/lvm";
/// Its configuration.
const CONFIG: &str = "/etc/lvm/lvm.conf";
/// What a host adds to its configuration, beside that.
pub(crate) const LOCAL: &str = "lvmlocal.conf";
/// What LVM must be told where the kernel has no device-mapper: it then keeps to the metadata.
pub(crate) const METADATA_ONLY: &str = "global {\n\tactivation = 0\n}\n";

/// Its version, for people.
///
/// # Errors
/// There is no LVM, or its configuration is not the one that its package brought.
pub(crate) fn version() -> Result<String> {
    let files = tool::run("dpkg-query", &["--show", "--showformat=${Conffiles}", "lvm2"])?;
    let line = files.lines().find_map(|line| line.trim().strip_prefix(CONFIG));
    let shipped = line.and_then(|line| line.split_whitespace().next()).unwrap_or_default();
    let sum = tool::run("md5sum", &[CONFIG])?;
    ensure(!shipped.is_empty() && sum.starts_with(shipped), || {
        format!("{CONFIG} is not as the package lvm2 brought it: md5 {sum:?} instead of {shipped:?}")
    })?;
    Ok(tool::run("dpkg-query", &["--show", "--showformat=${Version}", "lvm2"])?.trim().to_owned())
}

/// Adds to the configuration in a directory that the kernel has no device-mapper.
pub(crate) fn metadata_only(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(Trouble::io(format!("making {}", directory.display())))?;
    let path = directory.join(LOCAL);
    fs::write(&path, METADATA_ONLY).map_err(Trouble::io(format!("writing {}", path.display())))
}

/// Runs one LVM command.
///
/// # Errors
/// It could not be started, or failed.
pub(crate) fn lvm(arguments: &[&str]) -> Result<()> {
    run(LVM, arguments)
}

/// The same with the configuration in a directory: what is left of a call's time when all that is not LVM costs nothing.
///
/// # Errors
/// It could not be started, or failed.
pub(crate) fn lvm_configured(directory: &Path, arguments: &[&str]) -> Result<()> {
    let mut command: Command = tool::command(LVM);
    finish(command.env("LVM_SYSTEM_DIR", directory), LVM, arguments)
}

/// Runs one program to its end, as a shell would: nothing stands between its start and its end.
///
/// # Errors
/// It could not be started, or failed.
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
