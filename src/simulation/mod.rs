//! For tests: a whole machine in memory, on which the driver runs as it is and may die at any effect.
//!
//! The engine of LVM, the verbs, the node service, the ledger and the paths are the real ones. In place of the kernel, of LVM's
//! programs and of mkfs there is [`host::Host`]: two PVs with their metadata as bytes, device-mapper tables, the mount table,
//! and what lies in each byte, coarsely: zeroes, what somebody left, a superblock, or what one write put there. It outlives the
//! driver, and loses at a power cut what was not flushed. `rules` says what must hold at every moment.
//!
//! `enumeration` dies at each moment of each effect of a volume's life; `histories` are random, and `stories` tells what was found so.

mod content;
mod doom;
mod enumeration;
mod histories;
mod host;
mod kernel;
mod lvm;
mod rules;
mod stories;
mod tools;
mod world;
