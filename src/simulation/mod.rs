//! For tests: a whole machine in memory. The driver runs on it unchanged and may die at any effect.
//!
//! The LVM engine, the verbs, the node service, the ledger and the paths are the real ones. [`host::Host`] replaces the kernel,
//! LVM's programs and mkfs. It has two PVs with their metadata as bytes, device-mapper tables, the mount table, and a coarse
//! content of every byte: zeroes, leftovers of a former user, a superblock, or the data of one write. It outlives the driver, and a
//! power cut takes away what was not flushed. `rules` defines what must hold at every moment.
//!
//! `enumeration` dies at each moment of each effect of a volume's life. `histories` are random, and `stories` repeats what they
//! found.

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
