//! The machine: two disks with one volume group, device-mapper, and the true content of each LV, whatever the disks hold.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device;
use crate::host::{DmDevice, MountEntry, OWN_DM_PREFIX, Tool};
use crate::lvm::command::{Command, PoolShape};
use crate::lvm::image;
use crate::lvm::metadata::{Lv, Pv, SegmentKind, Vg, apply};
use crate::mount::fake::Mounts;
use crate::types::{Bytes, Extents, LvName, LvUuid, PvUuid, SECTOR, Sectors, VgName, VgUuid};

use super::content::{Cell, Content, Store, Stores, Super};
use super::doom::Doom;
use super::lvm::Fate;

/// Major number of device-mapper.
pub(super) const DM: u32 = 253;
/// Major number of the disks; each disk has 16 minors.
const SD: u32 = 8;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const EXTENT: u64 = 4 * MIB;
const PE_START: u64 = 2048;
const PV_EXTENTS: u64 = 64;
/// The thin pool that exists from the beginning.
pub(super) const POOL: &str = "pool";
const POOL_SIZE: Bytes = Bytes(32 * EXTENT);
pub(super) const VG: &str = "vg0";

/// One disk, which is a PV.
#[derive(Clone)]
pub(super) struct Disk {
    uuid: PvUuid,
    pub(super) path: String,
    /// The group in this PV's metadata area.
    committed: Arc<Vg>,
    /// The group that a power cut would leave there.
    flushed: Arc<Vg>,
    image: Arc<Vec<u8>>,
    pub(super) away: bool,
}

impl Disk {
    fn hold(&mut self, vg: &Arc<Vg>, text: &str) {
        self.committed = Arc::clone(vg);
        self.image = Arc::new(image::disk(self.uuid.as_str(), vg.seqno, text, false));
    }

    pub(super) fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        self.image.get(start..start + length).map(<[u8]>::to_vec)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) sectors: u64,
    pub(super) on: On,
}

