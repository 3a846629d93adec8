//! What this machine reports: to the controller, to metrics and health checks, and to people.

mod figures;
mod health;
mod look;
mod report;
mod strangers;
mod usage;

pub use figures::{Figures, PoolFigures, register_metrics};
pub use report::{Kind, NodeReport, VolumeReport};

pub(super) use look::Looks;
