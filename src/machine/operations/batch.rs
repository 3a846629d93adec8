//! Batches: the writer that has a group's turn adds queued changes of the same kind to its own command, since ten LVs in one command cost
//! little more than one. Each queued writer still gets its turn. It then finds its change made and runs no command, or makes the change
//! alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::lvm::command::Command;
use crate::lvm::writer::Wedged;
use crate::lvm::{ChangeError, Turn};
use crate::machine::Group;
use crate::types::{LvName, LvUuid, VolumeId, chain};
use crate::volume::inventory::{Class, Inventory};
use crate::volume::{Decision, Step, delete};

/// Most LVs in one command: the group is locked while it runs, and the guard of a removal compares each LV with each UUID.
const MOST: usize = 32;

/// Changes that wait for their turn at a group.
#[derive(Debug, Default)]
pub(in crate::machine) struct BatchQueue {
    queued: Mutex<Queued>,
    let_go: Condvar,
}

#[derive(Debug, Default)]
struct Queued {
    last: u64,
    changes: Vec<QueuedChange>,
}

/// A change of one LV that waits for its turn.
#[derive(Debug)]
struct QueuedChange {
    number: u64,
    command: Command,
    /// The LV as it was when the change was decided.
    uuid: LvUuid,
    tags: Vec<String>,
    /// Another writer is making the change in its batch.
    in_work: bool,
}

/// The command of the writer that has the turn, with queued changes added.
#[derive(Debug)]
pub(in crate::machine) struct Batch<'a> {
    queue: &'a BatchQueue,
    pub(in crate::machine) command: Command,
    others: Vec<u64>,
}

impl Group {
    /// Waits for a turn to run a command that was decided on this inventory. Meanwhile another writer may take it into its batch.
    ///
    /// # Errors
    /// [`Wedged`]; the change is then neither made nor in progress.
    pub(in crate::machine) fn turn_for(&self, inventory: &Inventory, command: &Command) -> Result<Turn<'_>, Wedged> {
        let Some(number) = self.batches.enter(inventory, command) else { return self.lvm.turn() };
        loop {
            let turn = self.lvm.turn();
            if self.batches.leave(number) {
                return turn;
            }
        }
    }

    /// Makes a change in its turn, with the queued ones of its kind; alone if the batch fails.
    ///
    /// # Errors
    /// The error of the change alone.
    pub(in crate::machine) fn change_with_others(
        &self,
        turn: &Turn<'_>,
        inventory: &Inventory,
        command: &Command,
    ) -> Result<(), ChangeError> {
        let batch = self.batches.join(inventory, command);
        match self.lvm.change(turn, &batch.command) {
            Err(error) if batch.is_shared() => {
                tracing::warn!(command = %batch.command, error = chain(&error), "the batch failed; trying one of its changes alone");
                drop(batch);
                self.lvm.change(turn, command)
            }
            outcome => outcome,
        }
    }
}

impl BatchQueue {
    /// Queues a change; `None` for a command that cannot be batched.
    pub(in crate::machine) fn enter(&self, inventory: &Inventory, command: &Command) -> Option<u64> {
        let lv = inventory.vg.lv(only(command)?.as_str())?;
        let mut queued = self.lock();
        queued.last += 1;
        let number = queued.last;
        let (uuid, tags) = (lv.uuid.clone(), lv.tags.clone());
        queued.changes.push(QueuedChange { number, command: command.clone(), uuid, tags, in_work: false });
        Some(number)
    }

    /// Removes a change from the queue and returns `true`. If a batch is making the change, waits for the end of the batch and returns
    /// `false`: the reservation must protect the LV until then.
    pub(in crate::machine) fn leave(&self, number: u64) -> bool {
        let mut queued = self.lock();
        let in_work = |queued: &Queued| queued.changes.iter().any(|change| change.number == number && change.in_work);
        if !in_work(&queued) {
            queued.changes.retain(|change| change.number != number);
            return true;
        }
        while in_work(&queued) {
            queued = self.let_go.wait(queued).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// The command alone.
    pub(in crate::machine) fn alone(&self, command: &Command) -> Batch<'_> {
        Batch { queue: self, command: command.clone(), others: Vec::new() }
    }

    /// The command, with the queued changes of its kind whose LVs have not changed since they were decided.
    pub(in crate::machine) fn join(&self, inventory: &Inventory, command: &Command) -> Batch<'_> {
        let mut batch = self.alone(command);
        if only(command).is_none_or(|lv| !may_share(inventory, command, lv)) {
            return batch;
        }
        for change in &mut self.lock().changes {
            let Some(lv) = only(&change.command) else { continue };
            let is_same = inventory.vg.lv(lv.as_str()).is_some_and(|now| now.uuid == change.uuid && now.tags == change.tags);
            let fits = batch.others.len() + 1 < MOST && is_same && may_share(inventory, &change.command, lv);
            if fits && add(&mut batch.command, &change.command) {
                change.in_work = true;
                batch.others.push(change.number);
            }
        }
        batch
    }

    #[cfg(test)]
    pub(in crate::machine) fn count(&self) -> usize {
        self.lock().changes.len()
    }

    fn lock(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch<'_> {
    pub(in crate::machine) fn is_shared(&self) -> bool {
        !self.others.is_empty()
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut queued = self.queue.lock();
        for change in queued.changes.iter_mut().filter(|change| self.others.contains(&change.number)) {
            change.in_work = false;
        }
        self.queue.let_go.notify_all();
    }
}

/// The single LV of a command that can be batched.
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

/// Whether a change may share a command. A removal may only if its LV is linear and the rules would remove it now: removing a thin LV
/// takes two commits and a message to its pool, and other LVs may depend on it since the removal was decided.
fn may_share(inventory: &Inventory, command: &Command, lv: &LvName) -> bool {
    let Command::Remove { targets, .. } = command else { return true };
    let id = VolumeId { vg: inventory.vg.uuid.clone(), lv: lv.clone() };
    matches!(inventory.class(lv.as_str()), Some(Class::Volume(volume) | Class::Unfinished(volume)) if volume.placement.goes_in_one_commit())
        && matches!(delete::volume(inventory, &id), Decision::Do(Step::Lvm(Command::Remove { targets: now, .. })) if now == *targets)
}

/// Adds a change of one LV to a command of the same kind; returns `false` if they differ.
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
