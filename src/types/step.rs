//! The step at which a running operation is, for the text that a second caller gets ("what runs, since when, at which step").
//!
//! The thread of an operation carries its [`Step`]; whatever makes an effect there notes it. Threads without one note nothing.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    static CURRENT: RefCell<Option<Step>> = const { RefCell::new(None) };
}

/// The last step noted by one operation.
#[derive(Clone, Debug, Default)]
pub struct Step(Arc<Mutex<String>>);

impl Step {
    /// Runs `work` with this as the step of the present thread.
    pub fn carry<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = CURRENT.with(|current| current.replace(Some(self.clone())));
        let result = work();
        CURRENT.with(|current| current.replace(before));
        result
    }

    /// The last step noted; empty before the first.
    pub fn last(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Notes what the operation of this thread does now.
pub fn note(text: impl FnOnce() -> String) {
    CURRENT.with(|current| {
        if let Some(step) = current.borrow().as_ref() {
            *step.0.lock().unwrap_or_else(PoisonError::into_inner) = text();
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
    }
}
