//! Mounts: what is mounted where, and making a path show what it should, by steps that may be repeated.
//!
//! No function here mounts over, or unmounts, anything that its caller does not expect.

mod bind;
mod error;
mod table;
mod target;

pub use bind::{Did, Expect, Source, Wanted, clear, ensure_bound, ensure_mounted_filesystem, ensure_unmounted};
pub use error::MountError;
pub use table::{Identity, Table};
pub use target::Target;

#[cfg(test)]
pub(crate) mod fake;
