//! Looking at devices that may not be ours, without waiting for any of them for long.
//!
//! Each device is read on a thread of its own. Whoever asks waits until it has heard enough, or for a limit. A device whose read hangs is
//! not asked again before that has ended, so it holds a thread or two and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A read that has taken longer hangs.
const HANGS: Duration = Duration::from_secs(1);
/// Most devices that may hang at once. No device is looked at until one of them answers.
const MOST: usize = 64;
/// Most reads of one device at once.
const AT_ONCE: usize = 8;

/// The devices that are being read, each with the beginnings of its reads. The number tells reads apart.
type Reading = Arc<Mutex<BTreeMap<(PathBuf, u64), Instant>>>;

/// The reads that are under way.
#[derive(Debug, Default)]
pub struct Census {
    reading: Reading,
    count: AtomicU64,
}

/// What was heard of some devices.
#[derive(Debug)]
pub(super) struct Heard<T> {
    /// Those that answered.
    pub(super) answers: BTreeMap<PathBuf, T>,
    /// Those that did not: they hang, or were not waited for.
    pub(super) silent: Vec<PathBuf>,
}

impl Census {
    /// Asks each device, and waits until `enough` says so of the answers, at most for `limit`.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        devices: &[PathBuf],
        limit: Duration,
        job: impl Fn(&Path) -> T + Send + Sync + 'static,
        enough: impl Fn(&BTreeMap<PathBuf, T>) -> bool,
    ) -> Heard<T> {
        let job = Arc::new(job);
        let (sender, receiver) = channel();
        let mut waited = BTreeSet::new();
        for device in devices {
            let Some(read) = self.begin(device) else { continue };
            let (job, sender, own) = (Arc::clone(&job), sender.clone(), device.clone());
            let spawned = std::thread::Builder::new().name("look".to_owned()).spawn(move || {
                let answer = job(&own);
                drop(read);
                // Nobody may be waiting any more.
                let _ = sender.send((own, answer));
            });
            match spawned {
                Ok(_) => drop(waited.insert(device.clone())),
                Err(error) => tracing::warn!(device = %device.display(), %error, "no thread to look at this device"),
            }
        }
        drop(sender);
        let until = Instant::now() + limit;
        let mut answers = BTreeMap::new();
        while !waited.is_empty() && !enough(&answers) {
            match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((device, answer)) => {
                    waited.remove(&device);
                    answers.insert(device, answer);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        // What came while nobody had to wait any more.
        answers.extend(receiver.try_iter());
        let silent = devices.iter().filter(|device| !answers.contains_key(*device)).cloned().collect();
        Heard { answers, silent }
    }

    /// Begins a read of a device; `None` while one hangs.
    fn begin(&self, device: &Path) -> Option<Read> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let hanging: BTreeSet<&PathBuf> =
            reading.iter().filter(|(_, begun)| begun.elapsed() > HANGS).map(|((device, _), _)| device).collect();
        let at_once = reading.keys().filter(|(other, _)| other == device).count();
        if hanging.len() >= MOST || at_once >= AT_ONCE || hanging.contains(&device.to_owned()) {
            return None;
        }
        let key = (device.to_owned(), self.count.fetch_add(1, Ordering::Relaxed));
        reading.insert(key.clone(), Instant::now());
        Some(Read { reading: Arc::clone(&self.reading), key })
    }
}

/// A read that is under way until this is dropped, also by a panic.
struct Read {
    reading: Reading,
    key: (PathBuf, u64),
}

impl Drop for Read {
    fn drop(&mut self) {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    /// Makes all reads under way as old as those that hang.
    fn age(census: &Census) {
        let old = Instant::now().checked_sub(HANGS * 2).unwrap();
        census.reading.lock().unwrap().values_mut().for_each(|begun| *begun = old);
    }

    #[test]
    fn a_device_that_hangs_is_not_asked_again_until_it_answers() {
        let census = Census::default();
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        let asked = Arc::new(Mutex::new(0));
        let job = || {
            let (gate, asked) = (Arc::clone(&gate), Arc::clone(&asked));
            move |device: &Path| {
                if device == Path::new("/hangs") {
                    *asked.lock().unwrap() += 1;
                    drop(gate.lock().unwrap());
                }
            }
        };
        let both = paths(&["/hangs", "/well"]);
        // Enough was heard: nobody waits for the limit.
        let heard = census.ask(&both, LONG, job(), |answers| answers.contains_key(Path::new("/well")));
        assert_eq!((heard.answers.len(), heard.silent), (1, paths(&["/hangs"])));
        let begun = Instant::now();
        while *asked.lock().unwrap() == 0 {
            assert!(begun.elapsed() < LONG);
            std::thread::yield_now();
        }
        age(&census);
        // All that is left to wait for is what hangs already.
        let heard = census.ask(&both, LONG, job(), |_| false);
        assert_eq!((heard.answers.len(), heard.silent), (1, paths(&["/hangs"])));
        assert_eq!(*asked.lock().unwrap(), 1);
        drop(held);
        let begun = Instant::now();
        while census.ask(&both, LONG, job(), |_| false).answers.len() < 2 {
            assert!(begun.elapsed() < LONG);
            std::thread::yield_now();
        }
        assert!(census.reading.lock().unwrap().is_empty());
    }

    #[test]
    fn two_who_ask_at_once_both_hear_of_a_device() {
        let census = Census::default();
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        std::thread::scope(|scope| {
            let ask = || {
                let gate = Arc::clone(&gate);
                census.ask(&paths(&["/a"]), LONG, move |_| drop(gate.lock().unwrap()), |_| false).answers.len()
            };
            let (first, second) = (scope.spawn(ask), scope.spawn(ask));
            while census.reading.lock().unwrap().len() < 2 {
                std::thread::yield_now();
            }
            drop(held);
            assert_eq!((first.join().unwrap(), second.join().unwrap()), (1, 1));
        });
    }

    #[test]
    fn the_limit_ends_the_wait_and_a_panic_frees_the_device() {
        let census = Census::default();
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        let inner = Arc::clone(&gate);
        let heard = census.ask(&paths(&["/a"]), Duration::from_millis(10), move |_| drop(inner.lock().unwrap()), |_| false);
        assert_eq!((heard.answers.len(), heard.silent.len()), (0, 1));
        drop(held);
        let heard = census.ask(&paths(&["/b"]), LONG, |_| -> u8 { panic!("a test wants it") }, |_| false);
        assert_eq!(heard.silent, paths(&["/b"]));
        let begun = Instant::now();
        while !census.reading.lock().unwrap().is_empty() {
            assert!(begun.elapsed() < LONG);
            std::thread::yield_now();
        }
    }

    #[test]
    fn hanging_devices_are_bounded() {
        let census = Census::default();
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        let inner = Arc::clone(&gate);
        let many: Vec<PathBuf> = (0..MOST + 5).map(|n| PathBuf::from(format!("/{n}"))).collect();
        census.ask(&many[..MOST], Duration::from_millis(10), move |_| drop(inner.lock()), |_| false);
        age(&census);
        assert_eq!(census.ask(&many[MOST..], LONG, |_| (), |_| false).silent.len(), 5);
        drop(held);
    }
}
