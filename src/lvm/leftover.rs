//! What an `lvm` that died leaves behind, and how to end its work.
//!
//! An lvm that is killed between its suspend and its resume leaves devices suspended, their I/O frozen, some with a new table
//! loaded that was never committed. Resuming such a device puts that table in force, and two volumes can then share extents. So,
//! while LVM's own lock of the group is held (which proves that no cooperating lvm runs): drop tables that are not in force,
//! remove devices without any table, then resume. Afterwards `lvchange --refresh` gives each device the table of the metadata.
//!
//! One that is killed while it activates a thin pool leaves the devices of the pool's metadata and data without the pool over them,
//! and LVM then refuses to activate the pool. `lvchange -an` of the pool does not take them away.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::host::{DmDevice, Kernel, files};
use crate::types::{VgName, VgUuid};

/// How long to wait for LVM's lock; a living lvm may hold it.
pub const LOCK_LIMIT: Duration = Duration::from_secs(20);
/// How often to look at it.
const LOCK_STEP: Duration = Duration::from_millis(20);

/// Why the group could not be brought in order.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// Somebody holds LVM's lock.
    #[error("{path} has been locked for {} s: another lvm is at work on the group", waited.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The lock file cannot be used.
    #[error("locking {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A device could not be brought in order.
    #[error("bringing dm device {name} in order")]
    Device {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The devices cannot be listed.
    #[error("listing the dm devices of volume group {vg}")]
    List {
        /// The group.
        vg: VgName,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What the UUIDs of the parts of a thin pool end with.
const PARTS: [&str; 2] = ["-tmeta", "-tdata"];

/// Whether a device is as a dead lvm may leave it.
fn is_left_over(device: &DmDevice) -> bool {
    device.suspended || device.has_inactive_table || !device.has_live_table || is_lost_part(device)
}

/// Whether a device is a part of a thin pool without the pool over it.
fn is_lost_part(device: &DmDevice) -> bool {
    device.open_count == 0 && PARTS.iter().any(|part| device.uuid.ends_with(part))
}

/// Brings the devices of a group in order, once LVM's lock could be had within `limit`. Gives the names of those that were not in
/// order; none means that nothing was done.
///
/// # Errors
/// See [`LeftoverError`]; the group must not be changed then.
pub fn settle(
    kernel: &dyn Kernel,
    locking_dir: &Path,
    name: &VgName,
    vg: &VgUuid,
    limit: Duration,
) -> Result<Vec<String>, LeftoverError> {
    let prefix = format!("LVM-{}", vg.compact());
    let list = || kernel.dm_list(&prefix).map_err(|source| LeftoverError::List { vg: name.clone(), source });
    if !list()?.iter().any(is_left_over) {
        return Ok(Vec::new());
    }
    // A living lvm suspends devices too: only under its lock can one be told from a dead one's.
    let _lock = lock(&locking_dir.join(format!("V_{name}")), limit)?;
    let left: Vec<DmDevice> = list()?.into_iter().filter(is_left_over).collect();
    for device in &left {
        mend(kernel, device).map_err(|source| LeftoverError::Device { name: device.name.clone(), source })?;
    }
    // A pool that has no table any more had its parts open until now.
    for device in list()?.iter().filter(|device| is_lost_part(device)) {
        tracing::warn!(device = %device.name, "a dead lvm left this part of a thin pool without the pool; removing it");
        let removed = kernel.dm_remove(&device.name);
        removed.map_err(|source| LeftoverError::Device { name: device.name.clone(), source })?;
    }
    Ok(left.into_iter().map(|device| device.name).collect())
}

fn mend(kernel: &dyn Kernel, device: &DmDevice) -> io::Result<()> {
    tracing::warn!(
        device = %device.name, suspended = device.suspended, inactive_table = device.has_inactive_table,
        live_table = device.has_live_table, "a dead lvm left this device behind; bringing it in order"
    );
    if device.has_inactive_table {
        kernel.dm_clear_inactive(&device.name)?;
    }
    if !device.has_live_table {
        return kernel.dm_remove(&device.name);
    }
    if device.suspended { kernel.dm_resume(&device.name) } else { Ok(()) }
}

/// Takes LVM's lock of a group. LVM unlinks the file when it is done, so a lock counts only on the file that the path names.
fn lock(path: &Path, limit: Duration) -> Result<Flock<File>, LeftoverError> {
    let fail = |source| LeftoverError::Lock { path: path.to_owned(), source };
    let begin = Instant::now();
    loop {
        let file = files::open_lock(path).map_err(fail)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => {
                let same = |on_disk: std::fs::Metadata| {
                    held.metadata().is_ok_and(|ours| ours.ino() == on_disk.ino() && ours.dev() == on_disk.dev())
                };
                if std::fs::metadata(path).is_ok_and(same) {
                    return Ok(held);
                }
            }
            Err((_, nix::Error::EWOULDBLOCK)) => {}
            Err((_, errno)) => return Err(fail(errno.into())),
        }
        if begin.elapsed() > limit {
            return Err(LeftoverError::Locked { path: path.to_owned(), waited: limit });
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "flock has no wait with a limit; the lock is looked at again, up to a limit"
        )]
        std::thread::sleep(LOCK_STEP);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::host::fake::Part;

    /// Devices of a group, and what was done with them.
    struct Devices {
        list: Vec<DmDevice>,
        done: Mutex<Vec<String>>,
        /// While something is done, the lock must be ours.
        lock: PathBuf,
        fails: bool,
    }

    impl Devices {
        fn note(&self, what: &str, name: &str) -> io::Result<()> {
            let file = File::open(&self.lock).unwrap();
            assert!(Flock::lock(file, FlockArg::LockSharedNonblock).is_err(), "{what} {name} without the lock");
            self.done.lock().unwrap().push(format!("{what} {name}"));
            if self.fails { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) }
        }
    }

    impl Part for Devices {
        fn dm_list(&self, uuid_prefix: &str) -> io::Result<Vec<DmDevice>> {
            Ok(self.list.iter().filter(|device| device.uuid.starts_with(uuid_prefix)).cloned().collect())
        }
        fn dm_clear_inactive(&self, name: &str) -> io::Result<()> {
            self.note("clear", name)
        }
        fn dm_remove(&self, name: &str) -> io::Result<()> {
            self.note("remove", name)
        }
        fn dm_resume(&self, name: &str) -> io::Result<()> {
            self.note("resume", name)
        }
    }

    fn vg() -> VgUuid {
        VgUuid::from_compact(&"v".repeat(32)).unwrap()
    }

    fn device(name: &str, suspended: bool, has_live_table: bool, has_inactive_table: bool) -> DmDevice {
        let uuid = format!("LVM-{}{:0>32}", vg().compact(), name);
        DmDevice { name: name.into(), uuid, major: 253, minor: 1, open_count: 0, suspended, has_live_table, has_inactive_table }
    }

    fn devices(dir: &Path, list: Vec<DmDevice>) -> Devices {
        Devices { list, done: Mutex::default(), lock: dir.join("V_vg0"), fails: false }
    }

    fn settled(devices: &Devices) -> Result<Vec<String>, LeftoverError> {
        let dir = devices.lock.parent().unwrap();
        settle(devices, dir, &VgName::new("vg0").unwrap(), &vg(), Duration::from_millis(50))
    }

    #[test]
    fn a_table_that_never_came_into_force_is_dropped_before_the_device_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut foreign = device("foreign", true, true, true);
        foreign.uuid = foreign.uuid.replace('v', "w");
        let list = vec![
            device("good", false, true, false),
            device("half", true, true, true),
            device("frozen", true, true, false),
            device("loaded", false, true, true),
            device("empty", false, false, false),
            device("new", true, false, true),
            foreign,
        ];
        let devices = devices(dir.path(), list);
        assert_eq!(settled(&devices).unwrap(), ["half", "frozen", "loaded", "empty", "new"]);
        let done = devices.done.lock().unwrap();
        let expected = ["clear half", "resume half", "resume frozen", "clear loaded", "remove empty", "clear new", "remove new"];
        assert_eq!(*done, expected);
    }

    #[test]
    fn parts_of_a_pool_that_is_not_there_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let part = |name: &str, suffix: &str, open_count: u32| {
            let whole = device(name, false, true, false);
            DmDevice { uuid: format!("{}{suffix}", whole.uuid), open_count, ..whole }
        };
        let pool = [part("used-meta", "-tmeta", 1), part("used-data", "-tdata", 1), part("used", "-tpool", 0)];
        let lost = [part("lost-meta", "-tmeta", 0), part("lost-data", "-tdata", 0)];
        let devices = devices(dir.path(), [&pool[..], &lost[..]].concat());
        assert_eq!(settled(&devices).unwrap(), ["lost-meta", "lost-data"]);
        assert_eq!(*devices.done.lock().unwrap(), ["remove lost-meta", "remove lost-data"]);
    }

    #[test]
    fn where_all_is_in_order_nothing_is_done_and_no_lock_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path(), vec![device("good", false, true, false)]);
        let held = lock(&devices.lock, LOCK_LIMIT).unwrap();
        assert_eq!(settled(&devices).unwrap(), Vec::<String>::new());
        drop(held);
        std::fs::remove_file(&devices.lock).unwrap();
        settled(&devices).unwrap();
        assert!(!devices.lock.exists() && devices.done.lock().unwrap().is_empty());
    }

    #[test]
    fn a_living_lvm_is_waited_for_and_left_in_peace() {
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path(), vec![device("half", true, true, true)]);
        let held = lock(&devices.lock, LOCK_LIMIT).unwrap();
        let error = settled(&devices).unwrap_err();
        assert!(matches!(&error, LeftoverError::Locked { path, .. } if *path == devices.lock), "{error}");
        assert!(devices.done.lock().unwrap().is_empty());
        // LVM unlinks its lock file before it lets go of it: a lock on that one proves nothing.
        std::fs::remove_file(&devices.lock).unwrap();
        assert_eq!(settled(&devices).unwrap(), ["half"]);
        drop(held);
    }

    #[test]
    fn a_device_that_cannot_be_mended_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let devices = Devices { fails: true, ..devices(dir.path(), vec![device("half", true, true, true)]) };
        assert!(matches!(settled(&devices), Err(LeftoverError::Device { name, .. }) if name == "half"));
        // It was not resumed with the wrong table loaded.
        assert_eq!(*devices.done.lock().unwrap(), ["clear half"]);
    }
}
