//! A pool: a named entry of the configuration that a StorageClass refers to.

use std::time::Duration;

use super::names::{LvName, VgName};
use super::placement::{Geometry, Placement};
use super::size::{Bytes, Extents};

/// The configuration of a pool. The agent finds out at each call what it is on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name, as in `parameters.pool` of a StorageClass.
    pub name: String,
    pub vg: VgName,
    pub layout: LayoutConfig,
    /// Size of a volume whose request gives none.
    pub default_size: Bytes,
    /// Used if a StorageClass names no pool.
    pub is_default: bool,
    /// Largest size of an inline ephemeral volume; `None` if the pool offers none.
    pub ephemeral: Option<Bytes>,
}

/// How a pool's volumes use the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutConfig {
    /// In extents of the volume group.
    Thick(Geometry),
    /// In a thin pool.
    Thin(ThinPoolConfig),
}

/// The thin pool of a configured pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinPoolConfig {
    /// The thin pool LV; `None` for the only one of the group.
    pub pool: Option<LvName>,
    /// Create this thin pool if the group has none.
    pub create: Option<NewThinPool>,
    /// Most that all volumes and snapshots together may promise, in percent of the pool's size.
    pub overprovision_percent: u32,
    /// Most snapshots of one volume; 0 for no limit.
    pub max_snapshots: usize,
    pub care: PoolCare,
    /// The driver offers the pool only if the group has a thin pool when it starts.
    pub if_present: bool,
}

impl LayoutConfig {
    pub const LINEAR: Self = Self::Thick(Geometry::Linear);
}

impl PoolConfig {
    /// The placement of its volumes. `found` finds the LV of a configured thin pool.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn placement<E>(&self, found: impl FnOnce(&ThinPoolConfig) -> Result<LvName, E>) -> Result<Placement, E> {
        match &self.layout {
            LayoutConfig::Thick(geometry) => Ok(Placement::Thick(*geometry)),
            LayoutConfig::Thin(thin) => found(thin).map(|pool| Placement::Thin { pool }),
        }
    }

    /// The configuration of its thin pool, if it has one.
    pub fn thin(&self) -> Option<&ThinPoolConfig> {
        match &self.layout {
            LayoutConfig::Thick(_) => None,
            LayoutConfig::Thin(thin) => Some(thin),
        }
    }
}

/// A thin pool to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewThinPool {
    /// Size of its data.
    pub size: Bytes,
    /// Size of its metadata; `None` for one that suits the size.
    pub metadata: Option<Bytes>,
    /// Size of its chunks, in which it allocates data; `None` for one that suits the size.
    pub chunk: Option<Bytes>,
}

impl NewThinPool {
    /// The smallest chunk that LVM takes; a larger one is a multiple of it.
    pub const SMALLEST_CHUNK: Bytes = Bytes(64 << 10);
    /// The largest chunk that LVM takes.
    pub const LARGEST_CHUNK: Bytes = Bytes(1 << 30);
    /// The smallest metadata that LVM takes.
    pub const SMALLEST_METADATA: Bytes = Bytes(2 << 20);
    /// The largest metadata that every version of LVM takes; the kernel's own limit is a little higher, at 15.8 GiB.
    pub const LARGEST_METADATA: Bytes = Bytes(15_800 << 20);
}

/// How the driver takes care of a thin pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolCare {
    /// Space of the group reserved for the growth of this pool.
    pub reserve: Reserve,
    /// Fill of data or metadata, in percent, from which on the pool takes no new volume or snapshot.
    pub full_percent: u64,
    /// The driver extends the pool, and decides whether a full one queues or fails writes.
    pub auto_extend: bool,
    /// Longest pause between two polls.
    pub poll: Duration,
}

impl Default for PoolCare {
    fn default() -> Self {
        Self { reserve: Reserve::default(), full_percent: 95, auto_extend: true, poll: Duration::from_secs(10) }
    }
}

/// A part of a volume group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    Bytes(Bytes),
    /// Of the group's size.
    Percent(u64),
}

impl Default for Reserve {
    fn default() -> Self {
        Reserve::Bytes(Bytes(0))
    }
}

/// How much a thin pool may promise, and when it takes no new volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinRules {
    /// Most that all volumes and snapshots together may promise, in percent of the pool's size.
    pub overprovision_percent: u32,
    /// Most snapshots of one volume; 0 for no limit.
    pub max_snapshots: usize,
    /// See [`PoolCare::full_percent`].
    pub full_percent: u64,
}

/// Rules for a thin pool that the configuration does not name.
impl Default for ThinRules {
    fn default() -> Self {
        Self { overprovision_percent: 100, max_snapshots: 0, full_percent: PoolCare::default().full_percent }
    }
}

/// A pool on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name in the configuration.
    pub name: String,
    pub vg: VgName,
    /// The placement of its volumes.
    pub placement: Placement,
    /// Rules of its thin pool; unused without one.
    pub rules: ThinRules,
    /// Size of a volume whose request gives none.
    pub default_size: Bytes,
    /// Free space of the group that is kept for the growth of other thin pools.
    pub reserved: Extents,
}
