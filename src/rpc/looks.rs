//! Looks that may hang, such as at a filesystem whose disk does not answer. Each place has at most one look at a time, however often it
//! is requested, and few run at once: each that hangs keeps one of the threads that operations need too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::types::Error;

/// How long a caller waits for a look.
const LIMIT: Duration = Duration::from_secs(10);
/// Most looks at once. Tokio has 512 threads for blocking work.
const AT_ONCE: usize = 32;

type Answer<T> = Option<Result<T, Error>>;

/// The running looks, by place.
type Running<T> = Arc<Mutex<HashMap<String, watch::Receiver<Answer<T>>>>>;

/// Begins looks, and joins running ones.
#[derive(Debug)]
pub(super) struct Looks<T> {
    running: Running<T>,
    turns: Arc<Semaphore>,
    limit: Duration,
}

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Self { running: Arc::default(), turns: Arc::new(Semaphore::new(AT_ONCE)), limit: LIMIT }
    }
}

fn lock<T>(running: &Running<T>) -> MutexGuard<'_, HashMap<String, watch::Receiver<Answer<T>>>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running look; ends when dropped, however it ends.
struct Look<T> {
    running: Running<T>,
    place: String,
    _turn: OwnedSemaphorePermit,
}

impl<T> Drop for Look<T> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.place);
    }
}

impl<T: Clone + Send + Sync + 'static> Looks<T> {
    /// Joins the running look at a place, or begins one on its own thread. `what` names the object in errors.
    pub(super) async fn at(
        &self,
        place: String,
        what: &str,
        look: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let end = Instant::now() + self.limit;
        let joined = lock(&self.running).get(&place).cloned();
        let mut ended = match joined {
            Some(ended) => ended,
            None => {
                let full = |_| {
                    let seconds = self.limit.as_secs();
                    let reason = format!(
                        "{AT_ONCE} looks at other volumes have been running for {seconds} s, the most at once; their devices may hang, \
                         see the health of the volume groups"
                    );
                    Error::unavailable(what, reason)
                };
                let turn = tokio::time::timeout_at(end, Arc::clone(&self.turns).acquire_owned()).await.map_err(full)?;
                let turn = turn.map_err(|error| Error::failed(format!("looking at {what}"), error))?;
                self.begin(place, turn, look)
            }
        };
        let late = |_| Error::unavailable(what, format!("its device has not answered for {} s", self.limit.as_secs()));
        let answer = tokio::time::timeout_at(end, ended.wait_for(Option::is_some)).await.map_err(late)?;
        // No answer means a panic, which is logged.
        let answer = answer.map_err(|error| Error::failed(format!("looking at {what}"), error))?;
        answer.clone().unwrap_or_else(|| Err(Error::busy(what, "it is being looked at")))
    }

    fn begin(
        &self,
        place: String,
        turn: OwnedSemaphorePermit,
        look: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> watch::Receiver<Answer<T>> {
        let mut running = lock(&self.running);
        // Another caller may have begun it while this one waited for its turn.
        if let Some(ended) = running.get(&place) {
            return ended.clone();
        }
        let (sender, ended) = watch::channel(None);
        running.insert(place.clone(), ended.clone());
        let this = Look { running: Arc::clone(&self.running), place, _turn: turn };
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || {
            let answer = span.in_scope(look);
            // Later callers look anew.
            drop(this);
            sender.send_replace(Some(answer));
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn one_that_hangs_takes_one_thread_and_all_who_wait_have_its_answer() {
        let looks = Arc::new(Looks::default());
        let count = Arc::new(AtomicUsize::new(0));
        let (goes_on, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = |place: &str| {
            let (looks, count, hangs, place) = (Arc::clone(&looks), Arc::clone(&count), Arc::clone(&hangs), place.to_owned());
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                asked.fetch_add(1, Ordering::SeqCst);
                let look = move || {
                    let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                    hangs.lock().unwrap().recv().map(|()| number).map_err(|error| Error::failed("x", error))
                };
                looks.at(place, "volume v", look).await
            })
        };
        let waiting: Vec<_> = (0..100).map(|_| ask("/a")).collect();
        // On the only thread of this runtime, whoever has asked has joined.
        while asked.load(Ordering::SeqCst) < 100 {
            tokio::task::yield_now().await;
        }
        goes_on.send(()).unwrap();
        for task in waiting {
            assert_eq!(task.await.unwrap().unwrap(), 1);
        }
        assert!(lock(&looks.running).is_empty());
        // The next caller looks for itself.
        goes_on.send(()).unwrap();
        assert_eq!(ask("/a").await.unwrap().unwrap(), 2);
        // A look that panics has ended too.
        let panics = looks.at("/b".to_owned(), "volume v", || panic!("on purpose")).await;
        assert!(matches!(panics, Err(Error::Failed { .. })) && lock(&looks.running).is_empty());
    }

    #[tokio::test]
    async fn those_that_hang_take_no_more_than_their_share_of_the_threads() {
        let looks = Arc::new(Looks { limit: Duration::from_millis(50), ..Looks::default() });
        let (release, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let hanging: Vec<_> = (0..AT_ONCE)
            .map(|number| {
                let (looks, hangs) = (Arc::clone(&looks), Arc::clone(&hangs));
                let look = move || hangs.lock().unwrap().recv().map_err(|error| Error::failed("x", error));
                tokio::spawn(async move { looks.at(format!("/{number}"), "volume v", look).await })
            })
            .collect();
        for task in hanging {
            assert!(task.await.unwrap().unwrap_err().chain().contains("has not answered"));
        }
        assert_eq!(lock(&looks.running).len(), AT_ONCE);
        let refused = looks.at("/new".to_owned(), "volume w", || Ok(())).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Unavailable { what, reason } if what == "volume w" && reason.contains("32 looks at other")),
            "{refused}"
        );
        // A caller still joins a look that is running.
        let joined = looks.at("/0".to_owned(), "volume v", || Ok(())).await.unwrap_err();
        assert!(joined.chain().contains("has not answered"), "{joined}");
        release.send(()).unwrap();
        while lock(&looks.running).len() == AT_ONCE {
            tokio::task::yield_now().await;
        }
        let patient = Looks { running: Arc::clone(&looks.running), turns: Arc::clone(&looks.turns), limit: LIMIT };
        patient.at("/new".to_owned(), "volume w", || Ok(())).await.unwrap();
        drop(release);
    }
}
