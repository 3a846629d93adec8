//! The attach ledger of a node's local volume groups: a preallocated file in the state directory.
//!
//! Each volume has two blocks: the grant, and the holder's acknowledgement. The ledger writes a block with `O_DIRECT` and `O_DSYNC`, so
//! after a power cut it is old or new, and it is on the disk before the call is answered. A lost file costs only the attachments
//! themselves: epochs start at the clock and are never reused.
//!
//! A damaged block stops nobody: it counts as free, and the driver keeps a copy. A power cut tears only blocks that an earlier version
//! wrote; the machine has rebooted then, and nothing is in use. Damage from this boot can hide a volume that is in use. So unless the
//! damage is certainly older, the ledger is [unsure](Ledger::is_unsure), and a release asks the kernel too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::host::files::{self, DurableFile};
use crate::types::{LvUuid, NodeId};

use super::grant::{Ack, Grant, State};
use super::slot::{BLOCK, Block, decode, encode};

/// Slots by which the file grows.
const STEP: usize = 64;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const FILE: &str = "attachments";
/// File with the boot id of the last boot in which a driver had the ledger open.
const BOOT: &str = "boot";
const NEW_BOOT: &str = "boot.new";

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{what} the attach ledger {path}")]
    Io {
        /// The call that failed: reading, writing, …
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("reading {BOOT_ID}")]
    Boot(#[source] io::Error),
}

/// A block that holds neither zeros nor a record of this driver; it counts as free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Number of the 4 KiB block.
    pub block: u64,
    pub reason: &'static str,
    /// The readable content; zeros if the disk cannot read the block.
    bytes: Vec<u8>,
}

