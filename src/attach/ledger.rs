//! The attach ledger of a node's local volume groups: a preallocated file in the state directory.
//!
//! Two blocks a volume: the grant, and the holder's acknowledgement, each with one writer. A block is written with `O_DIRECT` and
//! `O_DSYNC`, so it is old or new after a power cut, and on the disk before the call is answered. A file that was lost costs
//! nothing but the attachments themselves: epochs start at the clock and are never used twice.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::host::files::DurableFile;
use crate::types::{LvUuid, NodeId};

use super::grant::{Ack, Grant, State};
use super::slot::{BLOCK, Block, decode, encode};

/// Slots by which the file grows.
const STEP: usize = 64;
/// The boot id of the running kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A call on the file failed.
    #[error("{what} the attach ledger {path}")]
    Io {
        /// Reading, writing, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A block holds neither zeros nor what this driver writes.
    #[error(
        "block {block} of the attach ledger {path} is damaged ({reason}); if no volume of this node is in use, move the file away and \
         start the driver again"
    )]
    Damaged {
        /// Number of the 4 KiB block.
        block: u64,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The running kernel's boot id cannot be read.
    #[error("reading {BOOT_ID}")]
    Boot(#[source] io::Error),
}

/// The ledger, held in memory and written through.
pub struct Ledger {
    path: PathBuf,
    /// `None` where somebody only looks.
    file: Option<DurableFile>,
    boot: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    slots: BTreeMap<LvUuid, u64>,
    states: BTreeMap<LvUuid, State>,
    free: Vec<u64>,
    length: u64,
    last_epoch: u64,
}

impl Ledger {
    /// Opens the ledger of a state directory, or makes an empty one.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds damage.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        Self::open_in_boot(state_dir, boot_id()?)
    }

    /// Reads the ledger of a state directory, which a driver may have open. It cannot be written then.
    ///
    /// # Errors
    /// The file cannot be read, or holds damage.
    pub fn look(state_dir: &Path) -> Result<Self, LedgerError> {
        Self::read(state_dir, boot_id()?)
    }

    /// As [`Ledger::open`], in a boot of the machine that is told.
    pub(crate) fn open_in_boot(state_dir: &Path, boot: String) -> Result<Self, LedgerError> {
        let mut ledger = Self::read(state_dir, boot)?;
        ledger.file = Some(DurableFile::open(&ledger.path).map_err(|source| ledger.io("opening", source))?);
        Ok(ledger)
    }

    fn read(state_dir: &Path, boot: String) -> Result<Self, LedgerError> {
        let path = state_dir.join("attachments");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(LedgerError::Io { what: "reading", path, source }),
        };
        match Inner::load(&bytes) {
            Ok(inner) => Ok(Self { path, file: None, boot, inner: Mutex::new(inner) }),
            Err((block, reason)) => Err(LedgerError::Damaged { block, path, reason }),
        }
    }

    /// The boot id of the running kernel.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// What is known of a volume.
    pub fn state(&self, lv: &LvUuid) -> State {
        self.lock().states.get(lv).cloned().unwrap_or_default()
    }

    /// Every grant in force.
    pub fn grants(&self) -> Vec<Grant> {
        self.lock().states.values().filter_map(|state| state.grant.clone()).collect()
    }

    /// How many volumes a node has attached.
    pub fn attached(&self, node: &NodeId) -> usize {
        self.lock().states.values().filter(|state| state.grant.as_ref().is_some_and(|grant| grant.holder == *node)).count()
    }

    /// An epoch that was never used: the clock in milliseconds, or one more than the last where the clock went back.
    pub fn next_epoch(&self) -> u64 {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(clock.as_millis()).unwrap_or(u64::MAX).max(self.lock().last_epoch.saturating_add(1))
    }

    /// Writes a grant; `given_in` is as in [`State`].
    ///
    /// # Errors
    /// The file cannot be written; the grant is then not in force.
    pub fn grant(&self, grant: &Grant, given_in: Option<&str>) -> Result<(), LedgerError> {
        let given_in = given_in.map(str::to_owned);
        let mut inner = self.lock();
        let slot = self.slot(&mut inner, &grant.lv)?;
        self.write("ledger.grant", slot * 2, &Block::Grant(grant.clone(), given_in.clone()), &grant.lv)?;
        inner.last_epoch = inner.last_epoch.max(grant.epoch);
        let state = inner.states.entry(grant.lv.clone()).or_default();
        (state.grant, state.given_in) = (Some(grant.clone()), given_in);
        Ok(())
    }

    /// Writes the holder's word.
    ///
    /// # Errors
    /// The file cannot be written; the old word stands then.
    pub fn acknowledge(&self, lv: &LvUuid, ack: &Ack) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        let slot = self.slot(&mut inner, lv)?;
        self.write("ledger.acknowledge", slot * 2 + 1, &Block::Ack(lv.clone(), ack.clone()), lv)?;
        inner.states.entry(lv.clone()).or_default().ack = Some(ack.clone());
        Ok(())
    }

    /// Ends a grant and gives its slot back.
    ///
    /// # Errors
    /// The file cannot be written; the grant is then still in force.
    pub fn free(&self, lv: &LvUuid) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        let Some(slot) = inner.slots.get(lv).copied() else { return Ok(()) };
        // The grant goes first: an acknowledgement without a grant means nothing.
        self.write("ledger.free", slot * 2, &Block::Free, lv)?;
        if let Some(state) = inner.states.get_mut(lv) {
            state.grant = None;
        }
        self.write("ledger.free", slot * 2 + 1, &Block::Free, lv)?;
        inner.slots.remove(lv);
        inner.states.remove(lv);
        inner.free.push(slot);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, inner: &mut Inner, lv: &LvUuid) -> Result<u64, LedgerError> {
        if let Some(slot) = inner.slots.get(lv) {
            return Ok(*slot);
        }
        if inner.free.is_empty() {
            // In one write: each waits for the disk.
            let (zeros, from) = (vec![0; STEP * 2 * BLOCK], inner.length * 2 * BLOCK as u64);
            let extended = self.file().and_then(|file| file.write("ledger.extend", &self.path.display(), &zeros, from));
            extended.map_err(|source| self.io("extending", source))?;
            let length = inner.length + STEP as u64;
            inner.free = (inner.length..length).rev().collect();
            inner.length = length;
        }
        let slot = inner.free.pop().unwrap_or(inner.length);
        inner.slots.insert(lv.clone(), slot);
        Ok(slot)
    }

    fn write(&self, name: &'static str, block: u64, content: &Block, lv: &LvUuid) -> Result<(), LedgerError> {
        let written = self.file().and_then(|file| file.write(name, lv, &encode(content), block * BLOCK as u64));
        written.map_err(|source| self.io("writing", source))
    }

    fn file(&self) -> io::Result<&DurableFile> {
        self.file.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn io(&self, what: &'static str, source: io::Error) -> LedgerError {
        LedgerError::Io { what, path: self.path.clone(), source }
    }
}

