//! NodePublishVolume and NodeUnpublishVolume.

use std::path::PathBuf;

use crate::attach::PathSum;
use crate::host::{DmAccess, Use};
use crate::inflight::Reservation;
use crate::machine::Active;
use crate::mount::{self, Expect, Source, Target, ensure_unmounted};
use crate::types::{AccessMode, AccessType, Error, Object, VolumeId};
use crate::volume::inventory::Volume;

use super::{Node, Publish, kind_of, mount_error, options, target, unmount_error};

impl Node {
    /// Shows a staged volume at a pod's path.
    ///
    /// # Errors
    /// The volume is not staged, or the path shows something else; nothing new is left then.
    pub fn publish(&self, reservation: &Reservation, request: &Publish) -> Result<(), Error> {
        let stage = &request.staged;
        let path = target("target_path", &request.target)?;
        if stage.staging.is_empty() {
            // CSI: 9 FAILED_PRECONDITION if STAGE_UNSTAGE_VOLUME is advertised and the path is not set.
            let reason = "staging_target_path is empty; call NodeStageVolume with one first";
            return Err(Error::precondition(format!("volume {}", stage.id), reason));
        }
        let staging = target("staging_target_path", &stage.staging)?;
        let volume = self.machine.volume(&stage.id)?;
        let granted = self.admit(&volume, stage)?;
        let read_only = request.read_only || granted.mode.read_only;
        self.clear_own(&volume)?;
        let was_there = path.exists().map_err(|error| mount_error("target_path", &request.target, error))?;
        let done = match stage.capability.access {
            AccessType::Mount(_) => self.publish_filesystem(reservation, &volume, request, (&staging, &path), read_only),
            AccessType::Block => self.publish_block(reservation, &volume, request, (&staging, &path), read_only),
        };
        done.map_err(|error| if error.is_final() { self.undo_publish(&volume, &path, was_there, error) } else { error })
    }

    fn publish_filesystem(
        &self,
        reservation: &Reservation,
        volume: &Volume,
        request: &Publish,
        (staging, path): (&Target, &Target),
        read_only: bool,
    ) -> Result<(), Error> {
        let device = self.machine.top_device(volume)?.ok_or_else(|| not_staged(volume))?;
        let access = request.staged.capability.access;
        let kind = kind_of(volume, access).ok_or_else(|| not_staged(volume))?;
        let options = options(volume, kind, &request.staged.capability.mount_flags)?;
        if !self.is_staged(volume) || !self.is_mounted_right(volume, staging, kind, &options)? {
            return Err(not_staged(volume));
        }
        self.refuse_troubled(volume, &device)?;
        if self.is_ungrown(volume)
            && let Ok(guard) = self.machine.guard(reservation, volume)
        {
            self.grow_again(Use { device: &device, guard: &guard }, volume, (kind, &options), staging.real());
        }
        self.admit_target(volume, request, (staging, path), &self.mounts_of(&device)?)?;
        let source = Source::Filesystem { mount_point: staging, major: device.major, minor: device.minor };
        self.bind(volume, request, &source, path, read_only || options.is_read_only())
    }

    fn publish_block(
        &self,
        reservation: &Reservation,
        volume: &Volume,
        request: &Publish,
        (staging, path): (&Target, &Target),
        read_only: bool,
    ) -> Result<(), Error> {
        // Whoever publishes without having staged will not unstage either, and the volume would stay attached for ever.
        let at = self.staged_at(volume);
        if !self.is_staged(volume) || !(at.is_empty() || at.contains(&PathSum::of(staging.real()))) {
            return Err(not_staged(volume));
        }
        // Nothing to do after a complete stage, but an interrupted one has acknowledged too.
        let guard = self.machine.guard(reservation, volume)?;
        let active = self.machine.active(volume)?.ok_or_else(|| not_staged(volume))?;
        let Active { volume, attached } = &self.machine.zero_unseen(reservation, &guard, active)?;
        if !read_only {
            self.machine.refuse_read_only(volume)?;
        }
        let access = if read_only { DmAccess::ReadOnly } else { DmAccess::ReadWrite };
        let mut others = Vec::new();
        for (shown, holder) in self.holders(volume)? {
            let paths = self.bound(&holder)?;
            if shown != access && paths.iter().any(|at| at == path.real()) {
                let how = if read_only { "writable" } else { "read-only" };
                let difference = format!("volume {} is published there {how}", volume.id);
                return Err(Error::Differs { object: Object::Path, id: request.target.clone(), difference });
            }
            others.extend(paths);
        }
        self.admit_target(volume, request, (staging, path), &others)?;
        let holder = self.ensure_holder(volume, self.showable(volume, &attached.top)?, access)?;
        let node = self.usable(volume, &holder)?;
        let source = Source::Node { node: &node, major: holder.major, minor: holder.minor };
        self.bind(volume, request, &source, path, read_only)
    }

