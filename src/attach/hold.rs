//! Exclusive use of directories: one driver at a time in any directory, and always the same driver in a state directory.
//!
//! A running driver holds a lock (flock) on each of its directories. Two drivers in one state directory would overwrite each other's
//! grants, so a volume in use would count as detached.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::host::{Process, files};
use crate::types::LvUuid;

/// The locked file; its text says who holds it.
const LOCK: &str = "lock";
/// File in a state directory with the name of its driver.
const NAME: &str = "driver";
const NEW_NAME: &str = "driver.new";
/// File in a state directory with the LVs that its driver used before the directory bore its name.
const USED: &str = "used";
/// Interval between attempts to take a held lock.
const STEP: Duration = Duration::from_millis(100);

/// Why a driver cannot have a directory.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Another driver runs there.
    #[error(
        "{dir} is in use by {holder}, after {} s of waiting; stop that driver, or give this one directories of its own (stateDir and \
         runDir, or --state-dir and --run-dir)", waited.as_secs()
    )]
    Held {
        dir: PathBuf,
        /// The other driver, in words.
        holder: String,
        waited: Duration,
    },
    /// It holds the attachments of a driver with another name.
    #[error(
        "state directory {dir} belongs to driver {theirs}, and this is driver {ours}; give this one a directory of its own (stateDir or \
         --state-dir). If {ours} replaces {theirs} for good, end all pods with volumes of {theirs} on this machine and remove \
         {dir}/{NAME}"
    )]
    Named {
        dir: PathBuf,
        /// The name in the directory.
        theirs: String,
        /// The name of this driver.
        ours: String,
    },
    #[error("{what} {path}")]
    Io {
        /// The call that failed: reading, locking, …
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Exclusive use of a directory, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    _lock: Flock<File>,
}

/// The driver that takes a directory.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// The CSI name of the driver.
    pub driver: &'a str,
    /// Its socket, by which a person finds it.
    pub endpoint: &'a Path,
}

impl Hold {
    /// Takes a directory. Waits up to `limit` for an earlier driver that is about to end.
    ///
    /// # Errors
    /// See [`HoldError`].
    pub fn take(dir: &Path, holder: Holder<'_>, limit: Duration) -> Result<Self, HoldError> {
        let begin = Instant::now();
        loop {
            match attempt(dir, holder)? {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err(holder) if begin.elapsed() >= limit => {
                    return Err(HoldError::Held { dir: dir.to_owned(), holder, waited: limit });
                }
                Err(_) => {}
            }
            #[expect(clippy::disallowed_methods, reason = "flock has no timeout; the lock is tried again, up to a limit")]
            std::thread::sleep(STEP);
        }
    }

    /// As [`Hold::take`], for a state directory. One without an owner is accepted; [`sign`] gives it to a driver.
    ///
    /// # Errors
    /// See [`HoldError`].
    pub fn take_state(dir: &Path, holder: Holder<'_>, limit: Duration) -> Result<Self, HoldError> {
        // First without the lock, since waiting would not change another driver's name.
        check_name(dir, holder.driver)?;
        let hold = Self::take(dir, holder, limit)?;
        check_name(dir, holder.driver)?;
        Ok(hold)
    }
}

/// Gives a held state directory to the driver of this name for good. It first writes the LVs that an earlier version, which wrote no
/// names, used: only now is it certain which they are.
///
/// # Errors
/// A file cannot be written.
pub fn sign(state_dir: &Path, driver: &str, used: &BTreeSet<LvUuid>) -> Result<(), HoldError> {
    let put = |name: &str, text: &str| {
        let (path, new) = (state_dir.join(name), state_dir.join(NEW_NAME));
        files::write(&new, text.as_bytes()).and_then(|()| files::rename(&new, &path)).map_err(fail("writing", &path))
    };
    if !used.is_empty() {
        put(USED, &used.iter().map(|lv| format!("{lv}\n")).collect::<String>())?;
    }
    put(NAME, driver)
}

/// The LVs that [`sign`] recorded.
///
/// # Errors
/// The file cannot be read.
pub fn used(state_dir: &Path) -> Result<BTreeSet<LvUuid>, HoldError> {
    let path = state_dir.join(USED);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(LvUuid::new).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(source) => Err(fail("reading", &path)(source)),
    }
}

/// The name of the driver that owns a state directory; `None` if none is recorded yet.
///
/// # Errors
/// The file cannot be read.
pub fn owner(state_dir: &Path) -> Result<Option<String>, HoldError> {
    let path = state_dir.join(NAME);
    match fs::read_to_string(&path) {
        Ok(name) => Ok(Some(name.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(fail("reading", &path)(source)),
    }
}

fn check_name(dir: &Path, ours: &str) -> Result<Option<()>, HoldError> {
    match owner(dir)? {
        Some(theirs) if theirs != ours => Err(HoldError::Named { dir: dir.to_owned(), theirs, ours: ours.to_owned() }),
        owner => Ok(owner.map(drop)),
    }
}

fn fail<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> HoldError + 'a {
    move |source| HoldError::Io { what, path: path.to_owned(), source }
}

fn try_lock(file: File, path: &Path) -> Result<Option<Flock<File>>, HoldError> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(fail("locking", path)(errno.into())),
    }
}

