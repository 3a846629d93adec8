//! NodeStageVolume.
//!
//! ```text
//!   grant checked ─▶ activated ─▶ grant checked again ─▶ acknowledged ─▶ filesystem made, mounted, grown │ zeroed, marked raw
//!        │               │                                     │                     │
//!        ▼               ▼                                     ▼                     ▼
//!      refuse          ◀───────────── undone before a final error ──────────────────┘
//! ```
//! After a final error kubelet never calls NodeUnstageVolume, so nothing may be left. If undoing fails too, the answer makes kubelet ask
//! again.

use crate::attach::{Ack, PathSum};
use crate::host::{Guard, Use};
use crate::inflight::Reservation;
use crate::machine::Active;
use crate::mount::Target;
use crate::types::{AccessType, Error};
use crate::volume::inventory::Volume;

use super::{Node, Stage, kind_of, options, target};

impl Node {
    /// Prepares a volume for its pods at the staging path.
    ///
    /// # Errors
    /// The volume is missing, not granted to this node in this way, or cannot be prepared; nothing of it is left then.
    pub fn stage(&self, reservation: &Reservation, request: &Stage) -> Result<(), Error> {
        let staging = target("staging_target_path", &request.staging)?;
        let volume = self.machine.volume(&request.id)?;
        // Checked before the first effect.
        let filesystem = match kind_of(&volume, request.capability.access) {
            Some(kind) => Some((kind, options(&volume, kind, &request.capability.mount_flags)?)),
            None => None,
        };
        // Before the first effect: a mkfs or resize2fs of an earlier driver may still be running.
        let guard = self.machine.guard(reservation, &volume)?;
        // A filesystem's journal is written even if its pods only read.
        if request.context.as_ref().is_none_or(|context| !(context.mode.read_only && context.mode.block)) {
            self.machine.refuse_read_only(&volume)?;
        }
        self.take(reservation, request)?;
        self.admit(&volume, request)?;
        let done = match &filesystem {
            Some((kind, options)) => {
                let device = self.machine.top_device(&volume)?;
                if let Some(device) = &device {
                    self.refuse_troubled(&volume, device)?;
                }
                let is_known = self.staged_at(&volume).contains(&PathSum::of(staging.real()));
                if self.is_mounted_right(&volume, &staging, *kind, options)? && is_known {
                    if let Some(device) = &device {
                        self.grow_again(Use { device, guard: &guard }, &volume, (*kind, options), staging.real());
                    }
                    return Ok(());
                }
                self.activated(reservation, &volume, request, &staging).and_then(|active| {
                    self.mount_filesystem(reservation, &guard, &active, ("staging_target_path", &staging), *kind, options)
                })
            }
            None => self
                .activated(reservation, &volume, request, &staging)
                .and_then(|active| self.machine.zero_unseen(reservation, &guard, active).map(drop)),
        };
        done.map_err(|error| {
            if error.is_final() { self.undo_stage(reservation, &guard, &volume, request, &staging, error) } else { error }
        })
    }

    /// Activates the volume and acknowledges the grant, with this staging path added to those that it has.
    fn activated(&self, reservation: &Reservation, volume: &Volume, request: &Stage, staging: &Target) -> Result<Active, Error> {
        let active = self.machine.activate(reservation, volume)?;
        // The grant may have gone while LVM worked; after the acknowledgement it cannot.
        let context = self.admit(volume, request)?;
        let mut at = self.staged_at(volume);
        at.insert(PathSum::of(staging.real()));
        if at.len() > Ack::MOST_PATHS {
            let reason = format!("it is staged at {} paths already; unstage one of them first", Ack::MOST_PATHS);
            return Err(Error::precondition(format!("volume {}", volume.id), reason));
        }
        self.acknowledge(volume, context.epoch, at)?;
        Ok(active)
    }

    /// Undoes a failed stage, and keeps its error. What others use stays.
    fn undo_stage(
        &self,
        reservation: &Reservation,
        guard: &Guard,
        volume: &Volume,
        request: &Stage,
        staging: &Target,
        error: Error,
    ) -> Error {
        let undone = match request.capability.access {
            AccessType::Mount(_) => self.unmount_staging(volume, staging),
            AccessType::Block => Ok(()),
        };
        match undone.and_then(|()| self.let_go(reservation, guard, volume, staging)) {
            Ok(()) => error,
            Err(undo) => Error::busy(
                format!("volume {}", volume.id),
                format!("staging failed ({}), and undoing it failed too: {}", error.chain(), undo.chain()),
            ),
        }
    }
}
