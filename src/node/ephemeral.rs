//! Inline ephemeral volumes: only NodePublishVolume and NodeUnpublishVolume, without staging, attachment or controller.
//!
//! ```text
//!   created (found after a reboot) ─▶ activated ─▶ filesystem made ─▶ mounted at the target
//!   unmounted ─▶ target removed ─▶ deactivated ─▶ removed
//! ```

use crate::host::Guard;
use crate::inflight::Reservation;
use crate::mount::{Expect, Target, ensure_unmounted};
use crate::types::{AccessType, Capability, EphemeralId, Error, FsKind};
use crate::volume::ephemeral::InlineSpec;
use crate::volume::inventory::Volume;

use super::{Node, kind_of, mount_error, options, target, unmount_error};

/// What a read-only publication adds to the mount options.
const READ_ONLY: &str = "ro";

/// NodePublishVolume of an inline ephemeral volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishEphemeral {
    pub id: EphemeralId,
    /// `target_path`.
    pub target: String,
    /// How it is to be used.
    pub capability: Capability,
    /// `readonly`.
    pub read_only: bool,
    /// What the pod's volume attributes ask for.
    pub spec: InlineSpec,
}

impl Node {
    /// Creates a volume for one pod, and mounts it at the pod's path.
    ///
    /// # Errors
    /// It cannot be created or mounted; whatever this call made is removed then.
    pub fn publish_ephemeral(&self, reservation: &Reservation, request: &PublishEphemeral) -> Result<(), Error> {
        let place = target("target_path", &request.target)?;
        let what = || format!("inline ephemeral volume {}", request.id);
        let AccessType::Mount(asked) = request.capability.access else {
            return Err(Error::precondition(what(), "it is requested as a block device; inline volumes have a filesystem"));
        };
        let was_there = place.exists().map_err(|error| mount_error("target_path", &request.target, error))?;
        let kind = asked.unwrap_or(FsKind::DEFAULT);
        let (volume, is_new) = self.machine.ensure_ephemeral(reservation, &request.id, &request.spec, place.given(), kind)?;
        let guard = self.machine.guard(reservation, &volume)?;
        let done = self.show(reservation, &guard, &volume, request, &place);
        done.map_err(|error| {
            if error.is_final() { self.undo(reservation, &guard, &volume, &place, (was_there, is_new), error) } else { error }
        })
    }

    fn show(
        &self,
        reservation: &Reservation,
        guard: &Guard,
        volume: &Volume,
        request: &PublishEphemeral,
        place: &Target,
    ) -> Result<(), Error> {
        let kind = kind_of(volume, request.capability.access).unwrap_or(FsKind::DEFAULT);
        let mut flags = request.capability.mount_flags.clone();
        flags.extend(request.read_only.then(|| READ_ONLY.to_owned()));
        let options = options(volume, kind, &flags)?;
        if self.is_mounted_right(volume, place, kind, &options)? {
            return Ok(());
        }
        if let Some(device) = self.machine.top_device(volume)?
            && let Some(other) = self.mounts_of(&device)?.first()
        {
            let reason = format!("it is mounted at {}; an inline volume belongs to one pod", other.display());
            return Err(Error::precondition(format!("inline ephemeral volume {}", request.id), reason));
        }
        let active = self.machine.activate(reservation, volume)?;
        self.mount_filesystem(reservation, guard, &active, ("target_path", place), kind, &options)
    }

    /// Undoes a failed publication, and keeps its error. A volume that existed before may have a pod's data, and stays.
    fn undo(
        &self,
        reservation: &Reservation,
        guard: &Guard,
        volume: &Volume,
        place: &Target,
        (was_there, is_new): (bool, bool),
        error: Error,
    ) -> Error {
        let unmounted = self.hide(volume, place);
        let removed = unmounted.and_then(|()| if was_there { Ok(()) } else { self.remove_mount_point(place) });
        let undone = removed.and_then(|()| {
            if is_new {
                self.machine.remove_ephemeral(reservation, guard, volume)
            } else {
                self.machine.deactivate(reservation, guard, volume)
            }
        });
        match undone {
            Ok(()) => error,
            Err(undo) => Error::busy(
                format!("inline ephemeral volume {}", volume.id),
                format!("publishing failed ({}), and undoing it failed too: {}", error.chain(), undo.chain()),
            ),
        }
    }

    /// Unmounts a volume from a path, if it is mounted there.
    fn hide(&self, volume: &Volume, place: &Target) -> Result<(), Error> {
        let Some(device) = self.machine.top_device(volume)? else { return Ok(()) };
        if !self.mounts_of(&device)?.iter().any(|at| at == place.real()) {
            return Ok(());
        }
        let expect = Expect::Filesystem { major: device.major, minor: device.minor };
        let path = place.given().display().to_string();
        ensure_unmounted(self.machine.kernel(), place, expect)
            .map(drop)
            .map_err(|error| unmount_error("target_path", &path, error))
    }

    /// Takes a volume away from its pod, and removes it.
    ///
    /// # Errors
    /// The path is a live mount of something else, or in use.
    pub fn unpublish_ephemeral(&self, reservation: &Reservation, id: &EphemeralId, path: &str) -> Result<(), Error> {
        let place = target("target_path", path)?;
        let volume = self.machine.ephemeral(id)?;
        let guard = volume.as_ref().map(|volume| self.machine.guard(reservation, volume)).transpose()?;
        if let Some(volume) = &volume {
            self.hide(volume, &place)?;
        }
        if let Some(there) = self.table()?.at(place.real()) {
            let reason = format!("path {path} is a live mount of {}, which is not this volume; it is left alone", there.source);
            return Err(Error::precondition(format!("inline ephemeral volume {id}"), reason));
        }
        self.remove_mount_point(&place)?;
        match (&volume, &guard) {
            (Some(volume), Some(guard)) => self.machine.remove_ephemeral(reservation, guard, volume),
            _ => Ok(()),
        }
    }
}