/// The lock, or its holder in words.
fn attempt(dir: &Path, holder: Holder<'_>) -> Result<Result<Flock<File>, String>, HoldError> {
    // The lock on the directory itself lets one driver at a time take the lock file and write its name into it.
    let Some(_guard) = try_lock(File::open(dir).map_err(fail("opening", dir))?, dir)? else {
        return Ok(Err("a driver that is starting".to_owned()));
    };
    let path = dir.join(LOCK);
    // A file on a filesystem that an error made read-only can still be locked.
    let file = files::open_lock(&path).or_else(|error| File::open(&path).map_err(|_| error));
    let lock = match try_lock(file.map_err(fail("opening", &path))?, &path)? {
        Some(lock) => lock,
        None => {
            let text = fs::read(&path).map_err(fail("reading", &path))?;
            let text = String::from_utf8_lossy(&text);
            let (process, description) = text.split_once('\n').unwrap_or_default();
            // A killed process keeps its locks while one of its threads waits for a disk. It does nothing any more, and the other
            // disks of this machine cannot wait for it.
            if !Process::parse(process).is_some_and(|process| process.is_ending()) {
                let description = description.trim();
                return Ok(Err(if description.is_empty() { "another driver".to_owned() } else { description.to_owned() }));
            }
            files::remove_file(&path).map_err(fail("removing", &path))?;
            let file = files::open_lock(&path).map_err(fail("opening", &path))?;
            match try_lock(file, &path)? {
                Some(lock) => lock,
                None => return Ok(Err("another driver".to_owned())),
            }
        }
    };
    let this = Process::this().map_err(fail("reading the stat of this process for", &path))?;
    let text = format!("{this}\ndriver {}, process {} at {}\n", holder.driver, this.pid(), holder.endpoint.display());
    if let Err(error) = files::write(&path, text.as_bytes()) {
        tracing::warn!(path = %path.display(), %error, "the lock file cannot be written; a driver that waits cannot see who holds it");
    }
    Ok(Ok(lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn holder(driver: &str) -> Holder<'_> {
        Holder { driver, endpoint: Path::new("/run/csi.sock") }
    }

    #[test]
    fn one_driver_at_a_time_has_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Hold::take(dir.path(), holder("a.example"), NOW).unwrap();
        let error = Hold::take(dir.path(), holder("b.example"), NOW).unwrap_err().to_string();
        let expected = format!("in use by driver a.example, process {} at /run/csi.sock", std::process::id());
        assert!(error.contains(&expected) && error.contains("--state-dir"), "{error}");
        drop(first);
        drop(Hold::take(dir.path(), holder("b.example"), NOW).unwrap());
        assert!(matches!(Hold::take(&dir.path().join("none"), holder("a"), NOW), Err(HoldError::Io { .. })));
    }

    #[test]
    fn a_driver_waits_for_one_that_is_ending() {
        let dir = tempfile::tempdir().unwrap();
        let first = Hold::take(dir.path(), holder("a"), NOW).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        let second = std::thread::spawn(move || {
            sender.send(Hold::take(&path, holder("a"), NOW).is_err()).unwrap();
            Hold::take(&path, holder("a"), Duration::from_secs(60)).map(drop)
        });
        assert!(receiver.recv().unwrap());
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn a_state_directory_belongs_to_the_driver_that_signed_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(owner(dir.path()).unwrap(), None);
        let first = Hold::take_state(dir.path(), holder("a.example"), NOW).unwrap();
        assert_eq!((owner(dir.path()).unwrap(), super::used(dir.path()).unwrap().len()), (None, 0));
        let used = ["a", "b"].map(|letter| LvUuid::from_compact(&letter.repeat(32)).unwrap()).into();
        sign(dir.path(), "a.example", &used).unwrap();
        drop(first);
        assert_eq!(super::used(dir.path()).unwrap(), used);
        assert_eq!(owner(dir.path()).unwrap().as_deref(), Some("a.example"));
        // Another driver is refused at once, whether or not the owner runs.
        let running = Hold::take_state(dir.path(), holder("a.example"), NOW).unwrap();
        for _ in 0..2 {
            let error = Hold::take_state(dir.path(), holder("b.example"), Duration::from_secs(60)).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, HoldError::Named { .. }), "{text}");
            assert!(
                text.contains("driver a.example") && text.contains("driver b.example") && text.contains("--state-dir"),
                "{text}"
            );
        }
        drop(running);
    }

    #[test]
    fn a_name_that_cannot_be_written_stops_no_driver() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(NEW_NAME)).unwrap();
        let held = Hold::take_state(dir.path(), holder("a.example"), NOW).unwrap();
        assert!(sign(dir.path(), "a.example", &BTreeSet::new()).is_err());
        assert_eq!(owner(dir.path()).unwrap(), None);
        assert!(matches!(Hold::take_state(dir.path(), holder("a.example"), NOW), Err(HoldError::Held { .. })));
        drop(held);
    }

    #[test]
    fn the_lock_of_a_killed_process_that_waits_for_a_disk_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let _stuck = Hold::take(dir.path(), holder("a"), NOW).unwrap();
        // A zombie stands in for it.
        #[expect(clippy::disallowed_methods, reason = "it must stay unwaited for")]
        let mut zombie = std::process::Command::new("/bin/true").spawn().unwrap();
        let id = nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(i32::try_from(zombie.id()).unwrap()));
        let ended = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(id, ended).unwrap();
        let process = Process::of(zombie.id()).unwrap();
        fs::write(dir.path().join(LOCK), format!("{process}\ndriver a, process 7 at /x\n")).unwrap();
        let next = Hold::take(dir.path(), holder("a"), NOW).unwrap();
        let error = Hold::take(dir.path(), holder("a"), NOW).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(next);
        zombie.wait().unwrap();
        // An unknown process may live in another PID namespace, so its lock counts.
        let _held = Hold::take(dir.path(), holder("a"), NOW).unwrap();
        fs::write(dir.path().join(LOCK), "4194305 1\ndriver b, process 4194305 at /x\n").unwrap();
        assert!(Hold::take(dir.path(), holder("a"), NOW).unwrap_err().to_string().contains("driver b"));
    }
}
