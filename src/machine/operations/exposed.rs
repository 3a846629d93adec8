//! Records what users were shown, as a guard against metadata older than the data: after `vgcfgrestore` of an older copy the tags say
//! "blank" for a volume in use.

use std::collections::BTreeSet;

use crate::attach::Exposure;
use crate::device;
use crate::inflight::Reservation;
use crate::machine::Machine;
use crate::types::{Bytes, Error, FsKind, Life, LvUuid, chain};
use crate::volume::create;
use crate::volume::inventory::Volume;

impl Machine {
    /// Records that a user is about to be shown this much of a volume, and what it holds. Inline volumes live no longer than their pod
    /// and have no record.
    ///
    /// # Errors
    /// The record cannot be written; the volume must not be shown then.
    pub fn record_shown(&self, volume: &Volume, size: Bytes) -> Result<(), Error> {
        let shown = if volume.must_not_show_growth() { size } else { Bytes(0) };
        self.record_exposure(volume, Exposure { life: volume.marks.life, shown })
    }

    /// Records that mkfs is about to begin. An inline volume is never copied and has no record.
    ///
    /// # Errors
    /// It cannot be recorded; mkfs must not begin then.
    pub fn record_mkfs(&self, volume: &Volume, kind: FsKind) -> Result<(), Error> {
        self.record_exposure(volume, Exposure { life: Life::Formatting(kind), shown: Bytes(0) })
    }

    fn record_exposure(&self, volume: &Volume, exposure: Exposure) -> Result<(), Error> {
        if volume.marks.ephemeral.is_some() {
            return Ok(());
        }
        let recorded = self.exposures.record(&volume.id.vg, &volume.uuid, exposure);
        recorded.map_err(|error| Error::unavailable(format!("volume {}", volume.id), chain(&error)))
    }

    /// Whether mkfs has begun on a volume that has no filesystem yet. Of an inline volume, which is born blank, its tag says so; of others
    /// the record of this node. A lost record means no: what is on the device decides then.
    pub fn has_begun_mkfs(&self, volume: &Volume) -> bool {
        let is_recorded = || self.exposures.of(&volume.uuid).is_some_and(|exposure| matches!(exposure.life, Life::Formatting(_)));
        matches!(volume.marks.life, Life::Formatting(_)) && (volume.marks.ephemeral.is_some() || is_recorded())
    }

    /// Why a volume cannot be copied now: its tags are older than its data, and a copy would carry them; or mkfs has begun. The
    /// reservation of a copy holds off a stage of its source.
    pub(in crate::machine) fn unfit_for_copies(&self, volume: &Volume) -> Option<Error> {
        let half_made = || match volume.marks.life {
            Life::Formatting(kind) if self.has_begun_mkfs(volume) => Some(create::half_made_source(&volume.id, kind)),
            _ => None,
        };
        self.refuse_older_tags(volume).err().or_else(half_made)
    }

    /// Refuses to format or zero a volume by tags that are older than what it holds.
    ///
    /// # Errors
    /// [`Error::Precondition`] with the contradiction and what to do.
    pub fn refuse_older_tags(&self, volume: &Volume) -> Result<(), Error> {
        let Some(exposure) = self.exposures.of(&volume.uuid) else { return Ok(()) };
        let (life, zeroed) = (volume.marks.life, volume.zeroed());
        // The tag of a volume that somebody cut off by hand still covers all that was shown; older metadata say less.
        if !exposure.contradicts(life, volume.marks.zeroed) {
            return Ok(());
        }
        let record = self.exposures.path_of(&volume.uuid).unwrap_or_default();
        let (lv, record) = (&volume.id.lv, record.display());
        let reason = match (life, exposure.life) {
            (Life::Raw, Life::Raw) if volume.size < exposure.shown => format!(
                "it has {}, but a pod was shown {} of it: its metadata are older than its data, from before it grew (vgcfgrestore?). \
                 Nothing was zeroed or shown. Bring newer metadata back; or, if nothing behind {} is needed, remove {record} and \
                 restart the driver",
                volume.size, exposure.shown, volume.size
            ),
            (Life::Raw, Life::Raw) => format!(
                "its tags say that it is safe to show up to {zeroed}, but a pod was shown {} of it: its metadata are older than its data \
                 (vgcfgrestore?), or somebody cut off its end and made it anew (lvreduce, lvextend). Nothing was zeroed. Bring newer \
                 metadata back; or, if all of the device is its user's, run lvchange --deltag csi.z={} --addtag csi.z={} VG/{lv}; or, if \
                 nothing behind {zeroed} is, remove {record} and restart the driver",
                exposure.shown, volume.marks.zeroed.0, exposure.shown.0
            ),
            (life, held) => format!(
                "its tags say that it is {life}, but pods of this node used it as {held}: its metadata are older than its data \
                 (vgcfgrestore?). Nothing was zeroed or formatted. Bring newer metadata back; or, once you have seen that its data are \
                 there, run lvchange --deltag csi.fs={life} --addtag csi.fs={held}{} VG/{lv}; or delete the volume with its data",
                match held {
                    // Two tags of one kind would make the volume a damaged one, and a tag larger than the volume counts as a volume that
                    // was cut off by hand.
                    Life::Raw if volume.placement.needs_zeroing() && volume.marks.zeroed.0 > 0 => {
                        format!(" --deltag csi.z={} --addtag csi.z={}", volume.marks.zeroed.0, exposure.shown.min(volume.size).0)
                    }
                    Life::Raw if volume.placement.needs_zeroing() => {
                        format!(" --addtag csi.z={}", exposure.shown.min(volume.size).0)
                    }
                    _ => String::new(),
                }
            ),
        };
        Err(Error::precondition(format!("volume {}", volume.id), reason))
    }

