//! LVM as the driver uses it: one process per change, none per read. Knows nothing of CSI.

pub mod backup;
mod census;
pub mod command;
pub mod conf;
pub mod devices;
pub mod engine;
#[cfg(test)]
pub(crate) mod image;
pub mod leftover;
mod lock;
pub mod metadata;
mod metrics;
pub mod pin;
mod reader;
pub mod report;
mod restore;
#[cfg(test)]
pub(crate) mod simulated;
pub mod source;
mod survivor;
mod targets;
mod thin_metadata;
pub mod version;
pub mod writer;

pub use backup::Backups;
pub use census::Census;
pub use devices::Devices;
pub use engine::{ChangeError, Commands, Engine, Lvm, Program, SetupError};
pub use metrics::register_metrics;
pub use pin::{Pin, Pins};
pub use restore::{RestoreError, prepare};
pub use source::{ReadError, Trust, View};
pub use writer::Turn;
