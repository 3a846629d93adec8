//! The connections of a listener: which have a request in flight, which are silent, and which must give way.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::{LINGER, Limits};

/// Interval between checks when no connection can expire.
const SELDOM: Duration = Duration::from_secs(3600);

/// The state of one connection.
#[derive(Debug)]
pub(in crate::server) struct Seat {
    pub(super) address: Option<IpAddr>,
    pub(super) limits: Limits,
    state: Mutex<State>,
    cut: AtomicBool,
    /// The task that serves the connection.
    server: AtomicWaker,
}

#[derive(Debug)]
struct State {
    /// The client has shown a certificate or made a request.
    proven: bool,
    /// Requests being worked on.
    working: usize,
    /// Answers being sent.
    answering: usize,
    /// When the connection was accepted, or last had a request.
    since: Instant,
    /// Bytes read since the last complete request.
    taken: usize,
}

impl State {
    /// Whether no request keeps the connection.
    fn is_quiet(&self, limits: &Limits) -> bool {
        self.working == 0 && (self.answering == 0 || !limits.streams)
    }
}

impl Seat {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection for its server.
    fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.server.wake();
    }

    pub(super) fn has_to_go(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Whether the connection must end. Wakes the asking task when that becomes true.
    pub(super) fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.server.register(cx.waker());
        self.has_to_go()
    }

    /// Counts bytes read; `false` when they exceed the limit.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let mut state = self.state();
        state.taken = state.taken.saturating_add(bytes);
        state.taken <= if state.proven { self.limits.between } else { self.limits.hello }
    }

    /// The client has shown its certificate.
    pub(in crate::server) fn prove(&self) {
        let mut state = self.state();
        (state.proven, state.since, state.taken) = (true, Instant::now(), 0);
    }

    pub(super) fn begin(self: &Arc<Self>) -> Running {
        let mut state = self.state();
        (state.proven, state.taken) = (true, 0);
        state.working += 1;
        drop(state);
        Running { seat: Arc::clone(self), answered: AtomicBool::new(false) }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Running {
    seat: Arc<Seat>,
    answered: AtomicBool,
}

impl Running {
    /// The answer is ready. The request ends once it has been sent.
    pub(super) fn answered(&self) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            let mut state = self.seat.state();
            state.working -= 1;
            state.answering += 1;
            state.since = Instant::now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.seat.state();
        if self.answered.load(Ordering::Relaxed) {
            state.answering -= 1;
        } else {
            state.working -= 1;
        }
        state.since = Instant::now();
    }
}

#[derive(Clone, Debug)]
pub(super) struct Seats {
    limits: Limits,
    all: Arc<Mutex<Vec<Arc<Seat>>>>,
}

impl Seats {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, all: Arc::default() }
    }

    pub(super) fn all(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits one more connection and may end another for it; `None` when none can be ended.
    pub(super) fn admit(&self, address: Option<IpAddr>, now: Instant) -> Option<Arc<Seat>> {
        let mut all = self.all();
        let same = |seat: &&Arc<Seat>| address.is_some() && seat.address == address;
        let crowded = all.iter().filter(same).count() >= self.limits.per_address;
        if crowded || all.len() >= self.limits.connections {
            let at = victim(&all, |seat| !crowded || seat.address == address)?;
            all.swap_remove(at).cut();
        }
        let state = State { proven: false, working: 0, answering: 0, since: now, taken: 0 };
        let seat = Seat {
            address,
            limits: self.limits,
            state: Mutex::new(state),
            cut: AtomicBool::default(),
            server: AtomicWaker::new(),
        };
        let seat = Arc::new(seat);
        all.push(Arc::clone(&seat));
        Some(seat)
    }

    /// Ends the connection that can best be spared, if any. Where idle connections may stay, only one that never had a request.
    pub(super) fn give_way(&self) {
        let mut all = self.all();
        if let Some(at) = victim(&all, |seat| self.limits.idle.is_some() || !seat.state().proven) {
            all.swap_remove(at).cut();
        }
    }

    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        self.all().retain(|other| !Arc::ptr_eq(other, seat));
    }

    /// Ends connections that have had no request for too long. Returns when to check again.
    pub(super) fn expire(&self, now: Instant) -> Instant {
        let Limits { first_request, idle, .. } = self.limits;
        // A connection that is busy now can expire at this time at the earliest.
        let mut next = now + idle.unwrap_or(SELDOM);
        self.all().retain(|seat| {
            let state = seat.state();
            let limit = if state.proven { idle } else { Some(first_request) };
            let Some(end) = limit.filter(|_| state.is_quiet(&seat.limits)).map(|limit| state.since + limit) else { return true };
            drop(state);
            if end <= now {
                seat.cut();
                return false;
            }
            next = next.min(end);
            true
        });
        next
    }

    /// After the shutdown began at `stopped`, ends connections that have no request or do not read their answer. The time of each counts
    /// from its own last change: an answer may still be in transit when its last part has been handed over. Returns whether all connections
    /// have ended.
    pub(super) fn close(&self, stopped: Instant, now: Instant) -> bool {
        let mut all = self.all();
        all.retain(|seat| {
            let state = seat.state();
            let unchanged = now.saturating_duration_since(state.since.max(stopped));
            let ends = match (state.working, state.answering) {
                (0, 0) => !state.proven || unchanged >= LINGER.0,
                (0, _) => unchanged >= LINGER.1,
                _ => false,
            };
            drop(state);
            if ends {
                seat.cut();
            }
            !ends
        });
        all.is_empty()
    }

    /// Ends all connections, whatever they do.
    pub(super) fn cut_all(&self) {
        self.all().drain(..).for_each(|seat| seat.cut());
    }
}

/// Picks the connection that can best be spared: the oldest that never had a request, from the address with most of those; otherwise the
/// one idle for longest.
fn victim(all: &[Arc<Seat>], among: impl Fn(&Seat) -> bool) -> Option<usize> {
    let quiet: Vec<(usize, &Seat, bool, Instant)> = all
        .iter()
        .enumerate()
        .filter(|(_, seat)| among(seat))
        .filter_map(|(at, seat)| {
            let state = seat.state();
            state.is_quiet(&seat.limits).then_some((at, &**seat, state.proven, state.since))
        })
        .collect();
    let silent_of = |address| quiet.iter().filter(|(_, seat, proven, _)| !proven && seat.address == address).count();
    let worth = |(_, seat, proven, since): &&(usize, &Seat, bool, Instant)| {
        (*proven, Reverse(if *proven { 0 } else { silent_of(seat.address) }), *since)
    };
    quiet.iter().min_by_key(worth).map(|(at, ..)| *at)
}

#[cfg(test)]
impl Seats {
    pub(super) fn count(&self) -> usize {
        self.all().len()
    }

    pub(super) fn working(&self) -> usize {
        self.all().iter().map(|seat| seat.state().working).sum()
    }

    pub(super) fn answering(&self) -> usize {
        self.all().iter().map(|seat| seat.state().answering).sum()
    }
}
