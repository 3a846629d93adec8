//! NodeUnstageVolume.

use crate::attach::{Ack, AckState};
use crate::host::Guard;
use crate::inflight::Claim;
use crate::mount::{Expect, Target, ensure_unmounted};
use crate::types::{Error, VolumeId};
use crate::volume::inventory::Volume;

use super::{Node, ledger_error, target, unmount_error};

impl Node {
    /// Takes a volume away from its staging path; the last one deactivates it and lets the grant go.
    ///
    /// # Errors
    /// The volume is in use, or the path is a live mount of something else.
    pub fn unstage(&self, claim: &Claim, id: &VolumeId, staging: &str) -> Result<(), Error> {
        let place = target("staging_target_path", staging)?;
        if let Some(volume) = self.to_undo(id)? {
            let guard = self.local.guard(claim, &volume)?;
            self.unmount_staging(&volume, &place)?;
            return self.let_go(claim, &guard, &volume).map(drop);
        }
        match self.table()?.at(place.real()) {
            None => Ok(()),
            Some(there) => {
                let reason = format!("staging_target_path {staging} is a live mount of {}; it is left alone", there.source);
                Err(Error::precondition(format!("volume {id}"), reason))
            }
        }
    }

    /// Unmounts the volume's filesystem from its staging path, where it is mounted there.
    pub(super) fn unmount_staging(&self, volume: &Volume, staging: &Target) -> Result<(), Error> {
        let path = staging.given().display().to_string();
        let table = self.table()?;
        let Some(there) = table.at(staging.real()) else { return Ok(()) };
        let Some(device) = self.local.device_of(volume)? else {
            let reason = format!(
                "staging_target_path {path} is a live mount of {}, and the volume is not active; it is left alone",
                there.source
            );
            return Err(Error::precondition(format!("volume {}", volume.id), reason));
        };
        let expect = Expect::Filesystem { major: device.major, minor: device.minor };
        ensure_unmounted(self.local.kernel(), staging, expect)
            .map(drop)
            .map_err(|error| unmount_error("staging_target_path", &path, error))
    }

    /// Deactivates a volume that is shown nowhere any more and acknowledges its release, or ends the grant that this node took itself.
    /// Answers whether that was so.
    pub(super) fn let_go(&self, claim: &Claim, guard: &Guard, volume: &Volume) -> Result<bool, Error> {
        self.clear_own(volume)?;
        if !self.drop_holders(volume)? {
            return Ok(false);
        }
        if let Some(device) = self.local.device_of(volume)? {
            if !self.mounts_of(&device)?.is_empty() {
                return Ok(false);
            }
            self.local.deactivate(claim, guard, volume)?;
        }
        let ledger = self.local.ledger();
        let state = ledger.state(&volume.uuid);
        if !self.attach_required {
            return ledger.free(&volume.uuid).map(|()| true).map_err(|error| ledger_error(volume, &error));
        }
        if let (Some(grant), true) = (&state.grant, state.staged(ledger.boot())) {
            let ack = Ack { epoch: grant.epoch, boot: ledger.boot().to_owned(), state: AckState::Released };
            ledger.acknowledge(&volume.uuid, &ack).map_err(|error| ledger_error(volume, &error))?;
        }
        Ok(true)
    }
}
