//! The header of a metadata area: it locates the current text in the area's circular buffer.
//!
//! The header is one sector; the rest of the area is a ring of texts. Slot 0 locates the committed text. Slot 1 is in use only
//! while LVM writes, and we ignore it. A commit is the one write that stores a new slot 0.

use super::checksum;
use super::label::{Area, u32_at, u64_at};
use super::text;

/// The size of a header in bytes.
pub const SIZE: usize = 512;
const MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// LVM does not update the area (`pvchange --metadataignore y`): its content is old.
const RAW_LOCN_IGNORED: u32 = 1;

/// A header. Two headers are equal only if nothing was committed between them, so comparing them detects commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub area: Area,
    /// LVM does not update this area; do not read it.
    pub ignored: bool,
    /// The current text; `None` if the area is empty, as on a PV without a group.
    pub live: Option<Live>,
    pub checksum: u32,
}

/// The place of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The first byte, from the beginning of the area.
    pub offset: u64,
    /// In bytes, including the zero byte at its end.
    pub size: u64,
    pub checksum: u32,
}

/// Why a header or a text cannot be trusted. The caller knows the device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the metadata area at byte {at}: its header is truncated")]
    Short { at: u64 },
    #[error("the metadata area at byte {at}: it has no LVM metadata header")]
    Magic { at: u64 },
    /// An unknown version of the header.
    #[error("the metadata area at byte {at}: unknown version {version}")]
    Version { at: u64, version: u32 },
    /// The header is damaged, or was read during a write.
    #[error("the metadata area at byte {at}: the checksum of its header is wrong")]
    Header { at: u64 },
    /// The header gives another place or size of the area than the label.
    #[error("the metadata area at byte {at}: its header and the label disagree about the area")]
    Area { at: u64 },
    /// The text would be outside the area, or has an impossible size.
    #[error("the metadata area at byte {at}: its header locates the text outside the area")]
    Outside { at: u64 },
    /// The text is damaged, or was overwritten during the read.
    #[error("the metadata area at byte {at}: the checksum of its text is wrong")]
    Text { at: u64 },
}

impl Header {
    /// Parses the header of an area that a label locates.
    ///
    /// # Errors
    /// See [`HeaderError`]; any of them means "unknown", never "unchanged" or "empty".
    pub fn parse(bytes: &[u8], area: Area) -> Result<Header, HeaderError> {
        let at = area.offset;
        let bytes = bytes.get(..SIZE).ok_or(HeaderError::Short { at })?;
        if &bytes[4..20] != MAGIC {
            return Err(HeaderError::Magic { at });
        }
        let checksum = checksum([&bytes[4..]]);
        if u32_at(bytes, 0) != Some(checksum) {
            return Err(HeaderError::Header { at });
        }
        let version = u32_at(bytes, 20).ok_or(HeaderError::Short { at })?;
        if version != 1 {
            return Err(HeaderError::Version { at, version });
        }
        if u64_at(bytes, 24) != Some(area.offset) || u64_at(bytes, 32) != Some(area.size) {
            return Err(HeaderError::Area { at });
        }
        let slot = || Some((u64_at(bytes, 40)?, u64_at(bytes, 48)?, u32_at(bytes, 56)?, u32_at(bytes, 60)?));
        let (offset, size, sum, flags) = slot().ok_or(HeaderError::Short { at })?;
        let live = Live { offset, size, checksum: sum };
        let empty = offset == 0 || size == 0;
        if !empty && !live.fits(area) {
            return Err(HeaderError::Outside { at });
        }
        Ok(Header { area, ignored: flags & RAW_LOCN_IGNORED != 0, live: (!empty).then_some(live), checksum })
    }

    /// The device bytes of the text, in order: one piece, two if it wraps around, none if there is no text.
    pub fn pieces(&self) -> Vec<Area> {
        let Some(live) = self.live else { return Vec::new() };
        let wrapped = live.wrapped(self.area);
        let first = Area { offset: self.area.offset + live.offset, size: live.size - wrapped };
        let second = Area { offset: self.area.offset + SIZE as u64, size: wrapped };
        if wrapped == 0 { vec![first] } else { vec![first, second] }
    }

    /// Checks a text read from [`Header::pieces`] against its checksum.
    ///
    /// # Errors
    /// [`HeaderError::Text`] if it differs.
    pub fn verify(&self, text: &[u8]) -> Result<(), HeaderError> {
        let right = self.live.is_some_and(|live| text.len() as u64 == live.size && checksum([text]) == live.checksum);
        if right { Ok(()) } else { Err(HeaderError::Text { at: self.area.offset }) }
    }
}

impl Live {
    /// How many of the text's bytes are at the beginning of the ring.
    fn wrapped(&self, area: Area) -> u64 {
        self.offset.saturating_add(self.size).saturating_sub(area.size)
    }

