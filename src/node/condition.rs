//! What the kernel says of a volume's filesystem: that it did not grow.

use std::path::Path;
use std::sync::PoisonError;

use crate::filesystem;
use crate::host::VolumeTools;
use crate::types::{FsKind, chain};
use crate::volume::inventory::Volume;

use super::Node;

impl Node {
    /// Grows a mounted filesystem to its volume where that is larger. A growth that fails is no reason to take away a filesystem that
    /// works: it is logged, and tried again when the volume is next staged, published or expanded.
    pub(super) fn grow_to_volume(&self, tools: VolumeTools<'_>, volume: &Volume, kind: FsKind, at: &Path) {
        let (kernel, node) = (self.local.kernel(), tools.on.device.node());
        let grown = match filesystem::needs_growth(kernel, &node, kind) {
            Ok(true) => filesystem::grow(tools, kernel, kind, &node, at),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        let mut ungrown = self.ungrown.lock().unwrap_or_else(PoisonError::into_inner);
        match grown {
            Ok(()) => drop(ungrown.remove(&volume.uuid)),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(volume = %volume.id, error, "the filesystem did not grow to its volume; it is used as it is");
                ungrown.insert(volume.uuid.clone());
            }
        }
    }

    /// Whether the last growth of a volume's filesystem failed.
    pub(super) fn is_ungrown(&self, volume: &Volume) -> bool {
        self.ungrown.lock().unwrap_or_else(PoisonError::into_inner).contains(&volume.uuid)
    }
}
