//! Block devices: finds a volume's dm device, probes what is on it, and zeroes it.
//!
//! A device is used by its kernel node only after its dm UUID was read and matches, since the kernel gives free minors, and LVM
//! free names, to the next device.

mod dm;
mod error;
#[cfg(test)]
mod fake;
mod holder;
mod pool;
mod probe;
mod zero;

pub use dm::{find_lv, lv_dm_name, lv_dm_uuid, lvm_name, stale_by_name, usable, wait_closed};
pub use error::DeviceError;
pub use holder::{cap_holders, ensure_holder, holders, remove_holder};
#[cfg(any(test, fuzzing))]
pub(crate) use pool::fuzz as fuzz_answers;
pub use pool::{pool_status, pool_transaction};
pub use probe::{Area, ProbeReport, probe, probe_child, superblock_areas};
pub use zero::{Zeroer, zero_superblock_areas};
