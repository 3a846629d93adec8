//! Create, delete, snapshot, grant and release on this machine.

use crate::attach::grant::{self, Granting, Room};
use crate::attach::{GrantRequest, LedgerError, Mode, PublishContext, State};
use crate::device;
use crate::inflight::{Operation, Reservation};
use crate::machine::{Group, Machine};
use crate::types::{
    Bytes, Change, Changed, Error, LvName, LvUuid, NodeId, Object, Placement, Pool, SnapshotId, VgUuid, VolumeId, chain,
};
use crate::volume::create::{Source, VolumeSpec};
use crate::volume::inventory::{Class, Inventory, Snapshot, Volume};
use crate::volume::tag::Marks;
use crate::volume::{Decision, create, delete, name, owner, snapshot};

impl Machine {
    /// The operation of a creation: reserves the LV that it creates and the one that it copies.
    pub(in crate::machine) fn create_operation(pool: &str, spec: &VolumeSpec) -> Operation {
        let mut operation =
            Operation::new("CreateVolume", format!("volume {:?}", spec.name.csi()), (pool.to_owned(), spec.clone()));
        operation.writes = vec![Self::key(spec.name.lv())];
        match &spec.source {
            Some(source) => operation.reading(Self::key(source.lv())),
            None => operation,
        }
    }

    /// The operation of a snapshot: reserves the LV that it creates and the volume.
    pub(in crate::machine) fn snapshot_operation(request: &snapshot::Request) -> Operation {
        let mut operation = Operation::new("CreateSnapshot", format!("snapshot {:?}", request.name), request.clone());
        operation.writes = vec![Self::key(&name::of_snapshot(&request.name))];
        operation.reading(Self::key(&request.source.lv))
    }

    pub(in crate::machine) fn create_volume(
        &self,
        reservation: &Reservation,
        pool: &str,
        spec: &VolumeSpec,
    ) -> Result<Changed<Volume>, Error> {
        let (pool, group, inventory) = self.pool(pool)?;
        owner::check(&inventory.vg, &self.id)?;
        let (what, lv) = (format!("volume {:?}", spec.name.csi()), spec.name.lv());
        if let Some(source) = &spec.source {
            self.refuse_other_group(&pool, &inventory, source)?;
        }
        let unfit = match &spec.source {
            Some(Source::Volume(id)) => inventory.volume(id).and_then(|volume| self.unfit_for_copies(volume)),
            _ => None,
        };
        let made = self.settle_new(reservation, group, &what, Some(&pool), Some(lv), |inventory, pool_use| {
            create::decide(inventory, &pool, spec, pool_use, unfit.as_ref())
        });
        match made {
            // A final error means that nothing is left behind (CSI: the orchestrator may never ask again).
            Err(error) if error.is_final() => Err(self.abandon(reservation, group, &what, lv, error)),
            other => other.map(|settled| settled.says(Change::Made, Change::Found)),
        }
    }

    /// Refuses a content source in another group of this machine than the pool's.
    fn refuse_other_group(&self, pool: &Pool, inventory: &Inventory, source: &Source) -> Result<(), Error> {
        if *source.vg() == inventory.vg.uuid {
            return Ok(());
        }
        let Some((_, other)) = self.find(source.vg())? else { return Ok(()) };
        let placement = match (source, other.class(source.lv().as_str())) {
            (Source::Snapshot(_), Some(Class::Snapshot(snapshot))) => &snapshot.placement,
            (Source::Volume(_), Some(Class::Volume(volume))) => &volume.placement,
            _ => return Ok(()),
        };
        Err(create::not_copied(source, &other.vg.name, placement, pool))
    }

    /// Removes what an unfinished creation left, and returns the error that ended it.
    fn abandon(&self, reservation: &Reservation, group: &Group, what: &str, lv: &LvName, error: Error) -> Error {
        let unfinished = match group.inventory().as_ref().map(|inventory| inventory.class(lv.as_str()).cloned()) {
            Ok(Some(Class::Unfinished(volume))) => volume,
            _ => return error,
        };
        if self.exposures.of(&unfinished.uuid).is_some() || self.ledger.state(&unfinished.uuid).grant.is_some() {
            // It was finished and used, and somebody made it smaller since (lvreduce).
            return error;
        }
        if matches!(error, Error::Differs { .. }) {
            // It belongs to a creation with other parameters, which may be repeated.
            return error;
        }
        match self.settle(reservation, group, what, None, |inventory, _| delete::volume(inventory, &unfinished.id)) {
            Ok(_) => error,
            Err(undo) => Error::busy(
                what,
                format!("it failed ({}), and removing what was created failed too: {}", error.chain(), undo.chain()),
            ),
        }
    }

