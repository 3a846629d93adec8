//! A pool: a named offer of the configuration, which a StorageClass names.

use super::names::{LvName, VgName};
use super::size::Bytes;

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
        /// Make the thin pool in this size where the group has none.
        create: Option<Bytes>,
        /// Most that all volumes together may promise, in percent of the pool's size.
        overprovision_percent: u32,
        /// The pool is offered only if the group has a thin pool when the driver starts.
        if_present: bool,
    },
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
        /// Most that all volumes together may promise, in percent of the pool's size.
        overprovision_percent: u32,
    },
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
}
