//! What this machine says of itself: to the controller, to metrics and health checks, and to a person.

mod figures;
mod health;
mod look;
mod report;
mod strangers;
mod usage;

pub use figures::{Figures, PoolFigures, register_metrics};
pub use report::{Kind, NodeReport, VolumeReport};

pub(super) use look::Looks;
