//! NodeUnstageVolume.
//!
//! The acknowledgement in the ledger says where the volume is staged. This distinguishes a second staging path, which keeps the volume,
//! from a mount that somebody left, which refuses the call: after an OK nobody would unstage the volume again.

use std::collections::BTreeSet;

use crate::attach::{Ack, AckState, PathSum};
use crate::host::Guard;
use crate::inflight::Reservation;
use crate::mount::{Expect, Target, ensure_unmounted};
use crate::types::{Error, VolumeId};
use crate::volume::inventory::Volume;

use super::{Node, ledger_error, target, unmount_error};

impl Node {
    /// Removes a volume from its staging path; leaving the last one deactivates it and ends the node's use of its grant.
    ///
    /// # Errors
    /// The volume is in use or still shown somewhere, or the path is a live mount of something else; nothing was undone then.
    pub fn unstage(&self, reservation: &Reservation, id: &VolumeId, staging: &str) -> Result<(), Error> {
        let place = target("staging_target_path", staging)?;
        if let Some(volume) = self.to_undo(id)? {
            let guard = self.machine.guard(reservation, &volume)?;
            self.clear_own(&volume)?;
            self.refuse_while_shown(&volume, &place)?;
            self.unmount_staging(&volume, &place)?;
            return self.let_go(reservation, &guard, &volume, &place);
        }
        match self.table()?.at(place.real()) {
            None => Ok(()),
            Some(there) => {
                let reason = format!("staging_target_path {staging} is a live mount of {}; it is left alone", there.source);
                Err(Error::precondition(format!("volume {id}"), reason))
            }
        }
    }

    /// Unmounts the volume's filesystem from its staging path, if it is mounted there.
    pub(super) fn unmount_staging(&self, volume: &Volume, staging: &Target) -> Result<(), Error> {
        let path = staging.given().display().to_string();
        let table = self.table()?;
        let Some(there) = table.at(staging.real()) else { return Ok(()) };
        let Some(device) = self.machine.top_device(volume)? else {
            let reason = format!(
                "staging_target_path {path} is a live mount of {}, and the volume is not active; it is left alone",
                there.source
            );
            return Err(Error::precondition(format!("volume {}", volume.id), reason));
        };
        let expect = Expect::Filesystem { major: device.major, minor: device.minor };
        ensure_unmounted(self.machine.kernel(), staging, expect)
            .map(drop)
            .map_err(|error| unmount_error("staging_target_path", &path, error))
    }

    /// The staging paths that a volume keeps when it leaves one. A recorded path of a filesystem counts only while it is mounted.
    fn other_paths(&self, volume: &Volume, staging: &Target) -> Result<BTreeSet<PathSum>, Error> {
        let mut others = self.staged_at(volume);
        others.remove(&PathSum::of(staging.real()));
        let as_block = self.machine.ledger().state(&volume.uuid).grant.is_some_and(|grant| grant.mode.block);
        if !as_block && !others.is_empty() {
            let mounts = match self.machine.top_device(volume)? {
                Some(device) => self.mounts_of(&device)?,
                None => Vec::new(),
            };
            let mounted: BTreeSet<PathSum> = mounts.iter().map(|at| PathSum::of(at)).collect();
            others.retain(|path| mounted.contains(path));
        }
        Ok(others)
    }

    /// Refuses to remove a volume from its last staging path while something shows it: a pod's bind mount, a `subPath` mount that
    /// outlived its pod, or what kubelet keeps for a raw volume. It would stay active and attached, and nobody would unstage it again.
    fn refuse_while_shown(&self, volume: &Volume, staging: &Target) -> Result<(), Error> {
        // It is unknown which mounts of an earlier version are staging paths.
        if self.staged_at(volume).is_empty() || !self.other_paths(volume, staging)?.is_empty() {
            return Ok(());
        }
        let mut shown = match self.machine.top_device(volume)? {
            Some(device) => self.mounts_of(&device)?,
            None => Vec::new(),
        };
        for (_, holder) in self.holders(volume)? {
            shown.extend(self.bound(&holder)?);
        }
        let table = self.table()?;
        shown.retain(|at| !table.is_same_place(at, staging.real()));
        if shown.is_empty() {
            return Ok(());
        }
        let places: Vec<String> = shown.iter().map(|at| at.display().to_string()).collect();
        let reason = format!(
            "it is still shown on this node at {}; nothing was unstaged. NodeUnpublishVolume removes it from a pod; unmount by hand \
             what no pod has any more (umount)",
            places.join(" and at ")
        );
        Err(Error::precondition(format!("volume {}", volume.id), reason))
    }

    /// Removes a staging path from a volume. After the last one, a volume that is shown nowhere is deactivated, and its release is
    /// acknowledged, or the grant that this node took itself is ended.
    pub(super) fn let_go(
        &self,
        reservation: &Reservation,
        guard: &Guard,
        volume: &Volume,
        staging: &Target,
    ) -> Result<(), Error> {
        self.clear_own(volume)?;
        let ledger = self.machine.ledger();
        let others = self.other_paths(volume, staging)?;
        let state = ledger.state(&volume.uuid);
        if let (Some(grant), false) = (&state.grant, others.is_empty()) {
            return self.acknowledge(volume, grant.epoch, others);
        }
        if !self.drop_holders(volume)? {
            return Ok(());
        }
        if let Some(device) = self.machine.top_device(volume)? {
            if !self.mounts_of(&device)?.is_empty() {
                return Ok(());
            }
            self.machine.deactivate(reservation, guard, volume)?;
        }
        if !self.attach_required {
            return ledger.free(&volume.uuid).map_err(|error| ledger_error(volume, &error));
        }
        if let (Some(grant), true) = (&state.grant, state.staged(ledger.boot())) {
            let boot = ledger.boot().to_owned();
            let ack = Ack { epoch: grant.epoch, boot, state: AckState::Released, at: BTreeSet::new() };
            ledger.acknowledge(&volume.uuid, &ack).map_err(|error| ledger_error(volume, &error))?;
        }
        Ok(())
    }
}
