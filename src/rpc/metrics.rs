//! Metrics of the calls: how many, how long, with which code.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::types::Change;

/// Method and code: both have few values, since they name no object.
type Labels = [(&'static str, String); 2];

/// Upper bounds in seconds: from an answer out of memory to the deadlines of the sidecars and kubelet.
const BOUNDS: [f64; 10] = [0.002, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 120.0];

static CALLS: LazyLock<Family<Labels, Histogram>> = LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(BOUNDS)));

/// What calls changed, by method. A repeat that finds its object counts apart from the call that made it.
static CHANGES: LazyLock<Family<[(&'static str, &'static str); 2], Counter>> = LazyLock::new(Family::default);

/// Calls without an answer yet, by method.
static IN_FLIGHT: LazyLock<Family<[(&'static str, &'static str); 1], Gauge>> = LazyLock::new(Family::default);

/// Registers the metrics of the calls.
pub fn register_metrics(registry: &mut Registry) {
    registry.register("rpc_seconds", "Calls of CSI by method and code", CALLS.clone());
    registry.register("rpc_changes", "What answered calls changed, by method", CHANGES.clone());
    registry.register("rpcs_in_flight", "Calls of CSI that are not answered yet", IN_FLIGHT.clone());
}

/// Counts what a call changed.
pub(super) fn count(call: &'static str, change: Change) {
    CHANGES.get_or_create(&[("method", call), ("change", change.as_str())]).inc();
}

/// Times one call. A timer that is dropped counts its call as cancelled: the caller gave up.
pub(super) struct Timer {
    call: &'static str,
    begin: Instant,
    code: Code,
}

impl Timer {
    pub(super) fn start(call: &'static str) -> Self {
        IN_FLIGHT.get_or_create(&[("method", call)]).inc();
        Self { call, begin: Instant::now(), code: Code::Cancelled }
    }

    /// Counts the call with its code, and returns how long it took.
    pub(super) fn stop(mut self, code: Code) -> Duration {
        self.code = code;
        self.begin.elapsed()
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        IN_FLIGHT.get_or_create(&[("method", self.call)]).dec();
        let labels = [("method", self.call.to_owned()), ("code", format!("{:?}", self.code))];
        CALLS.get_or_create(&labels).observe(self.begin.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_while_it_runs_and_with_its_code_when_it_ends() {
        let metrics = || {
            let mut registry = Registry::default();
            register_metrics(&mut registry);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let timer = Timer::start("TestedCall");
        let given_up = Timer::start("TestedCall");
        assert!(metrics().contains("rpcs_in_flight{method=\"TestedCall\"} 2\n"), "{}", metrics());
        timer.stop(Code::Ok);
        drop(given_up);
        count("TestedCall", Change::Made);
        count("TestedCall", Change::Found);
        count("TestedCall", Change::Found);
        let text = metrics();
        assert!(text.contains("rpcs_in_flight{method=\"TestedCall\"} 0\n"), "{text}");
        for (change, times) in [("made", 1), ("found", 2)] {
            let line = format!("rpc_changes_total{{method=\"TestedCall\",change=\"{change}\"}} {times}\n");
            assert!(text.contains(&line), "{text}");
        }
        for code in ["Ok", "Cancelled"] {
            let line = format!("rpc_seconds_count{{method=\"TestedCall\",code=\"{code}\"}} 1\n");
            assert!(text.contains(&line), "{text}");
        }
    }
}
