//! lvm-csi: a CSI driver that cuts block volumes from LVM volume groups, with attach semantics.
//!
//! ARCHITECTURE.md describes the modules and what never happens; `tests/layers.rs` checks which module may import which.

pub mod agent;
pub mod attach;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod device;
pub mod filesystem;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod host;
pub mod inflight;
pub mod lvm;
pub mod machine;
pub mod mount;
pub mod node;
pub mod role;
pub mod rpc;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod tls;
pub mod types;
pub mod volume;
