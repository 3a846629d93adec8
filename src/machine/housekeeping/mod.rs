//! What goes on without a call: the first look at each group, unfinished work, copies of metadata, hiding, and collecting what is left over.

mod backup;
mod begin;
mod collect;
mod hidden;
mod jobs;
mod nameless;

pub use backup::Keeping;

pub(super) use hidden::Hiding;
