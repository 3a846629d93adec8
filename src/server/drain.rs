//! Waiting for what runs before the process ends: an lvm that dies with its container leaves devices suspended.

use std::time::{Duration, Instant};

use crate::inflight::Inflight;

/// How often the table of operations is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often it is told what is still waited for.
const TELL: Duration = Duration::from_secs(5);

/// Waits until no operation runs, without a limit of its own: whoever stops the driver sets one.
pub(super) async fn drain(inflight: &Inflight) {
    let mut told = Instant::now();
    loop {
        let running = inflight.running();
        if running.is_empty() {
            return;
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            tracing::warn!(operations = running.join("; "), "waiting for running operations before the end");
        }
        tokio::time::sleep(LOOK).await;
    }
}
