//! What the kernel says of a volume's filesystem: that it takes no more writes, that it did not grow, or why it cannot be mounted.

use std::path::Path;
use std::sync::PoisonError;

use crate::filesystem::{self, MountOptions};
use crate::host::{DmDevice, MountFlag, Use, VolumeTools};
use crate::mount::{MountError, Wanted, ensure_mounted_filesystem};
use crate::types::{Error, FsKind, chain};
use crate::volume::inventory::Volume;

use super::Node;

impl Node {
    /// Refuses a volume whose mounted filesystem takes no more writes because of an error: a pod's writes would be lost.
    pub(super) fn refuse_troubled(&self, volume: &Volume, device: &DmDevice) -> Result<(), Error> {
        let table = self.table()?;
        // A mount that another one covers cannot be examined.
        let mut mounts = table
            .of_device(device.major, device.minor)
            .filter(|entry| table.at(&entry.target).is_some_and(|top| top.id == entry.id));
        let troubled = mounts.find_map(|entry| Some((entry, filesystem::trouble(self.machine.kernel(), entry)?)));
        let Some((mount, trouble)) = troubled else { return Ok(()) };
        let next = if mount.fstype == FsKind::Xfs.name() {
            "the next mount replays its log; where the kernel refuses that, a person must run xfs_repair"
        } else {
            "the next stage checks it and mounts it again"
        };
        let reason = format!(
            "its filesystem, mounted at {}, takes no more writes: {trouble}. See dmesg on this node for the cause, mostly the disk; \
             then stop the pods that use it, so that it is unstaged: {next}",
            mount.target.display()
        );
        Err(Error::precondition(format!("volume {}", volume.id), reason))
    }

    /// Grows a mounted filesystem to its volume if that is larger. A failed growth does not take away a filesystem that works: it is
    /// logged, and tried again when the volume is next staged, published or expanded.
    pub(super) fn grow_to_volume(&self, tools: VolumeTools<'_>, volume: &Volume, kind: FsKind, at: &Path) {
        let (kernel, node) = (self.machine.kernel(), tools.on.device.node());
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
                tracing::warn!(volume = %volume.id, error, "cannot grow the filesystem to its volume; using it in its present size");
                ungrown.insert(volume.uuid.clone());
            }
        }
    }

    /// Does so if the last growth failed, when the volume is staged or published again.
    pub(super) fn grow_again(&self, on: Use<'_>, volume: &Volume, (kind, options): (FsKind, &MountOptions), at: &Path) {
        if self.is_ungrown(volume) && !options.is_read_only() {
            self.grow_to_volume(VolumeTools { tools: self.machine.tools(), on }, volume, kind, at);
        }
    }

    /// Whether the last growth of a volume's filesystem failed.
    pub(super) fn is_ungrown(&self, volume: &Volume) -> bool {
        self.ungrown.lock().unwrap_or_else(PoisonError::into_inner).contains(&volume.uuid)
    }

    /// What a failed mount means if the kernel calls something invalid: it rejects an option, or the filesystem itself. Mounting
    /// read-only with each option alone, at a path of the driver's own, tells which.
    pub(super) fn invalid_mount(
        &self,
        volume: &Volume,
        wanted: &Wanted<'_>,
        (kind, options): (FsKind, &MountOptions),
        error: &MountError,
    ) -> Option<Error> {
        let MountError::Call { source, .. } = error else { return None };
        if source.raw_os_error() != Some(nix::libc::EINVAL) {
            return None;
        }
        let alone = |option: Option<&str>| {
            let parsed = MountOptions::parse(kind, option.as_slice()).ok()?;
            self.mounts_with(volume, wanted, parsed.data()).then_some(())
        };
        let asked = options.asked(kind);
        if asked.is_empty() || alone(None).is_none() {
            let reason = format!(
                "the kernel refuses to mount its {kind}, with any options (EINVAL): the filesystem has features that this kernel does \
                 not know, or is damaged; dmesg on this node says which"
            );
            return Some(Error::precondition(format!("volume {}", volume.id), reason));
        }
        let refused: Vec<&str> = asked.iter().copied().filter(|option| alone(Some(option)).is_none()).collect();
        let named = if refused.is_empty() { asked } else { refused };
        let hint = if named.iter().any(|option| MountOptions::is_label(option)) {
            "; security labels need SELinux to be enabled on the node"
        } else {
            ""
        };
        let reason = format!("the kernel of this node does not take it for {kind} (EINVAL){hint}");
        Some(Error::invalid("volume_capability.mount.mount_flags", named.join(","), reason))
    }

    /// Whether a filesystem can be mounted read-only with these options.
    fn mounts_with(&self, volume: &Volume, wanted: &Wanted<'_>, data: &str) -> bool {
        let Ok(own) = self.own(volume) else { return false };
        let trial = Wanted { flags: &[MountFlag::ReadOnly], data, ..wanted.clone() };
        let mounted = self.clear_own(volume).is_ok() && ensure_mounted_filesystem(self.machine.kernel(), &trial, &own).is_ok();
        // A mount left there would count as a use of the volume. Undoing the stage clears it again.
        if let Err(error) = self.clear_own(volume) {
            tracing::warn!(volume = %volume.id, error = error.chain(), "cannot remove a trial mount");
        }
        mounted
    }
}
