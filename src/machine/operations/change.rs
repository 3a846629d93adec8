//! The loop that changes a group: decide, take one step, read, decide again.

use std::time::Instant;

use crate::inflight::Reservation;
use crate::lvm::ChangeError;
use crate::lvm::command::Command;
use crate::machine::{Group, Machine, unknown};
use crate::types::{Change, Changed, Error, LvName, Pool, chain};
use crate::volume::inventory::Inventory;
use crate::volume::{Decision, PoolUse, Step, Zero, owner};

/// More commands than any verb needs; reached only if LVM keeps reporting success and doing something else.
const MOST_STEPS: usize = 8;

/// Where the commands of a decision led.
enum Reached<A> {
    /// Nothing is left to do.
    End(Settled<A>),
    /// The next step needs neither LVM nor the group's turn.
    Zero(Box<Zero>),
}

/// Turns a failed change into the caller's error.
pub(in crate::machine) fn failed(what: &str, group: &Group, error: ChangeError) -> Error {
    match error {
        ChangeError::Read(error) => unknown(&error),
        ChangeError::Refused(error) => *error,
        ChangeError::Away(_) | ChangeError::Survivor(_) | ChangeError::Disorder { .. } | ChangeError::Flush { .. } => {
            Error::unavailable(format!("{what} (volume group {})", group.name), chain(&error))
        }
        ChangeError::Conf(_) | ChangeError::Run { .. } | ChangeError::Lvm(_) => Error::failed(what.to_owned(), error),
    }
}

/// The end of a change.
pub(in crate::machine) struct Settled<A> {
    pub(in crate::machine) answer: A,
    /// Whether anything had to be done to get there.
    pub(in crate::machine) changed: bool,
}

impl<A> Settled<A> {
    /// The answer with `change`, or with `nothing` if nothing had to be done.
    pub(in crate::machine) fn says(self, change: Change, nothing: Change) -> Changed<A> {
        Changed { object: self.answer, change: if self.changed { change } else { nothing } }
    }
}

impl Machine {
    /// Takes the steps that `decide` asks for, until it asks for none. `what` names the object in errors; `pool` is set if the fill of a
    /// thin pool matters.
    ///
    /// # Errors
    /// What `decide` refuses with, or why a step failed that is still needed. [`Error::Busy`] with the progress if the work takes longer
    /// than one call may: it continues without a call ([`crate::machine::housekeeping::jobs`]), and a repeated call joins it.
    pub(in crate::machine) fn settle<A>(
        &self,
        reservation: &Reservation,
        group: &Group,
        what: &str,
        pool: Option<&Pool>,
        decide: impl FnMut(&Inventory, Option<PoolUse>) -> Decision<A>,
    ) -> Result<Settled<A>, Error> {
        self.settle_new(reservation, group, what, pool, None, decide)
    }

    /// Like [`Machine::settle`], for creating an LV. Before each decision, and so before every answer, checks that the LV's thin pool has
    /// it. An LV that an lvm left in the metadata only, because it died before its message to the pool, is removed first.
    ///
    /// # Errors
    /// As [`Machine::settle`]. [`Error::Unavailable`] while such an LV may remain.
    pub(in crate::machine) fn settle_new<A>(
        &self,
        reservation: &Reservation,
        group: &Group,
        what: &str,
        pool: Option<&Pool>,
        made: Option<&LvName>,
        mut decide: impl FnMut(&Inventory, Option<PoolUse>) -> Decision<A>,
    ) -> Result<Settled<A>, Error> {
        let mut until = None;
        let settled = loop {
            let zero = match self.run_commands(group, what, pool, made, &mut decide)? {
                Reached::End(settled) => break Settled { changed: settled.changed || until.is_some(), ..settled },
                Reached::Zero(zero) => zero,
            };
            // Always take one slice, so that repeated calls finish.
            if until.is_some_and(|until| Instant::now() >= until || reservation.must_give_way()) {
                group.unfinished.notify_one();
                let running = format!("{}; it continues, repeat the call later", zero.progress(zero.volume.zeroed()));
                return Err(Error::busy(what, running));
            }
            until.get_or_insert(Instant::now() + self.zeroing.call);
            self.take_slice(reservation, &zero)?;
        };
        // An answer must hold after a power cut.
        group.lvm.make_durable().map_err(|error| failed(what, group, error))?;
        Ok(settled)
    }

