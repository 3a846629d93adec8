//! Reading a volume group from its disks, without LVM: the only way the driver learns what is in a group.
//!
//! The labels of the candidate devices tell which PV each is and where its metadata areas lie; the header of an area names the text
//! in force. A model that was read once is good for as long as no header of an area in use has moved: LVM commits by rewriting
//! headers, and every commit changes them. An area that is flagged ignored is not kept up to date and is never read. Where nothing
//! can be read the group is unknown, never "unchanged" and never "empty".
//!
//! A group that was whole is looked for on its own disks first, and on all others only when it is no longer whole there or when
//! devices have come or gone since: disks of another group that are slow or hang are not this one's matter. While a read of the
//! group itself hangs, further ones fail after the reader's patience instead of piling up behind it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::host::Kernel;
use crate::types::{Bytes, PvUuid, VgName, VgUuid};

use super::metadata::header::{self, Header, HeaderError};
use super::metadata::label::{self, Area, Label, LabelError};
use super::metadata::{MetadataError, Vg};

/// How often a group that moves under the reader is read again before giving up.
const TRIES: usize = 10;

/// An area that begins no further from the label than this, in bytes, is read together with it.
const BESIDE: u64 = 64 << 10;

/// What was read.
#[derive(Clone, Debug)]
pub struct View {
    /// The group.
    pub vg: Arc<Vg>,
    /// Where each of its PVs is now.
    pub disks: Arc<BTreeMap<PvUuid, PathBuf>>,
    /// The smallest metadata area in use.
    pub area: Bytes,
    /// Why the metadata on one of these disks cannot be read. It may hold a newer text than this one.
    pub trouble: Option<String>,
}

impl View {
    /// The PVs of the group that no device carries at present.
    pub fn absent(&self) -> impl Iterator<Item = &PvUuid> {
        self.vg.pvs.iter().map(|pv| &pv.uuid).filter(|uuid| !self.disks.contains_key(uuid))
    }
}

/// Why a group is not known.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No device carries it, and all devices could be read.
    #[error("no disk of volume group {vg} is there")]
    Absent {
        /// The group.
        vg: VgName,
    },
    /// No device that could be read carries it, but one could not be read.
    #[error("volume group {vg} is unknown, since {device} cannot be read")]
    Unreadable {
        /// The group.
        vg: VgName,
        /// The device.
        device: PathBuf,
        /// The cause.
        #[source]
        source: DiskError,
    },
    /// The devices that may be PVs cannot be listed.
    #[error("listing the block devices of this node")]
    Devices(#[source] io::Error),
    /// Two groups have the name.
    #[error("two volume groups are named {vg}: {first} and {second}; rename one with vgrename UUID NAME")]
    Ambiguous {
        /// The name.
        vg: VgName,
        /// One.
        first: VgUuid,
        /// The other.
        second: VgUuid,
    },
    /// Two devices carry the same PV.
    #[error("PV {pv} is on {first} and on {second}; one is a copy or a path of the other, remove it from sight")]
    Duplicate {
        /// The PV.
        pv: PvUuid,
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A read of it does not end.
    #[error("reading the disks of volume group {vg} has taken {seconds} s and is not over: one of them hangs, see dmesg")]
    Hangs {
        /// The group.
        vg: VgName,
        /// Since when, in seconds.
        seconds: u64,
    },
    /// It was changed each time while it was read.
    #[error("volume group {vg} was changed {TRIES} times while it was read")]
    Moving {
        /// The group.
        vg: VgName,
    },
}

/// Why one disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The device gave an error.
    #[error("reading {length} bytes at byte {offset}")]
    Io {
        /// First byte.
        offset: u64,
        /// Length.
        length: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Its label is damaged.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The header of a metadata area is damaged, or its text.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The text cannot be understood.
    #[error("its metadata text")]
    Text(#[from] MetadataError),
}

/// One metadata area in use: on which PV, the header it had, and the commit that this named.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watched {
    device: PathBuf,
    pv: PvUuid,
    header: Header,
    seqno: u64,
}

/// A read that has begun, and ends when this is dropped.
struct Reading<'a>(&'a Mutex<Option<Instant>>);

