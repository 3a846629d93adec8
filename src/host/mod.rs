//! The only module that changes the machine: every program and every changing kernel call runs from here.
//!
//! `main` chooses three traits that stand for the machine: [`Tools`] runs a program, [`Kernel`] makes kernel calls, and `lvm::Lvm`
//! runs LVM. Everything that changes the machine passes [`effect`].

mod apart;
pub mod confine;
mod crash;
#[cfg(test)]
pub(crate) mod fake;
pub mod files;
pub mod guard;
mod identity;
mod kernel;
mod linux;
mod metrics;
mod mountinfo;
mod openers;
mod process;
mod run;
mod secret;
mod tools;
mod worker;

#[cfg(test)]
pub(crate) use crash::{Moment, set as set_crash_hook};
pub use guard::{Guard, GuardError};
pub use identity::machine_id;
pub use kernel::{
    DeviceIdentity, DmAccess, DmDevice, DmEvents, DmTarget, FsStats, Kernel, LinearMap, MountEntry, MountFlag, NewMount, Udev,
};
pub use linux::{FORMER_DM_PREFIX, HIDDEN_DM_PREFIX, Linux, OWN_DM_PREFIX, RAW_VOLUMES, grow_ext4, keep_one_heap};
pub use metrics::register_metrics;
#[cfg(any(test, fuzzing))]
pub(crate) use mountinfo::fuzz as fuzz_mountinfo;
pub use openers::Openers;
pub use process::{Process, whereabouts};
#[cfg(test)]
use run::run_guarded;
pub use run::{Invocation, Output, RunError, run, run_holding};
pub use secret::SecretFile;
pub use tools::{HostTools, Tool, ToolError, Tools, Use, VolumeTools};
pub use worker::{Stuck, Worker, WorkerError};

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::types::step;

/// Runs one effect: a change of the machine, a ledger or another node. An effect is one kernel call where possible, because a crash
/// can leave the state between any two calls.
///
/// `name` says what is done (`mount`, `lvm.lvcreate`), `subject` to what. Each effect is counted and leaves one log line with its
/// time. All effects pass here so that tests can provoke a crash between any two of them by number.
///
/// # Errors
/// The error of `work`, unchanged.
pub fn effect<T, E: Display>(name: &'static str, subject: &dyn Display, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    step::note(|| format!("{name} {subject}"));
    crash::begin(name, subject);
    let begin = Instant::now();
    let result = work();
    crash::end(name);
    record(name, subject, begin.elapsed(), &result);
    result
}

/// Like [`effect`], for a change that another node makes: no thread waits for it. It is not counted when the caller goes away
/// before the answer comes.
///
/// # Errors
/// The error of `work`, unchanged.
pub async fn effect_elsewhere<T, E: Display>(
    name: &'static str,
    subject: &(dyn Display + Sync),
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let present = crash::depart(name, subject);
    let begin = Instant::now();
    let result = work.await;
    crash::arrive(name, present);
    record(name, subject, begin.elapsed(), &result);
    result
}

fn record<T, E: Display>(name: &'static str, subject: &dyn Display, took: Duration, result: &Result<T, E>) {
    metrics::count(name, result.is_ok(), took);
    let ms = took.as_millis();
    match result {
        Ok(_) => tracing::debug!(effect = name, %subject, ms, "done"),
        Err(error) => tracing::warn!(effect = name, %subject, ms, %error, "failed"),
    }
}
