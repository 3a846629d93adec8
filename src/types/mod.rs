//! Types that every room shares: amounts, names, ids, pools, the content and use of volumes, and the one error.
//! Pure; imports nothing else of the driver.

mod access;
mod change;
mod claim;
mod discreet;
mod error;
pub mod figure;
mod health;
mod ids;
mod life;
mod machine;
mod names;
pub mod notification;
mod parameter;
mod placement;
mod pool;
mod quantity;
mod reading;
mod secret;
mod signature;
mod size;
pub mod step;
mod thin_pool;
mod usage;
mod zeroing;

pub use access::{AccessMode, AccessType, Capability};
pub use change::{Change, Changed};
pub use claim::{Asked, Claim, ClaimName};
pub use discreet::{Discreet, discreet};
pub use error::{Cause, Error, Object, chain, cut};
pub use health::{GroupQueue, GroupState, Wedge};
pub use ids::{EphemeralId, LvUuid, NodeId, PvUuid, SnapshotId, VgUuid, VolumeId};
pub use life::{FsKind, Life};
pub use machine::{MachineId, Recorded};
pub use names::{LvName, NameError, Tag, VgName};
pub use parameter::{Parameter, Parameters, refuse_parameters};
pub use placement::{Geometry, Placement, SnapshotKind};
pub use pool::{LayoutConfig, NewThinPool, Pool, PoolCare, PoolConfig, Reserve, ThinPoolConfig, ThinRules};
pub use quantity::{SizeError, parse as parse_size, write as write_size};
pub use reading::Reading;
pub use secret::Secret;
pub use signature::{Signature, SignatureUsage};
pub use size::{Bytes, Extents, SECTOR, Sectors};
pub use thin_pool::{PoolMode, ThinPoolStatus};
pub use usage::Usage;
pub use zeroing::Zeroing;
