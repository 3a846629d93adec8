//! The present step of a running operation, for the answer to a second caller ("what runs, since when, at which step").
//!
//! The thread of an operation carries its [`Step`], and each effect on that thread is noted there. Threads without one note nothing.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use super::names::VgName;

thread_local! {
    static CURRENT: RefCell<Option<Step>> = const { RefCell::new(None) };
}

/// The last noted step and the progress of one operation.
#[derive(Clone, Debug, Default)]
pub struct Step(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    progress: String,
    step: String,
    group: Option<VgName>,
}

impl Step {
    /// Runs `work` with this as the step of the current thread.
    pub fn carry<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = CURRENT.with(|current| current.replace(Some(self.clone())));
        let result = work();
        CURRENT.with(|current| current.replace(before));
        result
    }

    /// The step of the current thread, if it has one.
    pub fn present() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// The noted progress, if any, and the last noted step; empty before the first.
    pub fn last(&self) -> String {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = [noted.progress.as_str(), noted.step.as_str()];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }
}

impl Step {
    /// The volume group of the operation, if already known.
    pub fn group(&self) -> Option<VgName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).group.clone()
    }
}

/// Notes the volume group of this thread's operation.
pub fn in_group(group: &VgName) {
    change(|noted| noted.group = Some(group.clone()));
}

/// Notes the step of this thread's operation.
pub fn note(text: impl FnOnce() -> String) {
    change(|noted| noted.step = text());
}

/// Notes the progress of this thread's operation. It stays with all later steps.
pub fn progress(text: impl FnOnce() -> String) {
    change(|noted| noted.progress = text());
}

fn change(how: impl FnOnce(&mut Noted)) {
    CURRENT.with(|current| {
        if let Some(step) = current.borrow().as_ref() {
            how(&mut step.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_noted_for_its_operation_only() {
        let step = Step::default();
        note(|| "not noted".to_owned());
        step.carry(|| note(|| "mkfs".to_owned()));
        note(|| "not noted either".to_owned());
        assert_eq!(step.last(), "mkfs");
        step.carry(|| progress(|| "7 %".to_owned()));
        step.carry(|| note(|| "zero".to_owned()));
        assert_eq!(step.last(), "7 %, zero");
    }
}
