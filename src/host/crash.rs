//! Kills the driver at an effect, for tests. No such point is placed by hand: every [`super::effect`] has one before, during and
//! after.
//!
//! A driver built with the feature `crash-points` uses the directory that `LVM_CSI_CRASH_DIR` names. It adds a line to the file
//! `effects` there for each effect that ended: name, subject, milliseconds, and `program` if it ran one, separated by tabs.
//!
//! A file `arm` in that directory holds `COUNT MOMENT [MILLISECONDS]`, or the name of an effect in place of COUNT. The driver lets
//! COUNT effects pass, or all effects with other names. At the next one it removes the file and kills itself: `before` the effect,
//! `after` it, MILLISECONDS `into` it, or while the program of the effect is MILLISECONDS old. `alone` leaves that program running,
//! `group` kills it first.
//!
//! If a file `hold` exists, the driver does not die. It stops the program, makes a file `held` and stays in that state, so that a
//! test can end the machine at exactly that moment. Without the feature none of this is compiled in; unit tests set a hook of the
//! thread instead.
//!
//! An effect that no thread waits for is not at a thread's point meanwhile: the caller carries it from `depart` to `arrive`.

#[cfg(all(feature = "crash-points", not(test)))]
pub(super) use files::{arrive, begin, child, depart, end};
#[cfg(test)]
pub(super) use hook::{Hook, present};
#[cfg(test)]
pub(crate) use hook::{Moment, set};
#[cfg(test)]
pub(super) use hook::{arrive, begin, child, depart, end};
#[cfg(not(any(test, feature = "crash-points")))]
pub(super) use nothing::{arrive, begin, child, depart, end};

#[cfg(not(any(test, feature = "crash-points")))]
mod nothing {
    pub(in crate::host) fn begin(_: &str, _: &dyn std::fmt::Display) {}
    pub(in crate::host) fn child(_: u32) {}
    pub(in crate::host) fn end(_: &str) {}
    pub(in crate::host) struct Present;
    pub(in crate::host) fn depart(_: &str, _: &dyn std::fmt::Display) -> Present {
        Present
    }
    pub(in crate::host) fn arrive(_: &str, _: Present) {}
}

#[cfg(all(feature = "crash-points", not(test)))]
mod files {
    use std::cell::RefCell;
    use std::fmt::Display;
    use std::fs::{self, File};
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill, killpg};
    use nix::unistd::Pid;

    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    /// Counts one effect at a time.
    static COUNT: Mutex<()> = Mutex::new(());

    /// The effect that a thread is in, or that is in flight elsewhere.
    pub(in crate::host) struct Present {
        line: String,
        begin: Instant,
        program: bool,
        /// Set if the driver is to die at this effect.
        doom: Option<(String, u64)>,
    }

    thread_local! {
        static PRESENT: RefCell<Option<Present>> = const { RefCell::new(None) };
    }

    fn dir() -> Option<&'static Path> {
        DIR.get_or_init(|| std::env::var_os("LVM_CSI_CRASH_DIR").map(PathBuf::from)).as_deref()
    }

    fn die() {
        if let Some(dir) = dir().filter(|dir| dir.join("hold").exists()) {
            let _ = fs::write(dir.join("held"), "");
            loop {
                std::thread::park();
            }
        }
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }

    pub(in crate::host) fn begin(name: &str, subject: &dyn Display) {
        PRESENT.set(depart(name, subject));
    }

    pub(in crate::host) fn depart(name: &str, subject: &dyn Display) -> Option<Present> {
        let dir = dir()?;
        let _count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
        let doom = armed(dir, name);
        match doom.as_ref().map(|(moment, ms)| (moment.as_str(), *ms)) {
            Some(("before", _)) => die(),
            Some(("into", ms)) => drop(std::thread::spawn(move || {
                pause(ms);
                die();
            })),
            _ => {}
        }
        Some(Present { line: format!("{name}\t{subject}"), begin: Instant::now(), program: false, doom })
    }

    #[expect(clippy::disallowed_methods, reason = "the test chooses the age of the effect at the death")]
    fn pause(ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }

    /// Counts this effect; returns the moment of death if this is the armed one.
    fn armed(dir: &Path, name: &str) -> Option<(String, u64)> {
        let arm = dir.join("arm");
        let text = fs::read_to_string(&arm).ok()?;
        let mut words = text.split_whitespace();
        let which = words.next()?;
        let (moment, ms) = (words.next()?.to_owned(), words.next().and_then(|ms| ms.parse().ok()).unwrap_or(0));
        match which.parse::<u64>() {
            Ok(0) => {}
            Ok(count) => {
                let _ = fs::write(&arm, format!("{} {moment} {ms}", count - 1));
                return None;
            }
            Err(_) if which == name => {}
            Err(_) => return None,
        }
        let _ = fs::remove_file(&arm);
        Some((moment, ms))
    }

    /// Called right after an effect has started its program.
    pub(in crate::host) fn child(pid: u32) {
        let doom = PRESENT.with_borrow_mut(|present| {
            let present = present.as_mut()?;
            present.program = true;
            present.doom.clone().filter(|(moment, _)| ["alone", "group"].contains(&moment.as_str()))
        });
        let Some((moment, ms)) = doom else { return };
        pause(ms);
        let signal = match moment.as_str() {
            "group" => Some(Signal::SIGKILL),
            _ if dir().is_some_and(|dir| dir.join("hold").exists()) => Some(Signal::SIGSTOP),
            _ => None,
        };
        if let (Some(signal), Ok(group)) = (signal, i32::try_from(pid)) {
            let _ = killpg(Pid::from_raw(group), signal);
        }
        die();
    }

    pub(in crate::host) fn end(name: &str) {
        arrive(name, PRESENT.take());
    }

    pub(in crate::host) fn arrive(_: &str, present: Option<Present>) {
        let (Some(dir), Some(present)) = (dir(), present) else { return };
        if present.doom.is_some_and(|(moment, _)| moment == "after") {
            die();
        }
        let program = if present.program { "program" } else { "" };
        let line = format!("{}\t{}\t{program}\n", present.line, present.begin.elapsed().as_millis());
        let log = File::options().create(true).append(true).open(dir.join("effects"));
        let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
    }
}