    /// Whether the text is inside the ring and does not overlap itself.
    fn fits(&self, area: Area) -> bool {
        let header = SIZE as u64;
        area.offset.checked_add(area.size).is_some()
            && (header..area.size).contains(&self.offset)
            && self.size <= text::LARGEST as u64
            && self.wrapped(area).saturating_add(header) <= self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::metadata::tests::hex;

    const AREA: Area = Area { offset: 4096, size: (2 << 20) - 4096 };

    fn real() -> Vec<u8> {
        let mut bytes = hex(include_str!("../../../tests/fixtures/lvm/header.hex"));
        bytes.resize(SIZE, 0);
        bytes
    }

    /// A header with another slot 0 and a valid checksum.
    fn with_slot(area: Area, offset: u64, size: u64, sum: u32, flags: u32) -> Vec<u8> {
        let mut bytes = real();
        bytes[24..32].copy_from_slice(&area.offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&area.size.to_le_bytes());
        bytes[40..48].copy_from_slice(&offset.to_le_bytes());
        bytes[48..56].copy_from_slice(&size.to_le_bytes());
        bytes[56..60].copy_from_slice(&sum.to_le_bytes());
        bytes[60..64].copy_from_slice(&flags.to_le_bytes());
        signed(bytes)
    }

    fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
        let sum = checksum([&bytes[4..]]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_real_header_leads_to_its_text() {
        let header = Header::parse(&real(), AREA).unwrap();
        let text = include_bytes!("../../../tests/fixtures/lvm/missing-pv.txt");
        let mut on_disk = text.to_vec();
        on_disk.push(0);
        assert!(!header.ignored);
        assert_eq!(header.pieces(), [Area { offset: 4096 + header.live.unwrap().offset, size: on_disk.len() as u64 }]);
        assert_eq!(header.verify(&on_disk), Ok(()));
        on_disk[100] ^= 1;
        assert_eq!(header.verify(&on_disk), Err(HeaderError::Text { at: 4096 }));
        assert_eq!(header.verify(text), Err(HeaderError::Text { at: 4096 }));
    }

    #[test]
    fn a_text_that_wraps_is_two_pieces() {
        let area = Area { offset: 4096, size: 8192 };
        let header = Header::parse(&with_slot(area, 7680, 2000, 0, 0), area).unwrap();
        assert_eq!(header.pieces(), [Area { offset: 4096 + 7680, size: 512 }, Area { offset: 4096 + 512, size: 1488 }]);
    }

    #[test]
    fn an_area_of_no_group_is_empty_and_an_ignored_one_says_so() {
        let empty = Header::parse(&with_slot(AREA, 0, 0, 0, 0), AREA).unwrap();
        assert_eq!((empty.live, empty.pieces()), (None, vec![]));
        assert!(empty.verify(&[]).is_err());
        assert!(Header::parse(&with_slot(AREA, 512, 10, 0, RAW_LOCN_IGNORED), AREA).unwrap().ignored);
    }

    #[test]
    fn each_kind_of_damage_has_its_error() {
        let at = AREA.offset;
        let mut other = real();
        other[5] = b'X';
        assert_eq!(Header::parse(&signed(other), AREA), Err(HeaderError::Magic { at }));
        let mut other = real();
        other[50] ^= 1;
        assert_eq!(Header::parse(&other, AREA), Err(HeaderError::Header { at }));
        let mut other = real();
        other[20] = 2;
        assert_eq!(Header::parse(&signed(other), AREA), Err(HeaderError::Version { at, version: 2 }));
        assert_eq!(Header::parse(&real(), Area { offset: 8192, ..AREA }), Err(HeaderError::Area { at: 8192 }));
        for length in 0..SIZE {
            assert_eq!(Header::parse(&real()[..length], AREA), Err(HeaderError::Short { at }));
        }
    }

    #[test]
    fn a_text_outside_its_area_is_refused() {
        let end = AREA.size;
        for (offset, size) in [(1, 10), (511, 10), (end, 1), (u64::MAX, 1), (512, u64::MAX), (512, end), (end - 1, end - 511)] {
            let outside = Header::parse(&with_slot(AREA, offset, size, 0, 0), AREA);
            assert_eq!(outside, Err(HeaderError::Outside { at: 4096 }), "{offset} {size}");
        }
        for (offset, size) in [(512, end - 512), (end - 1, end - 512)] {
            assert!(Header::parse(&with_slot(AREA, offset, size, 0, 0), AREA).is_ok());
        }
        // The largest possible area, and ones smaller than a header.
        for size in [u64::MAX, 0, 100] {
            let area = Area { offset: 4096, size };
            let _ = Header::parse(&with_slot(area, 600, 700, 0, 0), area).map(|header| header.pieces());
        }
    }
}
