//! How a volume lies on the disks of its volume group.

use std::fmt;

use super::names::LvName;

/// How a volume lies on the disks of its volume group. Its pool decides that when it is made; it never falls back to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In extents of the group that are its own, all allocated when it is made.
    Thick(Geometry),
    /// In blocks of a thin pool, allocated when they are first written.
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
    /// In a way that no pool offers: an administrator converted the LV (lvconvert).
    Converted,
}

/// What a snapshot of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// A thin LV in the pool of the volume; it shares blocks with it, and outlives it.
    Thin,
}

impl Placement {
    /// That of linear volumes.
    pub const LINEAR: Self = Self::Thick(Geometry::Linear);

    /// That of volumes in a thin pool; without one, of linear volumes.
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

    /// Whether a volume that lies so may be one of a pool whose volumes lie as the other one says.
    pub fn is_of(&self, pool: &Self) -> bool {
        self.thin_pool() == pool.thin_pool()
    }

    /// Whether its space may hold what others wrote, until it is zeroed. A thin pool zeroes each block before it gives it out.
    pub fn needs_zeroing(&self) -> bool {
        matches!(self, Self::Thick(_))
    }

    /// Whether it grows by extents of the group, and so onto further disks; a thin one grows by a promise of its pool.
    pub fn grows_by_extents(&self) -> bool {
        matches!(self, Self::Thick(_))
    }

    /// Whether one commit removes it: LVM removes a thin LV by two, with a message to its pool between them.
    pub fn goes_in_one_commit(&self) -> bool {
        matches!(self, Self::Thick(Geometry::Linear))
    }

    /// What a snapshot of it is; `None` where there can be none.
    pub fn snapshot_kind(&self) -> Option<SnapshotKind> {
        match self {
            Self::Thick(_) => None,
            Self::Thin { .. } => Some(SnapshotKind::Thin),
        }
    }
}

/// After "the volume is".
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thick(Geometry::Linear) => f.write_str("linear"),
            Self::Thick(Geometry::Converted) => f.write_str("neither linear nor thin"),
            Self::Thin { pool } => write!(f, "in thin pool {pool}"),
        }
    }
}