/// The ledger, held in memory and written through.
pub struct Ledger {
    path: PathBuf,
    /// Damage in the file. Opening it for writing mends it.
    damage: Vec<Damage>,
    unsure: bool,
    /// Opened by [`Ledger::look`].
    read_only: bool,
    /// Opened for writing: at the start, or with the first write that the filesystem allows.
    file: OnceLock<DurableFile>,
    boot: String,
    /// [`Ledger::mark_boot`] succeeded, so the next driver cannot mistake damage from this boot for older damage.
    boot_marked: AtomicBool,
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
    /// Opens the ledger of a state directory, or makes an empty one. It copies each damaged block to a file next to the ledger and frees
    /// the block; if the copy fails, the block stays. If the file cannot be opened for writing, each later write tries again.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        Self::open_in_boot(state_dir, boot_id()?)
    }

    pub fn is_in(state_dir: &Path) -> bool {
        state_dir.join(FILE).exists()
    }

    /// Opens the ledger of a state directory read-only; a driver may have it open.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn look(state_dir: &Path) -> Result<Self, LedgerError> {
        Self::read(state_dir, boot_id()?)
    }

    /// As [`Ledger::open`], with this boot id.
    pub(crate) fn open_in_boot(state_dir: &Path, boot: String) -> Result<Self, LedgerError> {
        let mut ledger = Self::read(state_dir, boot)?;
        ledger.read_only = false;
        if let Err(error) = ledger.opened() {
            let path = ledger.path.display();
            tracing::warn!(%path, %error, "the attach ledger cannot be written; until it can, the driver attaches and detaches nothing");
        }
        ledger.mend(state_dir);
        if let Err(error) = ledger.mark_boot() {
            let path = ledger.path.display();
            tracing::warn!(%path, %error, "the boot mark of the attach ledger can be neither written nor removed; nothing is attached until it can");
        }
        Ok(ledger)
    }

    /// Writes the mark of this boot, before any grant in it, since damage found later may be from this boot. If the mark cannot be
    /// written, the old one is removed instead: damage found without a mark also counts as of this boot.
    fn mark_boot(&self) -> io::Result<()> {
        let state_dir = self.path.parent().unwrap_or(Path::new("/"));
        let (mark, new) = (state_dir.join(BOOT), state_dir.join(NEW_BOOT));
        if read_boot(state_dir).as_deref() != Some(&self.boot) {
            let marked = files::write(&new, self.boot.as_bytes()).and_then(|()| files::rename(&new, &mark));
            if let Err(error) = marked {
                tracing::warn!(
                    mark = %mark.display(),
                    %error,
                    "the boot mark cannot be written; damage of the attach ledger will count as of the boot that finds it"
                );
                if read_boot(state_dir).is_some() {
                    files::remove_file(&mark)?;
                }
            }
        }
        self.boot_marked.store(true, Ordering::Release);
        Ok(())
    }

    /// Copies each damaged block and frees it. A block that cannot be copied is not used again.
    fn mend(&mut self, state_dir: &Path) {
        let mut kept_off = BTreeSet::new();
        for Damage { block, reason, bytes } in &self.damage {
            let copy = state_dir.join(format!("{}{block}", damaged(self.unsure, &self.boot)));
            let shown = copy.display();
            if let Err(error) = files::write(&copy, bytes) {
                kept_off.insert(block / 2);
                tracing::warn!(block, reason, copy = %shown, %error, "a damaged block of the attach ledger cannot be copied and stays");
                continue;
            }
            tracing::warn!(block, reason, copy = %shown, "a block of the attach ledger is damaged and counts as free; a copy is kept");
            let free = encode(&Block::Free);
            let freed = self.opened().and_then(|file| file.write("ledger.mend", block, &free, block * BLOCK as u64));
            if let Err(error) = freed {
                tracing::warn!(block, %error, "the damaged block of the attach ledger cannot be freed; the next start finds it again");
            }
        }
        self.lock().free.retain(|slot| !kept_off.contains(slot));
    }

    fn read(state_dir: &Path, boot: String) -> Result<Self, LedgerError> {
        let path = state_dir.join(FILE);
        let (bytes, unreadable) = match read_file(&path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(source) => return Err(LedgerError::Io { what: "reading", path, source }),
        };
        let (inner, damage) = Inner::load(&bytes, &unreadable);
        let boot_before = read_boot(state_dir).is_some_and(|last| last != boot);
        let unsure = (!damage.is_empty() && !boot_before) || was_unsure(state_dir, &boot);
        let (file, boot_marked) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Self { path, damage, unsure, read_only: true, file, boot, boot_marked, inner: Mutex::new(inner) })
    }

    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Whether a record from this boot may be lost, so that a volume without a grant may be in use.
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// The boot id of the running kernel.
    pub fn boot(&self) -> &str {
        &self.boot
    }

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

    /// An epoch that was never used: the clock in milliseconds, or one more than the last epoch if the clock went back.
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

    /// Writes the holder's acknowledgement.
    ///
    /// # Errors
    /// The file cannot be written; the old acknowledgement then remains.
    pub fn acknowledge(&self, lv: &LvUuid, ack: &Ack) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        let slot = self.slot(&mut inner, lv)?;
        self.write("ledger.acknowledge", slot * 2 + 1, &Block::Ack(lv.clone(), ack.clone()), lv)?;
        inner.states.entry(lv.clone()).or_default().ack = Some(ack.clone());
        Ok(())
    }

    /// Ends a grant and frees its slot.
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
            // One write for all of it, since each write waits for the disk.
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

    /// The file, with this boot marked.
    fn file(&self) -> io::Result<&DurableFile> {
        let file = self.opened()?;
        if !self.boot_marked.load(Ordering::Acquire) {
            self.mark_boot()?;
        }
        Ok(file)
    }

    fn opened(&self) -> io::Result<&DurableFile> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = DurableFile::open(&self.path)?;
        Ok(self.file.get_or_init(|| file))
    }

    fn io(&self, what: &'static str, source: io::Error) -> LedgerError {
        LedgerError::Io { what, path: self.path.clone(), source }
    }
}

fn boot_id() -> Result<String, LedgerError> {
    let boot = fs::read_to_string(BOOT_ID).map_err(LedgerError::Boot)?;
    Ok(boot.trim().chars().take(64).collect())
}

/// The last boot in which a driver had the ledger open.
fn read_boot(state_dir: &Path) -> Option<String> {
    fs::read_to_string(state_dir.join(BOOT)).ok()
}

/// Prefix of the file name of a damaged block's copy; the number of the block follows.
fn damaged(unsure: bool, boot: &str) -> String {
    let when = if unsure { "damaged" } else { "torn" };
    format!("{FILE}.{when}.{boot}.")
}

/// Whether a driver already found and mended damage in this boot that may be from this boot.
fn was_unsure(state_dir: &Path, boot: &str) -> bool {
    let prefix = damaged(true, boot);
    let Ok(entries) = fs::read_dir(state_dir) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
}

