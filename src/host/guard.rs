//! The guard of one volume: a lock that lives as long as anything that may still write to the volume.
//!
//! The driver never kills a tool, so a mkfs may outlive the driver that started it. So may a write of the driver itself that hangs
//! in the kernel. Everyone who works on a volume holds the lock on the volume's file, and each tool has that file as its standard
//! error. The kernel keeps the lock until the last process with the open file is gone. So a driver that gets the lock knows that
//! nothing of an earlier one still works on the volume. The file keeps the output of a survivor.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::FlockArg;
#[expect(deprecated, reason = "see its use")]
use nix::fcntl::flock;

use super::files;
use crate::types::step;

/// Interval for retrying a lock.
const STEP: Duration = Duration::from_millis(10);
/// Time that a lock may be held before its holder counts as a survivor.
const GRACE: Duration = Duration::from_millis(100);
/// Interval for naming the holder in the step of the operation.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);

/// The lock on a volume. While it is held, neither a survivor nor another operation works on the volume.
#[derive(Debug)]
pub struct Guard {
    lock: File,
    path: PathBuf,
    /// A tool had it, and may have left a process that lives on.
    lent: AtomicBool,
}

/// Why a volume must be left alone.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Something that an earlier driver began is still at work.
    #[error(
        "{holders} of an earlier run of the driver still works on it; the driver leaves it alone until that ends: check its kernel stack \
         (/proc/PID/stack) and the disks, then repeat the call"
    )]
    Survivor {
        /// The processes that hold the lock, as far as they can be seen.
        holders: Holders,
    },
    /// The lock file is unusable.
    #[error("locking {path}")]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Guard {
    /// Takes the lock of this file, waiting up to `limit` for its holder.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn take(path: &Path, limit: Duration) -> Result<Self, GuardError> {
        let fail = |source| GuardError::Lock { path: path.to_owned(), source };
        let begin = Instant::now();
        // A process that starts a program briefly has a copy of everything that this process has open; that is no survivor.
        let mut next_note = begin + GRACE;
        loop {
            if let Some(lock) = try_lock(path).map_err(fail)? {
                return Ok(Self { lock, path: path.to_owned(), lent: AtomicBool::new(false) });
            }
            if begin.elapsed() >= limit.max(GRACE) {
                return Err(GuardError::Survivor { holders: Holders::of(path) });
            }
            if Instant::now() >= next_note {
                next_note += NOTE_INTERVAL;
                step::note(|| format!("waiting for {} of an earlier run of the driver to end", Holders::of(path)));
            }
            pause();
        }
    }

    /// The lock file for a program, emptied first.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn lend(&self) -> io::Result<File> {
        self.lent.store(true, Ordering::Relaxed);
        self.lock.set_len(0)?;
        let mut file = self.lock.try_clone()?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }

    /// Another handle of the lock. The lock lives as long as any handle.
    #[cfg(test)]
    pub(crate) fn share(&self) -> File {
        self.lent.store(true, Ordering::Relaxed);
        self.lock.try_clone().unwrap()
    }

    /// Says that no process has the volume open any more, so that the lock file is removed.
    pub fn retire(&self) {
        self.lent.store(false, Ordering::Relaxed);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A waiter sees that the file it locked is not the one at this path, and starts over.
        if !self.lent.load(Ordering::Relaxed) {
            files::remove_lock(&self.path);
        }
    }
}

