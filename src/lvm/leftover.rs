//! What an `lvm` that died leaves behind, and how to repair it.
//!
//! An lvm killed between suspend and resume leaves devices suspended and their I/O frozen, some with a new table loaded that was
//! never committed. Resuming such a device activates that table, and two volumes can then share extents. So we hold LVM's own
//! lock of the group, which proves that no cooperating lvm runs, and then clear inactive tables, remove devices without any
//! table, and resume the rest. Afterwards `lvchange --refresh` gives each device the table of the metadata.
//!
//! An lvm killed while it activates a thin pool leaves the pool's metadata and data devices without the pool over them. LVM then
//! refuses to activate the pool, and `lvchange -an` of the pool does not remove them.
//!
//! A thin pool gets a volume by two messages: create it, then count the transaction. An lvm killed between them leaves a device
//! in the pool that LVM does not know it made. Its next command would create it again, and the pool refuses that forever. Nobody
//! can have used the device before the transaction is counted, so we delete it and LVM creates it.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::host::{DmDevice, Kernel};
use crate::types::{VgName, VgUuid};

use super::lock::{Lock, LockError};
use super::metadata::{SegmentKind, Vg};

/// Why the group could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// LVM's lock could not be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A device could not be repaired.
    #[error("cannot repair dm device {name}")]
    Device {
        name: String,
        #[source]
        source: io::Error,
    },
    /// The devices cannot be listed.
    #[error("cannot list the dm devices of volume group {vg}")]
    List {
        vg: VgName,
        #[source]
        source: io::Error,
    },
}

/// Suffixes of the dm UUIDs of a thin pool's parts.
const PARTS: [&str; 2] = ["-tmeta", "-tdata"];

/// Whether a dead lvm may have left a device in this state.
fn is_left_over(device: &DmDevice) -> bool {
    device.suspended || device.has_inactive_table || !device.has_live_table || is_lost_part(device)
}

/// Whether a device is part of a thin pool without the pool over it.
fn is_lost_part(device: &DmDevice) -> bool {
    device.open_count == 0 && PARTS.iter().any(|part| device.uuid.ends_with(part))
}

/// Repairs the devices of a group, after taking LVM's lock within `limit`. Returns the names of the devices that needed it; an
/// empty list means that nothing was done.
///
/// # Errors
/// See [`LeftoverError`]; do not change the group then.
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
    // A living lvm suspends devices too. Only its lock distinguishes its devices from a dead one's.
    let _lock = Lock::take(locking_dir, name, limit)?;
    let left: Vec<DmDevice> = list()?.into_iter().filter(is_left_over).collect();
    for device in &left {
        repair(kernel, device).map_err(|source| LeftoverError::Device { name: device.name.clone(), source })?;
    }
    // A pool that lost its table kept its parts open until now.
    for device in list()?.iter().filter(|device| is_lost_part(device)) {
        tracing::warn!(device = %device.name, "a dead lvm left this part of a thin pool without the pool; removing it");
        let removed = kernel.dm_remove(&device.name);
        removed.map_err(|source| LeftoverError::Device { name: device.name.clone(), source })?;
    }
    Ok(left.into_iter().map(|device| device.name).collect())
}

/// A thin volume whose transaction is committed in the metadata, but perhaps not finished in the pool.
struct HalfMade {
    /// The dm UUID of the pool's device.
    pool: String,
    /// The pool's transaction count once it is finished.
    transaction: u64,
    device_id: u64,
}

fn half_made(vg: &Vg) -> Vec<HalfMade> {
    let mut half_made = Vec::new();
    for pool in &vg.lvs {
        let Some(SegmentKind::ThinPool { transaction_id: transaction, pending: 1.., .. }) =
            pool.segments.first().map(|segment| &segment.kind)
        else {
            continue;
        };
        for thin in vg.thins(&pool.name) {
            if let Some(SegmentKind::Thin { device_id, transaction_id, .. }) = thin.segments.first().map(|segment| &segment.kind)
                && transaction_id + 1 == *transaction
            {
                let pool = format!("LVM-{}{}-tpool", vg.uuid.compact(), pool.uuid.compact());
                half_made.push(HalfMade { pool, transaction: *transaction, device_id: *device_id });
            }
        }
    }
    half_made
}

/// The result of [`undo_half_made`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// The pools with an open transaction, even if nothing was made yet. LVM finishes it when a volume in the pool is refreshed,
    /// or with its next creation or removal there.
    pub open: Vec<String>,
    /// A pool is not active, as after a power cut, and must be checked once it is.
    pub unseen: bool,
}

/// Deletes from thin pools the volumes that a dead lvm created without counting the transaction, after taking LVM's lock within
/// `limit`.
///
/// # Errors
/// See [`LeftoverError`]; do not change the group then.
pub fn undo_half_made(kernel: &dyn Kernel, locking_dir: &Path, vg: &Vg, limit: Duration) -> Result<Undone, LeftoverError> {
    let half_made = half_made(vg);
    let mut undone = Undone::default();
    if half_made.is_empty() {
        return Ok(undone);
    }
    let _lock = Lock::take(locking_dir, &vg.name, limit)?;
    for HalfMade { pool, transaction, device_id } in half_made {
        let failed = |source| LeftoverError::Device { name: pool.clone(), source };
        let Some(device) = kernel.dm_find(&pool).map_err(failed)? else {
            undone.unseen = true;
            continue;
        };
        let status = kernel.dm_status(&device.name).map_err(failed)?;
        let counted = status.first().and_then(|target| target.rest.split(' ').next()?.parse::<u64>().ok());
        if counted.is_none_or(|counted| counted + 1 != transaction) {
            continue;
        }
        tracing::warn!(
            pool = device.name,
            device_id,
            "a dead lvm left a thin volume half-made; deleting it so that LVM can create it"
        );
        match kernel.dm_message(&device.name, &format!("delete {device_id}")) {
            // It was not created yet.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODATA) => {}
            other => other.map_err(failed)?,
        }
        undone.open.push(device.name);
    }
    Ok(undone)
}