impl<'a> Reading<'a> {
    fn begin(since: &'a Mutex<Option<Instant>>) -> Self {
        *since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Self(since)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The reader of one group. It is the one of a name; while none has that, it is the one that had it before: whoever renames a
/// group (`vgrename`) takes nothing away from those who use its volumes.
pub struct Source {
    kernel: Arc<dyn Kernel>,
    name: VgName,
    patience: Duration,
    last: Mutex<Option<Known>>,
    /// The group that had the name when it was read last.
    had_name: Mutex<Option<VgUuid>>,
    /// When the present read began.
    reading: Mutex<Option<Instant>>,
}

/// A group as it was read, without trouble.
struct Known {
    /// Its areas.
    watched: Vec<Watched>,
    view: View,
    /// All devices that may be PVs, as they were when each of them was looked at.
    devices: Vec<PathBuf>,
}

impl Known {
    /// Whether the group of a name is as it was for as long as its headers are.
    fn is_whole(&self, name: &VgName) -> bool {
        // An empty list would be vacuously unchanged, a PV that comes back changes none of the others, and neither does another group
        // that gets the name.
        !self.watched.is_empty() && self.view.absent().next().is_none() && self.view.vg.name == *name
    }
}

/// Everything one pass over the devices found.
#[derive(Default)]
struct Found {
    disks: BTreeMap<PvUuid, PathBuf>,
    groups: BTreeMap<VgUuid, Group>,
    trouble: Vec<(PathBuf, DiskError)>,
}

/// One group of which metadata areas were found.
struct Group {
    watched: Vec<Watched>,
    newest: Vg,
    area: u64,
}

impl Source {
    /// A reader of the group with this name, which waits so long for another read that hangs.
    pub fn new(kernel: Arc<dyn Kernel>, name: VgName, patience: Duration) -> Self {
        Self { kernel, name, patience, last: Mutex::new(None), had_name: Mutex::new(None), reading: Mutex::new(None) }
    }

    /// Says which group had the name in an earlier life of the driver.
    pub fn had_name(&self, vg: VgUuid) {
        *self.had_name.lock().unwrap_or_else(PoisonError::into_inner) = Some(vg);
    }

    /// The group as it is on the disks now; one that was renamed has another name than this reader.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self) -> Result<View, ReadError> {
        let hangs = |since: &Instant| since.elapsed() > self.patience;
        if let Some(since) = self.reading.lock().unwrap_or_else(PoisonError::into_inner).filter(hangs) {
            return Err(ReadError::Hangs { vg: self.name.clone(), seconds: since.elapsed().as_secs() });
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let _reading = Reading::begin(&self.reading);
        self.read_on(&mut last)
    }

    fn read_on(&self, last: &mut Option<Known>) -> Result<View, ReadError> {
        let whole = last.take().filter(|known| known.is_whole(&self.name));
        if let Some(known) = whole.as_ref().filter(|known| known.watched.iter().all(|one| self.unmoved(one))) {
            let view = known.view.clone();
            *last = whole;
            return Ok(view);
        }
        let devices = self.kernel.pv_candidates().map_err(ReadError::Devices)?;
        let own = whole.filter(|known| known.devices == devices).map(|known| known.view.disks);
        if let Some(own) = own
            && let Ok((watched, view)) = self.look(own.values())
            && view.trouble.is_none()
        {
            let known = Known { watched, view: view.clone(), devices: devices.clone() };
            if known.is_whole(&self.name) {
                *last = Some(known);
                return Ok(view);
            }
        }
        let (watched, view) = self.look(devices.iter())?;
        // A disk that cannot be read may hold a newer text, and recovers without any header moving.
        *last = view.trouble.is_none().then(|| Known { watched, view: view.clone(), devices });
        Ok(view)
    }

    /// Searches some devices for the group.
    fn look<'a>(&self, devices: impl Iterator<Item = &'a PathBuf> + Clone) -> Result<(Vec<Watched>, View), ReadError> {
        let had_name = self.had_name.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for _ in 0..TRIES {
            let mut found = self.scan(devices.clone(), had_name.as_ref())?;
            if !found.groups.values().flat_map(|group| &group.watched).all(|one| self.still(one)) {
                continue;
            }
            let Some(Group { watched, newest: vg, area }) = self.choose(&mut found, had_name.as_ref())? else {
                return Err(match found.trouble.into_iter().next() {
                    Some((device, source)) => ReadError::Unreadable { vg: self.name.clone(), device, source },
                    None => ReadError::Absent { vg: self.name.clone() },
                });
            };
            self.had_name(vg.uuid.clone());
            let is_ours = |(uuid, _): &(PvUuid, PathBuf)| vg.pvs.iter().any(|pv| pv.uuid == *uuid);
            let disks: BTreeMap<PvUuid, PathBuf> = found.disks.into_iter().filter(is_ours).collect();
            let on_ours = |(device, _): &&(PathBuf, DiskError)| disks.values().any(|ours| ours == device);
            let trouble = found.trouble.iter().find(on_ours).map(|(device, error)| told(device, error));
            let view = View { vg: Arc::new(vg), disks: Arc::new(disks), area: Bytes(area), trouble };
            return Ok((watched, view));
        }
        Err(ReadError::Moving { vg: self.name.clone() })
    }

    /// The metadata text of the group as it is on the disks now, with its model. It is what `vgcfgrestore` takes.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn text(&self) -> Result<(View, Vec<u8>), ReadError> {
        for _ in 0..TRIES {
            let view = self.read()?;
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let watched = last.as_ref().map(|known| known.watched.clone()).unwrap_or_default();
            drop(last);
            let newest = watched.iter().filter(|one| one.seqno == view.vg.seqno);
            // What cannot be read was overwritten meanwhile, or is told by the next look.
            let mut texts = newest.filter_map(|one| self.text_of(&one.device, &one.header).ok());
            if let Some(text) = texts.next() {
                return Ok((view, text));
            }
        }
        Err(ReadError::Moving { vg: self.name.clone() })
    }