    /// Shows a source at a path; read-only by way of a path of the driver's own.
    fn bind(&self, volume: &Volume, request: &Publish, source: &Source<'_>, path: &Target, read_only: bool) -> Result<(), Error> {
        let own = if read_only { Some(self.own(volume)?) } else { None };
        mount::ensure_bound(self.machine.kernel(), source, path, own.as_ref())
            .map(drop)
            .map_err(|error| mount_error("target_path", &request.target, error))
    }

    /// The driver's own path at which a read-only mount of a volume is prepared.
    pub(super) fn own(&self, volume: &Volume) -> Result<Target, Error> {
        target("the driver's own path", &self.binds.join(volume.uuid.compact()).display().to_string())
    }

    /// Removes what a dead driver left at the driver's own path. It would count as a use of the volume.
    pub(super) fn clear_own(&self, volume: &Volume) -> Result<(), Error> {
        let own = self.own(volume)?;
        if matches!(own.exists(), Ok(false)) {
            return Ok(());
        }
        mount::clear(self.machine.kernel(), &own)
            .map_err(|error| Error::failed(format!("clearing {}", own.given().display()), error))
    }

    /// Refuses a second target if the access mode allows only one (CSI, NodePublishVolume: T1 ≠ T2).
    fn admit_target(
        &self,
        volume: &Volume,
        request: &Publish,
        (staging, path): (&Target, &Target),
        shown: &[PathBuf],
    ) -> Result<(), Error> {
        let mode = request.staged.capability.mode;
        if mode != AccessMode::SingleNodeSingleWriter {
            return Ok(());
        }
        let table = self.table()?;
        let is_own = |at: &&PathBuf| [staging, path].iter().any(|own| table.is_same_place(at, own.real()));
        match shown.iter().find(|at| !is_own(at)) {
            None => Ok(()),
            Some(other) => {
                let reason = format!("it is already published at {}, and {mode} allows one target only", other.display());
                Err(Error::precondition(format!("volume {}", volume.id), reason))
            }
        }
    }

    /// Undoes what a failed publish made: an empty mount point, a holder that shows nowhere.
    fn undo_publish(&self, volume: &Volume, path: &Target, was_there: bool, error: Error) -> Error {
        let removed = if was_there { Ok(()) } else { self.remove_mount_point(path) };
        match removed.and_then(|()| self.drop_holders(volume)) {
            Ok(_) => error,
            Err(undo) => Error::busy(
                format!("volume {}", volume.id),
                format!("publishing failed ({}), and undoing it failed too: {}", error.chain(), undo.chain()),
            ),
        }
    }

    /// Removes a volume from a pod's path, and the path itself (CSI: "the plugin MUST delete the target_path").
    ///
    /// # Errors
    /// The path is a live mount of something else, or in use.
    pub fn unpublish(&self, _reservation: &Reservation, id: &VolumeId, path: &str) -> Result<(), Error> {
        let place = target("target_path", path)?;
        let volume = self.to_undo(id)?;
        if let Some(volume) = &volume {
            self.clear_own(volume)?;
        }
        let kernel = self.machine.kernel();
        let failed = |error| unmount_error("target_path", path, error);
        if self.table()?.at(place.real()).is_some() {
            let expect = match &volume {
                Some(volume) => self.expected(volume, &place)?,
                None => None,
            };
            let expect = expect.ok_or_else(|| {
                let reason = format!("path {path} is a live mount, and volume {id} has no device on this node; it is left alone");
                Error::precondition(format!("volume {id}"), reason)
            })?;
            ensure_unmounted(kernel, &place, expect).map_err(failed)?;
        }
        self.remove_mount_point(&place)?;
        match &volume {
            Some(volume) => self.drop_holders(volume).map(drop),
            None => Ok(()),
        }
    }

    /// What a target of this volume should show.
    fn expected(&self, volume: &Volume, place: &Target) -> Result<Option<Expect>, Error> {
        if let Some(holder) = self.holder_at(volume, place.real())? {
            return Ok(Some(Expect::BlockNode { minor: holder.minor }));
        }
        Ok(self.machine.top_device(volume)?.map(|device| Expect::Filesystem { major: device.major, minor: device.minor }))
    }

    /// Removes an empty mount point that nothing is mounted on.
    pub(super) fn remove_mount_point(&self, path: &Target) -> Result<(), Error> {
        let failed = |error| mount_error("target_path", &path.given().display().to_string(), error);
        path.remove(self.machine.kernel()).map(drop).map_err(failed)
    }
}

fn not_staged(volume: &Volume) -> Error {
    let reason = "it is not staged at staging_target_path on this node; NodeStageVolume must succeed first";
    Error::precondition(format!("volume {}", volume.id), reason)
}
