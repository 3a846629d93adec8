//! Parses LVM's on-disk metadata from bytes to a model. Pure: the caller reads the disk.
//!
//! A PV's [`label`] locates its metadata areas. An area's [`header`] locates the current text and has its checksum. [`text`]
//! parses the text into a tree, and [`Vg::parse`] makes the model from it. [`apply()`] predicts the metadata after a command.

mod apply;
pub mod header;
pub mod label;
mod model;
mod parse;
pub mod text;

pub use apply::{ApplyError, apply, differences};
pub use model::{Lv, Pv, Segment, SegmentKind, Stripe, Vg};
pub use parse::MetadataError;

use crc::{Algorithm, Crc, Table};

/// LVM's CRC-32: the usual polynomial, bits reflected, LVM's own start value (0xf597a6cf, unreflected here as the crate expects)
/// and no final inversion. It uses 16 KiB of tables, since texts of thousands of LVs are read after each commit.
static LVM_CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&Algorithm {
    width: 32,
    poly: 0x04c1_1db7,
    init: 0xf597_a6cf_u32.reverse_bits(),
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
});

/// The checksum of labels, area headers and texts.
pub(super) fn checksum<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = LVM_CRC.digest();
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize()
}

/// For the fuzzer: parses the bytes as everything that may be on a PV. Returns the group if they are a metadata text.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) -> Option<Vg> {
    let _ = label::find(data);
    let area = label::Area { offset: 4096, size: 1 << 20 };
    if let Ok(header) = header::Header::parse(data, area) {
        for piece in header.pieces() {
            assert!(piece.offset >= area.offset && piece.offset + piece.size <= area.offset + area.size, "{header:?}");
        }
    }
    Vg::parse(data).ok()
}

#[cfg(test)]
mod tests;
