//! The step at which a running operation is, for the text that a second caller gets ("what runs, since when, at which step").
//!
//! The thread of an operation carries its [`Step`]; whatever makes an effect there notes it. Threads without one note nothing.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use super::names::VgName;

thread_local! {
    static CURRENT: RefCell<Option<Step>> = const { RefCell::new(None) };
}

/// The last step noted by one operation, and how far it is.
#[derive(Clone, Debug, Default)]
pub struct Step(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    progress: String,
    step: String,
    group: Option<VgName>,
}

impl Step {
    /// Runs `work` with this as the step of the present thread.
    pub fn carry<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = CURRENT.with(|current| current.replace(Some(self.clone())));
        let result = work();
        CURRENT.with(|current| current.replace(before));
        result
    }

    /// That of the present thread, if it has one.
    pub fn present() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// The last step noted, after the progress where one was noted; empty before the first.
    pub fn last(&self) -> String {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = [noted.progress.as_str(), noted.step.as_str()];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }
}

impl Step {
    /// The volume group that the operation has to do with, as far as it is known by now.
    pub fn group(&self) -> Option<VgName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).group.clone()
    }
}

/// Notes which volume group the operation of this thread has to do with.
pub fn in_group(group: &VgName) {
    change(|noted| noted.group = Some(group.clone()));
}

/// Notes what the operation of this thread does now.
pub fn note(text: impl FnOnce() -> String) {
    change(|noted| noted.step = text());
}

/// Notes how far the operation of this thread is. It stands beside all further steps.
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
        note(|| "nobody hears this".to_owned());
        step.carry(|| note(|| "mkfs".to_owned()));
        note(|| "nor this".to_owned());
        assert_eq!(step.last(), "mkfs");
        step.carry(|| progress(|| "7 %".to_owned()));
        step.carry(|| note(|| "zero".to_owned()));
        assert_eq!(step.last(), "7 %, zero");
    }
}