impl Line {
    /// Whether the line lies on a part of what the other line lies on.
    pub(super) fn is_within(&self, other: &Line) -> bool {
        match (&self.on, &other.on) {
            (On::Linear { device, offset }, On::Linear { device: of, offset: begin }) => {
                device == of && offset >= begin && offset + self.sectors <= begin + other.sectors
            }
            _ => self.on == other.on,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum On {
    Linear { device: (u32, u32), offset: u64 },
    Thin(LvUuid),
    Pool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) lines: Vec<Line>,
    pub(super) read_only: bool,
}

impl Table {
    pub(super) fn size(&self) -> u64 {
        self.lines.iter().map(|line| line.sectors * SECTOR).sum()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Dm {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) live: Option<Table>,
    pub(super) inactive: Option<Table>,
    pub(super) suspended: bool,
}

impl Dm {
    /// Whether LVM made it, and not the driver.
    pub(super) fn is_lvms(&self) -> bool {
        self.uuid.starts_with("LVM-") && !self.uuid.starts_with(OWN_DM_PREFIX)
    }

    /// The LV of this device, or the LV that this holder device belongs to.
    pub(super) fn lv(&self) -> Option<LvUuid> {
        self.uuid.strip_prefix("LVM-").and_then(|ids| LvUuid::from_compact(ids.get(32..64)?))
    }
}

/// The data written to an LV, which must be found there.
#[derive(Clone, Debug)]
pub(super) struct Truth {
    pub(super) data: Content,
    /// The filesystem that was given to a user.
    pub(super) filesystem: Option<u32>,
}

impl Truth {
    fn empty() -> Self {
        Self { data: Content::of(Cell::Zero), filesystem: None }
    }
}

/// A tool that outlives its driver, with the file that it has open.
#[derive(Clone)]
pub(super) struct Survivor {
    pub(super) tool: Tool,
    pub(super) device: DmDevice,
    pub(super) _guard: Arc<File>,
}

/// Everything that outlives a driver, except mounts and files.
#[derive(Clone)]
pub(super) struct State {
    pub(super) disks: Vec<Disk>,
    pub(super) stores: Stores,
    pub(super) dm: BTreeMap<u32, Dm>,
    pub(super) truth: BTreeMap<LvUuid, Truth>,
    /// A command that goes on although its driver died.
    pub(super) alone: Option<Command>,
    /// The transaction id that the thin pool has counted.
    pub(super) counted: u64,
    /// Tools that go on although their driver died.
    pub(super) survivors: Vec<Survivor>,
    pub(super) fates: VecDeque<Fate>,
    pub(super) pool_full: bool,
    /// Violations found so far.
    pub(super) wrong: Vec<String>,
    serial: u32,
}

/// The machine, which outlives every driver.
pub(super) struct Host {
    state: Mutex<State>,
    pub(super) mounts: Mounts,
    pub(super) doom: Arc<Doom>,
    pub(super) locking_dir: std::path::PathBuf,
}

impl Host {
    pub(super) fn new(doom: Arc<Doom>, locking_dir: std::path::PathBuf) -> Self {
        Self { state: Mutex::new(State::new()), mounts: Mounts::new(), doom, locking_dir }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn entries(&self) -> Vec<MountEntry> {
        self.mounts.change(|entries| entries.clone())
    }

    /// Loses everything that a power cut takes.
    pub(super) fn power_cut(&self) {
        let mut state = self.state();
        state.stores.power_cut();
        let flushed: Vec<Arc<Vg>> = state.disks.iter().map(|disk| Arc::clone(&disk.flushed)).collect();
        for (disk, vg) in state.disks.iter_mut().zip(&flushed) {
            disk.hold(vg, &image::text(vg));
        }
        // The pool counts no transaction that is not in the metadata.
        for lv in &state.vg().lvs {
            if let SegmentKind::ThinPool { transaction_id, .. } = lv.segments[0].kind {
                state.counted = state.counted.min(transaction_id);
            }
        }
        state.dm.clear();
        state.alone = None;
        state.survivors.clear();
        self.mounts.change(|entries| entries.truncate(2));
    }
}

impl State {
    fn new() -> Self {
        let pv = |n: u8| Pv {
            uuid: PvUuid::from_compact(&char::from(b'p' + n).to_string().repeat(32)).unwrap(),
            key: format!("pv{n}"),
            device: Some(path(n.into())),
            missing: false,
            allocatable: true,
            dev_size: Sectors(PE_START + PV_EXTENTS * EXTENT / SECTOR),
            pe_start: Sectors(PE_START),
            pe_count: Extents(PV_EXTENTS),
        };
        let vg = Vg {
            uuid: VgUuid::from_compact(&"V".repeat(32)).unwrap(),
            name: VgName::new(VG).unwrap(),
            seqno: 1,
            extent_size: Sectors(EXTENT / SECTOR),
            writable: true,
            exported: false,
            autoactivation: true,
            partial: false,
            system_id: None,
            lock_type: None,
            tags: Vec::new(),
            max_lv: 0,
            pvs: vec![pv(0), pv(1)],
            lvs: Vec::new(),
            metadata_bytes: 0,
        };
        let (lv, shape) = (LvName::new(POOL).unwrap(), PoolShape::of(POOL_SIZE));
        let pool = Command::CreateThinPool { vg: vg.name.clone(), lv, size: POOL_SIZE, shape, tags: vec![] };
        let vg = Arc::new(apply(&vg, &pool).unwrap());
        let text = image::text(&vg);
        let mut stores = Stores::default();
        let mut disks = Vec::new();
        for (n, pv) in vg.pvs.iter().enumerate() {
            stores.put(Store::Pv(n), Content::of(Cell::Old));
            let image = Arc::new(image::disk(pv.uuid.as_str(), vg.seqno, &text, false));
            let (uuid, committed) = (pv.uuid.clone(), Arc::clone(&vg));
            disks.push(Disk { uuid, path: path(n), flushed: Arc::clone(&vg), committed, image, away: false });
        }
        let (dm, truth, survivors, fates, wrong) = Default::default();
        Self { disks, stores, dm, truth, alone: None, counted: 0, survivors, fates, pool_full: false, wrong, serial: 0 }
    }

    /// The group as a reader of all present disks sees it.
    pub(super) fn vg(&self) -> Arc<Vg> {
        let here = self.disks.iter().filter(|disk| !disk.away).map(|disk| &disk.committed);
        here.max_by_key(|vg| vg.seqno).cloned().unwrap_or_else(|| Arc::clone(&self.disks[0].committed))
    }

    /// Whether a power cut could undo a commit.
    pub(super) fn unflushed(&self) -> bool {
        self.disks.iter().all(|disk| disk.flushed.seqno < self.vg().seqno)
    }

    /// Like `sync`.
    pub(super) fn flush_all(&mut self) {
        self.stores.flush_all();
        for disk in &mut self.disks {
            disk.flushed = Arc::clone(&disk.committed);
        }
    }

    /// Like `lvrename` with an inactive LV.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        let mut vg = (*self.vg()).clone();
        vg.seqno += 1;
        for lv in &mut vg.lvs {
            if lv.name == from {
                to.clone_into(&mut lv.name);
            }
            if let SegmentKind::Thin { origin: Some(origin), .. } = &mut lv.segments[0].kind
                && origin == from
            {
                to.clone_into(origin);
            }
        }
        let _ = self.commit::<()>(vg, &mut || Ok(()));
    }

    pub(super) fn serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    /// Writes the group to all disks, one after the other. A new LV exists from the first write on.
    pub(super) fn commit<E>(&mut self, vg: Vg, part: &mut dyn FnMut() -> Result<(), E>) -> Result<(), E> {
        let before = self.vg();
        let vg = Arc::new(vg);
        for lv in vg.lvs.iter().filter(|lv| before.lv_by_uuid(&lv.uuid).is_none()) {
            // A thin LV exists once its pool gets the message.
            if matches!(lv.segments[0].kind, SegmentKind::Thin { .. }) {
                // UUIDs of removed LVs are reused here.
                self.truth.remove(&lv.uuid);
                self.stores.remove(&Store::Thin(lv.uuid.clone()));
            } else {
                self.truth.insert(lv.uuid.clone(), Truth::empty());
            }
        }
        // Removals count too. The simulation does not die between their message and their last commit.
        for lv in &vg.lvs {
            if let SegmentKind::ThinPool { transaction_id, pending: 0, .. } = lv.segments[0].kind {
                self.counted = transaction_id;
            }
        }
        let text = image::text(&vg);
        for n in 0..self.disks.len() {
            self.disks[n].hold(&vg, &text);
            part()?;
        }
        Ok(())
    }

    /// The thin pool makes a volume.
    pub(super) fn begin_thin(&mut self, vg: &Vg, lv: &Lv) {
        let SegmentKind::Thin { origin, .. } = &lv.segments[0].kind else { return };
        let origin = origin.as_ref().and_then(|of| vg.lv(of)).filter(|of| self.is_in_pool(&of.uuid));
        let of = origin.map(|of| (self.truth[&of.uuid].clone(), self.stores.get(&Store::Thin(of.uuid.clone())).clone()));
        let (truth, content) = of.unwrap_or_else(|| (Truth::empty(), Content::of(Cell::Zero)));
        self.truth.insert(lv.uuid.clone(), truth);
        self.stores.put(Store::Thin(lv.uuid.clone()), content);
    }

    /// Whether the thin pool has made a volume.
    pub(super) fn is_in_pool(&self, lv: &LvUuid) -> bool {
        self.stores.has(&Store::Thin(lv.clone()))
    }

    /// Whether an LV exists for good: one that is only in the metadata does not.
    pub(super) fn is_born(&self, lv: &Lv) -> bool {
        match lv.segments[0].kind {
            SegmentKind::Thin { transaction_id, .. } => self.is_in_pool(&lv.uuid) && self.counted > transaction_id,
            _ => true,
        }
    }

    /// Makes the thin pool forget a volume. Returns whether it had made it.
    pub(super) fn unmake(&mut self, device: u64) -> bool {
        let is = |lv: &&Lv| matches!(lv.segments[0].kind, SegmentKind::Thin { device_id, .. } if device_id == device);
        let Some(lv) = self.vg().lvs.iter().find(is).map(|lv| lv.uuid.clone()) else { return false };
        self.truth.remove(&lv);
        self.stores.remove(&Store::Thin(lv))
    }

    /// Device numbers of a path.
    pub(super) fn number(&self, path: &str) -> Option<(u32, u32)> {
        if let Some(n) = self.disks.iter().position(|disk| disk.path == path) {
            return Some((SD, 16 * u32::try_from(n).ok()?));
        }
        let minor = path.strip_prefix("/dev/dm-")?.parse().ok()?;
        self.dm.contains_key(&minor).then_some((DM, minor))
    }

    pub(super) fn size(&self, (major, minor): (u32, u32)) -> u64 {
        if major == SD {
            return (PE_START + PV_EXTENTS * EXTENT / SECTOR) * SECTOR;
        }
        self.dm.get(&minor).and_then(|dm| dm.live.as_ref()).map_or(0, Table::size)
    }

    /// Where the bytes of a device lie; `None` if it has no such bytes.
    pub(super) fn pieces(&self, (major, minor): (u32, u32), at: &Range<u64>) -> Option<Vec<(Store, Range<u64>)>> {
        if major == SD {
            return Some(vec![(Store::Pv(usize::try_from(minor / 16).ok()?), at.clone())]);
        }
        self.pieces_of(self.dm.get(&minor)?.live.as_ref()?, at)
    }

    pub(super) fn pieces_of(&self, table: &Table, at: &Range<u64>) -> Option<Vec<(Store, Range<u64>)>> {
        let (mut pieces, mut begin) = (Vec::new(), 0);
        for line in &table.lines {
            let end = begin + line.sectors * SECTOR;
            let (from, to) = (at.start.max(begin), at.end.min(end));
            if from < to {
                match &line.on {
                    On::Linear { device, offset } => {
                        let first = offset * SECTOR + (from - begin);
                        pieces.extend(self.pieces(*device, &(first..first + (to - from)))?);
                    }
                    On::Thin(lv) => pieces.push((Store::Thin(lv.clone()), from..to)),
                    On::Pool => return None,
                }
            }
            begin = end;
        }
        (at.end <= begin).then_some(pieces)
    }

    /// The content that a device shows, by position.
    pub(super) fn seen(&self, pieces: &[(Store, Range<u64>)]) -> Vec<(Range<u64>, Cell)> {
        let (mut cells, mut begin) = (Vec::new(), 0);
        for (store, at) in pieces {
            let moved = self.stores.get(store).get(at).into_iter();
            cells.extend(moved.map(|(run, cell)| (begin + run.start - at.start..begin + run.end - at.start, cell)));
            begin += at.end - at.start;
        }
        cells
    }

    pub(super) fn write(&mut self, pieces: &[(Store, Range<u64>)], cell: Cell) {
        for (store, at) in pieces {
            self.stores.set(store, at, cell);
        }
    }

    /// Makes durable what lies on a device, and everything else on the disks beneath.
    pub(super) fn flush(&mut self, pieces: &[(Store, Range<u64>)]) {
        for (store, _) in pieces {
            self.stores.flush(store);
            if let Store::Pv(n) = store {
                self.disks[*n].flushed = Arc::clone(&self.disks[*n].committed);
            }
        }
    }

    /// The filesystem at the start of a device.
    pub(super) fn head(&self, device: (u32, u32)) -> Option<Super> {
        match self.seen(&self.pieces(device, &(0..1))?).first()? {
            (_, Cell::Super(head)) => Some(*head),
            _ => None,
        }
    }

    /// The table of an LV according to the metadata.
    pub(super) fn table(&self, vg: &Vg, lv: &Lv) -> Table {
        let read_only = !lv.writable;
        if let SegmentKind::Thin { .. } = lv.segments[0].kind {
            let line = Line { sectors: vg.lv_size(lv).0 / SECTOR, on: On::Thin(lv.uuid.clone()) };
            return Table { lines: vec![line], read_only };
        }
        let map = vg.linear_map(lv, Extents(0)).unwrap_or_else(|| panic!("{} is not linear", lv.name));
        let line = |(pv, offset, sectors): (PvUuid, Sectors, Sectors)| {
            let disk = self.disks.iter().find(|disk| disk.uuid == pv).unwrap();
            let device = self.number(&disk.path).unwrap();
            Line { sectors: sectors.0, on: On::Linear { device, offset: offset.0 } }
        };
        Table { lines: map.into_iter().map(line).collect(), read_only }
    }

    /// The device of an LV.
    pub(super) fn device(&self, vg: &Vg, lv: &str, suffix: &str) -> Option<u32> {
        let uuid = format!("{}{suffix}", device::lv_dm_uuid(&vg.uuid, &vg.lv(lv)?.uuid));
        self.dm.iter().find(|(_, dm)| dm.uuid == uuid).map(|(minor, _)| *minor)
    }

    /// Makes a device without a table, with the first free minor number.
    pub(super) fn add(&mut self, name: &str, uuid: &str) -> Option<u32> {
        if self.dm.values().any(|dm| dm.name == name || dm.uuid == uuid) {
            return None;
        }
        let minor = (0..).find(|minor| !self.dm.contains_key(minor))?;
        let dm = Dm { name: name.to_owned(), uuid: uuid.to_owned(), live: None, inactive: None, suspended: false };
        self.dm.insert(minor, dm);
        Some(minor)
    }

    /// The number of openers of a device.
    pub(super) fn openers(&self, minor: u32, mounts: &[MountEntry]) -> usize {
        let over = |table: &Option<Table>| {
            let lines = table.iter().flat_map(|table| &table.lines);
            lines.clone().any(|line| matches!(line.on, On::Linear { device: (DM, on), .. } if on == minor))
        };
        let mounted = mounts.iter().any(|entry| (entry.major, entry.minor) == (DM, minor));
        let used = self.survivors.iter().filter(|survivor| survivor.device.minor == minor).count();
        usize::from(mounted) + used + self.dm.values().filter(|dm| over(&dm.live) || over(&dm.inactive)).count()
    }
}

fn path(disk: usize) -> String {
    format!("/dev/sd{}", char::from(b'a' + u8::try_from(disk).unwrap()))
}
