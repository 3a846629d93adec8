//! A pool: a named offer of the configuration, which a StorageClass names.

use std::time::Duration;

use super::names::{LvName, VgName};
use super::placement::{Geometry, Placement};
use super::size::{Bytes, Extents};

/// A pool as it is configured. What it stands for on the machine, the agent finds out at each call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name, as `parameters.pool` of a StorageClass gives it.
    pub name: String,
    pub vg: VgName,
    /// How volumes lie on it.
    pub layout: LayoutConfig,
    /// Size of a volume whose request names none.
    pub default_size: Bytes,
    /// Used where a StorageClass names no pool.
    pub is_default: bool,
    /// Pods may have inline ephemeral volumes here, of at most this size; `None` where they may not.
    pub ephemeral: Option<Bytes>,
}

/// The layout of a configured pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutConfig {
    /// Extents of the volume group.
    Thick(Geometry),
    /// Thin volumes.
    Thin(ThinPoolConfig),
}

/// A pool of thin volumes, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinPoolConfig {
    /// The thin pool LV; `None` for the only one of the group.
    pub pool: Option<LvName>,
    /// Make the thin pool where the group has none.
    pub create: Option<NewThinPool>,
    /// Most that all volumes and snapshots together may promise, in percent of the pool's size.
    pub overprovision_percent: u32,
    /// Most snapshots of one volume; 0 for no limit.
    pub max_snapshots: usize,
    /// How it is looked after.
    pub care: PoolCare,
    /// The pool is offered only if the group has a thin pool when the driver starts.
    pub if_present: bool,
}

impl LayoutConfig {
    /// Linear volumes.
    pub const LINEAR: Self = Self::Thick(Geometry::Linear);
}

impl PoolConfig {
    /// How its volumes lie, in the thin pool that `found` answers for what is configured of it.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn placement<E>(&self, found: impl FnOnce(&ThinPoolConfig) -> Result<LvName, E>) -> Result<Placement, E> {
        match &self.layout {
            LayoutConfig::Thick(geometry) => Ok(Placement::Thick(*geometry)),
            LayoutConfig::Thin(thin) => found(thin).map(|pool| Placement::Thin { pool }),
        }
    }

    /// What is configured of its thin pool, where it has one.
    pub fn thin(&self) -> Option<&ThinPoolConfig> {
        match &self.layout {
            LayoutConfig::Thick(_) => None,
            LayoutConfig::Thin(thin) => Some(thin),
        }
    }
}

/// A thin pool that shall be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewThinPool {
    /// The size of its data.
    pub size: Bytes,
    /// The size of its mappings; `None` for one that suits the size.
    pub metadata: Option<Bytes>,
    /// The unit in which it hands out data; `None` for one that suits the size.
    pub chunk: Option<Bytes>,
}

impl NewThinPool {
    /// The smallest chunk that LVM takes; a larger one is a multiple of it.
    pub const SMALLEST_CHUNK: Bytes = Bytes(64 << 10);
    /// The largest chunk that LVM takes.
    pub const LARGEST_CHUNK: Bytes = Bytes(1 << 30);
    /// The smallest metadata that LVM takes.
    pub const SMALLEST_METADATA: Bytes = Bytes(2 << 20);
    /// The largest metadata that every LVM takes; the kernel's own limit lies a little above, at 15.8 GiB.
    pub const LARGEST_METADATA: Bytes = Bytes(15_800 << 20);
}

/// How the driver looks after a thin pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolCare {
    /// Space of the group that nothing but the growth of this pool may take.
    pub reserve: Reserve,
    /// From this fill on, of data or of metadata in percent, the pool takes no new volume or snapshot.
    pub full_percent: u64,
    /// The driver extends the pool, and lets a full one hold back writes or refuse them.
    pub auto_extend: bool,
    /// Longest pause between two looks at it.
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
    /// So much.
    Bytes(Bytes),
    /// So much of the group's size, in percent.
    Percent(u64),
}

impl Default for Reserve {
    fn default() -> Self {
        Reserve::Bytes(Bytes(0))
    }
}

/// How much a thin pool may promise, and when it takes nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinRules {
    /// Most that all volumes and snapshots together may promise, in percent of the pool's size.
    pub overprovision_percent: u32,
    /// Most snapshots of one volume; 0 for no limit.
    pub max_snapshots: usize,
    /// See [`PoolCare::full_percent`].
    pub full_percent: u64,
}

/// Those of a thin pool that the configuration does not name.
impl Default for ThinRules {
    fn default() -> Self {
        Self { overprovision_percent: 100, max_snapshots: 0, full_percent: PoolCare::default().full_percent }
    }
}

/// A pool as it was found on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name in the configuration.
    pub name: String,
    pub vg: VgName,
    /// How its volumes lie.
    pub placement: Placement,
    /// What holds of its thin pool; of no meaning without one.
    pub rules: ThinRules,
    /// Size of a volume whose request names none.
    pub default_size: Bytes,
    /// Free space of the group that is kept for the growth of thin pools, this one's own left out.
    pub reserved: Extents,
}
