//! The writer queue of one volume group: one change at a time, in the order of arrival.
//!
//! LVM itself would serialise writers by its lock, but unfairly, and a caller could not be told what it waits for. A command that
//! runs for more than [`WEDGED`] marks the group wedged: further changes fail at once instead of piling up behind it. It is never
//! killed; when it ends, the group is as before.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long one command may run before its group counts as wedged.
pub const WEDGED: Duration = Duration::from_secs(30);

/// The queue of one group.
#[derive(Debug)]
pub struct Writer {
    state: Mutex<State>,
    moved: Condvar,
    patience: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// Who waits or works, in order of arrival; the first one works.
    queue: VecDeque<u64>,
    last: u64,
    command: Option<(String, Instant)>,
}

/// A turn at changing the group; the next one begins when it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    writer: &'a Writer,
    ticket: u64,
}

/// A command of the group has been running for too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{command} has been running for {seconds} s and still is; nothing else is begun on this group until it ends: look at its kernel stack (/proc/PID/stack) and at the disks"
)]
pub struct Wedged {
    /// The command.
    pub command: String,
    /// Since when, in seconds.
    pub seconds: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self { state: Mutex::default(), moved: Condvar::new(), patience: WEDGED }
    }
}

impl Writer {
    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Wedged`] as soon as a command before us has been running for too long.
    pub fn enter(&self) -> Result<Turn<'_>, Wedged> {
        let mut state = self.lock();
        self.patient(&state)?;
        state.last += 1;
        let ticket = state.last;
        state.queue.push_back(ticket);
        while state.queue.front() != Some(&ticket) {
            state = self
                .moved
                .wait_timeout(state, self.patience.min(Duration::from_secs(1)))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if let Err(wedged) = self.patient(&state) {
                state.queue.retain(|other| *other != ticket);
                return Err(wedged);
            }
        }
        Ok(Turn { writer: self, ticket })
    }

    /// The command that has been running for too long, if one has.
    pub fn wedge(&self) -> Option<Wedged> {
        self.patient(&self.lock()).err()
    }

    fn patient(&self, state: &State) -> Result<(), Wedged> {
        match &state.command {
            Some((command, since)) if since.elapsed() > self.patience => {
                Err(Wedged { command: command.clone(), seconds: since.elapsed().as_secs() })
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Runs one command; its name and time are what others are told while they wait.
    pub fn run<T>(&self, command: impl Into<String>, work: impl FnOnce() -> T) -> T {
        self.writer.lock().command = Some((command.into(), Instant::now()));
        let result = work();
        self.writer.lock().command = None;
        result
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.writer.lock();
        state.queue.retain(|other| *other != self.ticket);
        state.command = None;
        self.writer.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;

    #[test]
    fn writers_take_turns() {
        let writer = Arc::new(Writer::default());
        let inside = Arc::new(Mutex::new((0, 0)));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (writer, inside) = (Arc::clone(&writer), Arc::clone(&inside));
                std::thread::spawn(move || {
                    for _ in 0..50 {
                        let turn = writer.enter().unwrap();
                        turn.run("lvcreate", || {
                            let mut now = inside.try_lock().expect("nobody else has a turn");
                            *now = (now.0 + 1, now.1);
                        });
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(inside.lock().unwrap().0, 400);
    }

    #[test]
    fn a_command_that_hangs_fails_those_who_wait_and_those_who_come() {
        let writer = Arc::new(Writer { patience: Duration::from_millis(20), ..Writer::default() });
        let (release, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let hung = {
            let writer = Arc::clone(&writer);
            std::thread::spawn(move || {
                let turn = writer.enter().unwrap();
                turn.run("lvextend vg0/a", || {
                    begun.send(()).unwrap();
                    wait.recv().ok();
                });
            })
        };
        has_begun.recv().unwrap();
        let waited = writer.enter().unwrap_err();
        assert_eq!(waited.command, "lvextend vg0/a");
        assert!(writer.wedge().is_some());
        assert!(writer.enter().is_err());
        release.send(()).unwrap();
        hung.join().unwrap();
        assert!(writer.wedge().is_none());
        assert!(writer.enter().is_ok());
    }
}