    /// Drops the record of a volume that is about to be removed with its data.
    ///
    /// # Errors
    /// The state directory refuses the change.
    pub(in crate::machine) fn forget_shown(&self, volume: &Volume) -> Result<(), Error> {
        let forgotten = self.exposures.forget(&volume.uuid);
        forgotten.map_err(|error| Error::unavailable(format!("volume {}", volume.id), chain(&error)))
    }

    /// Runs before the tag of a volume that somebody made smaller is corrected. What lies beyond its size no longer belongs to it, and
    /// its pods must not see that when the LV grows again. A tag larger than the volume distinguishes this from metadata older than a
    /// growth. The tag is corrected after the record: a crash in between leaves the tag, and this runs again.
    ///
    /// # Errors
    /// The record cannot be written, or the holders cannot be cut off.
    pub(in crate::machine) fn record_cut(&self, volume: &Volume) -> Result<(), Error> {
        if volume.marks.zeroed <= volume.size || self.refuse_older_tags(volume).is_err() {
            return Ok(());
        }
        if let Some(device) = self.top_device(volume)? {
            let failed = |error| Error::failed(format!("volume {}: cutting off what its pods see", volume.id), error);
            device::cap_holders(&*self.kernel, &device, &volume.uuid, volume.size).map_err(failed)?;
        }
        let lowered = self.exposures.lower(&volume.id.vg, &volume.uuid, volume.size);
        lowered.map_err(|error| Error::unavailable(format!("volume {}", volume.id), chain(&error)))
    }

    /// Volumes that somebody made smaller than their tag says. A corrected tag stays right if somebody enlarges them again.
    pub(in crate::machine) fn wrong_tags(&self) -> Vec<Volume> {
        let inventories = self.groups.values().filter_map(|group| group.inventory().ok());
        let mut wrong = Vec::new();
        for inventory in inventories {
            wrong.extend(inventory.volumes().filter(|volume| volume.marks.zeroed > volume.size).cloned());
        }
        wrong
    }

    /// Corrects the tag of such a volume.
    ///
    /// # Errors
    /// The tag cannot be written.
    pub(in crate::machine) fn correct_tag(&self, reservation: &Reservation, volume: &Volume) -> Result<(), Error> {
        let now = self.volume(&volume.id)?;
        if now.uuid != volume.uuid || now.marks.zeroed <= now.size {
            return Ok(());
        }
        tracing::warn!(volume = %now.id, size = %now.size, "somebody made this volume smaller; correcting its tag csi.z");
        self.mark(reservation, &now, &now.marks).map(drop)
    }

    /// Records volumes in use that an earlier version staged. Drops the records of volumes that are gone for good: their group is here
    /// without them, and no kept copy of its metadata could bring them back.
    pub(in crate::machine) fn keep_records(&self) {
        for group in self.groups.values() {
            let Some(vg) = group.last().map(|last| last.vg.uuid.clone()) else { continue };
            // Read the records before the group: a volume created meanwhile must not count as gone.
            let recorded = self.exposures.of_group(&vg);
            let Ok(inventory) = group.inventory() else { continue };
            if inventory.vg.uuid != vg {
                continue;
            }
            let boot = self.ledger.boot();
            let in_use = inventory.volumes().filter(|volume| {
                matches!(volume.marks.life, Life::Raw | Life::Formatted(_))
                    && self.exposures.of(&volume.uuid).is_none_or(|exposure| exposure.life.is_unused())
                    && self.ledger.state(&volume.uuid).staged(boot)
            });
            for volume in in_use {
                if let Err(error) = self.record_shown(volume, volume.zeroed()) {
                    tracing::warn!(volume = %volume.id, error = %error.chain(), "cannot record that the volume is in use");
                }
            }
            let absent: Vec<LvUuid> = recorded.into_iter().filter(|lv| inventory.vg.lv_by_uuid(lv).is_none()).collect();
            if absent.is_empty() {
                continue;
            }
            let kept = match self.keeping.as_ref().map(|keeping| keeping.backups.lvs_of(&vg)).transpose() {
                Ok(kept) => kept.unwrap_or_else(BTreeSet::new),
                Err(error) => {
                    tracing::warn!(%vg, error = chain(&error), "cannot read the metadata copies; keeping the records of gone volumes");
                    continue;
                }
            };
            for lv in absent.iter().filter(|lv| !kept.contains(*lv)) {
                if let Err(error) = self.exposures.forget(lv) {
                    tracing::warn!(%lv, error = chain(&error), "cannot drop the record of a gone volume; trying again later");
                }
            }
        }
    }
}
