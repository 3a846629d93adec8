//! Reads devices that may not be ours, without waiting long for any of them.
//!
//! Each device is read on its own thread. The caller waits until it has enough answers, or for a limit. A device whose read hangs
//! is not read again until that read ends, so it holds a thread or two and delays nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A read that takes longer counts as hanging.
const HANGS: Duration = Duration::from_secs(1);
/// The most devices that may hang at once. Beyond it no device is read until one of them answers.
const MOST: usize = 64;
/// The most simultaneous reads of one device.
const AT_ONCE: usize = 8;

/// The start of each read in flight, by device and a number that distinguishes reads.
type Reading = Arc<Mutex<BTreeMap<(PathBuf, u64), Instant>>>;

/// The reads in flight.
#[derive(Debug, Default)]
pub struct Census {
    reading: Reading,
    count: AtomicU64,
}

/// The answers of some devices.
#[derive(Debug)]
pub(super) struct Heard<T> {
    pub(super) answers: BTreeMap<PathBuf, T>,
    /// Devices without an answer: they hang, or nobody waited for them.
    pub(super) silent: Vec<PathBuf>,
}

impl Census {
    /// Runs `job` on each device. Waits until `enough` accepts the answers, at most for `limit`.
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
                // The caller may have stopped waiting.
                let _ = sender.send((own, answer));
            });
            match spawned {
                Ok(_) => drop(waited.insert(device.clone())),
                Err(error) => tracing::warn!(device = %device.display(), %error, "cannot start a thread to read this device"),
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
        // Answers that arrived since the last one that was needed.
        answers.extend(receiver.try_iter());
        let silent = devices.iter().filter(|device| !answers.contains_key(*device)).cloned().collect();
        Heard { answers, silent }
    }

    /// Begins a read of a device; `None` if it hangs, or if too many reads or devices do.
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

/// A read in flight until this is dropped, including by a panic.
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

    /// Makes all reads in flight count as hanging.
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
        // There were enough answers: nobody waits for the limit.
        let heard = census.ask(&both, LONG, job(), |answers| answers.contains_key(Path::new("/well")));
        assert_eq!((heard.answers.len(), heard.silent), (1, paths(&["/hangs"])));
        let begun = Instant::now();
        while *asked.lock().unwrap() == 0 {
            assert!(begun.elapsed() < LONG);
            std::thread::yield_now();
        }
        age(&census);
        // Only the hanging device is left to wait for.
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
    fn two_simultaneous_callers_both_get_an_answer() {
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