    pub(in crate::machine) fn delete_volume(&self, reservation: &Reservation, id: &VolumeId) -> Result<Change, Error> {
        let Some((group, inventory)) = self.find_own(&id.vg)? else { return Ok(Change::Absent) };
        let what = format!("volume {id}");
        // An unfinished volume may be in use, too: somebody made it smaller since (lvreduce).
        if let Some(Class::Volume(volume) | Class::Unfinished(volume)) = inventory.class(id.lv.as_str()) {
            let state = self.ledger.state(&volume.uuid);
            // What is attached may be staged at any moment, even after an unstage; only a detach ends that.
            let free = self.is_idle(volume, &state)? && !state.may_be_staged_again(&self.node, self.ledger.boot());
            if let Some(grant) = state.grant.filter(|_| !free) {
                let reason = format!("it is attached to node {}; detach it first (ControllerUnpublishVolume)", grant.holder);
                return Err(Error::precondition(what, reason));
            }
            if matches!(delete::volume(&inventory, id), Decision::Do(_)) {
                let guard = self.guard(reservation, volume)?;
                self.deactivate(reservation, &guard, volume)?;
                self.ledger.free(&volume.uuid).map_err(|error| unwritten(id, error))?;
                // Once its LV is gone, nobody can tell whose record this was.
                self.forget_shown(volume)?;
            }
        }
        if inventory.vg.lv(id.lv.as_str()).is_none() {
            Self::split_off(group, &id.lv, &what)?;
        }
        let pool = inventory.placement(&id.lv).and_then(Placement::thin_pool);
        let gone = self.settle(reservation, group, &what, None, |inventory, _| delete::volume(inventory, id));
        let gone = gone.map_err(|error| self.blame(&what, &inventory, (pool, false), error))?;
        Ok(gone.says(Change::Removed, Change::Absent).change)
    }

    pub(in crate::machine) fn create_snapshot(
        &self,
        reservation: &Reservation,
        request: &snapshot::Request,
    ) -> Result<Changed<Snapshot>, Error> {
        let missing = || Error::missing(Object::Volume, request.source.to_string());
        let Some((group, inventory)) = self.find_own(&request.source.vg)? else { return Err(missing()) };
        let pool = inventory.volume(&request.source).map(|volume| self.pool_of(group, &inventory, volume));
        let unfit = inventory.volume(&request.source).and_then(|volume| self.unfit_for_copies(volume));
        let what = format!("snapshot {:?}", request.name);
        let lv = name::of_snapshot(&request.name);
        let settled = self.settle_new(reservation, group, &what, pool.as_ref(), Some(&lv), |inventory, pool_use| {
            snapshot::decide(inventory, pool.as_ref(), request, pool_use, unfit.as_ref())
        })?;
        Ok(settled.says(Change::Made, Change::Found))
    }

    pub(in crate::machine) fn remove_snapshot(&self, reservation: &Reservation, id: &SnapshotId) -> Result<Change, Error> {
        let Some((group, inventory)) = self.find_own(&id.vg)? else { return Ok(Change::Absent) };
        let what = format!("snapshot {id}");
        if inventory.vg.lv(id.lv.as_str()).is_none() {
            Self::split_off(group, &id.lv, &what)?;
        }
        // Somebody activated it to look into it (lvchange -ay -K), and only the driver deactivates it.
        if let (Some(snapshot), Decision::Do(_)) = (inventory.snapshot(id), delete::snapshot(&inventory, id)) {
            let lv = snapshot.as_volume();
            if self.lv_device(&lv)?.is_some() {
                let guard = self.guard(reservation, &lv)?;
                self.deactivate(reservation, &guard, &lv)?;
            }
        }
        let pool = inventory.placement(&id.lv).and_then(Placement::thin_pool);
        let gone = self.settle(reservation, group, &what, None, |inventory, _| delete::snapshot(inventory, id));
        let gone = gone.map_err(|error| self.blame(&what, &inventory, (pool, false), error))?;
        Ok(gone.says(Change::Removed, Change::Absent).change)
    }

    pub(in crate::machine) fn grant_volume(
        &self,
        reservation: &Reservation,
        id: &VolumeId,
        node: &NodeId,
        mode: &Mode,
    ) -> Result<PublishContext, Error> {
        self.give(reservation, id, node, mode, Some(self.ledger.boot()))
    }

    /// Takes the right to use a volume for this node if no controller grants it.
    ///
    /// # Errors
    /// The volume does not exist, cannot be used this way, or is already in use.
    pub fn take_volume(&self, reservation: &Reservation, id: &VolumeId, mode: &Mode) -> Result<(), Error> {
        self.give(reservation, id, &self.node, mode, None).map(drop)
    }

    fn give(
        &self,
        _reservation: &Reservation,
        id: &VolumeId,
        node: &NodeId,
        mode: &Mode,
        given_in: Option<&str>,
    ) -> Result<PublishContext, Error> {
        let volume = self.volume(id)?;
        let access = if mode.block { crate::types::AccessType::Block } else { crate::types::AccessType::Mount(None) };
        create::usable_as(volume.marks.life, &volume.placement, access)
            .map_err(|why| Error::precondition(format!("volume {id}"), why))?;
        let request = GrantRequest { id: id.clone(), lv: volume.uuid.clone(), node: node.clone(), mode: mode.clone() };
        let state = self.ledger.state(&volume.uuid);
        let room = Room {
            attached: self.ledger.attached(node),
            limit: self.max_volumes,
            next_epoch: self.ledger.next_epoch(),
            idle: self.is_idle(&volume, &state)?,
        };
        match grant::grant(&state, &request, room) {
            Granting::AlreadyThere(grant) => Ok(grant.context()),
            Granting::Refuse(error) => Err(error),
            Granting::Write(grant) => {
                self.find_own(&id.vg)?;
                self.ledger.grant(&grant, given_in).map_err(|error| unwritten(id, error))?;
                Ok(grant.context())
            }
        }
    }

