//! When the driver dies: at which effect, and at which moment of it. A death is an unwinding that no answer survives; the machine
//! stays as it is at that moment.

use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::host::Moment as Edge;

/// When an effect is the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Nothing of it was done.
    Before,
    /// As many of its parts are done; an lvm that does it dies too.
    Within(usize),
    /// The program that does it goes on alone. An lvm is done before another driver begins; others work as long as they please.
    Alone,
    /// All of it is done, and nobody was told.
    After,
}

/// One effect that was seen.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) name: String,
    pub(super) subject: String,
    /// In how many parts it can be cut.
    pub(super) parts: usize,
}

impl Effect {
    /// Every moment at which it can be the last one.
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

    /// Counts effects anew; the one of this number will be the last.
    pub(super) fn arm(&self, last: Option<(usize, Moment)>) {
        *self.plan() = Plan { last, ..Plan::default() };
    }

    /// The effects since then.
    pub(super) fn seen(&self) -> Vec<Effect> {
        self.plan().seen.clone()
    }

    /// How the driver died since then, if it did.
    pub(super) fn died(&self) -> Option<String> {
        self.plan().died.clone()
    }

    /// To be called at both edges of every effect.
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

    /// To be called between two parts of an effect.
    pub(super) fn part(&self) {
        let mut plan = self.plan();
        let Some(effect) = plan.seen.last_mut() else { return };
        effect.parts += 1;
        let moment = Moment::Within(effect.parts);
        drop(plan);
        self.at(moment);
    }

    /// Whether the program that begins now is to be left alone.
    pub(super) fn leaves_alone(&self) -> bool {
        let plan = self.plan();
        plan.last.is_some_and(|(effect, moment)| moment == Moment::Alone && plan.seen.len() == effect + 1)
    }

    /// Dies here if this is the moment.
    pub(super) fn at(&self, moment: Moment) {
        let mut plan = self.plan();
        if plan.last.is_none_or(|last| last != (plan.seen.len().wrapping_sub(1), moment)) {
            return;
        }
        plan.last = None;
        let effect = plan.seen.last().cloned();
        plan.died = effect.map(|effect| format!("{moment:?} {} {}", effect.name, effect.subject));
        drop(plan);
        // Not a panic: nothing is wrong, and nobody wants to read of it.
        resume_unwind(Box::new(Death));
    }
}
