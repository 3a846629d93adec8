//! Prints a line per call, and a table at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use testkit::client::{Csi, Record};
use testkit::error::Result;
use testkit::lab::say;

/// Prints calls of a connection that it has not printed yet.
pub(crate) struct Show {
    csi: Csi,
    shown: usize,
    started: Instant,
}

impl Show {
    pub(crate) fn new(csi: &Csi) -> Self {
        Self { csi: csi.clone(), shown: 0, started: Instant::now() }
    }

    pub(crate) fn title(&self, text: &str) {
        say(&format!("\n{text}"));
    }

    /// Runs work that calls the driver and prints each call, with the text beside the first.
    pub(crate) fn call<T>(&mut self, text: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = work();
        let mut text = text;
        for record in self.csi.records().split_off(self.shown) {
            say(&format!("  {:<26} {:<52} {:>9} {:>2} lvm", record.rpc, text, time(record.took), record.lvm));
            self.shown += 1;
            text = "";
        }
        done
    }

    /// Runs work of a pod or a person and prints its time.
    pub(crate) fn own<T>(&self, text: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = work();
        say(&format!("    {text:<77} {:>9}", time(start.elapsed())));
        done
    }

    /// Prints a table of all calls.
    pub(crate) fn summary(&self) {
        let mut by_name: BTreeMap<&str, Vec<Record>> = BTreeMap::new();
        let records = self.csi.records();
        for record in &records {
            by_name.entry(record.rpc).or_default().push(record.clone());
        }
        self.title("Summary");
        say(&format!("  {:<30} {:>5} {:>11} {:>11} {:>13}", "call", "times", "median", "longest", "lvm commands"));
        for (name, mut calls) in by_name {
            calls.sort_by_key(|call| call.took);
            let (median, longest) = (calls[calls.len() / 2].took, calls[calls.len() - 1].took);
            let commands: Vec<String> = counts(&calls);
            let (times, median, longest) = (calls.len(), time(median), time(longest));
            say(&format!("  {name:<30} {times:>5} {median:>11} {longest:>11} {:>13}", commands.join(" or ")));
        }
        let lvm: usize = records.iter().map(|record| record.lvm).sum();
        say(&format!("  {} calls, {lvm} LVM commands, {} in all", records.len(), time(self.started.elapsed())));
    }
}

/// The distinct numbers of LVM commands that some calls took.
fn counts(calls: &[Record]) -> Vec<String> {
    let counts: std::collections::BTreeSet<usize> = calls.iter().map(|call| call.lvm).collect();
    counts.iter().map(usize::to_string).collect()
}

fn time(duration: Duration) -> String {
    if duration >= Duration::from_secs(10) {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} ms", duration.as_millis())
    }
}
