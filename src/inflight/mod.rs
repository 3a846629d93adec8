//! Operations that run now: which names each has reserved, and joining an equal one.
//!
//! An operation is detached from its caller: it runs to its end on its own thread, whatever happens to the call that began it (tonic
//! drops the handler when the caller's deadline passes; CSI, "Timeouts": dropping a call does not cancel the work). An equal operation
//! joins the running one and gets its answer. An operation whose names collide is refused with [`Error::Busy`]; background work, which no
//! caller waits for, gives way instead. No answer outlives its operation: a later repeat decides anew from the state of the machine. A
//! caller with a deadline ([`within`]) is answered by then, with what runs.
//!
//! ```text
//!   (no entry) ──run──▶ running ──work returns──▶ (no entry)
//!                        │   ▲
//!                equal: join │ collides: Busy, or waits for a background operation to give way
//! ```

mod call;

pub use call::{CallId, called};

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::types::step::Step;
use crate::types::{Error, VgName};

tokio::task_local! {
    /// When the caller of the present call wants its answer.
    static DEADLINE: tokio::time::Instant;
}

/// How long a call waits for background work to give way.
const GIVING_WAY: Duration = Duration::from_secs(10);

/// Runs a call that wants its answer within a time limit: operations that take longer continue, and the answer says what runs.
pub async fn within<T>(limit: Duration, call: impl Future<Output = T>) -> T {
    // A limit beyond the range of the clock is no deadline.
    match tokio::time::Instant::now().checked_add(limit) {
        Some(deadline) => DEADLINE.scope(deadline, call).await,
        None => call.await,
    }
}

/// How long the caller of the present call still waits for its answer; `None` without a limit.
pub fn time_left() -> Option<Duration> {
    DEADLINE.try_with(|deadline| deadline.saturating_duration_since(tokio::time::Instant::now())).ok()
}

/// The arguments of an operation, of any type. They are compared by value and never shown: they may contain secrets.
#[derive(Clone)]
pub struct Arguments {
    values: Arc<dyn Any + Send + Sync>,
    are_equal: fn(&dyn Any, &dyn Any) -> bool,
}

impl Arguments {
    fn of<R: PartialEq + Send + Sync + 'static>(request: R) -> Self {
        let are_equal = |ours: &dyn Any, theirs: &dyn Any| {
            ours.downcast_ref::<R>().zip(theirs.downcast_ref::<R>()).is_some_and(|(ours, theirs)| ours == theirs)
        };
        Self { values: Arc::new(request), are_equal }
    }
}

impl PartialEq for Arguments {
    fn eq(&self, other: &Self) -> bool {
        (self.are_equal)(&*self.values, &*other.values)
    }
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Arguments(..)")
    }
}

/// What an operation is and which names it reserves.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The call, as CSI names it.
    pub call: &'static str,
    /// The object, for texts.
    pub subject: String,
    /// Every parameter of the request. Operations are equal if call, subject and these are.
    pub request: Arguments,
    /// Names it changes: nobody else may read or change them meanwhile.
    pub writes: Vec<String>,
    /// Names it relies on: nobody may change them meanwhile.
    pub reads: Vec<String>,
    /// No caller waits for it: it gives way to an operation that wants one of its names.
    pub in_background: bool,
}

impl Operation {
    /// An operation that changes one name.
    pub fn new<R: PartialEq + Send + Sync + 'static>(call: &'static str, subject: impl Into<String>, request: R) -> Self {
        let subject = subject.into();
        Self {
            call,
            request: Arguments::of(request),
            writes: vec![subject.clone()],
            subject,
            reads: Vec::new(),
            in_background: false,
        }
    }

    /// Makes it give way to others; its work must check [`Reservation::must_give_way`] about every second.
    #[must_use]
    pub fn in_background(self) -> Self {
        Self { in_background: true, ..self }
    }

    /// Reserves one more name for reading.
    #[must_use]
    pub fn reading(mut self, name: impl Into<String>) -> Self {
        self.reads.push(name.into());
        self
    }

    /// Whether both are one operation. The subject counts too, since a request such as a path does not name the object.
    fn is_equal(&self, other: &Operation) -> bool {
        (self.call, &self.subject, &self.request) == (other.call, &other.subject, &other.request)
    }

    fn collides(&self, other: &Operation) -> bool {
        let meets = |ours: &[String], theirs: &[String]| ours.iter().any(|name| theirs.contains(name));
        meets(&self.writes, &other.writes) || meets(&self.writes, &other.reads) || meets(&self.reads, &other.writes)
    }
}