/// Reads the file. Also returns the numbers of the blocks that the disk cannot read.
fn read_file(path: &Path) -> io::Result<(Vec<u8>, BTreeSet<u64>)> {
    match fs::read(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {}
        read => return read.map(|bytes| (bytes, BTreeSet::new())),
    }
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let (mut bytes, mut unreadable) = (Vec::new(), BTreeSet::new());
    for (block, at) in (0..).zip((0..length).step_by(BLOCK)) {
        let end = bytes.len();
        bytes.resize(end + usize::try_from(length - at).unwrap_or(BLOCK).min(BLOCK), 0);
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes[end..]));
        if read.is_err() {
            bytes[end..].fill(0);
            unreadable.insert(block);
        }
    }
    Ok((bytes, unreadable))
}

impl Inner {
    /// Reads the content of the file, in which some blocks are unreadable. Also returns the damage.
    fn load(bytes: &[u8], unreadable: &BTreeSet<u64>) -> (Self, Vec<Damage>) {
        let mut inner = Inner::default();
        let mut damage = Vec::new();
        // A short last block is filled with zeros: the missing part was never written, or is lost.
        let mut block = |number: u64, part: &[u8]| {
            let mut whole = [0; BLOCK];
            whole[..part.len()].copy_from_slice(part);
            let read = if unreadable.contains(&number) { Err("the disk cannot read it") } else { decode(&whole) };
            read.unwrap_or_else(|reason| {
                damage.push(Damage { block: number, reason, bytes: part.to_owned() });
                Block::Free
            })
        };
        for (slot, pair) in (0..).zip(bytes.chunks(2 * BLOCK)) {
            let (grant, ack) = pair.split_at(pair.len().min(BLOCK));
            let (grant, ack) = (block(slot * 2, grant), block(slot * 2 + 1, ack));
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
        (inner, damage)
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
    fn grants_survive_a_restart_and_slots_are_reused() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        for n in 0..100 {
            ledger.grant(&grant(n, 1000 + n as u64), Some("b")).unwrap();
        }
        let ack = Ack { epoch: 1003, boot: ledger.boot().to_owned(), state: AckState::Staged, at: BTreeSet::new() };
        ledger.acknowledge(&lv(3), &ack).unwrap();
        ledger.free(&lv(4)).unwrap();
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.grants().len(), 99);
        assert_eq!(ledger.attached(&NodeId::new("a").unwrap()), 99);
        let given_in = Some("b".to_owned());
        assert_eq!(ledger.state(&lv(3)), State { grant: Some(grant(3, 1003)), given_in, ack: Some(ack) });
        assert_eq!(ledger.state(&lv(4)), State::default());
        let size = fs::metadata(dir.path().join("attachments")).unwrap().len();
        for n in 200..229 {
            ledger.grant(&grant(n, 5000), None).unwrap();
        }
        assert_eq!(fs::metadata(dir.path().join("attachments")).unwrap().len(), size);
        assert_eq!(ledger.grants().len(), 128);
    }

    #[test]
    fn a_read_only_ledger_has_the_grants_and_writes_nothing() {
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
    fn no_epoch_is_reused_even_if_the_file_is_lost_or_the_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let first = ledger.next_epoch();
        ledger.grant(&grant(1, u64::MAX - 5), None).unwrap();
        assert_eq!(ledger.next_epoch(), u64::MAX - 4);
        fs::remove_file(dir.path().join("attachments")).unwrap();
        assert!(Ledger::open(dir.path()).unwrap().next_epoch() >= first);
    }

    fn attachments(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join(FILE)
    }