/// A locked file; the lock lasts until no process has the file open. `None` while another process holds the lock.
///
/// # Errors
/// The kernel's error.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = files::open_lock(path)?;
        // `nix::fcntl::Flock` would release the lock on drop, also for a program that still has the file.
        #[expect(deprecated, reason = "its replacement unlocks for every process")]
        match flock(file.as_raw_fd(), FlockArg::LockExclusiveNonblock) {
            // The former holder may have removed the file meanwhile.
            Ok(()) if is_at(&file, path)? => return Ok(Some(file)),
            Ok(()) => {}
            Err(Errno::EWOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let is = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((is.dev(), is.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits before a lock is tried again.
#[expect(clippy::disallowed_methods, reason = "flock has no wait with a limit")]
pub fn pause() {
    std::thread::sleep(STEP);
}

/// The processes that have a file open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holders(Vec<(u32, String)>);

impl Holders {
    /// The processes visible from here: a container may not see those of the host.
    pub fn of(path: &Path) -> Self {
        let Ok(wanted) = fs::metadata(path) else { return Self(Vec::new()) };
        // A device may have several nodes.
        let identity = |file: &fs::Metadata| match file.file_type().is_block_device() {
            true => (0, file.rdev()),
            false => (file.dev(), file.ino()),
        };
        let is_wanted = |fd: fs::DirEntry| {
            // `metadata` follows the link to the open file itself, even if that has no name any more. On a hanging filesystem it
            // never returns, so only files that may be the wanted one are asked. Reading the link asks no filesystem.
            fs::read_link(fd.path()).is_ok_and(|link| may_be(&link, path, wanted.file_type().is_block_device()))
                && fs::metadata(fd.path()).is_ok_and(|open| identity(&open) == identity(&wanted))
        };
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(open) = fs::read_dir(process.path().join("fd")) else { continue };
            if pid != std::process::id() && open.flatten().any(is_wanted) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.push((pid, name.trim().to_owned()));
            }
        }
        found.sort_unstable();
        Self(found)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether the link of an open file may lead to `path`. Only the file name counts: another process may see the directory at another
/// path.
fn may_be(link: &Path, path: &Path, is_device: bool) -> bool {
    if is_device {
        return link.starts_with("/dev");
    }
    let name = |path: &Path| path.file_name().map(|name| name.as_bytes().to_owned());
    let Some(linked) = name(link) else { return false };
    Some(linked.strip_suffix(b" (deleted)").unwrap_or(&linked)) == name(path).as_deref()
}

impl fmt::Display for Holders {
    /// `mkfs.ext4 (process 4711)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a process that cannot be seen from here");
        }
        for (at, (pid, name)) in self.0.iter().enumerate() {
            write!(f, "{}{name} (process {pid})", if at > 0 { " and " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Invocation, run_guarded};

    #[test]
    fn a_lock_is_had_by_one_and_its_file_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        let guard = Guard::take(&path, Duration::ZERO).unwrap();
        let other = Guard::take(&dir.path().join("other"), Duration::ZERO).unwrap();
        assert!(matches!(Guard::take(&path, Duration::ZERO), Err(GuardError::Survivor { .. })));
        drop((guard, other));
        assert!(!path.exists());
        drop(Guard::take(&path, Duration::ZERO).unwrap());
        assert!(matches!(Guard::take(&dir.path().join("none/volume"), Duration::ZERO), Err(GuardError::Lock { .. })));
    }

    #[test]
    fn whoever_waits_for_a_file_that_was_removed_locks_the_one_that_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        let first = Guard::take(&path, Duration::ZERO).unwrap();
        let second = std::thread::scope(|scope| {
            let waits = scope.spawn(|| Guard::take(&path, Duration::from_secs(30)).unwrap());
            drop(first);
            waits.join().unwrap()
        });
        assert!(path.exists());
        assert!(matches!(Guard::take(&path, Duration::ZERO), Err(GuardError::Survivor { .. })));
        drop(second);
    }

    #[test]
    fn only_what_has_its_name_is_asked_who_holds_a_file() {
        let lock = Path::new("/run/lvm-csi/volumes/abc");
        for (link, may) in [
            ("/run/lvm-csi/volumes/abc", true),
            ("/host/run/volumes/abc", true),
            ("/run/lvm-csi/volumes/abc (deleted)", true),
            ("/run/lvm-csi/volumes/abcd", false),
            ("/mnt/nfs/data", false),
            ("socket:[4711]", false),
            ("/", false),
        ] {
            assert_eq!(may_be(Path::new(link), lock, false), may, "{link}");
        }
        for (link, may) in [("/dev/dm-3", true), ("/dev/mapper/x (deleted)", true), ("/mnt/nfs/dm-3", false), ("/devices", false)]
        {
            assert_eq!(may_be(Path::new(link), Path::new("/dev/dm-3"), true), may, "{link}");
        }
    }

    #[test]
    fn who_has_a_file_open_whose_name_is_gone_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("volume"), dir.path().join("other"));
        let file = files::open_lock(&path).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a child that holds the file")]
        let mut child = std::process::Command::new("/bin/sleep").arg("60").stdin(file).spawn().unwrap();
        fs::hard_link(&path, &other).unwrap();
        fs::remove_file(&path).unwrap();
        fs::rename(&other, &path).unwrap();
        let found = Holders::of(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.0.iter().any(|(pid, _)| *pid == child.id()), "{found:?}");
    }

    #[test]
    fn what_a_program_left_running_is_waited_for_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        let guard = Guard::take(&path, Duration::ZERO).unwrap();
        // The program ends, and what it started lives on.
        let script = "echo trouble >&2; sleep 60 >/dev/null </dev/null & echo $!";
        let output = run_guarded(&Invocation::new("/bin/sh", ["-c", script]), File::open("/dev/null").unwrap(), &guard).unwrap();
        assert_eq!(output.last_words(), "trouble");
        drop(guard);
        let pid = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let error = Guard::take(&path, Duration::ZERO).unwrap_err();
        assert!(error.to_string().starts_with(&format!("sleep (process {pid}) of an earlier run")), "{error}");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        let guard = Guard::take(&path, Duration::from_secs(30)).unwrap();
        drop(guard);
        assert!(!path.exists());
    }
}