/// Proof that the names of an operation are reserved. Functions that change something take it by reference.
#[derive(Debug)]
pub struct Reservation {
    id: u64,
    table: Arc<Table>,
    gives_way: Arc<AtomicBool>,
}

impl Reservation {
    /// Whether this is background work, and somebody waits for one of its names or for the end of the driver.
    pub fn must_give_way(&self) -> bool {
        self.gives_way.load(Ordering::SeqCst)
    }
}

type Answer = Option<Result<Arc<dyn Any + Send + Sync>, Error>>;

#[derive(Debug)]
struct Running {
    id: u64,
    operation: Operation,
    /// The call that began it.
    call: CallId,
    since: Instant,
    step: Step,
    gives_way: Arc<AtomicBool>,
    answer: watch::Receiver<Answer>,
}

#[derive(Debug, Default)]
struct Table {
    running: Mutex<(u64, Vec<Running>)>,
    /// No background work begins any more.
    is_ending: AtomicBool,
}

/// The outcome of beginning an operation.
enum Begun {
    /// It runs under this number, or an equal one does; the answer will arrive here.
    Runs(u64, watch::Receiver<Answer>),
    /// Background work was asked to give way; its answer arrives when it has.
    Waits(watch::Receiver<Answer>),
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Running>)> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.table.lock().1.retain(|running| running.id != self.id);
    }
}

/// The operations that run now.
#[derive(Clone, Debug, Default)]
pub struct Inflight {
    table: Arc<Table>,
}

impl Inflight {
    /// Runs `work` as `operation`, or joins an equal one that runs already.
    ///
    /// # Errors
    /// [`Error::Busy`] if other running work has one of the names, or if the work continues beyond the caller's deadline; otherwise the
    /// error of the work.
    pub async fn run<T, W>(&self, operation: Operation, work: W) -> Result<T, Error>
    where
        T: Clone + Send + Sync + 'static,
        W: FnOnce(&Reservation) -> Result<T, Error> + Send + 'static,
    {
        let subject = operation.subject.clone();
        let (mut wanted, until) = (Some((operation, work)), tokio::time::Instant::now() + GIVING_WAY);
        let (id, mut answer) = loop {
            match self.begin(&mut wanted)? {
                Begun::Runs(id, answer) => break (id, answer),
                Begun::Waits(mut ending) => {
                    let until = DEADLINE.try_with(|deadline| until.min(*deadline)).unwrap_or(until);
                    if tokio::time::timeout_at(until, ending.wait_for(Option::is_some)).await.is_err() {
                        return Err(Error::busy(subject, "background work has not given way yet; repeat the call later"));
                    }
                }
            }
        };
        if let Ok(deadline) = DEADLINE.try_with(|deadline| *deadline)
            && tokio::time::timeout_at(deadline, answer.wait_for(Option::is_some)).await.is_err()
            && let Some(running) = self.table.lock().1.iter().find(|running| running.id == id)
        {
            return Err(Error::busy(&running.operation.subject, describe(running)));
        }
        let ended = match answer.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            Err(_) => None,
        };
        match ended {
            Some(Ok(any)) => any.downcast::<T>().map(|typed| (*typed).clone()).map_err(|_| panicked()),
            Some(Err(error)) => Err(error),
            None => Err(panicked()),
        }
    }

    /// Begins the wanted operation and takes it out of `wanted`, unless it must wait.
    fn begin<T, W>(&self, wanted: &mut Option<(Operation, W)>) -> Result<Begun, Error>
    where
        T: Clone + Send + Sync + 'static,
        W: FnOnce(&Reservation) -> Result<T, Error> + Send + 'static,
    {
        let mut table = self.table.lock();
        let Some((operation, work)) = wanted.take() else { return Err(panicked()) };
        let equal = |running: &&Running| running.operation.is_equal(&operation);
        if let Some(same) = table.1.iter().find(equal) {
            // The log has its work under the id of the call that began it.
            tracing::debug!(joins = %same.call, "the same call runs already");
            return Ok(Begun::Runs(same.id, same.answer.clone()));
        }
        if let Some(other) = table.1.iter().find(|running| running.operation.collides(&operation)) {
            if operation.in_background || !other.operation.in_background {
                return Err(Error::busy(operation.subject, describe(other)));
            }
            other.gives_way.store(true, Ordering::SeqCst);
            let ending = other.answer.clone();
            *wanted = Some((operation, work));
            return Ok(Begun::Waits(ending));
        }
        if operation.in_background && self.table.is_ending.load(Ordering::SeqCst) {
            return Err(Error::busy(operation.subject, "the driver is shutting down"));
        }
        table.0 += 1;
        let id = table.0;
        let (sender, answer) = watch::channel(None);
        let step = Step::default();
        let call = CallId::present();
        let gives_way = Arc::<AtomicBool>::default();
        let reservation = Reservation { id, table: Arc::clone(&self.table), gives_way: Arc::clone(&gives_way) };
        let since = Instant::now();
        table.1.push(Running { id, operation, call, since, step: step.clone(), gives_way, answer: answer.clone() });
        drop(table);
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || {
            let result = span.in_scope(|| step.carry(|| work(&reservation)));
            // End the reservation before the answer arrives, so that the caller's next call never collides with this one.
            drop(reservation);
            sender.send_replace(Some(result.map(|value| Arc::new(value) as Arc<dyn Any + Send + Sync>)));
        });
        Ok(Begun::Runs(id, answer))
    }

    /// Makes background work end, and lets none begin: the driver is shutting down.
    pub fn end_background(&self) {
        self.table.is_ending.store(true, Ordering::SeqCst);
        for running in self.table.lock().1.iter().filter(|running| running.operation.in_background) {
            running.gives_way.store(true, Ordering::SeqCst);
        }
    }

    /// Lists what runs now, one line each, except work on certain volume groups.
    pub fn running_outside(&self, is_left: impl Fn(&VgName) -> bool) -> Vec<String> {
        let table = self.table.lock();
        let waits = table.1.iter().filter(|running| !running.step.group().is_some_and(|group| is_left(&group)));
        waits.map(|running| format!("{} {}", running.operation.subject, describe(running))).collect()
    }

    /// Lists what runs now, one line each.
    pub fn running(&self) -> Vec<String> {
        self.running_outside(|_| false)
    }
}

