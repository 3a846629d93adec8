//! The one loop by which a group is changed: decide, take one step, read, decide again.

use std::time::Instant;

use crate::inflight::Reservation;
use crate::lvm::ChangeError;
use crate::lvm::command::Command;
use crate::machine::{Group, Machine, unknown};
use crate::types::{Error, LvName, Pool, chain};
use crate::volume::inventory::Inventory;
use crate::volume::{Decision, PoolUse, Step, Zero, owner};

/// More commands than any verb needs; reached only if LVM says yes and does something else, again and again.
const MOST_STEPS: usize = 8;

/// Where the commands of a decision led.
enum Reached<A> {
    /// Nothing more is to be done.
    End(A),
    /// Next is what needs neither LVM nor the group's turn.
    Zero(Box<Zero>),
}

/// How a failed change is told to the caller.
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

impl Machine {
    /// Takes the steps that `decide` asks for, until it asks for none. `what` names the object in errors; `pool` is where the
    /// fill of a thin pool matters.
    ///
    /// # Errors
    /// What `decide` refuses with, or why a step failed and the state still asks for it. [`Error::Busy`] with the progress where that takes
    /// longer than one call may: it goes on without a call ([`crate::machine::housekeeping::jobs`]), and a repeat takes part in it.
    pub(in crate::machine) fn settle<A>(
        &self,
        reservation: &Reservation,
        group: &Group,
        what: &str,
        pool: Option<&Pool>,
        decide: impl FnMut(&Inventory, Option<PoolUse>) -> Decision<A>,
    ) -> Result<A, Error> {
        self.settle_new(reservation, group, what, pool, None, decide)
    }

    /// As [`Machine::settle`], for what makes an LV. Each time before `decide` is asked, and so before every answer, its thin pool is asked
    /// whether it has the LV: what an lvm left in the metadata only, because it died before its message to the pool, is removed first.
    ///
    /// # Errors
    /// As [`Machine::settle`]. [`Error::Unavailable`] while such an LV may be left.
    pub(in crate::machine) fn settle_new<A>(
        &self,
        reservation: &Reservation,
        group: &Group,
        what: &str,
        pool: Option<&Pool>,
        made: Option<&LvName>,
        mut decide: impl FnMut(&Inventory, Option<PoolUse>) -> Decision<A>,
    ) -> Result<A, Error> {
        let mut until = None;
        let answer = loop {
            let zero = match self.run_commands(group, what, pool, made, &mut decide)? {
                Reached::End(answer) => break answer,
                Reached::Zero(zero) => zero,
            };
            // One slice is always taken, so that repeated calls come to an end.
            if until.is_some_and(|until| Instant::now() >= until || reservation.must_give_way()) {
                group.unfinished.notify_one();
                let running = format!("{}; that goes on, repeat the call later", zero.progress(zero.volume.zeroed()));
                return Err(Error::busy(what, running));
            }
            until.get_or_insert(Instant::now() + self.zeroing.call);
            self.take_slice(reservation, &zero)?;
        };
        // An answer speaks of what a power cut would leave.
        group.lvm.make_durable().map_err(|error| failed(what, group, error))?;
        Ok(answer)
    }

    /// As [`Machine::settle_new`], for what no caller names and nobody is answered: the thin pools of the configuration.
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
            Reached::End(answer) => Ok(answer),
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
            // Also what needs no change: that a copy of a group lacks an LV says nothing of the LV.
            owner::check(&inventory.vg, &self.id)?;
            let undo = made.map_or(Ok(None), |lv| self.undo_undelivered(what, &inventory, lv))?;
            let undoes = undo.is_some();
            let decision = match undo {
                Some(command) => Decision::Do(Step::Lvm(command)),
                None => decide(&inventory, pool.and_then(|pool| self.pool_use(pool, &inventory))),
            };
            Ok::<_, Error>((decision, inventory, undoes))
        };
        // Most repeats need no turn: what is there already is told at once, also while another writer is at work.
        let turn = match look()? {
            (Decision::AlreadyThere(answer), ..) => return Ok(Reached::End(answer)),
            (Decision::Refuse(error), ..) => return Err(error),
            (Decision::Do(Step::Zero(zero)), ..) => return Ok(Reached::Zero(Box::new(zero))),
            // The message may be under way: whose turn it is sends it.
            (Decision::Do(_), _, true) => group.lvm.turn(),
            (Decision::Do(Step::Lvm(command)), inventory, false) => group.turn_for(&inventory, &command),
        };
        let turn = turn.map_err(|wedged| Error::unavailable(format!("volume group {}", group.name), wedged.to_string()))?;
        let mut last: Option<(Command, Result<(), ChangeError>)> = None;
        for number in 0..MOST_STEPS {
            let (decision, inventory, undoes) = look()?;
            let command = match decision {
                Decision::AlreadyThere(answer) => return Ok(Reached::End(answer)),
                Decision::Refuse(error) => return Err(error),
                Decision::Do(Step::Zero(zero)) => return Ok(Reached::Zero(Box::new(zero))),
                Decision::Do(Step::Lvm(command)) => command,
            };
            if undoes {
                if let Some((_, Err(error))) = last.take_if(|(before, _)| *before == command) {
                    return Err(Error::unavailable(what, format!("what is left of a creation stays: {}", chain(&error))));
                }
                tracing::warn!(vg = %group.name, %command, "a creation was cut off before its thin pool heard of it; undoing it");
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
                        format!("LVM was asked to {before} and left it as it was: it is active, or something depends on it"),
                    ),
                });
            }
            // What failed in a batch is tried alone before it is given up.
            let step =
                if number == 0 && !undoes { group.batches.join(&inventory, &command) } else { group.batches.alone(&command) };
            let outcome = group.lvm.change(&turn, &step.command);
            if let Err(error) = &outcome {
                tracing::warn!(command = %step.command, error = chain(error), "the command failed; reading what it left");
            }
            last = (!step.is_shared()).then_some((command, outcome));
        }
        if made.is_some() {
            return Err(Error::unavailable(
                what,
                format!("{MOST_STEPS} commands did not bring it where it should be; see the log"),
            ));
        }
        Err(Error::precondition(what, format!("{MOST_STEPS} commands did not bring it where it should be; see the log")))
    }
}