fn boot_id() -> Result<String, LedgerError> {
    let boot = std::fs::read_to_string(BOOT_ID).map_err(LedgerError::Boot)?;
    Ok(boot.trim().chars().take(64).collect())
}

impl Inner {
    /// Reads the file; the error is the number of the damaged block and the reason.
    fn load(bytes: &[u8]) -> Result<Self, (u64, &'static str)> {
        let mut inner = Inner::default();
        // A half-made last slot is one whose extension a crash cut short: never used yet.
        for (slot, pair) in (0..).zip(bytes.chunks_exact(2 * BLOCK)) {
            let (grant, ack) = pair.split_at(BLOCK);
            let grant = decode(grant).map_err(|reason| (slot * 2, reason))?;
            let ack = decode(ack).map_err(|reason| (slot * 2 + 1, reason))?;
            inner.length = slot + 1;
            let Block::Grant(grant, given_in) = grant else {
                inner.free.push(slot);
                continue;
            };
            let ack = match ack {
                Block::Ack(lv, ack) if lv == grant.lv => Some(ack),
                _ => None,
            };
            inner.last_epoch = inner.last_epoch.max(grant.epoch);
            inner.slots.insert(grant.lv.clone(), slot);
            inner.states.insert(grant.lv.clone(), State { grant: Some(grant), given_in, ack });
        }
        inner.free.reverse();
        Ok(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::grant::{AckState, Mode};
    use super::*;
    use crate::types::{AccessMode, AccessType, LvName, VgUuid};

    fn lv(n: usize) -> LvUuid {
        LvUuid::from_compact(&format!("{n:0>32}")).unwrap()
    }

    fn grant(n: usize, epoch: u64) -> Grant {
        Grant {
            vg: VgUuid::from_compact(&"v".repeat(32)).unwrap(),
            lv: lv(n),
            name: Some(LvName::new(format!("pvc-{n}")).unwrap()),
            epoch,
            mode: Mode::new(AccessType::Block, AccessMode::SingleNodeWriter, false),
            holder: NodeId::new("a").unwrap(),
        }
    }

    #[test]
    fn grants_survive_a_restart_and_slots_are_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        for n in 0..100 {
            ledger.grant(&grant(n, 1000 + n as u64), Some("b")).unwrap();
        }
        let ack = Ack { epoch: 1003, boot: ledger.boot().to_owned(), state: AckState::Staged };
        ledger.acknowledge(&lv(3), &ack).unwrap();
        ledger.free(&lv(4)).unwrap();
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.grants().len(), 99);
        assert_eq!(ledger.attached(&NodeId::new("a").unwrap()), 99);
        let given_in = Some("b".to_owned());
        assert_eq!(ledger.state(&lv(3)), State { grant: Some(grant(3, 1003)), given_in, ack: Some(ack) });
        assert_eq!(ledger.state(&lv(4)), State::default());
        let size = std::fs::metadata(dir.path().join("attachments")).unwrap().len();
        for n in 200..229 {
            ledger.grant(&grant(n, 5000), None).unwrap();
        }
        assert_eq!(std::fs::metadata(dir.path().join("attachments")).unwrap().len(), size);
        assert_eq!(ledger.grants().len(), 128);
    }

