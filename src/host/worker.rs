//! A thread for work that may never come back, such as a read of a disk that hangs. Whoever wants something done waits for a limited
//! time. While one piece of work exceeds the limit, all others are refused at once, and no further thread is started for them.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::types::step::Step;

/// One thread, started when it is first needed, and the work that waits for it.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    limit: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    last: u64,
    running: Option<Running>,
    /// The thread runs.
    alive: bool,
    /// The worker is gone; the thread ends.
    closed: bool,
}

/// Where the thread leaves what came of a piece of work, or its panic.
type Answer<T> = Arc<Mutex<Option<thread::Result<T>>>>;

struct Job {
    number: u64,
    what: &'static str,
    work: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("number", &self.number).field("what", &self.what).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Running {
    what: &'static str,
    since: Instant,
}

/// Why something was not done, or is not known to be done.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A piece of work has exceeded the limit. What was asked for was not begun, or is that piece and goes on.
    #[error("{what} has taken {seconds} s and is not over")]
    Stuck {
        /// The work that does not come back, as a noun.
        what: &'static str,
        /// Since when, in seconds.
        seconds: u64,
    },
    /// There is no thread to do it.
    #[error("starting a thread")]
    NoThread(#[source] io::Error),
}

impl Worker {
    /// A worker whose pieces of work may take so long each.
    pub fn new(limit: Duration) -> Self {
        Self { shared: Arc::default(), limit }
    }

    /// Has something done after all that was asked for before, and waits for it as long as no piece of work exceeds the limit. The work
    /// must not ask the same worker for anything. Steps and log lines of it belong to the caller's operation; a panic is the caller's.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        let answer: Answer<T> = Arc::default();
        let (slot, context) = (Arc::clone(&answer), Context::present());
        let work = Box::new(move || {
            let done = catch_unwind(AssertUnwindSafe(|| context.carry(work)));
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        });
        let mut state = self.lock();
        self.patient(&state)?;
        self.awaken(&mut state)?;
        state.last += 1;
        let number = state.last;
        state.queue.push_back(Job { number, what, work });
        self.shared.moved.notify_all();
        loop {
            if let Some(done) = answer.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return match done {
                    Ok(value) => Ok(value),
                    Err(panic) => resume_unwind(panic),
                };
            }
            if let Err(stuck) = self.patient(&state) {
                state.queue.retain(|job| job.number != number);
                return Err(stuck);
            }
            let left = state.running.as_ref().map_or(self.limit, |running| self.limit.saturating_sub(running.since.elapsed()));
            // The limit is exceeded, not reached.
            let left = left + Duration::from_millis(1);
            state = self.shared.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The piece of work that has exceeded the limit, if one has.
    pub fn stuck(&self) -> Option<WorkerError> {
        self.patient(&self.lock()).err()
    }

    fn patient(&self, state: &State) -> Result<(), WorkerError> {
        match &state.running {
            Some(running) if running.since.elapsed() > self.limit => {
                Err(WorkerError::Stuck { what: running.what, seconds: running.since.elapsed().as_secs() })
            }
            _ => Ok(()),
        }
    }

    fn awaken(&self, state: &mut State) -> Result<(), WorkerError> {
        if !state.alive {
            let shared = Arc::clone(&self.shared);
            let named = thread::Builder::new().name("disks".to_owned());
            named.spawn(move || shared.work()).map_err(WorkerError::NoThread)?;
            state.alive = true;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.lock().closed = true;
        self.shared.moved.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            let Some(Job { what, work, .. }) = state.queue.pop_front() else {
                if state.closed {
                    return;
                }
                state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.running = Some(Running { what, since: Instant::now() });
            drop(state);
            work();
            state = self.lock();
            state.running = None;
            self.moved.notify_all();
        }
    }
}

/// What follows an operation to another thread.
struct Context {
    step: Option<Step>,
    span: tracing::Span,
    #[cfg(test)]
    hook: Option<super::crash::Hook>,
}

impl Context {
    fn present() -> Self {
        Self {
            step: Step::present(),
            span: tracing::Span::current(),
            #[cfg(test)]
            hook: super::crash::present(),
        }
    }

    fn carry<T>(self, work: impl FnOnce() -> T) -> T {
        #[cfg(test)]
        super::crash::set(self.hook);
        self.span.in_scope(|| match self.step {
            Some(step) => step.carry(work),
            None => work(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::types::step;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn work_is_done_in_turn_and_belongs_to_its_operation() {
        let worker = Worker::new(LONG);
        let (step, caller) = (Step::default(), thread::current().id());
        let there = step.carry(|| {
            worker.run("a look", || {
                step::note(|| "looking".to_owned());
                thread::current().id()
            })
        });
        assert_ne!(there.unwrap(), caller);
        assert_eq!(step.last(), "looking");
        let panicked = catch_unwind(AssertUnwindSafe(|| worker.run("a look", || panic!("a test wants it"))));
        assert!(panicked.is_err());
        assert_eq!(worker.run("a look", || 7).unwrap(), 7);
    }

    #[test]
    fn what_hangs_is_left_alone_and_nothing_piles_up_behind_it() {
        let worker = Worker::new(Duration::from_millis(20));
        let (release, wait) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let hung = scope.spawn(|| worker.run("a read", move || wait.recv().is_ok()).map(drop));
            while worker.lock().running.is_none() {
                thread::yield_now();
            }
            // Whoever waits behind it is told, as is whoever asked for it.
            let told = [worker.run("another", || ()), hung.join().unwrap()];
            assert!(told.iter().all(|told| matches!(told, Err(WorkerError::Stuck { what: "a read", .. }))), "{told:?}");
        });
        let begun = Instant::now();
        assert!(worker.run("a third", || ()).is_err() && worker.stuck().is_some());
        assert!(begun.elapsed() < LONG && worker.lock().queue.is_empty());
        release.send(()).unwrap();
        while worker.stuck().is_some() {
            assert!(begun.elapsed() < LONG);
            thread::yield_now();
        }
        assert_eq!(worker.run("a fourth", || 4).unwrap(), 4);
    }

    #[test]
    fn the_thread_ends_with_its_worker() {
        let worker = Worker::new(LONG);
        let shared = Arc::downgrade(&worker.shared);
        worker.run("a look", || ()).unwrap();
        drop(worker);
        let begun = Instant::now();
        while shared.strong_count() > 0 {
            assert!(begun.elapsed() < LONG);
            thread::yield_now();
        }
    }
}
