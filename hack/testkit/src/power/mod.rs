//! What a power cut may take and what not: disks that record their writes, the reader of such a record, and the account of what
//! the driver has acknowledged.

mod boot;
mod disk;
mod log;
mod world;

pub use boot::NextBoot;
pub use disk::Disk;
pub use log::{Event, Log};
pub use world::{Access, From, Step, World};
