//! A pool: a named offer of the configuration, which a StorageClass names.

use std::time::Duration;

use super::names::{LvName, VgName};
use super::size::{Bytes, Extents};

/// A pool as it is configured. What it stands for on the machine, the agent finds out at each call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name, as `parameters.pool` of a StorageClass gives it.
    pub name: String,
    /// The volume group.
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
    /// Whole extents of the volume group, allocated at once.
    Linear,
    /// Thin volumes.
    Thin {
        /// The thin pool LV; `None` for the only one of the group.
        pool: Option<LvName>,
        /// Make the thin pool where the group has none.
        create: Option<NewThinPool>,
        /// Most that all volumes and snapshots together may promise, in percent of the pool's size.
        overprovision_percent: u32,
        /// Most snapshots of one volume; 0 for no limit.
        max_snapshots: usize,
        /// How it is looked after.
        care: PoolCare,
        /// The pool is offered only if the group has a thin pool when the driver starts.
        if_present: bool,
    },
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

/// How volumes of a pool lie on its disks. A layout never falls back to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Whole extents of the volume group, allocated at once.
    Linear,
    /// Thin volumes of this thin pool.
    Thin {
        /// The thin pool LV.
        pool: LvName,
        /// Most that all volumes and snapshots together may promise, in percent of the pool's size.
        overprovision_percent: u32,
        /// Most snapshots of one volume; 0 for no limit.
        max_snapshots: usize,
        /// See [`PoolCare::full_percent`].
        full_percent: u64,
    },
}

impl Pool {
    /// The thin pool that its volumes lie in.
    pub fn thin_pool(&self) -> Option<&LvName> {
        match &self.layout {
            Layout::Linear => None,
            Layout::Thin { pool, .. } => Some(pool),
        }
    }
}

/// A pool as it was found on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name in the configuration.
    pub name: String,
    /// The volume group.
    pub vg: VgName,
    /// How volumes lie on it.
    pub layout: Layout,
    /// Size of a volume whose request names none.
    pub default_size: Bytes,
    /// Free space of the group that is kept for the growth of thin pools, this one's own left out.
    pub reserved: Extents,
}