    /// Whether every PV of the group is there and can be read at its label; the text says which is not.
    ///
    /// # Errors
    /// The first PV that is away or cannot be read. LVM itself would change tags all the same and flag the PV missing. The next
    /// look searches all devices: a PV without a metadata area may have moved to another one.
    pub fn check_present(&self, view: &View) -> Result<(), String> {
        self.all_present(view).inspect_err(|_| *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None)
    }

    fn all_present(&self, view: &View) -> Result<(), String> {
        if let Some(absent) = view.absent().next() {
            return Err(format!("PV {absent} of volume group {} is on no device of this node", self.name));
        }
        if let Some(trouble) = &view.trouble {
            return Err(format!("the metadata of volume group {} cannot be read on {trouble}", self.name));
        }
        for (uuid, device) in view.disks.iter() {
            match self.label(device) {
                Ok(Some(label)) if label.pv == *uuid => {}
                Ok(_) => return Err(format!("{} is no longer PV {uuid} of volume group {}", device.display(), self.name)),
                Err(error) => return Err(format!("PV {uuid} cannot be read on {}", told(device, &error))),
            }
        }
        Ok(())
    }

    /// The group that has the name now, else the one that had it.
    fn choose(&self, found: &mut Found, had_name: Option<&VgUuid>) -> Result<Option<Group>, ReadError> {
        let mut named = found.groups.iter().filter(|(_, group)| group.newest.name == self.name).map(|(uuid, _)| uuid.clone());
        let uuid = match (named.next(), named.next()) {
            (Some(first), Some(second)) => return Err(ReadError::Ambiguous { vg: self.name.clone(), first, second }),
            (Some(only), None) => Some(only),
            (None, _) => had_name.cloned(),
        };
        Ok(uuid.and_then(|uuid| found.groups.remove(&uuid)))
    }

