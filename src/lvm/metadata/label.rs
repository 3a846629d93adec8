//! The label of a PV: its UUID and the places of its metadata areas.

use crate::types::{Bytes, PvUuid};

use super::checksum;

/// How many bytes to read from a device's beginning: the label is in one of these four sectors.
pub const SCAN: usize = 4 * SECTOR;
const SECTOR: usize = 512;
/// Bytes of the label before its contents.
const HEAD: usize = 32;

/// A parsed label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub pv: PvUuid,
    /// The size of the device when the PV was created.
    pub device_size: Bytes,
    /// Where extents are; a size of 0 means "to the end".
    pub data_areas: Vec<Area>,
    /// Where metadata are; none with `--metadatacopies 0`.
    pub metadata_areas: Vec<Area>,
}

/// A part of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub offset: u64,
    pub size: u64,
}

/// Why a label cannot be trusted. The caller knows the device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the LVM label in sector {sector} {fault}")]
pub struct LabelError {
    /// The sector of the label.
    pub sector: u64,
    pub fault: Fault,
}

/// What can be wrong with a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The label has another sector's number: it was copied here.
    #[error("was written for sector {0}")]
    Elsewhere(u64),
    #[error("is damaged: its checksum is wrong")]
    Checksum,
    /// Not LVM2's format.
    #[error("is of another type than LVM2 001")]
    Type,
    /// The label points outside its sector or beyond any device.
    #[error("is damaged: it points outside itself")]
    Outside,
    /// The label has no valid PV UUID.
    #[error("is damaged: its UUID is not valid")]
    Uuid,
}

/// Finds the label in the first [`SCAN`] bytes of a device; `None` if there is no label, so no PV.
///
/// # Errors
/// There are labels, but none can be trusted.
pub fn find(bytes: &[u8]) -> Result<Option<Label>, LabelError> {
    let mut first_error = None;
    for (sector, bytes) in (0..).zip(bytes.chunks_exact(SECTOR).take(SCAN / SECTOR)) {
        if !bytes.starts_with(b"LABELONE") {
            continue;
        }
        match read(bytes, sector) {
            Ok(label) => return Ok(Some(label)),
            Err(fault) => {
                first_error.get_or_insert(LabelError { sector, fault });
            }
        }
    }
    first_error.map_or(Ok(None), Err)
}

fn read(bytes: &[u8], sector: u64) -> Result<Label, Fault> {
    let written_for = u64_at(bytes, 8).ok_or(Fault::Outside)?;
    if written_for != sector {
        return Err(Fault::Elsewhere(written_for));
    }
    if u32_at(bytes, 16) != Some(checksum([&bytes[20..]])) {
        return Err(Fault::Checksum);
    }
    if bytes.get(24..HEAD) != Some(b"LVM2 001") {
        return Err(Fault::Type);
    }
    let at = u32_at(bytes, 20)
        .and_then(|at| usize::try_from(at).ok())
        .filter(|at| (HEAD..SECTOR).contains(at))
        .ok_or(Fault::Outside)?;
    let id = bytes.get(at..at + 32).ok_or(Fault::Outside)?;
    let pv = std::str::from_utf8(id).ok().and_then(PvUuid::from_compact).ok_or(Fault::Uuid)?;
    let device_size = Bytes(u64_at(bytes, at + 32).ok_or(Fault::Outside)?);
    let (data_areas, next) = areas(bytes, at + 40)?;
    let (metadata_areas, _) = areas(bytes, next)?;
    Ok(Label { pv, device_size, data_areas, metadata_areas })
}

/// A list of areas, ended by one at offset 0, and the offset of the next list.
fn areas(bytes: &[u8], mut at: usize) -> Result<(Vec<Area>, usize), Fault> {
    let mut list = Vec::new();
    loop {
        let offset = u64_at(bytes, at).ok_or(Fault::Outside)?;
        let size = u64_at(bytes, at + 8).ok_or(Fault::Outside)?;
        at += 16;
        if offset == 0 {
            return Ok((list, at));
        }
        // The kernel's file and device offsets are signed.
        if offset.checked_add(size).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Fault::Outside);
        }
        list.push(Area { offset, size });
    }
}

/// Reads a little-endian number; `None` past the end.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a little-endian number; `None` past the end.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::metadata::tests::hex;

    /// The first four sectors of a PV made with `pvcreate --metadatasize 1m`; the label is in sector 1, zeroes follow.
    fn real() -> Vec<u8> {
        let mut bytes = vec![0; SCAN];
        let label = hex(include_str!("../../../tests/fixtures/lvm/label.hex"));
        bytes[SECTOR..SECTOR + label.len()].copy_from_slice(&label);
        bytes
    }

    /// Writes a valid checksum into the label of sector 1.
    fn sign(bytes: &mut [u8]) {
        let sum = checksum([&bytes[SECTOR + 20..2 * SECTOR]]);
        bytes[SECTOR + 16..SECTOR + 20].copy_from_slice(&sum.to_le_bytes());
    }

    #[test]
    fn a_real_label_is_read() {
        let label = find(&real()).unwrap().unwrap();
        assert_eq!(label.pv.as_str(), "ptzxe2-oMDX-JPF0-wTHI-SOxN-RMkj-P0pBdw");
        assert_eq!(label.device_size, Bytes(2_097_152_000));
        assert_eq!(label.data_areas, [Area { offset: 2 << 20, size: 0 }]);
        assert_eq!(label.metadata_areas, [Area { offset: 4096, size: (2 << 20) - 4096 }]);
    }

    #[test]
    fn no_label_is_no_error() {
        assert_eq!(find(&[]), Ok(None));
        assert_eq!(find(&vec![0; SCAN]), Ok(None));
        assert_eq!(find(&real()[..SECTOR]), Ok(None));
    }

    #[test]
    fn a_damaged_label_is_an_error() {
        let fault = |change: &dyn Fn(&mut Vec<u8>), resign: bool| {
            let mut bytes = real();
            change(&mut bytes);
            if resign {
                sign(&mut bytes);
            }
            find(&bytes).map_err(|error| error.fault)
        };
        assert_eq!(fault(&|b| b[SECTOR + 40] ^= 1, false), Err(Fault::Checksum));
        assert_eq!(fault(&|b| b[SECTOR + 8] = 3, true), Err(Fault::Elsewhere(3)));
        assert_eq!(fault(&|b| b[SECTOR + 24] = b'X', true), Err(Fault::Type));
        assert_eq!(fault(&|b| b[SECTOR + 20..SECTOR + 24].fill(0xff), true), Err(Fault::Outside));
        assert_eq!(fault(&|b| b[SECTOR + 20..SECTOR + 22].copy_from_slice(&500u16.to_le_bytes()), true), Err(Fault::Outside));
        assert_eq!(fault(&|b| b[SECTOR + 32] = b'-', true), Err(Fault::Uuid));
        // A list of areas without an end, and an area beyond any device.
        assert_eq!(fault(&|b| b[SECTOR + 72..2 * SECTOR].fill(1), true), Err(Fault::Outside));
        assert_eq!(fault(&|b| b[SECTOR + 80..SECTOR + 88].fill(0xff), true), Err(Fault::Outside));
    }

    #[test]
    fn a_good_label_behind_a_copied_one_counts() {
        let mut bytes = real();
        bytes.copy_within(SECTOR..2 * SECTOR, 0);
        assert!(find(&bytes).unwrap().is_some());
    }

    #[test]
    fn no_length_panics() {
        let bytes = real();
        for length in 0..bytes.len() {
            let _ = find(&bytes[..length]);
        }
    }
}
