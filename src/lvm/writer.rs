//! The writer queue of one volume group: one change at a time, in order of arrival.
//!
//! LVM's own lock serialises writers too, but unfairly, and a caller could not learn what it waits for. A command that runs
//! longer than the queue's patience marks the group wedged: further changes fail at once instead of piling up behind it. The
//! command is never killed; when it ends, the group accepts changes again.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::types::{GroupQueue, Wedge};

#[derive(Debug)]
pub struct Writer {
    state: Mutex<State>,
    moved: Condvar,
    patience: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// Tickets in order of arrival; the first one has the turn.
    queue: VecDeque<u64>,
    last: u64,
    command: Option<Running>,
}

/// The command of the caller that has the turn.
#[derive(Debug)]
struct Running {
    command: String,
    since: Instant,
    /// Set once the process has started.
    pid: Option<u32>,
}

/// A turn at changing the group. The next one begins when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    writer: &'a Writer,
    ticket: u64,
}

/// A command of the group has run for too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{command}{} has been running for {seconds} s and still is; no other change of this group starts until it ends. Check its \
     kernel stack (/proc/PID/stack), the disks, and whether it waits for udevd (dmsetup udevcookies)",
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
)]
pub struct Wedged {
    pub command: String,
    /// Its process id, once it has started.
    pub pid: Option<u32>,
    /// For how many seconds it has run.
    pub seconds: u64,
}

impl Writer {
    /// A queue that counts its group as wedged once a command has run for longer than `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { state: Mutex::default(), moved: Condvar::new(), patience }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Wedged`] as soon as a command ahead in the queue has run for too long.
    pub fn enter(&self) -> Result<Turn<'_>, Wedged> {
        let mut state = self.lock();
        self.check_patience(&state)?;
        state.last += 1;
        let ticket = state.last;
        state.queue.push_back(ticket);
        while state.queue.front() != Some(&ticket) {
            state = self
                .moved
                .wait_timeout(state, self.patience.min(Duration::from_secs(1)))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if let Err(wedged) = self.check_patience(&state) {
                state.queue.retain(|other| *other != ticket);
                return Err(wedged);
            }
        }
        Ok(Turn { writer: self, ticket })
    }

    /// The queue's length, and the command that has run for too long, if any.
    pub fn queue(&self) -> GroupQueue {
        let state = self.lock();
        let wedge =
            self.check_patience(&state).err().map(|wedged| Wedge::running_for(wedged.seconds, wedged.pid, wedged.to_string()));
        GroupQueue { length: state.queue.len(), wedge }
    }

    fn check_patience(&self, state: &State) -> Result<(), Wedged> {
        match &state.command {
            Some(running) if running.since.elapsed() > self.patience => {
                Err(Wedged { command: running.command.clone(), pid: running.pid, seconds: running.since.elapsed().as_secs() })
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Runs one command. Waiting callers see `command` and how long it has run.
    pub fn run<T>(&self, command: impl Into<String>, work: impl FnOnce() -> T) -> T {
        self.writer.lock().command = Some(Running { command: command.into(), since: Instant::now(), pid: None });
        let result = work();
        self.writer.lock().command = None;
        result
    }

    /// Records the process id of the running command.
    pub fn started(&self, pid: u32) {
        if let Some(running) = self.writer.lock().command.as_mut() {
            running.pid = Some(pid);
        }
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
        let writer = Arc::new(Writer::new(Duration::from_secs(30)));
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
    fn a_hanging_command_fails_waiting_and_later_callers() {
        let writer = Arc::new(Writer::new(Duration::from_millis(20)));
        let (release, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let hung = {
            let writer = Arc::clone(&writer);
            std::thread::spawn(move || {
                let turn = writer.enter().unwrap();
                turn.run("lvextend vg0/a", || {
                    turn.started(4711);
                    begun.send(()).unwrap();
                    wait.recv().ok();
                });
            })
        };
        has_begun.recv().unwrap();
        let waited = writer.enter().unwrap_err();
        assert_eq!((waited.command.as_str(), waited.pid), ("lvextend vg0/a", Some(4711)));
        let queue = writer.queue();
        assert!(queue.length == 1 && queue.wedge.is_some_and(|wedge| wedge.pid == Some(4711)), "{:?}", writer.queue());
        assert!(writer.enter().is_err());
        release.send(()).unwrap();
        hung.join().unwrap();
        assert_eq!(writer.queue(), GroupQueue::default());
        assert!(writer.enter().is_ok());
    }
}
