//! LVM's on-disk metadata, from bytes to a model. Pure: whoever reads the disk hands in bytes.
//!
//! A PV's [`label`] names its metadata areas, the [`header`] of an area names the live text and its checksum, [`text`] reads the
//! text into a tree, and [`Vg::parse`] makes the model of it. [`apply()`] says what a command leaves behind.

mod apply;
pub mod header;
pub mod label;
mod model;
mod parse;
pub mod text;

pub use apply::{ApplyError, apply, differences};
pub use model::{Lv, Pv, Segment, SegmentKind, Stripe, Vg};
pub use parse::MetadataError;

use crc::{Algorithm, Crc};

/// LVM's CRC-32: the usual polynomial, bits reflected, a start value of its own (0xf597a6cf, here unreflected as the crate wants
/// it) and no final inversion.
static LVM_CRC: Crc<u32> = Crc::<u32>::new(&Algorithm {
    width: 32,
    poly: 0x04c1_1db7,
    init: 0xf597_a6cf_u32.reverse_bits(),
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
});

/// The checksum LVM puts on labels, area headers and texts.
pub(super) fn checksum<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = LVM_CRC.digest();
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize()
}

#[cfg(test)]
mod tests;
