//! The kinds of device that LVM makes of a thin pool. Where the kernel has one as a module that is not loaded, LVM runs `modprobe`, and
//! refuses what it was asked for when that fails: in a container there is neither the program nor a module. The kernel, asked for the
//! version of a kind, loads the module itself, with the program and the modules of the host.

use std::path::Path;

use crate::host::{Invocation, run};

/// As the kernel calls them. LVM wants `snapshot` for snapshots of thin volumes too, though it makes no such device of them.
const TARGETS: [&str; 2] = ["thin-pool", "snapshot"];

/// Has the kernel load what is not loaded. What cannot be loaded is logged: LVM says so again when it is needed.
pub(super) fn load(dmsetup: &Path) {
    for kind in TARGETS {
        let reason = match run(&Invocation::new(dmsetup, ["target-version", kind])) {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(kind, reason, "device-mapper of this kernel does not have what some volumes need");
    }
}
