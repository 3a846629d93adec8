//! Waits for running operations before the process ends: an lvm that dies with its container leaves devices suspended.

use std::time::{Duration, Instant};

use super::health::Groups;
use crate::inflight::Inflight;
use crate::types::VgName;

/// Poll interval for the table of operations.
const LOOK: Duration = Duration::from_millis(20);
/// Interval of the log line about what is still running.
const TELL: Duration = Duration::from_secs(5);

/// Waits until no operation runs. It sets no limit; whoever stops the driver does. Operations on a volume group in which something hangs
/// are not waited for: their disks may never answer. Such an lvm outlives the driver, and the next driver waits for it.
pub(super) async fn drain(inflight: &Inflight, groups: &Groups) {
    inflight.end_background();
    let mut last_log = Instant::now();
    loop {
        let running = running_outside_hanging_groups(inflight, groups);
        if running.is_empty() {
            let hanging = inflight.running();
            if !hanging.is_empty() {
                let operations = hanging.join("; ");
                tracing::warn!(operations, "exiting without waiting for operations on hanging volume groups");
            }
            return;
        }
        if last_log.elapsed() >= TELL {
            last_log = Instant::now();
            tracing::warn!(operations = running.join("; "), "waiting for running operations before exiting");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns once operations have been running for `long` without a break, all of them on hanging volume groups. Requests without an
/// operation do not count: a controller waits for agents elsewhere.
pub(super) async fn hung(inflight: Inflight, groups: Groups, long: Duration) {
    let mut since = None;
    loop {
        let hangs = running_outside_hanging_groups(&inflight, &groups).is_empty() && !inflight.running().is_empty();
        since = hangs.then(|| since.unwrap_or_else(Instant::now));
        if since.is_some_and(|since| since.elapsed() >= long) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The running operations that involve no hanging volume group.
fn running_outside_hanging_groups(inflight: &Inflight, groups: &Groups) -> Vec<String> {
    let wedged: Vec<&VgName> = groups.names.iter().filter(|name| (groups.queue)(name).wedge.is_some()).collect();
    inflight.running_outside(|group| wedged.contains(&group))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::SystemTime;

    use super::*;
    use crate::inflight::Operation;
    use crate::types::{GroupQueue, Wedge, step};

    #[tokio::test]
    async fn the_end_waits_for_what_runs_and_not_for_what_hangs() {
        let vg = |name: &str| VgName::new(name).unwrap();
        let wedged = Arc::new(AtomicBool::new(false));
        let is_wedged = Arc::clone(&wedged);
        let queue = move |name: &VgName| {
            let wedge = || Wedge { since: SystemTime::now(), text: "it hangs".to_owned(), pid: None };
            GroupQueue { length: 0, wedge: (name.as_str() == "sick" && is_wedged.load(Ordering::SeqCst)).then(wedge) }
        };
        let groups = Groups { names: vec![vg("sick"), vg("well")], queue: Arc::new(queue), ..Groups::none() };
        let inflight = Inflight::default();
        let releases = ["sick", "well"].map(|name| {
            let (release, wait) = mpsc::channel::<()>();
            let (inflight, group) = (inflight.clone(), vg(name));
            tokio::spawn(async move {
                let work = move |_: &crate::inflight::Reservation| {
                    step::in_group(&group);
                    wait.recv().ok();
                    Ok(())
                };
                inflight.run(Operation::new("DeleteVolume", name, ()), work).await
            });
            release
        });
        let groups_known = || inflight.running_outside(|group| ["sick", "well"].contains(&group.as_str())).is_empty();
        while inflight.running().len() < 2 || !groups_known() {
            tokio::task::yield_now().await;
        }
        let ends = async |within: Duration| tokio::time::timeout(within, drain(&inflight, &groups)).await.is_ok();
        assert!(!ends(Duration::from_millis(50)).await);
        wedged.store(true, Ordering::SeqCst);
        assert!(!ends(Duration::from_millis(50)).await, "the well group's operation still runs");
        releases[1].send(()).unwrap();
        assert!(ends(Duration::from_secs(20)).await);
        assert_eq!(inflight.running().len(), 1);
        let hangs = async |within: Duration| {
            tokio::time::timeout(within, hung(inflight.clone(), groups.clone(), Duration::from_millis(10))).await.is_ok()
        };
        assert!(hangs(Duration::from_secs(20)).await);
        wedged.store(false, Ordering::SeqCst);
        assert!(!hangs(Duration::from_millis(100)).await, "it runs again");
        wedged.store(true, Ordering::SeqCst);
        releases[0].send(()).unwrap();
        while !inflight.running().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!hangs(Duration::from_millis(100)).await, "nothing runs");
    }
}