    fn scan<'a>(&self, devices: impl Iterator<Item = &'a PathBuf>, had_name: Option<&VgUuid>) -> Result<Found, ReadError> {
        let mut found = Found::default();
        for device in devices {
            if let Err(error) = self.scan_disk(device, had_name, &mut found)? {
                tracing::debug!(device = %device.display(), %error, "not a readable PV");
                found.trouble.push((device.clone(), error));
            }
        }
        Ok(found)
    }

    /// Looks at one device. The inner error is a matter of this device alone.
    fn scan_disk(&self, device: &Path, had_name: Option<&VgUuid>, found: &mut Found) -> Result<Result<(), DiskError>, ReadError> {
        let label = match self.label(device) {
            Ok(Some(label)) => label,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        if let Some(first) = found.disks.insert(label.pv.clone(), device.to_owned()) {
            return Err(ReadError::Duplicate { pv: label.pv, first, second: device.to_owned() });
        }
        let mut trouble = Ok(());
        for area in label.metadata_areas {
            match self.group_in(device, area) {
                Ok(Some((header, vg))) if vg.name == self.name || had_name == Some(&vg.uuid) => {
                    let seen = Watched { device: device.to_owned(), pv: label.pv.clone(), header, seqno: vg.seqno };
                    match found.groups.entry(vg.uuid.clone()) {
                        Entry::Vacant(new) => drop(new.insert(Group { watched: vec![seen], newest: vg, area: area.size })),
                        Entry::Occupied(mut there) => {
                            let group = there.get_mut();
                            group.watched.push(seen);
                            group.area = group.area.min(area.size);
                            if group.newest.seqno < vg.seqno {
                                group.newest = vg;
                            }
                        }
                    }
                }
                Ok(_) => {}
                Err(error) => trouble = Err(error),
            }
        }
        Ok(trouble)
    }

    /// The group whose text is in force in an area; `None` for an area that is empty or ignored.
    fn group_in(&self, device: &Path, area: Area) -> Result<Option<(Header, Vg)>, DiskError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let header = self.header(device, area)?;
            if header.ignored || header.live.is_none() {
                return Ok(None);
            }
            match self.text_of(device, &header) {
                Ok(text) => return Ok(Some((header, Vg::parse(text)?))),
                // Overwritten between the two reads: the header has moved by now.
                Err(DiskError::Header(_)) if tries < TRIES && self.header(device, area)? != header => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The text that a header names, without the zero bytes at its end.
    fn text_of(&self, device: &Path, header: &Header) -> Result<Vec<u8>, DiskError> {
        let mut text = Vec::new();
        for piece in header.pieces() {
            text.extend(self.bytes(device, piece.offset, piece.size)?);
        }
        header.verify(&text)?;
        text.truncate(text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Ok(text)
    }

    /// Whether a device is the PV that it was, and the header of its area what it was: a PV that was wiped may have kept its header.
    /// Asked several times in each call, so both are read at once where they lie side by side, as they do unless the area is a second
    /// one at the end of the disk.
    fn unmoved(&self, one: &Watched) -> bool {
        let area = one.header.area;
        let is_it = |label: Option<Label>| label.is_some_and(|label| label.pv == one.pv);
        if area.offset > BESIDE {
            return self.label(&one.device).is_ok_and(is_it) && self.still(one);
        }
        let Ok(bytes) = self.bytes(&one.device, 0, area.offset + header::SIZE as u64) else { return false };
        let (Ok(at), Some(label)) = (usize::try_from(area.offset), bytes.get(..label::SCAN)) else { return false };
        label::find(label).is_ok_and(is_it) && Header::parse(&bytes[at..], area).is_ok_and(|now| now == one.header)
    }

    /// Whether the header of an area is what it was.
    fn still(&self, one: &Watched) -> bool {
        self.header(&one.device, one.header.area).is_ok_and(|now| now == one.header)
    }

    fn label(&self, device: &Path) -> Result<Option<Label>, DiskError> {
        Ok(label::find(&self.bytes(device, 0, label::SCAN as u64)?)?)
    }

    fn header(&self, device: &Path, area: Area) -> Result<Header, DiskError> {
        Ok(Header::parse(&self.bytes(device, area.offset, header::SIZE as u64)?, area)?)
    }

    fn bytes(&self, device: &Path, offset: u64, length: u64) -> Result<Vec<u8>, DiskError> {
        let fail = |source| DiskError::Io { offset, length, source };
        let count = usize::try_from(length).map_err(|_| fail(io::Error::from(io::ErrorKind::InvalidInput)))?;
        self.kernel.read_at(device, offset, count).map_err(fail)
    }
}

/// A device and why it cannot be read, on one line.
fn told(device: &Path, error: &DiskError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{}: {error}{cause}", device.display())
}

#[cfg(test)]
mod tests;
