//! Loads the device-mapper targets that thin pools need. If a target is in a module that is not loaded, LVM runs `modprobe` and
//! refuses the command when that fails: a container has neither the program nor the modules. Asked for a target's version, the
//! kernel itself loads the module, with the host's program and modules.

use std::path::Path;

use crate::host::{Invocation, run};

/// Target names. LVM requires `snapshot` for snapshots of thin volumes too, though it makes no such device for them.
const TARGETS: [&str; 2] = ["thin-pool", "snapshot"];

/// Lets the kernel load the targets. A failure is only logged: LVM reports it again when the target is needed.
pub(super) fn load(dmsetup: &Path) {
    for kind in TARGETS {
        let reason = match run(&Invocation::new(dmsetup, ["target-version", kind])) {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(kind, reason, "this kernel cannot load a device-mapper target that some volumes need");
    }
}
