//! A place for programs that must not end with us: a cgroup of their own.
//!
//! Whoever ends a container or a service ends all that is in its cgroup, and so may a kernel that lacks memory. An `lvm` that is killed
//! while it has devices suspended freezes the I/O of every volume of a pool, until the next driver brings them in order. So each gets
//! out of ours (cgroup v2; a privileged container sees the host's hierarchy).

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;

/// Where the hierarchy is.
const ROOT: &str = "/sys/fs/cgroup";
/// The cgroup, below the root: no container's and no service's.
const NAME: &str = "lvm-csi";

/// Takes a process out of our cgroup. Where that cannot be it stays there, which is logged once.
pub(super) fn take(pid: u32) {
    static PLACE: OnceLock<Option<PathBuf>> = OnceLock::new();
    static TOLD: OnceLock<()> = OnceLock::new();
    let tell = |error: &io::Error| {
        TOLD.get_or_init(|| {
            tracing::warn!(%error, "lvm cannot have a cgroup of its own: it ends with this container, and may leave devices suspended \
                 until the driver runs again");
        });
    };
    let place = PLACE.get_or_init(|| make(Path::new(ROOT)).inspect_err(tell).ok());
    if let Some(place) = place
        && let Err(error) = fs::write(place, pid.to_string())
        // It has ended already.
        && error.raw_os_error() != Some(Errno::ESRCH as i32)
    {
        tell(&error);
    }
}

/// Makes the cgroup; gives the file that takes processes into it.
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
