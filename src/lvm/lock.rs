//! LVM's own lock of a group: a file with flock, by which every `lvm` on this machine waits for the others.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::host::files;
use crate::types::VgName;

/// How long to wait for the lock; a living lvm may hold it.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// The pause between two tries.
const STEP: Duration = Duration::from_millis(20);

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{path} has been locked for {} s: another lvm is working on the group", waited.as_secs())]
    Locked {
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The file cannot be opened or locked.
    #[error("cannot lock {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _held: Option<Flock<File>>,
}

impl Lock {
    /// Takes the lock of a group within `limit`. While it is held no other lvm runs on the group, not even one that reads.
    ///
    /// # Errors
    /// See [`LockError`].
    pub(super) fn take(locking_dir: &Path, vg: &VgName, limit: Duration) -> Result<Self, LockError> {
        let path = locking_dir.join(format!("V_{vg}"));
        let fail = |source| LockError::File { path: path.clone(), source };
        let begin = Instant::now();
        loop {
            match Flock::lock(files::open_lock(&path).map_err(fail)?, FlockArg::LockExclusiveNonblock) {
                Ok(held) => {
                    // LVM unlinks the file when it is done, so a lock counts only on the file that the path still names.
                    let same = |on_disk: std::fs::Metadata| {
                        held.metadata().is_ok_and(|ours| ours.ino() == on_disk.ino() && ours.dev() == on_disk.dev())
                    };
                    if std::fs::metadata(&path).is_ok_and(same) {
                        return Ok(Self { _held: Some(held) });
                    }
                }
                Err((_, nix::Error::EWOULDBLOCK)) => {}
                Err((_, errno)) => return Err(fail(errno.into())),
            }
            if begin.elapsed() > limit {
                return Err(LockError::Locked { path, waited: limit });
            }
            #[expect(clippy::disallowed_methods, reason = "flock has no timeout; the loop tries again, up to a limit")]
            std::thread::sleep(STEP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lock_on_the_file_of_that_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        let vg = VgName::new("vg0").unwrap();
        let take = || Lock::take(dir.path(), &vg, Duration::from_millis(30));
        let path = dir.path().join("V_vg0");
        let reading = Flock::lock(files::open_lock(&path).unwrap(), FlockArg::LockSharedNonblock).unwrap();
        assert!(matches!(take(), Err(LockError::Locked { path: locked, .. }) if locked == path));
        drop(reading);
        let _held = take().unwrap();
        assert!(take().is_err());
        // LVM unlinks the file before it releases it: a lock on the unlinked file proves nothing.
        std::fs::remove_file(path).unwrap();
        take().unwrap();
    }
}
