//! Survivors: what an earlier driver left running. We never kill a program, so an lvm may outlive the driver that started it, and
//! then create or remove what the next driver has just read.
//!
//! Each lvm gets a locked file as its standard input: the kernel keeps the lock for as long as any process has that file open. A
//! driver that gets the lock knows that no lvm of an earlier one is running.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::host::guard::{self, Holders};

/// How long to wait for the lvm of an earlier driver.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the lock may stay held although no lvm runs.
const GRACE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct SurvivorLock {
    path: PathBuf,
    limit: Duration,
    /// Set once no lvm of an earlier driver runs; none can start later.
    alone: AtomicBool,
}

/// Why no command may start.
#[derive(Debug, thiserror::Error)]
pub enum SurvivorError {
    /// An lvm of an earlier driver is still running.
    #[error(
        "an lvm that an earlier run of the driver started has not ended within {} s: {holders}; no change of this group starts until it does. \
         Check its kernel stack (/proc/PID/stack) and the disks (it has {path} open)",
        limit.as_secs()
    )]
    Running {
        /// The processes, as far as they can be identified.
        holders: Holders,
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        limit: Duration,
    },
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {path}")]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SurvivorLock {
    /// The lock file is in the directory of one group.
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join("running"), limit: LIMIT, alone: AtomicBool::new(false) }
    }

    /// Waits until no lvm of an earlier driver runs; costs nothing once that is established.
    pub(super) fn alone(&self) -> Result<(), SurvivorError> {
        // Identify the processes only after the wait.
        if self.wait()? { Ok(()) } else { Err(self.running(self.limit)) }
    }

    /// Waits as [`SurvivorLock::alone`] does; `false` if one still runs.
    fn wait(&self) -> Result<bool, SurvivorError> {
        let begin = Instant::now();
        // Each caller waits on its own. With a shared lock the last of many callers would wait once for each before it.
        while !self.alone.load(Ordering::SeqCst) {
            // Without the directory no lvm has started since the boot.
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

    /// Takes the lock for an lvm that gets a copy of the file as its standard input.
    pub(super) fn hold(&self) -> Result<File, SurvivorError> {
        let begin = Instant::now();
        loop {
            if let Some(held) = self.take()? {
                return Ok(held);
            }
            // A program that is being started briefly has a copy of every file that this process has open.
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
    fn the_next_driver_waits_for_a_running_program() {
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
