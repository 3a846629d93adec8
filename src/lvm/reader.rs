//! Reads what LVM keeps on one device: its label, the headers of its metadata areas, and their texts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::host::Kernel;
use crate::types::PvUuid;

use super::metadata::header::{self, Header, HeaderError};
use super::metadata::label::{self, Area, Label, LabelError};
use super::metadata::{MetadataError, Vg};
use super::pin::Pins;

/// How often to read a group that changes meanwhile before giving up.
pub(super) const TRIES: usize = 10;
/// In bytes: an area that begins no further from the label is read together with it.
pub(super) const BESIDE: u64 = 64 << 10;
/// How long to wait for devices that may not belong to the group.
pub(super) const LIMIT: Duration = Duration::from_secs(3);

/// Why one disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("reading {length} bytes at byte {offset}")]
    Io {
        /// The first byte.
        offset: u64,
        /// In bytes.
        length: u64,
        #[source]
        source: io::Error,
    },
    /// The device does not answer.
    #[error("it has not answered for {} s", LIMIT.as_secs())]
    Silent,
    /// Its label is damaged.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The header of a metadata area, or its text, is damaged.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The text does not parse.
    #[error("cannot parse its metadata text")]
    Text(#[from] MetadataError),
}

/// One metadata area in use: its PV, its header, and the commit that the header pointed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) device: PathBuf,
    pub(super) pv: PvUuid,
    pub(super) header: Header,
    pub(super) seqno: u64,
}

#[derive(Clone)]
pub(super) struct Reader {
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) pins: Pins,
}

impl Reader {
    /// Reads the label of a device that may be anybody's. A device on a volume of ours has none: what a tenant wrote there must
    /// not count, however it reappears. The file behind a loop device may be on a filesystem that hangs, so call this on a thread
    /// that nobody must wait for.
    pub(super) fn foreign_label(&self, device: &Path) -> Result<Option<Label>, DiskError> {
        let beneath = self.kernel.dm_beneath(device).unwrap_or_default();
        if beneath.iter().any(|uuid| self.pins.is_volume(uuid)) { Ok(None) } else { self.label(device) }
    }

    /// The label of a device and the groups of its current texts, with the error of an area that cannot be read; `None` if there
    /// is no label.
    #[expect(clippy::type_complexity, reason = "used here only")]
    pub(super) fn groups_on(&self, device: &Path) -> Result<Option<(Label, Vec<Vg>, Option<DiskError>)>, DiskError> {
        let Some(label) = self.foreign_label(device)? else { return Ok(None) };
        let (mut groups, mut trouble) = (Vec::new(), None);
        for area in &label.metadata_areas {
            match self.group_in(device, *area) {
                Ok(text) => groups.extend(text.map(|(_, vg)| vg)),
                Err(error) => trouble = Some(error),
            }
        }
        Ok(Some((label, groups, trouble)))
    }

    /// The group of an area's current text; `None` for an area that is empty or ignored.
    pub(super) fn group_in(&self, device: &Path, area: Area) -> Result<Option<(Header, Vg)>, DiskError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let header = self.header(device, area)?;
            if header.ignored || header.live.is_none() {
                return Ok(None);
            }
            match self.text_of(device, &header) {
                Ok(text) => return Ok(Some((header, Vg::parse(text)?))),
                // Overwritten between the two reads: the header has changed by now.
                Err(DiskError::Header(_)) if tries < TRIES && self.header(device, area)? != header => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The text that a header points to, without the zero bytes at its end.
    pub(super) fn text_of(&self, device: &Path, header: &Header) -> Result<Vec<u8>, DiskError> {
        let mut text = Vec::new();
        for piece in header.pieces() {
            text.extend(self.bytes(device, piece.offset, piece.size)?);
        }
        header.verify(&text)?;
        text.truncate(text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Ok(text)
    }

    /// Whether a device is still the same PV and its area's header is unchanged. The label matters too: a wiped PV may have kept
    /// its header. Each call checks this several times, so label and header are read together if they are close, as they are
    /// unless the area is a second one at the end of the disk.
    pub(super) fn is_unmoved(&self, one: &Watched) -> bool {
        let area = one.header.area;
        let is_it = |label: Option<Label>| label.is_some_and(|label| label.pv == one.pv);
        if area.offset > BESIDE {
            return self.label(&one.device).is_ok_and(is_it) && self.still(one);
        }
        let Ok(bytes) = self.bytes(&one.device, 0, area.offset + header::SIZE as u64) else { return false };
        let (Ok(at), Some(label)) = (usize::try_from(area.offset), bytes.get(..label::SCAN)) else { return false };
        label::find(label).is_ok_and(is_it) && Header::parse(&bytes[at..], area).is_ok_and(|now| now == one.header)
    }

    /// Whether an area's header is unchanged.
    pub(super) fn still(&self, one: &Watched) -> bool {
        self.header(&one.device, one.header.area).is_ok_and(|now| now == one.header)
    }

    pub(super) fn label(&self, device: &Path) -> Result<Option<Label>, DiskError> {
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
