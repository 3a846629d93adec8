//! Words that every room shares: amounts, names, ids, pools, what a volume holds and is used for, and the one error.
//! Pure; imports nothing of the driver.

mod access;
mod error;
mod ids;
mod life;
mod names;
mod pool;
mod size;
pub mod step;
mod zeroing;

pub use access::{AccessMode, AccessType, Capability};
pub use error::{Cause, Error, Object, chain, cut};
pub use ids::{LvUuid, NodeId, PvUuid, SnapshotId, VgUuid, VolumeId};
pub use life::{FsKind, Life};
pub use names::{LvName, NameError, Tag, VgName};
pub use pool::{Layout, LayoutConfig, Pool, PoolConfig};
pub use size::{Bytes, Extents, SECTOR, Sectors};
pub use zeroing::Zeroing;
