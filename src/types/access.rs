//! How a volume is used: as a filesystem or a block device, by how many, and whether for writing.

use std::fmt;

use super::life::FsKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessType {
    /// Mounted with this filesystem type; `None` means the type that the volume holds, or the default for an empty one.
    Mount(Option<FsKind>),
    Block,
}

/// The supported CSI access modes (CSI `VolumeCapability.AccessMode`): those for a single node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessMode {
    /// Read and written on one node. Kubernetes sends it where the last two modes are not known.
    SingleNodeWriter,
    /// Read on one node.
    SingleNodeReaderOnly,
    /// Read and written by one workload on one node.
    SingleNodeSingleWriter,
    /// Read and written by several workloads on one node.
    SingleNodeMultiWriter,
}

impl AccessMode {
    /// The name as CSI spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            AccessMode::SingleNodeWriter => "SINGLE_NODE_WRITER",
            AccessMode::SingleNodeReaderOnly => "SINGLE_NODE_READER_ONLY",
            AccessMode::SingleNodeSingleWriter => "SINGLE_NODE_SINGLE_WRITER",
            AccessMode::SingleNodeMultiWriter => "SINGLE_NODE_MULTI_WRITER",
        }
    }

    /// Reads the name as CSI spells it.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::SingleNodeWriter, Self::SingleNodeReaderOnly, Self::SingleNodeSingleWriter, Self::SingleNodeMultiWriter]
            .into_iter()
            .find(|mode| mode.as_str() == text)
    }
}

impl fmt::Display for AccessMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One requested volume capability.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Capability {
    pub access: AccessType,
    pub mode: AccessMode,
    /// Mount options as given; empty for a block device.
    pub mount_flags: Vec<String>,
}
