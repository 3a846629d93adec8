//! Changes that wait for their turn at a group: whoever has it takes along all that are like its own, since ten in one command cost
//! little more than one. Each of them still gets its own turn, finds its change made then, and needs no command; or finds it not
//! made, and goes on alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::lvm::command::Command;
use crate::lvm::writer::Wedged;
use crate::lvm::{ChangeError, Turn};
use crate::types::{LvName, LvUuid, VolumeId, chain};
use crate::volume::inventory::{Class, Inventory};
use crate::volume::{Decision, Step, delete};

use super::Group;

/// The most LVs of one command: the group is locked while it runs, and the guard of a removal compares each LV with each UUID.
const MOST: usize = 32;

/// The changes that wait for a group.
#[derive(Debug, Default)]
pub(super) struct Company {
    seats: Mutex<Seats>,
    let_go: Condvar,
}

#[derive(Debug, Default)]
struct Seats {
    last: u64,
    taken: Vec<Seat>,
}

/// One who waits, with a change of one LV.
#[derive(Debug)]
struct Seat {
    number: u64,
    command: Command,
    /// The LV as it was when this was decided.
    uuid: LvUuid,
    tags: Vec<String>,
    /// Somebody who has a turn is making the change.
    in_work: bool,
}

/// The command of one who has a turn, with others' in it.
#[derive(Debug)]
pub(super) struct Joined<'a> {
    company: &'a Company,
    pub(super) command: Command,
    others: Vec<u64>,
}

impl Group {
    /// Waits for a turn with a command that was decided by this inventory. Those who have a turn meanwhile may take it along.
    ///
    /// # Errors
    /// [`Wedged`], and the change is neither made nor being made.
    pub(super) fn turn_for(&self, inventory: &Inventory, command: &Command) -> Result<Turn<'_>, Wedged> {
        let Some(number) = self.company.enter(inventory, command) else { return self.lvm.turn() };
        loop {
            let turn = self.lvm.turn();
            if self.company.leave(number) {
                return turn;
            }
        }
    }

    /// Makes a change in its turn, with all that wait to do the like; alone, where it failed in company.
    ///
    /// # Errors
    /// Of the change alone.
    pub(super) fn change_with_others(
        &self,
        turn: &Turn<'_>,
        inventory: &Inventory,
        command: &Command,
    ) -> Result<(), ChangeError> {
        let joined = self.company.join(inventory, command);
        match self.lvm.change(turn, &joined.command) {
            Err(error) if joined.is_shared() => {
                tracing::warn!(command = %joined.command, error = chain(&error), "the command failed; trying one of it alone");
                drop(joined);
                self.lvm.change(turn, command)
            }
            outcome => outcome,
        }
    }
}

impl Company {
    /// Takes a seat; commands that are not made in company have none.
    pub(super) fn enter(&self, inventory: &Inventory, command: &Command) -> Option<u64> {
        let lv = inventory.vg.lv(only(command)?.as_str())?;
        let mut seats = self.lock();
        seats.last += 1;
        let number = seats.last;
        let (uuid, tags) = (lv.uuid.clone(), lv.tags.clone());
        seats.taken.push(Seat { number, command: command.clone(), uuid, tags, in_work: false });
        Some(number)
    }

    /// Gives up a seat, and gives `true`. Whose change is being made cannot, and waits until that has ended: the reservation
    /// protects the LV until then.
    pub(super) fn leave(&self, number: u64) -> bool {
        let mut seats = self.lock();
        let in_work = |seats: &Seats| seats.taken.iter().any(|seat| seat.number == number && seat.in_work);
        if !in_work(&seats) {
            seats.taken.retain(|seat| seat.number != number);
            return true;
        }
        while in_work(&seats) {
            seats = self.let_go.wait(seats).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// The command by itself.
    pub(super) fn alone(&self, command: &Command) -> Joined<'_> {
        Joined { company: self, command: command.clone(), others: Vec::new() }
    }

    /// The command, with what else waits to be done in this way. Others' LVs must be as they were when their change was decided.
    pub(super) fn join(&self, inventory: &Inventory, command: &Command) -> Joined<'_> {
        let mut joined = self.alone(command);
        if only(command).is_none_or(|lv| !may_share(inventory, command, lv)) {
            return joined;
        }
        for seat in &mut self.lock().taken {
            let Some(lv) = only(&seat.command) else { continue };
            let is_same = inventory.vg.lv(lv.as_str()).is_some_and(|now| now.uuid == seat.uuid && now.tags == seat.tags);
            let fits = joined.others.len() + 1 < MOST && is_same && may_share(inventory, &seat.command, lv);
            if fits && add(&mut joined.command, &seat.command) {
                seat.in_work = true;
                joined.others.push(seat.number);
            }
        }
        joined
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().taken.len()
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Joined<'_> {
    /// Whether others' changes are in it.
    pub(super) fn is_shared(&self) -> bool {
        !self.others.is_empty()
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let mut seats = self.company.lock();
        for seat in seats.taken.iter_mut().filter(|seat| self.others.contains(&seat.number)) {
            seat.in_work = false;
        }
        self.company.let_go.notify_all();
    }
}

/// The one LV of a command that can be made in company.
fn only(command: &Command) -> Option<&LvName> {
    match command {
        Command::Remove { targets, .. } => match targets.as_slice() {
            [(lv, _)] => Some(lv),
            _ => None,
        },
        Command::Activate { lvs, .. } | Command::Deactivate { lvs, .. } | Command::Retag { lvs, .. } => match lvs.as_slice() {
            [lv] => Some(lv),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a change may go with others. Of removals only those of linear LVs may, and only as the rules would have it now: that of
/// a thin one is two commits and a message to its pool, and others' LVs may depend on it since it was decided.
fn may_share(inventory: &Inventory, command: &Command, lv: &LvName) -> bool {
    let Command::Remove { targets, .. } = command else { return true };
    let id = VolumeId { vg: inventory.vg.uuid.clone(), lv: lv.clone() };
    matches!(inventory.class(lv.as_str()), Some(Class::Volume(volume) | Class::Unfinished(volume)) if volume.placement.goes_in_one_commit())
        && matches!(delete::volume(inventory, &id), Decision::Do(Step::Lvm(Command::Remove { targets: now, .. })) if now == *targets)
}

/// Adds a change of one LV to another one that is like it; gives `false` where it is not.
fn add(command: &mut Command, other: &Command) -> bool {
    match (command, other) {
        (Command::Remove { targets, .. }, Command::Remove { targets: more, .. }) => targets.extend_from_slice(more),
        (Command::Activate { lvs, .. }, Command::Activate { lvs: more, .. })
        | (Command::Deactivate { lvs, .. }, Command::Deactivate { lvs: more, .. }) => lvs.extend_from_slice(more),
        (Command::Retag { lvs, remove, add, .. }, Command::Retag { lvs: more, remove: same, add: likewise, .. })
            if remove == same && add == likewise =>
        {
            lvs.extend_from_slice(more);
        }
        _ => return false,
    }
    true
}
