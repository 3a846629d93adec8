//! What runs without a call: the first look at each group, unfinished work, metadata copies, udev rules, and the collection of orphans.

mod backup;
mod begin;
mod collect;
mod hidden;
mod jobs;
mod nameless;

pub use backup::Keeping;

pub(super) use hidden::Hiding;
