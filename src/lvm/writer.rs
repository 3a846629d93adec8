//! The writer queue of one volume group: one change at a time, in the order of arrival.
//!
//! LVM itself would serialise writers by its lock, but unfairly, and a caller could not be told what it waits for. A command that
//! runs for longer than the queue's patience marks the group wedged: further changes fail at once instead of piling up behind it.
//! It is never killed; when it ends, the group is as before.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::types::{GroupQueue, Wedge};

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
    command: Option<Running>,
}

/// What the one who has the turn does now.
#[derive(Debug)]
struct Running {
    command: String,
    since: Instant,
    /// The process, once there is one.
    pid: Option<u32>,
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
    "{command}{} has been running for {seconds} s and still is; nothing else is begun on this group until it ends: look at its kernel stack (/proc/PID/stack), at the disks, and whether it waits for udevd (dmsetup udevcookies)",
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
)]
pub struct Wedged {
    pub command: String,
    /// Its process, where it is one.
    pub pid: Option<u32>,
    /// Since when, in seconds.
    pub seconds: u64,
}

impl Writer {
    /// A queue in which a command may run for so long before the group counts as wedged.
    pub fn new(patience: Duration) -> Self {
        Self { state: Mutex::default(), moved: Condvar::new(), patience }
    }

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

    /// Who waits and works, and the command that has been running for too long, if one has.
    pub fn queue(&self) -> GroupQueue {
        let state = self.lock();
        let wedge = self.patient(&state).err().map(|wedged| Wedge::running_for(wedged.seconds, wedged.pid, wedged.to_string()));
        GroupQueue { length: state.queue.len(), wedge }
    }

    fn patient(&self, state: &State) -> Result<(), Wedged> {
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
    /// Runs one command; its name and time are what others are told while they wait.
    pub fn run<T>(&self, command: impl Into<String>, work: impl FnOnce() -> T) -> T {
        self.writer.lock().command = Some(Running { command: command.into(), since: Instant::now(), pid: None });
        let result = work();
        self.writer.lock().command = None;
        result
    }

    /// Says which process the running command is.
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
    fn a_command_that_hangs_fails_those_who_wait_and_those_who_come() {
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
