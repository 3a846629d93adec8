//! Removals that wait for their turn at a group: whoever has it takes all of them along, since ten in one command cost as much as
//! one. Each of them still gets its own turn, finds its LV gone then, and needs no command; or finds it there, and goes on alone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::lvm::command::Command;
use crate::types::{LvName, LvUuid, VolumeId};
use crate::volume::inventory::Inventory;
use crate::volume::{Decision, delete};

/// The most LVs of one command: the group is locked while it runs, and its guard compares each LV with each UUID.
const MOST: usize = 32;

/// The name and UUID of an LV that is to go.
type Target = (LvName, LvUuid);

/// What waits to be removed from a group.
#[derive(Debug, Default)]
pub(super) struct Removals(Mutex<Vec<Target>>);

/// A place among those who wait; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    removals: &'a Removals,
    target: Option<Target>,
}

impl Removals {
    /// Tells those who have a turn meanwhile what this command would remove; of any other command, nothing.
    pub(super) fn wait(&self, command: &Command) -> Waiting<'_> {
        let target = match command {
            Command::Remove { targets, .. } => targets.first().cloned(),
            _ => None,
        };
        self.lock().extend(target.clone());
        Waiting { removals: self, target }
    }

    /// The command, with what else waits to be removed. Only linear LVs go together: removing a thin one is two commits and a
    /// message to its pool. All of them are decided on anew, by what was read in this turn.
    pub(super) fn join(&self, inventory: &Inventory, command: &Command) -> Command {
        let Command::Remove { vg, targets } = command else { return command.clone() };
        let is_linear =
            |(name, uuid): &Target| inventory.vg.lv(name.as_str()).is_some_and(|lv| lv.uuid == *uuid && lv.is_linear());
        let mut targets = targets.clone();
        if targets.iter().all(is_linear) {
            for other in self.lock().iter().filter(|other| is_linear(other)) {
                if targets.len() < MOST && !targets.contains(other) && may_go(inventory, other) {
                    targets.push(other.clone());
                }
            }
        }
        Command::Remove { vg: vg.clone(), targets }
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the rules would remove just this.
fn may_go(inventory: &Inventory, target: &Target) -> bool {
    let id = VolumeId { vg: inventory.vg.uuid.clone(), lv: target.0.clone() };
    matches!(delete::volume(inventory, &id), Decision::Do(Command::Remove { targets, .. }) if targets == [target.clone()])
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(target) = &self.target else { return };
        let mut all = self.removals.lock();
        if let Some(at) = all.iter().position(|other| other == target) {
            all.swap_remove(at);
        }
    }
}