    /// The copies of damaged blocks.
    fn copies(dir: &tempfile::TempDir) -> Vec<String> {
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| name.strip_prefix("attachments.").map(str::to_owned)).collect()
    }

    /// A ledger of two grants with a flipped bit in the first.
    fn with_damage() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open_in_boot(dir.path(), "boot1".into()).unwrap();
        ledger.grant(&grant(1, 1), None).unwrap();
        ledger.grant(&grant(2, 2), None).unwrap();
        let mut bytes = fs::read(attachments(&dir)).unwrap();
        bytes[20] ^= 1;
        fs::write(attachments(&dir), bytes).unwrap();
        dir
    }

    #[test]
    fn a_block_torn_by_a_power_cut_does_not_keep_the_driver_from_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.grant(&grant(1, 1000), Some("boot1")).unwrap();
        ledger.grant(&grant(2, 1001), Some("boot1")).unwrap();
        let before = fs::read(attachments(&dir)).unwrap();
        ledger.free(&lv(1)).unwrap();
        let after = fs::read(attachments(&dir)).unwrap();
        drop(ledger);
        // A disk of 512-byte sectors (or one that promises no more) had written the first sector of the block when the power failed.
        let mut torn = before.clone();
        torn[..512].copy_from_slice(&after[..512]);
        fs::write(attachments(&dir), &torn).unwrap();
        let ledger = Ledger::open(dir.path()).unwrap_or_else(|error| panic!("{}", crate::types::chain(&error)));
        assert_eq!(ledger.grants(), [grant(2, 1001)]);
        assert_eq!((ledger.damage(), copies(&dir)), (&[][..], vec![]));
    }

    #[test]
    fn a_block_that_an_earlier_version_tore_is_free_and_copied() {
        for (mark, unsure) in [(Some("boot1"), false), (Some("boot2"), true), (None, true)] {
            let dir = with_damage();
            match mark {
                Some(boot) => fs::write(dir.path().join(BOOT), boot).unwrap(),
                None => fs::remove_file(dir.path().join(BOOT)).unwrap(),
            }
            let damaged = fs::read(attachments(&dir)).unwrap()[..BLOCK].to_owned();
            let ledger = Ledger::open_in_boot(dir.path(), "boot2".into()).unwrap();
            assert_eq!((ledger.grants(), ledger.is_unsure()), (vec![grant(2, 2)], unsure), "{mark:?}");
            assert_eq!(ledger.damage().iter().map(|one| one.block).collect::<Vec<_>>(), [0]);
            let copy = format!("{}.boot2.0", if unsure { "damaged" } else { "torn" });
            assert_eq!(copies(&dir), std::slice::from_ref(&copy));
            assert_eq!(fs::read(dir.path().join(format!("attachments.{copy}"))).unwrap(), damaged);
            // The block is mended and reused, and during this boot the ledger stays unsure.
            let again = Ledger::open_in_boot(dir.path(), "boot2".into()).unwrap();
            assert_eq!((again.damage(), again.is_unsure()), (&[][..], unsure));
            again.grant(&grant(3, 3), None).unwrap();
            let later = Ledger::open_in_boot(dir.path(), "boot3".into()).unwrap();
            assert_eq!((later.grants(), later.is_unsure()), (vec![grant(2, 2), grant(3, 3)], false));
        }
    }

    #[test]
    fn a_damaged_block_without_a_copy_stays_and_is_not_reused() {
        let dir = with_damage();
        fs::write(dir.path().join(BOOT), "boot2").unwrap();
        let in_the_way = dir.path().join("attachments.damaged.boot2.0");
        fs::create_dir(&in_the_way).unwrap();
        let block = || fs::read(attachments(&dir)).unwrap()[..BLOCK].to_owned();
        let damaged = block();
        let ledger = Ledger::open_in_boot(dir.path(), "boot2".into()).unwrap();
        assert!(ledger.is_unsure());
        for n in 11..=80 {
            ledger.grant(&grant(n, n as u64), None).unwrap();
        }
        ledger.free(&lv(11)).unwrap();
        ledger.grant(&grant(81, 81), None).unwrap();
        assert_eq!(block(), damaged);
        // The next start can copy it.
        fs::remove_dir(&in_the_way).unwrap();
        let again = Ledger::open_in_boot(dir.path(), "boot2".into()).unwrap();
        assert_eq!((again.grants(), again.damage().len(), again.is_unsure()), (ledger.grants(), 1, true));
        assert_eq!(fs::read(&in_the_way).unwrap(), damaged);
    }

    #[test]
    fn a_boot_that_cannot_be_marked_makes_damage_unsure_and_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open_in_boot(dir.path(), "boot1".into()).unwrap();
        ledger.grant(&grant(1, 1), None).unwrap();
        ledger.grant(&grant(2, 2), None).unwrap();
        fs::create_dir(dir.path().join(NEW_BOOT)).unwrap();
        let ledger = Ledger::open_in_boot(dir.path(), "boot2".into()).unwrap();
        ledger.grant(&grant(3, 3), None).unwrap();
        let mut bytes = fs::read(attachments(&dir)).unwrap();
        bytes[100] ^= 1;
        fs::write(attachments(&dir), bytes).unwrap();
        let ledger = Ledger::open_in_boot(dir.path(), "boot2".into()).unwrap();
        assert_eq!((ledger.grants(), ledger.is_unsure()), (vec![grant(2, 2), grant(3, 3)], true));
    }

    #[test]
    fn a_ledger_that_cannot_be_written_is_read_and_written_once_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::write(&state, "").unwrap();
        assert!(matches!(Ledger::open(&state), Err(LedgerError::Io { what: "reading", .. })));
        fs::remove_file(&state).unwrap();
        // The directory does not exist.
        let ledger = Ledger::open(&state).unwrap();
        assert!(matches!(ledger.grant(&grant(1, 1), None), Err(LedgerError::Io { .. })));
        assert_eq!(ledger.grants(), []);
        fs::create_dir(&state).unwrap();
        ledger.grant(&grant(1, 1), None).unwrap();
        assert_eq!(Ledger::open(&state).unwrap().grants(), [grant(1, 1)]);
    }

    #[test]
    fn a_read_only_ledger_reports_the_damage_and_mends_nothing() {
        let dir = with_damage();
        let before = fs::read(attachments(&dir)).unwrap();
        let looked = Ledger::look(dir.path()).unwrap();
        assert_eq!((looked.grants(), looked.damage().len()), (vec![grant(2, 2)], 1));
        assert_eq!((fs::read(attachments(&dir)).unwrap(), copies(&dir)), (before, vec![]));
    }

    #[test]
    fn damage_of_an_acknowledgement_costs_no_grant() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open_in_boot(dir.path(), "boot1".into()).unwrap();
        ledger.grant(&grant(1, 7), Some("boot1")).unwrap();
        ledger
            .acknowledge(&lv(1), &Ack { epoch: 7, boot: "boot1".into(), state: AckState::Staged, at: BTreeSet::new() })
            .unwrap();
        let mut bytes = fs::read(attachments(&dir)).unwrap();
        bytes[BLOCK + 100] ^= 1;
        fs::write(attachments(&dir), bytes).unwrap();
        let ledger = Ledger::open_in_boot(dir.path(), "boot1".into()).unwrap();
        let expected = State { grant: Some(grant(1, 7)), given_in: Some("boot1".into()), ack: None };
        assert_eq!((ledger.state(&lv(1)), ledger.is_unsure()), (expected, true));
    }

    #[test]
    fn a_truncated_file_keeps_its_whole_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        for n in 1..=3 {
            ledger.grant(&grant(n, n as u64), None).unwrap();
        }
        let whole = fs::read(attachments(&dir)).unwrap();
        let third = 4 * BLOCK;
        for (length, grants, damaged) in
            [(third + BLOCK, 3, 0), (third + 512, 3, 0), (third + 100, 2, 1), (third, 2, 0), (100, 0, 1), (0, 0, 0)]
        {
            fs::write(attachments(&dir), &whole[..length]).unwrap();
            let ledger = Ledger::open(dir.path()).unwrap();
            assert_eq!((ledger.grants().len(), ledger.damage().len()), (grants, damaged), "{length}");
            for n in 11..=80 {
                ledger.grant(&grant(n, n as u64), None).unwrap();
            }
            assert_eq!(Ledger::open(dir.path()).unwrap().grants(), ledger.grants(), "{length}");
        }
    }

    #[test]
    fn a_block_that_the_disk_cannot_read_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.grant(&grant(1, 1), None).unwrap();
        ledger.grant(&grant(2, 2), None).unwrap();
        let mut bytes = fs::read(attachments(&dir)).unwrap();
        bytes[..BLOCK].fill(0);
        let (inner, damage) = Inner::load(&bytes, &BTreeSet::from([0]));
        assert_eq!(inner.states.keys().collect::<Vec<_>>(), [&lv(2)]);
        assert_eq!(damage.iter().map(|one| (one.block, one.reason)).collect::<Vec<_>>(), [(0, "the disk cannot read it")]);
    }
}
