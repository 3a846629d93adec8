//! One driver at a time in a directory, and in a state directory always the same one.
//!
//! A driver holds a lock (flock) on each of its directories for its life. Two drivers in one state directory would overwrite each
//! other's grants: a volume that is in use would count as detached.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::host::{Process, files};
use crate::types::LvUuid;

/// The file that is locked; its text says who holds it.
const LOCK: &str = "lock";
/// The file in a state directory that names its driver.
const NAME: &str = "driver";
const NEW_NAME: &str = "driver.new";
/// The file in a state directory with the LVs that its driver used before the directory bore its name.
const USED: &str = "used";
/// How often a lock that is held is tried again.
const STEP: Duration = Duration::from_millis(100);

/// Why a driver cannot have a directory.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Another one runs there.
    #[error(
        "{dir} is in use by {holder}, after {} s of waiting; stop that driver, or give this one directories of its own (stateDir and \
         runDir, or --state-dir and --run-dir)", waited.as_secs()
    )]
    Held {
        dir: PathBuf,
        /// Who has it.
        holder: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It has the attachments of a driver with another name.
    #[error(
        "state directory {dir} belongs to driver {theirs}, and this is driver {ours}; give this one a directory of its own (stateDir or \
         --state-dir). If {ours} takes the place of {theirs} for good, end all pods with volumes of {theirs} on this machine and remove \
         {dir}/{NAME}"
    )]
    Named {
        dir: PathBuf,
        /// The name that it bears.
        theirs: String,
        /// The name of the driver that wants it.
        ours: String,
    },
    /// The directory cannot be used.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A directory of this driver, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    _lock: Flock<File>,
}

/// Who wants a directory.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// The CSI name of the driver.
    pub driver: &'a str,
    /// Its socket, by which a person finds it.
    pub endpoint: &'a Path,
}

impl Hold {
    /// Takes a directory, for which an earlier driver that is about to end is waited up to `limit`.
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
            #[expect(
                clippy::disallowed_methods,
                reason = "flock has no wait with a limit; the lock is looked at again, up to a limit"
            )]
            std::thread::sleep(STEP);
        }
    }

    /// As [`Hold::take`] for a state directory, which [`sign`] gives to the driver of this name if it is nobody's yet.
    ///
    /// # Errors
    /// See [`HoldError`].
    pub fn take_state(dir: &Path, holder: Holder<'_>, limit: Duration) -> Result<Self, HoldError> {
        // Before it is waited for: this does not change by waiting.
        check_name(dir, holder.driver)?;
        let hold = Self::take(dir, holder, limit)?;
        check_name(dir, holder.driver)?;
        Ok(hold)
    }
}

/// Gives a state directory that is held to the driver of this name for good. What an earlier version of it used, which wrote no names, can
/// be told now and never again; so that is written first.
///
/// # Errors
/// The directory refused.
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

/// The LVs that were written when the state directory got its driver's name.
///
/// # Errors
/// They cannot be read.
pub fn used(state_dir: &Path) -> Result<BTreeSet<LvUuid>, HoldError> {
    let path = state_dir.join(USED);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(LvUuid::new).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(source) => Err(fail("reading", &path)(source)),
    }
}

/// The name of the driver to which a state directory belongs, if that is not written yet.
///
/// # Errors
/// It cannot be read.
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

/// The lock, or who holds it.
fn attempt(dir: &Path, holder: Holder<'_>) -> Result<Result<Flock<File>, String>, HoldError> {
    // One at a time looks at the lock and says who has it.
    let Some(_guard) = try_lock(File::open(dir).map_err(fail("opening", dir))?, dir)? else {
        return Ok(Err("a driver that starts".to_owned()));
    };
    let path = dir.join(LOCK);
    // A filesystem that an error made read-only still gives the lock.
    let file = files::open_lock(&path).or_else(|error| File::open(&path).map_err(|_| error));
    let lock = match try_lock(file.map_err(fail("opening", &path))?, &path)? {
        Some(lock) => lock,
        None => {
            let text = fs::read(&path).map_err(fail("reading", &path))?;
            let text = String::from_utf8_lossy(&text);
            let (process, told) = text.split_once('\n').unwrap_or_default();
            // A killed process holds its locks for as long as one of its threads waits for a disk. It does nothing any more, and the
            // other disks of this machine cannot wait for that.
            if !Process::parse(process).is_some_and(|process| process.is_ending()) {
                let told = told.trim();
                return Ok(Err(if told.is_empty() { "another driver".to_owned() } else { told.to_owned() }));
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
    let told = format!("{this}\ndriver {}, process {} at {}\n", holder.driver, this.pid(), holder.endpoint.display());
    if let Err(error) = files::write(&path, told.as_bytes()) {
        tracing::warn!(path = %path.display(), %error, "who holds this directory cannot be written; whoever waits for it is not told");
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
        let told = format!("in use by driver a.example, process {} at /run/csi.sock", std::process::id());
        assert!(error.contains(&told) && error.contains("--state-dir"), "{error}");
        drop(first);
        drop(Hold::take(dir.path(), holder("b.example"), NOW).unwrap());
        assert!(matches!(Hold::take(&dir.path().join("none"), holder("a"), NOW), Err(HoldError::Io { .. })));
    }

    #[test]
    fn a_driver_that_ends_meanwhile_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = Hold::take(dir.path(), holder("a"), NOW).unwrap();
        let (told, tells) = std::sync::mpsc::channel();
        let path = dir.path().to_owned();
        let second = std::thread::spawn(move || {
            told.send(Hold::take(&path, holder("a"), NOW).is_err()).unwrap();
            Hold::take(&path, holder("a"), Duration::from_secs(60)).map(drop)
        });
        assert!(tells.recv().unwrap());
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn a_state_directory_belongs_to_the_first_driver_that_had_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(owner(dir.path()).unwrap(), None);
        let first = Hold::take_state(dir.path(), holder("a.example"), NOW).unwrap();
        assert_eq!((owner(dir.path()).unwrap(), super::used(dir.path()).unwrap().len()), (None, 0));
        let used = ["a", "b"].map(|letter| LvUuid::from_compact(&letter.repeat(32)).unwrap()).into();
        sign(dir.path(), "a.example", &used).unwrap();
        drop(first);
        assert_eq!(super::used(dir.path()).unwrap(), used);
        assert_eq!(owner(dir.path()).unwrap().as_deref(), Some("a.example"));
        // It is refused at once, whether somebody runs there or not.
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
    fn a_lock_of_a_process_that_was_killed_and_waits_for_a_disk_is_passed_by() {
        let dir = tempfile::tempdir().unwrap();
        let _stuck = Hold::take(dir.path(), holder("a"), NOW).unwrap();
        // In its place a process that has ended, of which the kernel still tells.
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
        // Of one that nobody knows nothing is sure: it may live in another PID namespace.
        let _held = Hold::take(dir.path(), holder("a"), NOW).unwrap();
        fs::write(dir.path().join(LOCK), "4194305 1\ndriver b, process 4194305 at /x\n").unwrap();
        assert!(Hold::take(dir.path(), holder("a"), NOW).unwrap_err().to_string().contains("driver b"));
    }
}
