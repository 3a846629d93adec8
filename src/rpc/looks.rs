//! Looks that may hang, as at a filesystem whose disk does not answer: one at a time at each place, however often somebody asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::types::Error;

/// How long a caller waits.
const LIMIT: Duration = Duration::from_secs(10);

type Answer<T> = Option<Result<T, Error>>;

/// The looks that run, by their places.
#[derive(Debug)]
pub(super) struct Looks<T>(Arc<Mutex<HashMap<String, watch::Receiver<Answer<T>>>>>);

impl<T> Clone for Looks<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// A look that runs, until it ends in whatever way.
struct Running<T> {
    looks: Looks<T>,
    place: String,
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.looks.running().remove(&self.place);
    }
}

impl<T> Looks<T> {
    fn running(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Answer<T>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Send + Sync + 'static> Looks<T> {
    /// Joins the look at a place that runs, or begins one on a thread of its own; `what` is looked at, for texts.
    pub(super) async fn at(
        &self,
        place: String,
        what: &str,
        look: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let mut ended = self.begin(place, look);
        let late = |_| Error::unavailable(what, format!("its device has not answered for {} s", LIMIT.as_secs()));
        let answer = tokio::time::timeout(LIMIT, ended.wait_for(Option::is_some)).await.map_err(late)?;
        // Without an answer it panicked, which is logged.
        let answer = answer.map_err(|error| Error::failed(format!("looking at {what}"), error))?;
        answer.clone().unwrap_or_else(|| Err(Error::busy(what, "it is being looked at")))
    }

    fn begin(&self, place: String, look: impl FnOnce() -> Result<T, Error> + Send + 'static) -> watch::Receiver<Answer<T>> {
        let mut running = self.running();
        if let Some(ended) = running.get(&place) {
            return ended.clone();
        }
        let (sender, ended) = watch::channel(None);
        running.insert(place.clone(), ended.clone());
        let this = Running { looks: self.clone(), place };
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || {
            let answer = span.in_scope(look);
            // Whoever asks from now on looks anew.
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
        let looks = Looks::default();
        let count = Arc::new(AtomicUsize::new(0));
        let (goes_on, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = |place: &str| {
            let (looks, count, hangs, place) = (looks.clone(), Arc::clone(&count), Arc::clone(&hangs), place.to_owned());
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
        // On the one thread of this runtime, whoever has asked has joined.
        while asked.load(Ordering::SeqCst) < 100 {
            tokio::task::yield_now().await;
        }
        goes_on.send(()).unwrap();
        for task in waiting {
            assert_eq!(task.await.unwrap().unwrap(), 1);
        }
        assert!(looks.running().is_empty());
        // The next one looks for itself.
        goes_on.send(()).unwrap();
        assert_eq!(ask("/a").await.unwrap().unwrap(), 2);
        // One that panics is over too.
        let panics = looks.at("/b".to_owned(), "volume v", || panic!("on purpose")).await;
        assert!(matches!(panics, Err(Error::Failed { .. })) && looks.running().is_empty());
    }
}
