//! Brings the filesystem of an active volume to its staging path: makes it once, mounts it, and grows it to its volume.

use crate::device;
use crate::filesystem::{self, DeviceContent, MountOptions, Step};
use crate::host::{DmDevice, Guard, Use, VolumeTools};
use crate::inflight::Reservation;
use crate::machine::{Active, Attached};
use crate::mount::{Identity, Target, Wanted, ensure_mounted_filesystem};
use crate::types::{Error, FsKind, Life, Object, Signature, SignatureUsage, chain};
use crate::volume::inventory::Volume;
use crate::volume::tag::Marks;

use super::{Node, device_error, fs_error, mount_error};

impl Node {
    /// Whether the volume is mounted at the staging path as requested.
    ///
    /// # Errors
    /// [`Error::Differs`] if it is mounted there in another way, or something else is.
    pub(super) fn is_mounted_right(
        &self,
        volume: &Volume,
        staging: &Target,
        kind: FsKind,
        options: &MountOptions,
    ) -> Result<bool, Error> {
        let table = self.table()?;
        let Some(there) = table.at(staging.real()) else { return Ok(false) };
        let path = || staging.given().display().to_string();
        let differs = |difference: String| Err(Error::Differs { object: Object::Path, id: path(), difference });
        let device = self.machine.top_device(volume)?;
        let ours = device.as_ref().is_some_and(|device| (device.major, device.minor) == (there.major, there.minor));
        if !ours {
            // A staging path may lie on a mount of its own; only another device is in the way.
            return differs(format!("it is a live mount of {} ({}), not of volume {}", there.source, there.fstype, volume.id));
        }
        if there.fstype != kind.name() {
            return differs(format!("volume {} is mounted there as {}, and {kind} is requested", volume.id, there.fstype));
        }
        match options.difference(there) {
            Some(difference) => differs(format!("volume {} is mounted there with other options: {difference}", volume.id)),
            None => Ok(true),
        }
    }

