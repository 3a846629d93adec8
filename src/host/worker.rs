//! A thread for work that may never return, such as a read from a hanging disk. Callers wait for a limited time. While one job
//! exceeds the limit, all others are refused at once, without another thread. A caller that has waited the limit for its turn,
//! behind work that is slow but finishes, is refused too.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::types::step::Step;

/// One thread, started on first use, and its queue.
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

/// Where the thread leaves the result of a job, or its panic.
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

/// Why a job was not done, or is not known to be done.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A job has exceeded the limit. The caller's own job did not start, or is the one that goes on.
    #[error(transparent)]
    Stuck(#[from] Stuck),
    /// The job did not start within the limit, though every job before it finished. It never will.
    #[error("{what} was not begun within {seconds} s")]
    Late {
        /// The job, as a noun.
        what: &'static str,
        /// Time that it waited, in seconds.
        seconds: u64,
    },
    #[error("starting a thread")]
    NoThread(#[source] io::Error),
}

/// A job that has exceeded the limit.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} has taken {seconds} s and is not over")]
pub struct Stuck {
    /// The job that does not return, as a noun.
    pub what: &'static str,
    /// Its running time, in seconds.
    pub seconds: u64,
}

impl Worker {
    /// A worker with this limit for the running time of each job and for the wait for its turn.
    pub fn new(limit: Duration) -> Self {
        Self { shared: Arc::default(), limit }
    }

    /// Runs a job after all earlier ones. Waits for it while no job exceeds the limit, and at most the limit for its turn. The job
    /// must not use the same worker. Its steps and log lines belong to the caller's operation, and the caller gets its panic.
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
        let asked = Instant::now();
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
                return Err(stuck.into());
            }
            let running = state.running.as_ref().map_or(Duration::ZERO, |running| running.since.elapsed());
            let queued = state.queue.iter().position(|job| job.number == number);
            let waited = queued.map_or(Duration::ZERO, |_| asked.elapsed());
            if let Some(at) = queued.filter(|_| waited > self.limit) {
                state.queue.remove(at);
                return Err(WorkerError::Late { what, seconds: waited.as_secs() });
            }
            let left = self.limit.saturating_sub(running.max(waited));
            // The limit has to be exceeded, not just reached.
            let left = left + Duration::from_millis(1);
            state = self.shared.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The job that has exceeded the limit, if any.
    pub fn stuck(&self) -> Option<Stuck> {
        self.patient(&self.lock()).err()
    }

    fn patient(&self, state: &State) -> Result<(), Stuck> {
        match &state.running {
            Some(running) if running.since.elapsed() > self.limit => {
                Err(Stuck { what: running.what, seconds: running.since.elapsed().as_secs() })
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

/// The part of an operation's context that moves to the worker's thread.
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
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Barrier, mpsc};

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
            // Both the caller behind the hanging job and the caller of that job get an error.
            let results = [worker.run("another", || ()), hung.join().unwrap()];
            assert!(
                results.iter().all(|result| matches!(result, Err(WorkerError::Stuck(Stuck { what: "a read", .. })))),
                "{results:?}"
            );
        });
        let begun = Instant::now();
        assert!(worker.run("a third", || ()).is_err() && worker.stuck().is_some());
        assert!(begun.elapsed() < LONG && worker.lock().queue.is_empty());
        release.send(()).unwrap();
        while worker.stuck().is_some() {
            assert!(begun.elapsed() < LONG);
            thread::yield_now();
        }
        while worker.run("a fourth", || 4).ok() != Some(4) {
            assert!(begun.elapsed() < LONG);
        }
    }

    #[test]
    fn nobody_waits_longer_than_the_limit_behind_work_that_is_slow() {
        const CALLERS: usize = 40;
        let (worker, all) = (Worker::new(Duration::from_secs(1)), Barrier::new(CALLERS));
        let (_never, pause) = mpsc::channel::<()>();
        let pause = Arc::new(Mutex::new(pause));
        let call = || {
            let begun = Arc::new(AtomicBool::new(false));
            let (noted, pause) = (Arc::clone(&begun), Arc::clone(&pause));
            all.wait();
            let result = worker.run("a slow read", move || {
                noted.store(true, Ordering::SeqCst);
                // Nothing ever comes: this takes a tenth of the limit.
                pause.lock().unwrap().recv_timeout(Duration::from_millis(100)).is_ok()
            });
            (result, begun)
        };
        let results: Vec<_> = thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(call)).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let late: Vec<_> = results.iter().filter(|(result, _)| matches!(result, Err(WorkerError::Late { .. }))).collect();
        assert!(!late.is_empty(), "all waited for all");
        // A withdrawn job never runs, even after the others have finished.
        worker.run("a look", || ()).unwrap();
        assert!(late.iter().all(|(_, begun)| !begun.load(Ordering::SeqCst)));
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
