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

/// One metadata area in use: on which PV, and the header it had.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watched {
    device: PathBuf,
    pv: PvUuid,
    header: Header,
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

/// The reader of one group.
pub struct Source {
    kernel: Arc<dyn Kernel>,
    name: VgName,
    patience: Duration,
    last: Mutex<Option<Known>>,
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
    fn is_whole(&self) -> bool {
        // An empty list would be vacuously unchanged, and a PV that comes back changes none of the others.
        !self.watched.is_empty() && self.view.absent().next().is_none()
    }
}

/// Everything one pass over the devices found.
#[derive(Default)]
struct Found {
    disks: BTreeMap<PvUuid, PathBuf>,
    watched: Vec<Watched>,
    newest: Option<Vg>,
    area: Option<u64>,
    trouble: Vec<(PathBuf, DiskError)>,
}

impl Source {
    /// A reader of the group with this name, which waits so long for another read that hangs.
    pub fn new(kernel: Arc<dyn Kernel>, name: VgName, patience: Duration) -> Self {
        Self { kernel, name, patience, last: Mutex::new(None), reading: Mutex::new(None) }
    }

    /// The group as it is on the disks now.
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
        let whole = last.take().filter(Known::is_whole);
        // A PV that was wiped may have kept its header.
        let here = |one: &Watched| self.label(&one.device).is_ok_and(|label| label.is_some_and(|label| label.pv == one.pv));
        let same = |one: &Watched| here(one) && self.still(one);
        if let Some(known) = whole.as_ref().filter(|known| known.watched.iter().all(same)) {
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
            if known.is_whole() {
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
        for _ in 0..TRIES {
            let found = self.scan(devices.clone())?;
            if !found.watched.iter().all(|one| self.still(one)) {
                continue;
            }
            let Some(vg) = found.newest else {
                return Err(match found.trouble.into_iter().next() {
                    Some((device, source)) => ReadError::Unreadable { vg: self.name.clone(), device, source },
                    None => ReadError::Absent { vg: self.name.clone() },
                });
            };
            let is_ours = |(uuid, _): &(PvUuid, PathBuf)| vg.pvs.iter().any(|pv| pv.uuid == *uuid);
            let disks: BTreeMap<PvUuid, PathBuf> = found.disks.into_iter().filter(is_ours).collect();
            let on_ours = |(device, _): &&(PathBuf, DiskError)| disks.values().any(|ours| ours == device);
            let trouble = found.trouble.iter().find(on_ours).map(|(device, error)| told(device, error));
            let view = View { vg: Arc::new(vg), disks: Arc::new(disks), area: Bytes(found.area.unwrap_or(0)), trouble };
            return Ok((found.watched, view));
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

    fn scan<'a>(&self, devices: impl Iterator<Item = &'a PathBuf>) -> Result<Found, ReadError> {
        let mut found = Found::default();
        for device in devices {
            if let Err(error) = self.scan_disk(device, &mut found)? {
                tracing::debug!(device = %device.display(), %error, "not a readable PV");
                found.trouble.push((device.clone(), error));
            }
        }
        Ok(found)
    }

    /// Looks at one device. The inner error is a matter of this device alone.
    fn scan_disk(&self, device: &Path, found: &mut Found) -> Result<Result<(), DiskError>, ReadError> {
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
                Ok(Some((header, vg))) if vg.name == self.name => {
                    if let Some(other) = found.newest.as_ref().filter(|other| other.uuid != vg.uuid) {
                        let (first, second) = (other.uuid.clone(), vg.uuid);
                        return Err(ReadError::Ambiguous { vg: self.name.clone(), first, second });
                    }
                    found.area = Some(found.area.map_or(area.size, |size| size.min(area.size)));
                    found.watched.push(Watched { device: device.to_owned(), pv: label.pv.clone(), header });
                    if found.newest.as_ref().is_none_or(|newest| newest.seqno < vg.seqno) {
                        found.newest = Some(vg);
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
            let mut text = Vec::new();
            for piece in header.pieces() {
                text.extend(self.bytes(device, piece.offset, piece.size)?);
            }
            match header.verify(&text) {
                Ok(()) => {
                    let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                    return Ok(Some((header, Vg::parse(&text[..end])?)));
                }
                // Overwritten between the two reads: the header has moved by now.
                Err(_) if tries < TRIES && self.header(device, area)? != header => {}
                Err(error) => return Err(error.into()),
            }
        }
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