    /// Makes the filesystem if the volume's life allows and requires it, mounts it at the path of a field, and grows it if the volume is
    /// larger.
    pub(super) fn mount_filesystem(
        &self,
        reservation: &Reservation,
        guard: &Guard,
        Active { volume, attached: Attached { top: device, .. } }: &Active,
        (field, at): (&'static str, &Target),
        kind: FsKind,
        options: &MountOptions,
    ) -> Result<(), Error> {
        let node = self.usable(volume, device)?;
        let kernel = self.machine.kernel();
        let tools = VolumeTools { tools: self.machine.tools(), on: Use { device, guard } };
        let mounted = self.table()?.of_device(device.major, device.minor).next().is_some();
        if !mounted {
            self.ensure_formatted(reservation, tools, volume, kind)?;
            filesystem::check(tools, kernel, &node, kind).map_err(|error| fs_error(volume, "checking its filesystem", error))?;
            let formatted = Volume { marks: Marks { life: Life::Formatted(kind), ..volume.marks.clone() }, ..volume.clone() };
            self.machine.record_shown(&formatted, volume.size)?;
        }
        let wanted = Wanted {
            node: &node,
            major: device.major,
            minor: device.minor,
            fstype: kind.name(),
            flags: options.flags(),
            data: options.data(),
        };
        let path = at.given().display().to_string();
        ensure_mounted_filesystem(kernel, &wanted, at).map_err(|error| {
            self.invalid_mount(volume, &wanted, (kind, options), &error).unwrap_or_else(|| mount_error(field, &path, error))
        })?;
        if !options.is_read_only() {
            self.grow_to_volume(tools, volume, kind, at.real());
        }
        Ok(())
    }

    /// Takes the filesystem to the point in its life where it may be mounted.
    fn ensure_formatted(
        &self,
        reservation: &Reservation,
        tools: VolumeTools<'_>,
        volume: &Volume,
        kind: FsKind,
    ) -> Result<(), Error> {
        let node = self.usable(volume, tools.on.device)?;
        let kernel = self.machine.kernel();
        let uuid = filesystem::uuid_for(&volume.uuid);
        self.machine.refuse_older_tags(volume)?;
        let life = volume.marks.life;
        let has_begun = self.machine.has_begun_mkfs(volume);
        let may_clear = volume.placement.needs_zeroing() && life.is_unused() && !has_begun;
        if life.is_unused() {
            self.refuse_own_filesystem(volume, &node, &uuid, may_clear)?;
        }
        if may_clear {
            // New extents of a linear volume hold old bytes of the disk, signatures too. Nothing was ever written to this volume, so they
            // belong to nobody.
            device::zero_superblock_areas(kernel, &node).map_err(|error| device_error(volume, "clearing old bytes", error))?;
        }
        let content = self.device_content(tools, volume, &node, (kind, has_begun))?;
        let make = |volume: &Volume| {
            self.machine.record_mkfs(volume, kind)?;
            filesystem::make(tools, kernel, &node, kind, &uuid)
                .map_err(|error| fs_error(volume, "making its filesystem", error))?;
            self.machine.mark(reservation, volume, &Marks { life: Life::Formatted(kind), ..volume.marks.clone() }).map(drop)
        };
        match filesystem::next_step(life, has_begun, &content, kind, &uuid) {
            Step::MountIt => Ok(()),
            Step::Make => make(volume),
            Step::CommitFormattingThenMake => {
                make(&self.machine.mark(reservation, volume, &Marks { life: Life::Formatting(kind), ..volume.marks.clone() })?)
            }
            Step::Refuse(why) => Err(Error::precondition(format!("volume {}", volume.id), why.to_string())),
        }
    }

    /// Refuses an unused volume that carries a filesystem which this driver makes for this LV alone, and which was mounted: its tags are
    /// older than that.
    fn refuse_own_filesystem(&self, volume: &Volume, node: &std::path::Path, uuid: &str, may_clear: bool) -> Result<(), Error> {
        let used = match filesystem::used(self.machine.kernel(), node, uuid) {
            Ok(used) => used,
            // The zeroes that follow cure bad sectors of a new volume. What was shown to a pod has a record, too.
            Err(error) if may_clear => {
                tracing::warn!(volume = %volume.id, error = chain(&error), "cannot read an unused volume; clearing it");
                None
            }
            // The probe that follows says so.
            Err(_) => None,
        };
        used.map_or(Ok(()), |kind| {
            let why = filesystem::Refusal::Used { life: volume.marks.life, kind, uuid: uuid.to_owned() };
            Err(Error::precondition(format!("volume {}", volume.id), why.to_string()))
        })
    }

    /// What is on the device. Reads every superblock area.
    fn device_content(
        &self,
        tools: VolumeTools<'_>,
        volume: &Volume,
        node: &std::path::Path,
        (kind, has_begun): (FsKind, bool),
    ) -> Result<DeviceContent, Error> {
        let report = device::probe(self.machine.kernel(), tools, node);
        let report = report.map_err(|error| device_error(volume, "looking at what is on it", error))?;
        let mut signatures = report.signatures;
        if volume.marks.life.is_unused() && !has_begun && signatures.is_empty() && !report.blank_bytes {
            // Not every content has a known signature, so "no signature" alone does not mean "blank".
            signatures.push(Signature {
                kind: "bytes of an unknown kind".to_owned(),
                usage: SignatureUsage::Other,
                uuid: None,
                label: None,
                damaged: false,
                offset: None,
            });
        }
        let formatting = volume.marks.life == Life::Formatting(kind);
        let never_mounted = match signatures.as_slice() {
            [only] if formatting && only.kind == kind.name() => filesystem::never_mounted(self.machine.kernel(), node, kind).ok(),
            _ => None,
        };
        Ok(DeviceContent { signatures, never_mounted })
    }

    /// Where a device is mounted as a filesystem.
    pub(super) fn mounts_of(&self, device: &DmDevice) -> Result<Vec<std::path::PathBuf>, Error> {
        Ok(self.table()?.of_device(device.major, device.minor).map(|entry| entry.target.clone()).collect())
    }

    /// How a mount of the whole filesystem of a device appears in the mount table.
    pub(super) fn identity(device: &DmDevice) -> Identity {
        Identity { major: device.major, minor: device.minor, root: std::path::PathBuf::from("/") }
    }
}