fn repair(kernel: &dyn Kernel, device: &DmDevice) -> io::Result<()> {
    tracing::warn!(
        device = %device.name, suspended = device.suspended, inactive_table = device.has_inactive_table,
        live_table = device.has_live_table, "a dead lvm left this device behind; repairing it"
    );
    if device.has_inactive_table {
        kernel.dm_clear_inactive(&device.name)?;
    }
    if !device.has_live_table {
        return kernel.dm_remove(&device.name);
    }
    if device.suspended { kernel.dm_resume(&device.name) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use nix::fcntl::{Flock, FlockArg};

    use super::*;
    use crate::host::DmTarget;
    use crate::host::fake::Part;

    /// Devices of a group, and what was done to them.
    struct Devices {
        list: Vec<DmDevice>,
        done: Mutex<Vec<String>>,
        /// The lock, which every change must hold.
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

    fn held(dir: &Path) -> Lock {
        Lock::take(dir, &VgName::new("vg0").unwrap(), Duration::ZERO).unwrap()
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
    fn parts_of_a_pool_that_is_away_are_removed() {
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
    fn without_leftovers_nothing_is_done_and_no_lock_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path(), vec![device("good", false, true, false)]);
        let held = held(dir.path());
        assert_eq!(settled(&devices).unwrap(), Vec::<String>::new());
        drop(held);
        std::fs::remove_file(&devices.lock).unwrap();
        settled(&devices).unwrap();
        assert!(!devices.lock.exists() && devices.done.lock().unwrap().is_empty());
    }

    #[test]
    fn devices_of_a_living_lvm_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path(), vec![device("half", true, true, true)]);
        let held = held(dir.path());
        let error = settled(&devices).unwrap_err();
        assert!(matches!(&error, LeftoverError::Lock(LockError::Locked { path, .. }) if *path == devices.lock), "{error}");
        assert!(devices.done.lock().unwrap().is_empty());
        // LVM unlinks its lock file before it releases it: a lock on the unlinked file proves nothing.
        std::fs::remove_file(&devices.lock).unwrap();
        assert_eq!(settled(&devices).unwrap(), ["half"]);
        drop(held);
    }

    #[test]
    fn a_device_that_cannot_be_repaired_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let devices = Devices { fails: true, ..devices(dir.path(), vec![device("half", true, true, true)]) };
        assert!(matches!(settled(&devices), Err(LeftoverError::Device { name, .. }) if name == "half"));
        // It was not resumed with the wrong table loaded.
        assert_eq!(*devices.done.lock().unwrap(), ["clear half"]);
    }

    /// A pool of the fixture with an open transaction, and the messages that it got.
    struct Pool {
        active: bool,
        counted: u64,
        missing: bool,
        messages: Mutex<Vec<String>>,
    }

    impl Part for Pool {
        fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
            Ok(self.active.then(|| DmDevice { uuid: uuid.into(), ..device("vg-pool-tpool", false, true, false) }))
        }
        fn dm_status(&self, _: &str) -> io::Result<Vec<DmTarget>> {
            let rest = format!("{} 12/1024 0/16384 - rw discard_passdown queue_if_no_space - 1024", self.counted);
            Ok(vec![DmTarget { start: 0, length: 2_097_152, kind: "thin-pool".into(), rest }])
        }
        fn dm_message(&self, name: &str, message: &str) -> io::Result<()> {
            self.messages.lock().unwrap().push(format!("{name} {message}"));
            if self.missing { Err(io::Error::from_raw_os_error(nix::libc::ENODATA)) } else { Ok(()) }
        }
    }

    #[test]
    fn a_thin_volume_of_an_open_transaction_is_deleted_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let text = include_str!("../../tests/fixtures/lvm/snapshots.txt");
        let text = &text.replacen("transaction_id = 5", "transaction_id = 4", 1);
        let pending = text.replacen("zero_new_blocks = 1\n", "zero_new_blocks = 1\nmessage1 {\ncreate = \"x\"\n}\n", 1);
        let (settled, pending) = (Vg::parse(text).unwrap(), Vg::parse(&pending).unwrap());
        let undone = |vg: &Vg, counted: u64, missing: bool| {
            let pool = Pool { active: true, counted, missing, messages: Mutex::default() };
            let undone = undo_half_made(&pool, dir.path(), vg, Duration::from_millis(50)).unwrap();
            assert!(!undone.unseen);
            (undone.open, pool.messages.into_inner().unwrap())
        };
        let open = vec!["vg-pool-tpool".to_owned()];
        let messages = vec!["vg-pool-tpool delete 4".to_owned()];
        assert_eq!(undone(&pending, 3, false), (open.clone(), messages.clone()));
        assert_eq!(undone(&pending, 3, true), (open, messages));
        // Counted: the volume is LVM's and may be in use. A count that does not fit is not LVM's doing.
        for (vg, counted) in [(&pending, 4), (&pending, 2), (&settled, 3)] {
            assert_eq!(undone(vg, counted, false), (vec![], vec![]));
        }
        let away = Pool { active: false, counted: 3, missing: false, messages: Mutex::default() };
        let undone = undo_half_made(&away, dir.path(), &pending, Duration::from_millis(50)).unwrap();
        assert_eq!(undone, Undone { open: vec![], unseen: true });
    }
}