    pub(in crate::machine) fn release_volume(
        &self,
        _reservation: &Reservation,
        id: &VolumeId,
        node: Option<&NodeId>,
    ) -> Result<(), Error> {
        let mut lvs: Vec<LvUuid> =
            self.ledger.grants().into_iter().filter(|grant| grant.is_of(id)).map(|grant| grant.lv).collect();
        match self.volume(id) {
            Ok(volume) => lvs.push(volume.uuid),
            Err(Error::Missing { .. }) => self.forget_gone(&id.vg)?,
            // It was renamed; its grant still has the handle.
            Err(Error::Precondition { .. }) => {}
            Err(error) => return Err(error),
        }
        for lv in lvs {
            self.release_is_sure(id, &lv)?;
            if grant::release(&self.ledger.state(&lv), id, node, self.ledger.boot())? {
                self.ledger.free(&lv).map_err(|error| unwritten(id, error))?;
            }
        }
        Ok(())
    }

    /// Refuses if the ledger may have lost the record of a volume, and the volume is active.
    fn release_is_sure(&self, id: &VolumeId, lv: &LvUuid) -> Result<(), Error> {
        let what = || format!("volume {id}");
        if !self.ledger.is_unsure() || self.ledger.state(lv).ack.is_some() {
            return Ok(());
        }
        let device = device::find_lv(&*self.kernel, &id.vg, lv).map_err(|error| Error::failed(what(), error))?;
        match device {
            None => Ok(()),
            Some(device) => Err(Error::precondition(
                what(),
                format!(
                    "the attach ledger lost a record since the last boot, and the volume is active ({}), so it may be staged; \
                     NodeUnstageVolume must succeed first, or deactivate it with lvchange -an if no pod uses it",
                    device.name
                ),
            )),
        }
    }

    /// Whether nobody uses a volume's grant.
    fn is_idle(&self, volume: &Volume, state: &State) -> Result<bool, Error> {
        let open = self.lv_device(volume)?.is_some_and(|device| device.open_count > 0);
        Ok(state.is_idle_on(&self.node, self.ledger.boot(), open))
    }

    /// A granted volume that can no longer be found, as far as its grant knows it: its LV was renamed, lost its tags, or is gone from the
    /// metadata. Enough to undo what was done with it.
    pub fn granted(&self, id: &VolumeId) -> Option<Volume> {
        let grant = self.ledger.grants().into_iter().find(|grant| grant.is_of(id))?;
        let placement = Placement::LINEAR;
        Some(Volume { id: id.clone(), uuid: grant.lv, size: Bytes(0), placement, marks: Marks::blank() })
    }

    /// Ends the grants of volumes that no longer exist: somebody removed them with LVM's own tools, or restored older metadata. A volume
    /// whose device is still here may be in use, so its grant stays until it is unstaged.
    pub(in crate::machine) fn forget_gone(&self, vg: &VgUuid) -> Result<(), Error> {
        // Before the group is read: a volume created and granted meanwhile must not count as gone.
        let grants = self.ledger.grants();
        let group = self.find(vg)?;
        // What a copy of the group lacks may exist in the group itself.
        if let Some(why) = group.as_ref().and_then(|(_, inventory)| owner::stranger(&inventory.vg, &self.id)) {
            tracing::warn!(%vg, why, "keeping grants of volumes that may be gone");
            return Ok(());
        }
        for grant in grants.iter().filter(|grant| grant.vg == *vg) {
            if group.as_ref().is_some_and(|(_, inventory)| inventory.vg.lv_by_uuid(&grant.lv).is_some()) {
                continue;
            }
            let what = || format!("the grant of LV {}", grant.lv);
            let device = device::find_lv(&*self.kernel, vg, &grant.lv).map_err(|error| Error::failed(what(), error))?;
            if let Some(device) = device {
                tracing::warn!(lv = %grant.lv, device = device.name, "the volume of this grant is gone, but its device is here; keeping the grant");
                continue;
            }
            // A group that was removed from the configuration may be added again.
            if group.is_none() && !self.ledger.state(&grant.lv).is_idle(self.ledger.boot(), false) {
                continue;
            }
            tracing::warn!(lv = %grant.lv, holder = %grant.holder, "the volume of this grant is gone; ending the grant");
            self.ledger.free(&grant.lv).map_err(|error| Error::unavailable(what(), chain(&error)))?;
        }
        Ok(())
    }
}

/// Error for a ledger that cannot be written; nothing was changed.
pub(in crate::machine) fn unwritten(id: &VolumeId, error: LedgerError) -> Error {
    Error::unavailable(format!("volume {id}"), chain(&error))
}
