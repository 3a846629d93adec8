//! When the driver dies: at which effect, and at which moment of it. A death unwinds the stack and no answer survives it. The
//! machine stays as it is at that moment.

use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::host::Moment as Edge;

/// The moment of an effect at which the driver dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Nothing of the effect is done.
    Before,
    /// This many of its parts are done. If an lvm does it, that dies too.
    Within(usize),
    /// The program of the effect goes on alone. An lvm finishes before another driver starts; other tools run on for any time.
    Alone,
    /// All of the effect is done, and nobody knows.
    After,
}

/// An observed effect.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) name: String,
    pub(super) subject: String,
    /// The number of parts at which it can be cut.
    pub(super) parts: usize,
}

impl Effect {
    /// Every moment at which the driver can die in it.
    pub(super) fn moments(&self) -> Vec<Moment> {
        let is_program = self.name.starts_with("lv") || ["mkfs.ext4", "e2fsck", "grow-ext4"].contains(&self.name.as_str());
        let alone = is_program.then_some(Moment::Alone);
        let within = (1..=self.parts).map(Moment::Within);
        [Moment::Before].into_iter().chain(within).chain(alone).chain([Moment::After]).collect()
    }
}

#[derive(Default)]
struct Plan {
    seen: Vec<Effect>,
    last: Option<(usize, Moment)>,
    died: Option<String>,
}

/// The plan of one death.
#[derive(Default)]
pub(super) struct Doom {
    plan: Mutex<Plan>,
}

struct Death;

impl Doom {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Restarts the count of effects; the driver dies at the one with this number.
    pub(super) fn arm(&self, last: Option<(usize, Moment)>) {
        *self.plan() = Plan { last, ..Plan::default() };
    }

    /// The effects since the last `arm`.
    pub(super) fn seen(&self) -> Vec<Effect> {
        self.plan().seen.clone()
    }

    /// How the driver died since the last `arm`, if it did.
    pub(super) fn died(&self) -> Option<String> {
        self.plan().died.clone()
    }

    /// Called at both edges of every effect.
    pub(super) fn edge(&self, edge: Edge, name: &str, subject: &str) {
        let mut plan = self.plan();
        let moment = match edge {
            Edge::Before => {
                plan.seen.push(Effect { name: name.to_owned(), subject: subject.to_owned(), parts: 0 });
                Moment::Before
            }
            Edge::After => Moment::After,
        };
        drop(plan);
        self.at(moment);
    }

    /// Called between two parts of an effect.
    pub(super) fn part(&self) {
        let mut plan = self.plan();
        let Some(effect) = plan.seen.last_mut() else { return };
        effect.parts += 1;
        let moment = Moment::Within(effect.parts);
        drop(plan);
        self.at(moment);
    }

    /// Whether the program that starts now is to go on alone.
    pub(super) fn leaves_alone(&self) -> bool {
        let plan = self.plan();
        plan.last.is_some_and(|(effect, moment)| moment == Moment::Alone && plan.seen.len() == effect + 1)
    }

    /// Dies here if this is the planned moment.
    pub(super) fn at(&self, moment: Moment) {
        let mut plan = self.plan();
        if plan.last.is_none_or(|last| last != (plan.seen.len().wrapping_sub(1), moment)) {
            return;
        }
        plan.last = None;
        let effect = plan.seen.last().cloned();
        plan.died = effect.map(|effect| format!("{moment:?} {} {}", effect.name, effect.subject));
        drop(plan);
        // Not a panic: this is intended, and no message is wanted.
        resume_unwind(Box::new(Death));
    }
}
