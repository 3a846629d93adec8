//! Filesystems: which ones we make, when one may be made, what is on a device, and how to make, grow and measure one.
//!
//! `options`, `life` and `uuid` are pure. `superblock` reads a device and changes nothing. `ops` changes filesystems.

mod life;
mod ops;
mod options;
mod superblock;
mod uuid;

pub use crate::types::{FsKind as Kind, Life};
pub use life::{DeviceContent, Refusal, Step, next_step};
pub use ops::{FsError, check, grow, make, needs_growth, stats, trouble};
pub use options::{MountOptions, OptionError};
#[cfg(any(test, fuzzing))]
pub(crate) use superblock::fuzz as fuzz_superblock;
pub use superblock::{Summary, never_mounted, summary, used};
pub use uuid::uuid_for;

#[cfg(test)]
mod fake;
