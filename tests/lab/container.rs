//! What a container lacks compared with a host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use testkit::driver::Start;
use testkit::error::{Result, Trouble};
use testkit::flow::delete_snapshot;
use testkit::{lab, tool};

use crate::rig::{DRIVER, POOL_MIB, Rig};

/// Starts the driver in a mount namespace without a working `modprobe`. The kernel runs its own, outside.
const SCRIPT: &str = r#"#!/bin/sh
exec unshare --mount sh -c 'mount --bind /dev/null "$(readlink -f /sbin/modprobe)" && exec "$0" "$@"' "$DRIVER" "$@"
"#;

#[test]
fn a_snapshot_needs_a_module_and_no_modprobe() -> Result<()> {
    let rig = Rig::start(&[lab::disk(0)?], Some(POOL_MIB), |home, vg| {
        tool::run("modprobe", &["--remove", "dm_snapshot"])?;
        let program = home.join("driver.sh");
        fs::write(&program, SCRIPT).map_err(Trouble::io("writing a script"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).map_err(Trouble::io("making it executable"))?;
        let environment = vec![("DRIVER".to_owned(), DRIVER.to_owned())];
        Ok(Start { program, environment, ..Start::on_vg(Path::new(DRIVER), home, &vg.name) })
    })?;
    let volume = rig.volume("thin", 64)?;
    let snapshot = volume.snapshot("snapshot-1")?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    volume.delete()?;
    rig.finish()
}
