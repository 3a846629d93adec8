//! What a driver that died has left running. A program is never killed by us, so an lvm may outlive the driver that started it, and
//! then create or remove what the next driver has just looked at.
//!
//! Each lvm gets a file as its standard input, and with it the lock on that file: the kernel keeps a lock for as long as a process has
//! the file open that it was taken by. A driver that gets the lock knows that no lvm of an earlier one is at work.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::host::guard::{self, Holders};

/// How long to wait for the lvm of an earlier driver.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the lock may be held while no lvm runs.
const GRACE: Duration = Duration::from_millis(100);

/// The lock of one group's commands.
#[derive(Debug)]
pub(super) struct SurvivorLock {
    path: PathBuf,
    limit: Duration,
    /// No lvm of an earlier driver runs, and none ever will again.
    alone: AtomicBool,
}

/// Why nothing may be begun.
#[derive(Debug, thiserror::Error)]
pub enum SurvivorError {
    /// An lvm of an earlier driver is still at work.
    #[error(
        "an lvm that an earlier run of the driver started has not ended within {} s: {holders}; nothing is begun on this group until it does: \
         see its kernel stack (/proc/PID/stack), and the disks ({path} is what it has open)",
        limit.as_secs()
    )]
    Running {
        /// Who it is, as far as that can be told.
        holders: Holders,
        /// The file it has open.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The lock file cannot be used.
    #[error("locking {path}")]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SurvivorLock {
    /// The lock in a directory of one group.
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join("running"), limit: LIMIT, alone: AtomicBool::new(false) }
    }

    /// Waits until no lvm of an earlier driver runs; costs nothing once that was so.
    pub(super) fn alone(&self) -> Result<(), SurvivorError> {
        // Who runs is looked for when nobody waits for it.
        if self.wait()? { Ok(()) } else { Err(self.running(self.limit)) }
    }

    /// As [`SurvivorLock::alone`]; `false` where one still runs.
    fn wait(&self) -> Result<bool, SurvivorError> {
        let begin = Instant::now();
        // Each waits for itself: were the state held meanwhile, the last of many callers would wait as often as there are before it.
        while !self.alone.load(Ordering::SeqCst) {
            // Without its directory no lvm was started since the boot.
            if !self.path.parent().is_some_and(Path::is_dir) || self.take()?.is_some() {
                self.alone.store(true, Ordering::SeqCst);
                break;
            }
            if begin.elapsed() >= self.limit {
                return Ok(false);
            }
            guard::pause();
        }
        Ok(true)
    }

    /// The lock, to be held while an lvm runs that has a copy of its file as standard input.
    pub(super) fn hold(&self) -> Result<File, SurvivorError> {
        let begin = Instant::now();
        loop {
            if let Some(held) = self.take()? {
                return Ok(held);
            }
            // A program that is just being started has, for a moment, a copy of everything that this process has open.
            if begin.elapsed() >= GRACE {
                return Err(self.running(Duration::ZERO));
            }
            guard::pause();
        }
    }

    fn running(&self, limit: Duration) -> SurvivorError {
        SurvivorError::Running { holders: Holders::of(&self.path), path: self.path.clone(), limit }
    }

    fn take(&self) -> Result<Option<File>, SurvivorError> {
        guard::try_lock(&self.path).map_err(|source| SurvivorError::Lock { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Invocation, run_holding};

    #[test]
    fn a_program_at_work_is_waited_for_by_the_next_driver() {
        let dir = tempfile::tempdir().unwrap();
        let lock = |limit| SurvivorLock { limit, ..SurvivorLock::new(dir.path()) };
        let driver = lock(LIMIT);
        driver.alone().unwrap();
        let held = driver.hold().unwrap();
        let output = run_holding(&Invocation::new("/bin/readlink", ["/proc/self/fd/0"]), Some(&held), |_| ()).unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), driver.path.to_str().unwrap());
        let error = lock(Duration::ZERO).alone().unwrap_err();
        assert!(error.to_string().contains("earlier run"), "{error}");
        driver.alone().unwrap();
        drop(held);
        lock(Duration::ZERO).alone().unwrap();
    }
}
