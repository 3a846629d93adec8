//! Every change of a group passes here: only the machine that the group records makes it, and the first machine records itself.
//!
//! So no verb can forget to ask. Two commands pass in the group of another machine: deactivation, since whoever uses volumes there must
//! be able to give them up, and the one that records a machine.

use std::path::PathBuf;

use crate::lvm::command::Command;
use crate::lvm::engine::KeepError;
use crate::lvm::metadata::Vg;
use crate::lvm::writer::Wedged;
use crate::lvm::{Backups, ChangeError, Lvm, Pin, ReadError, Turn, View};
use crate::types::{Error, GroupQueue, MachineId, VgUuid};
use crate::volume::owner::{self, Owner};

use super::change::failed;
use crate::machine::{Group, Machine};

/// The LVM of a group, for the machine that owns the group.
pub(in crate::machine) struct Owned {
    lvm: Box<dyn Lvm>,
    id: MachineId,
}

impl Owned {
    pub(in crate::machine) fn new(lvm: Box<dyn Lvm>, id: MachineId) -> Self {
        Self { lvm, id }
    }

    fn admit(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError> {
        let refused = |error: Error| ChangeError::Refused(Box::new(error));
        let vg = self.lvm.read()?.vg;
        match Owner::of(&vg, &self.id) {
            Owner::Us => Ok(()),
            Owner::Others(_) => owner::check(&vg, &self.id).map_err(refused),
            Owner::Nobody if !command.commits() => Ok(()),
            Owner::Nobody => match owner::record(&vg, &self.id).map_err(refused)? {
                Some(record) => self.lvm.change(turn, &record),
                None => Ok(()),
            },
        }
    }
}

impl Lvm for Owned {
    fn change(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError> {
        if !owner::is_for_anybody(command) {
            self.admit(turn, command)?;
        }
        self.lvm.change(turn, command)
    }

    fn read(&self) -> Result<View, ReadError> {
        self.lvm.read()
    }

    fn alone(&self) -> Result<(), ChangeError> {
        self.lvm.alone()
    }

    fn turn(&self) -> Result<Turn<'_>, Wedged> {
        self.lvm.turn()
    }

    fn recover(&self, turn: &Turn<'_>) -> Result<(), ChangeError> {
        self.lvm.recover(turn)
    }

    fn back_up(&self, backups: &Backups) -> Result<(), KeepError> {
        self.lvm.back_up(backups)
    }

    fn make_durable(&self) -> Result<(), ChangeError> {
        self.lvm.make_durable()
    }

    fn check_present(&self, view: &View) -> Result<(), String> {
        self.lvm.check_present(view)
    }

    fn queue(&self) -> GroupQueue {
        self.lvm.queue()
    }

    fn pinned_group(&self) -> Option<VgUuid> {
        self.lvm.pinned_group()
    }

    fn strangers(&self) -> Result<Vec<(PathBuf, String)>, ReadError> {
        self.lvm.strangers()
    }

    fn split_off(&self) -> Result<Vec<Vg>, ReadError> {
        self.lvm.split_off()
    }

    fn adopt(&self, only: Option<Vec<PathBuf>>) -> Result<(View, Option<Pin>), ReadError> {
        self.lvm.adopt(only)
    }
}

impl Machine {
    /// At the start of the driver, records this machine in a group that names none. Refuses a group of another machine.
    pub(in crate::machine) fn record(&self, group: &Group, turn: &Turn<'_>, view: &View) -> Result<(), Error> {
        owner::check(&view.vg, &self.id)?;
        match owner::record(&view.vg, &self.id)? {
            Some(command) => {
                tracing::info!(vg = %group.name, machine = %self.id.record(), "recording this machine in the volume group");
                let what = format!("recording this machine in volume group {}", group.name);
                group.lvm.change(turn, &command).map_err(|error| failed(&what, group, error))
            }
            None => Ok(()),
        }
    }
}