    #[test]
    fn who_only_looks_sees_the_grants_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Ledger::look(dir.path()).unwrap().grants(), []);
        assert!(!dir.path().join("attachments").exists());
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.grant(&grant(1, 1000), None).unwrap();
        let looked = Ledger::look(dir.path()).unwrap();
        assert_eq!(looked.grants(), ledger.grants());
        assert!(matches!(looked.grant(&grant(2, 1001), None), Err(LedgerError::Io { what: "writing", .. })));
        assert!(matches!(looked.free(&lv(1)), Err(LedgerError::Io { what: "writing", .. })));
        assert_eq!(Ledger::open(dir.path()).unwrap().grants(), ledger.grants());
    }

    #[test]
    fn no_epoch_comes_twice_even_when_the_file_is_lost_or_the_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let first = ledger.next_epoch();
        ledger.grant(&grant(1, u64::MAX - 5), None).unwrap();
        assert_eq!(ledger.next_epoch(), u64::MAX - 4);
        std::fs::remove_file(dir.path().join("attachments")).unwrap();
        assert!(Ledger::open(dir.path()).unwrap().next_epoch() >= first);
    }

    #[test]
    fn damage_is_told_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        Ledger::open(dir.path()).unwrap().grant(&grant(1, 1), None).unwrap();
        let path = dir.path().join("attachments");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Ledger::open(dir.path()).err(), Some(LedgerError::Damaged { block: 0, .. })));
    }
}
