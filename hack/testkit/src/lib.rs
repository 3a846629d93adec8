//! What the demo and the device tests stand on: a volume group of their own inside the lab, the driver as a process, its
//! services as plain calls, and an account of the machine before and after.
//!
//! Nothing here knows the driver's code: the driver is seen through its socket, through LVM and through the kernel.

pub mod certs;
pub mod cleanup;
pub mod client;
pub mod driver;
pub mod error;
pub mod flow;
pub mod kube;
pub mod lab;
pub mod machine;
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
