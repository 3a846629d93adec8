//! The messages, clients and services of the interfaces that lvm-csi speaks, generated at build time.
//!
//! Clients take any channel, and services go into any server: neither has a transport of its own.

/// The agent of a node, as the controller calls it (`lvmcsi.agent.v1` on the wire).
pub mod agent {
    tonic::include_proto!("lvmcsi.agent.v1");
}

/// The Container Storage Interface, version 1.13 (`csi.v1` on the wire).
///
/// `Debug` of a message with confidential fields shows its name only, so that no log can leak them.
pub mod csi {
    use std::fmt;

    pub use prost::Message;

    tonic::include_proto!("csi.v1");

    include!(concat!(env!("OUT_DIR"), "/csi.debug.rs"));

    // Mount options may contain credentials; all else may be shown.
    impl fmt::Debug for volume_capability::MountVolume {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("MountVolume")
                .field("fs_type", &self.fs_type)
                .field("volume_mount_group", &self.volume_mount_group)
                .finish_non_exhaustive()
        }
    }
}
