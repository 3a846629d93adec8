//! A cgroup of its own for programs that must not end with the driver.
//!
//! Stopping a container or a service kills everything in its cgroup, and so may a kernel out of memory. An `lvm` killed while it
//! has devices suspended freezes the I/O of all volumes of a pool, until the next driver repairs that. So each `lvm` leaves the
//! driver's cgroup (cgroup v2; a privileged container sees the host's hierarchy).
//!
//! The node's pods also share the host's PID namespace: a namespace of its own would end all its processes with the first one. A killed
//! `lvm` that leaves a pool suspended can block a growth that waits for one of its volumes. That process cannot be killed, so its
//! container never ends, and no new driver starts that would resume the pool.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;

/// Mount point of the cgroup hierarchy.
const ROOT: &str = "/sys/fs/cgroup";
/// The cgroup below the root. It belongs to no container and no service.
const NAME: &str = "lvm-csi";

/// Moves a process out of the driver's cgroup. If that fails the process stays, and the failure is logged once.
pub(super) fn take(pid: u32) {
    static PLACE: OnceLock<Option<PathBuf>> = OnceLock::new();
    static LOGGED: OnceLock<()> = OnceLock::new();
    let log_once = |error: &io::Error| {
        LOGGED.get_or_init(|| {
            tracing::warn!(%error, "cannot move lvm to a cgroup of its own: it ends with this container, and may leave devices suspended \
                 until the driver runs again");
        });
    };
    let place = PLACE.get_or_init(|| make(Path::new(ROOT)).inspect_err(log_once).ok());
    if let Some(place) = place
        && let Err(error) = fs::write(place, pid.to_string())
        // The process has ended already.
        && error.raw_os_error() != Some(Errno::ESRCH as i32)
    {
        log_once(&error);
    }
}

/// Makes the cgroup and returns the file that processes are added by.
fn make(root: &Path) -> io::Result<PathBuf> {
    let file = "cgroup.procs";
    if !root.join(file).exists() {
        return Err(io::Error::new(ErrorKind::Unsupported, format!("no cgroup v2 at {}", root.display())));
    }
    match DirBuilder::new().create(root.join(NAME)) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(root.join(NAME).join(file)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_made_where_there_is_a_hierarchy_and_found_again() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(make(root.path()).unwrap_err().kind(), ErrorKind::Unsupported);
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        let place = make(root.path()).unwrap();
        assert_eq!(place, root.path().join("lvm-csi/cgroup.procs"));
        assert_eq!(make(root.path()).unwrap(), place);
    }
}