    /// Like [`Machine::settle_new`], for the configured thin pools, which no caller reserves and nobody waits for.
    ///
    /// # Errors
    /// As [`Machine::settle_new`].
    pub(in crate::machine) fn settle_unclaimed<A>(
        &self,
        group: &Group,
        what: &str,
        pool: Option<&Pool>,
        made: Option<&LvName>,
        mut decide: impl FnMut(&Inventory, Option<PoolUse>) -> Decision<A>,
    ) -> Result<A, Error> {
        match self.run_commands(group, what, pool, made, &mut decide)? {
            Reached::End(settled) => Ok(settled.answer),
            Reached::Zero(zero) => {
                Err(Error::precondition(what, format!("nobody has reserved volume {} for zeroing", zero.volume.id)))
            }
        }
    }

    /// Runs the commands that `decide` asks for, until it asks for something else.
    fn run_commands<A>(
        &self,
        group: &Group,
        what: &str,
        pool: Option<&Pool>,
        made: Option<&LvName>,
        decide: &mut impl FnMut(&Inventory, Option<PoolUse>) -> Decision<A>,
    ) -> Result<Reached<A>, Error> {
        group.lvm.alone().map_err(|error| failed(what, group, error))?;
        let mut look = || {
            let inventory = group.inventory().map_err(|error| unknown(&error))?;
            // Check even if nothing needs a change: that a copy of a group lacks an LV says nothing about the LV.
            owner::check(&inventory.vg, &self.id)?;
            let undo = made.map_or(Ok(None), |lv| self.undo_undelivered(what, &inventory, lv))?;
            let undoes = undo.is_some();
            let decision = match undo {
                Some(command) => Decision::Do(Step::Lvm(command)),
                None => decide(&inventory, pool.and_then(|pool| self.pool_use(pool, &inventory))),
            };
            Ok::<_, Error>((decision, inventory, undoes))
        };
        // Most repeats need no turn: they are answered at once, even while another writer works.
        let turn = match look()? {
            (Decision::AlreadyThere(answer), ..) => return Ok(Reached::End(Settled { answer, changed: false })),
            (Decision::Refuse(error), ..) => return Err(error),
            (Decision::Do(Step::Zero(zero)), ..) => return Ok(Reached::Zero(zero)),
            // The message may be on its way: the writer that has the turn sends it.
            (Decision::Do(_), _, true) => group.lvm.turn(),
            (Decision::Do(Step::Lvm(command)), inventory, false) => group.turn_for(&inventory, &command),
        };
        let turn = turn.map_err(|wedged| Error::unavailable(format!("volume group {}", group.name), wedged.to_string()))?;
        let mut last: Option<(Command, Result<(), ChangeError>)> = None;
        for number in 0..MOST_STEPS {
            let (decision, inventory, undoes) = look()?;
            let command = match decision {
                // Another writer may have done it in its batch, for this call too.
                Decision::AlreadyThere(answer) => return Ok(Reached::End(Settled { answer, changed: true })),
                Decision::Refuse(error) => return Err(error),
                Decision::Do(Step::Zero(zero)) => return Ok(Reached::Zero(zero)),
                Decision::Do(Step::Lvm(command)) => command,
            };
            if undoes {
                if let Some((_, Err(error))) = last.take_if(|(before, _)| *before == command) {
                    return Err(Error::unavailable(what, format!("cannot remove what a creation left: {}", chain(&error))));
                }
                tracing::warn!(vg = %group.name, %command, "undoing a creation that was interrupted before its message reached the thin pool");
            }
            if let Some((before, outcome)) = last.take_if(|(before, _)| *before == command) {
                let thin_pool = pool.and_then(|pool| pool.placement.thin_pool());
                return Err(match outcome {
                    Err(error) => {
                        let activates = matches!(before, Command::CreateThin { .. } | Command::SnapshotThin { .. });
                        self.blame(what, &inventory, (thin_pool, activates), failed(what, group, error))
                    }
                    Ok(()) => Error::precondition(
                        what,
                        format!("LVM was asked to {before}, but changed nothing: it is active, or something depends on it"),
                    ),
                });
            }
            // A change that failed in a batch is tried alone before it is given up.
            let step =
                if number == 0 && !undoes { group.batches.join(&inventory, &command) } else { group.batches.alone(&command) };
            let outcome = group.lvm.change(&turn, &step.command);
            if let Err(error) = &outcome {
                tracing::warn!(command = %step.command, error = chain(error), "the command failed; reading the group again");
            }
            last = (!step.is_shared()).then_some((command, outcome));
        }
        if made.is_some() {
            return Err(Error::unavailable(what, format!("{MOST_STEPS} commands did not reach the wanted state; see the log")));
        }
        Err(Error::precondition(what, format!("{MOST_STEPS} commands did not reach the wanted state; see the log")))
    }
}
