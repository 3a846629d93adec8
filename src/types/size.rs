//! Amounts of storage with their unit in the type: bytes, 512-byte sectors, and extents of a volume group.

use std::fmt;

/// Bytes in one sector, the unit of LVM's metadata and of device-mapper tables.
pub const SECTOR: u64 = 512;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// An amount in 512-byte sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sectors(pub u64);

/// An amount in extents, whose size the volume group defines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extents(pub u64);

impl Bytes {
    pub const MIB: Bytes = Bytes(1 << 20);
    pub const GIB: Bytes = Bytes(1 << 30);

    /// The smallest number of extents that holds this amount.
    pub fn to_extents_up(self, extent: Bytes) -> Extents {
        Extents(self.0.div_ceil(extent.0.max(1)))
    }

    /// The largest number of whole extents within this amount.
    pub fn to_extents_down(self, extent: Bytes) -> Extents {
        Extents(self.0 / extent.0.max(1))
    }
}

impl Sectors {
    /// The same amount in bytes; the largest `u64` if it does not fit.
    pub fn to_bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(SECTOR))
    }
}

impl Extents {
    /// The same amount in bytes for extents of this size; the largest `u64` if it does not fit.
    pub fn to_bytes(self, extent: Bytes) -> Bytes {
        Bytes(self.0.saturating_mul(extent.0))
    }
}

impl fmt::Display for Bytes {
    /// Exact bytes, and a binary unit for people: the largest that divides them, `1073741824 (1GiB)`. If that leaves an unreadable
    /// number, the amount in the largest fitting unit with one decimal, `1000000003768320 (909.5TiB)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let is_long = self.0 >= 10 * Bytes::GIB.0;
        let readable = |count: u64| count > 0 && (count < 10_240 || !is_long);
        let whole = UNITS.iter().find(|(_, shift)| self.0.is_multiple_of(1 << shift) && readable(self.0 >> shift));
        if let Some((unit, shift)) = whole {
            return write!(f, "{} ({}{unit})", self.0, self.0 >> shift);
        }
        match UNITS.iter().find(|(_, shift)| self.0 >> shift > 0) {
            Some((unit, shift)) if is_long => {
                write!(f, "{} ({:.1}{unit})", self.0, self.0 as f64 / (1u64 << shift) as f64)
            }
            _ => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.0)
    }
}

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} extents", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_round_up_and_down() {
        let extent = Bytes(4 << 20);
        assert_eq!(Bytes(1).to_extents_up(extent), Extents(1));
        assert_eq!(Bytes(4 << 20).to_extents_up(extent), Extents(1));
        assert_eq!(Bytes((4 << 20) + 1).to_extents_up(extent), Extents(2));
        assert_eq!(Bytes((8 << 20) - 1).to_extents_down(extent), Extents(1));
        assert_eq!(Extents(u64::MAX).to_bytes(extent), Bytes(u64::MAX));
    }

    #[test]
    fn bytes_are_shown_with_a_readable_unit() {
        assert_eq!(Bytes(1 << 30).to_string(), "1073741824 (1GiB)");
        assert_eq!(Bytes(1025).to_string(), "1025");
        assert_eq!(Bytes(1_000_000_003_768_320).to_string(), "1000000003768320 (909.5TiB)");
    }
}
