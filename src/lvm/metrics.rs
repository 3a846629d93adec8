//! Metrics of LVM commands. Unlike those of the effects, these record how LVM judged the commands.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Command name and outcome. Both have few values: no label names an object.
type Labels = [(&'static str, &'static str); 2];

/// Upper bounds in seconds: from a command without a device to the wedge of a group and beyond.
const BOUNDS: [f64; 9] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

static COMMANDS: LazyLock<Family<Labels, Histogram>> = LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(BOUNDS)));

pub(super) fn count(name: &'static str, done: bool, took: Duration) {
    let outcome = if done { "ok" } else { "failed" };
    COMMANDS.get_or_create(&[("command", name), ("outcome", outcome)]).observe(took.as_secs_f64());
}

/// Registers the metrics of LVM's commands.
pub fn register_metrics(registry: &mut Registry) {
    registry.register("lvm_command_seconds", "LVM commands by name and by how they ended", COMMANDS.clone());
}