fn describe(running: &Running) -> String {
    let step = running.step.last();
    let at = if step.is_empty() { String::new() } else { format!(", now at {step}") };
    format!(
        "{} has been running for {:.1} s{at}; repeat the call later",
        running.operation.call,
        running.since.elapsed().as_secs_f64()
    )
}

/// The answer if the thread of an operation ended without one, which only a bug in the driver can cause.
fn panicked() -> Error {
    Error::Unavailable {
        what: "the operation".to_owned(),
        reason: "it ended without an answer, see the driver's log; repeat the call to go on from the present state".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn operation(call: &'static str, name: &str, request: &str) -> Operation {
        Operation::new(call, name, request.to_owned())
    }

    #[tokio::test]
    async fn an_equal_call_joins_and_another_is_told_what_runs() {
        let inflight = Inflight::default();
        let (release, wait) = mpsc::channel::<()>();
        let first = {
            let inflight = inflight.clone();
            tokio::spawn(async move {
                inflight
                    .run(operation("CreateVolume", "v", "a"), move |_| {
                        crate::types::step::note(|| "lvcreate".to_owned());
                        wait.recv().ok();
                        Ok(7)
                    })
                    .await
            })
        };
        while !inflight.running().first().is_some_and(|line| line.contains("lvcreate")) {
            tokio::task::yield_now().await;
        }
        let collides = inflight.run(operation("DeleteVolume", "v", "b"), |_| Ok(0)).await.unwrap_err();
        assert!(
            matches!(&collides, Error::Busy { running, .. } if running.contains("CreateVolume") && running.contains("lvcreate"))
        );
        let joined = {
            let inflight = inflight.clone();
            tokio::spawn(async move { inflight.run(operation("CreateVolume", "v", "a"), |_| Ok(8)).await })
        };
        tokio::task::yield_now().await;
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), 7);
        assert_eq!(joined.await.unwrap().unwrap(), 7);
        assert!(inflight.running().is_empty());
    }

    #[tokio::test]
    async fn work_goes_on_when_its_caller_goes() {
        let inflight = Inflight::default();
        let (done, finished) = mpsc::channel();
        let (release, wait) = mpsc::channel::<()>();
        let call = inflight.run(operation("CreateVolume", "v", "a"), move |_| {
            wait.recv().ok();
            done.send(()).ok();
            Ok(())
        });
        let dropped = tokio::time::timeout(std::time::Duration::from_millis(1), call).await;
        assert!(dropped.is_err());
        release.send(()).unwrap();
        assert!(finished.recv_timeout(std::time::Duration::from_secs(10)).is_ok());
    }

    #[tokio::test]
    async fn a_caller_with_a_deadline_is_told_what_runs_and_a_later_one_joins() {
        let inflight = Inflight::default();
        let (release, wait) = mpsc::channel::<()>();
        let (noted, has_noted) = tokio::sync::oneshot::channel();
        let work = move |_: &Reservation| {
            crate::types::step::note(|| "mkfs.ext4 /dev/dm-3".to_owned());
            noted.send(()).ok();
            wait.recv().ok();
            Ok(7)
        };
        let first = tokio::spawn({
            let inflight = inflight.clone();
            async move { inflight.run(operation("NodeStageVolume", "v", "a"), work).await }
        });
        has_noted.await.unwrap();
        let repeat = inflight.run(operation("NodeStageVolume", "v", "a"), |_| Ok(8));
        let busy = within(Duration::from_millis(1), repeat).await.unwrap_err();
        assert!(
            matches!(&busy, Error::Busy { what, running } if what == "v" && running.contains("now at mkfs.ext4 /dev/dm-3")),
            "{busy}"
        );
        let joined = tokio::spawn(async move {
            within(Duration::from_secs(60), inflight.run(operation("NodeStageVolume", "v", "a"), |_| Ok(9))).await
        });
        // It has joined when this goes on.
        tokio::task::yield_now().await;
        release.send(()).unwrap();
        assert_eq!(joined.await.unwrap().unwrap(), 7);
        assert_eq!(first.await.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_frees_the_reservation_and_is_an_error() {
        let inflight = Inflight::default();
        let boom = inflight.run(operation("CreateVolume", "v", "a"), |_| -> Result<(), Error> { panic!("boom") }).await;
        assert!(matches!(boom, Err(Error::Unavailable { .. })));
        assert_eq!(inflight.run(operation("DeleteVolume", "v", "b"), |_| Ok(1)).await.unwrap(), 1);
    }

    /// Background work that ends only when it must give way.
    async fn idle(inflight: &Inflight, name: &str) -> Result<bool, Error> {
        let work = |reservation: &Reservation| {
            while !reservation.must_give_way() {
                std::thread::yield_now();
            }
            Ok(true)
        };
        inflight.run(operation("zeroing", name, "").in_background(), work).await
    }

    #[tokio::test]
    async fn work_in_the_background_gives_way_to_calls_and_to_the_end_only() {
        let inflight = Inflight::default();
        let begin = |name: &'static str| {
            let inflight = inflight.clone();
            tokio::spawn(async move { idle(&inflight, name).await })
        };
        let (one, other) = (begin("v"), begin("w"));
        while inflight.running().len() < 2 {
            tokio::task::yield_now().await;
        }
        let rival = inflight.run(operation("collecting", "v", "").in_background(), |_| Ok(())).await;
        assert!(matches!(rival, Err(Error::Busy { .. })), "{rival:?}");
        assert!(!inflight.run(operation("DeleteVolume", "v", ""), |reservation| Ok(reservation.must_give_way())).await.unwrap());
        assert!(one.await.unwrap().unwrap() && !other.is_finished());
        inflight.end_background();
        assert!(other.await.unwrap().unwrap());
        assert!(matches!(idle(&inflight, "v").await, Err(Error::Busy { .. })));
        inflight.run(operation("DeleteVolume", "v", ""), |_| Ok(())).await.unwrap();
    }

    #[test]
    fn one_request_about_two_objects_is_two_operations() {
        let at = |name: &str| operation("NodeUnstageVolume", name, "/staging");
        assert!(at("a").is_equal(&at("a")) && !at("a").is_equal(&at("b")));
        // Arguments are compared by value and by type, and their debug text reveals nothing.
        let sized = |size: u64| Operation::new("NodeExpandVolume", "a", ("/staging".to_owned(), size));
        assert!(sized(1).is_equal(&sized(1)) && !sized(1).is_equal(&sized(2)) && !sized(1).is_equal(&at("a")));
        assert!(!Operation::new("w", "a", 1_u64).is_equal(&Operation::new("w", "a", 1_u32)));
        assert!(!format!("{:?}", sized(1)).contains("/staging"));
    }

    #[test]
    fn readers_share_and_writers_do_not() {
        let write = |name: &str| operation("w", name, name);
        let read = |name: &str| operation("r", "other", "x").reading(name);
        assert!(write("a").collides(&read("a")));
        assert!(
            !Operation { writes: vec!["b".into()], ..read("a") }.collides(&Operation { writes: vec!["c".into()], ..read("a") })
        );
    }
}
