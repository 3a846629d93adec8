//! LVM as the driver uses it: one process per change, none per read. Knows nothing of CSI.

pub mod command;
pub mod conf;
pub mod engine;
#[cfg(test)]
pub(crate) mod image;
mod leash;
pub mod leftover;
pub mod metadata;
pub mod report;
#[cfg(test)]
pub(crate) mod simulated;
pub mod source;
pub mod version;
pub mod writer;

pub use engine::{ChangeError, Commands, Engine, Lvm, Program, SetupError};
pub use source::{ReadError, View};
pub use writer::Turn;
