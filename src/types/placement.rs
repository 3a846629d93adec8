//! Placement of a volume on the disks of its volume group.

use std::fmt;

use super::names::LvName;

/// How a volume is placed on the disks of its volume group. Its pool determines that when the volume is made; there is no fallback to
/// another placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In its own extents of the group, all allocated when the volume is made.
    Thick(Geometry),
    /// In blocks of a thin pool, allocated at the first write.
    Thin {
        /// The LV of the thin pool.
        pool: LvName,
    },
}

/// How the extents of a thick volume are spread over the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// One after the other.
    Linear,
    /// In another way, which no pool offers: an administrator converted the LV (lvconvert).
    Converted,
}

/// The kind of a volume's snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// A thin LV in the pool of the volume, with which it shares blocks and which it outlives.
    Thin,
}

impl Placement {
    pub const LINEAR: Self = Self::Thick(Geometry::Linear);

    /// The placement in this thin pool; without one, linear.
    pub fn in_pool(pool: Option<LvName>) -> Self {
        pool.map_or(Self::LINEAR, |pool| Self::Thin { pool })
    }

    /// The LV of the thin pool that holds the volume's blocks.
    pub fn thin_pool(&self) -> Option<&LvName> {
        match self {
            Self::Thick(_) => None,
            Self::Thin { pool } => Some(pool),
        }
    }

    /// Whether a volume with this placement can belong to a pool whose volumes have the placement `pool`.
    pub fn is_of(&self, pool: &Self) -> bool {
        self.thin_pool() == pool.thin_pool()
    }

    /// Whether its space may hold old bytes until it is zeroed. A thin pool zeroes each block before it allocates it.
    pub fn needs_zeroing(&self) -> bool {
        matches!(self, Self::Thick(_))
    }

    /// Whether it grows by extents of the group, possibly onto further disks; a thin volume grows by a promise of its pool.
    pub fn grows_by_extents(&self) -> bool {
        matches!(self, Self::Thick(_))
    }

    /// Whether one commit removes it. LVM removes a thin LV by two, with a message to its pool between them.
    pub fn goes_in_one_commit(&self) -> bool {
        matches!(self, Self::Thick(Geometry::Linear))
    }

    /// The kind of its snapshots; `None` if it cannot have any.
    pub fn snapshot_kind(&self) -> Option<SnapshotKind> {
        match self {
            Self::Thick(_) => None,
            Self::Thin { .. } => Some(SnapshotKind::Thin),
        }
    }
}

/// Follows "the volume is".
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thick(Geometry::Linear) => f.write_str("linear"),
            Self::Thick(Geometry::Converted) => f.write_str("neither linear nor thin"),
            Self::Thin { pool } => write!(f, "in thin pool {pool}"),
        }
    }
}
