//! Simulated power cuts: disks that record their writes, the reader of such a record, and a model of what the driver has acknowledged,
//! none of which a cut may lose.

mod boot;
mod disk;
mod log;
mod world;

pub use boot::NextBoot;
pub use disk::Disk;
pub use log::{Event, Log};
pub use world::{Access, From, Step, World};