#[cfg(test)]
mod hook {
    use std::cell::RefCell;
    use std::fmt::Display;
    use std::sync::Arc;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Moment {
        /// Nothing is done yet.
        Before,
        /// The effect succeeded or failed, and nobody knows yet.
        After,
    }

    pub(in crate::host) type Hook = Arc<dyn Fn(Moment, &str, &str) + Send + Sync>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Sets the function called at each effect of this thread, with name and subject; a panic in it is the driver's death.
    pub(crate) fn set(hook: Option<Hook>) {
        HOOK.set(hook);
    }

    /// The function called at each effect of this thread.
    pub(in crate::host) fn present() -> Option<Hook> {
        HOOK.with_borrow(Clone::clone)
    }

    fn call(moment: Moment, name: &str, subject: &str) {
        if let Some(hook) = HOOK.with_borrow(Clone::clone) {
            hook(moment, name, subject);
        }
    }

    pub(in crate::host) fn begin(name: &str, subject: &dyn Display) {
        call(Moment::Before, name, &subject.to_string());
    }

    pub(in crate::host) fn child(_: u32) {}

    pub(in crate::host) fn end(name: &str) {
        call(Moment::After, name, "");
    }

    pub(in crate::host) struct Present;

    pub(in crate::host) fn depart(name: &str, subject: &dyn Display) -> Present {
        begin(name, subject);
        Present
    }

    pub(in crate::host) fn arrive(name: &str, _: Present) {
        end(name);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{Moment, set};
    use crate::host::{effect, effect_elsewhere};

    #[test]
    fn an_effect_is_left_undone_by_a_death_before_it_and_done_by_one_after() {
        for (moment, expected) in [(Moment::Before, 0), (Moment::After, 1)] {
            set(Some(Arc::new(move |now, name, _| assert!(now != moment || name != "mkdir", "death"))));
            let done = Cell::new(0);
            let work = || {
                effect("mkdir", &"/x", || {
                    done.set(done.get() + 1);
                    Ok::<_, std::io::Error>(())
                })
            };
            assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
            assert_eq!(done.get(), expected);
            set(None);
        }
    }

    #[tokio::test]
    async fn one_elsewhere_is_not_asked_for_by_a_death_before_it_and_done_by_one_after() {
        for (moment, expected) in [(Moment::Before, 0), (Moment::After, 1)] {
            set(Some(Arc::new(move |now, name, _| assert!(now != moment || name != "ask", "death"))));
            let done = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&done);
            let ask = async move {
                tokio::task::yield_now().await;
                counter.fetch_add(1, Ordering::SeqCst);
                Ok::<_, std::io::Error>(())
            };
            let asked = tokio::spawn(async move { effect_elsewhere("ask", &"node-b", ask).await });
            assert!(asked.await.unwrap_err().is_panic());
            assert_eq!(done.load(Ordering::SeqCst), expected);
            set(None);
        }
    }
}
