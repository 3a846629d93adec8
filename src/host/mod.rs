//! The only door to the machine: every tool that is run and every kernel call that changes something goes through here.
//!
//! Three traits stand for the machine and are chosen once, in `main`: [`Tools`] runs a program, [`Kernel`] makes kernel
//! calls, and `lvm::Lvm` (one room further) runs LVM. Everything that changes the machine passes [`effect`].

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
pub use tools::{HostTools, Tool, ToolError, Tools, Use, VolumeTools};
pub use worker::{Stuck, Worker, WorkerError};

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::types::step;

/// Runs one effect: anything that changes the machine, a ledger or another node. One call of the kernel, as far as that can be: what
/// lies between two is a state that a crash can leave.
///
/// `name` says what is done (`mount`, `lvm.lvcreate`), `subject` to what. Each effect leaves one log line with its time,
/// and is counted.
/// All effects pass here so that a crash between any two of them can be provoked by number.
///
/// # Errors
/// The error of `work`, unchanged.
pub fn effect<T, E: Display>(name: &'static str, subject: &dyn Display, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    step::note(|| format!("{name} {subject}"));
    crash::begin(name, subject);
    let begin = Instant::now();
    let result = work();
    crash::end(name);
    told(name, subject, begin.elapsed(), &result);
    result
}

/// As [`effect`], for one that another node is asked for: no thread waits for it. Where the caller goes before the answer comes, it is
/// not counted.
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
    told(name, subject, begin.elapsed(), &result);
    result
}

/// Counts an effect that has ended, and logs it.
fn told<T, E: Display>(name: &'static str, subject: &dyn Display, took: Duration, result: &Result<T, E>) {
    metrics::count(name, result.is_ok(), took);
    let ms = took.as_millis();
    match result {
        Ok(_) => tracing::debug!(effect = name, %subject, ms, "done"),
        Err(error) => tracing::warn!(effect = name, %subject, ms, %error, "failed"),
    }
}
