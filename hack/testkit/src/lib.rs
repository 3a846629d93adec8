//! The test kit of the demo and the device tests. It makes volume groups in the lab, runs the driver as a process, calls its services,
//! and compares the machine before and after.
//!
//! Nothing here uses the driver's code: the kit sees the driver only through its socket, LVM and the kernel.

pub mod certs;
pub mod cleanup;
pub mod client;
pub mod driver;
pub mod error;
pub mod flow;
pub mod kube;
pub mod lab;
pub mod machine;
pub mod markdown;
pub mod mounts;
pub mod power;
pub mod sample;
pub mod shim;
pub mod sick;
pub mod signature;
pub mod test_vg;
pub mod tool;
pub mod vg;

pub use error::{Result, Trouble};
