//! Metrics of effects: count, duration and outcome.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Name and outcome of the effect. The number of values is small: no label names an object.
type Labels = [(&'static str, &'static str); 2];

/// Upper bounds in seconds, from one block of a ledger to a group that hangs.
const BOUNDS: [f64; 10] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0, 30.0, 120.0];

static EFFECTS: LazyLock<Family<Labels, Histogram>> = LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(BOUNDS)));

pub(super) fn count(name: &'static str, ok: bool, took: Duration) {
    let outcome = if ok { "ok" } else { "failed" };
    EFFECTS.get_or_create(&[("effect", name), ("outcome", outcome)]).observe(took.as_secs_f64());
}

/// Registers the metrics of effects.
pub fn register_metrics(registry: &mut Registry) {
    registry.register(
        "effect_seconds",
        "Changes made to the machine (LVM commands by name, mounts, dm calls, …)",
        EFFECTS.clone(),
    );
}
