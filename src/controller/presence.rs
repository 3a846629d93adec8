//! Presence of the agents: which are present and which are away, and since when.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::types::{NodeId, figure::gauges};

/// Whether an agent is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Start of its presence or absence; at the earliest the time of the first check.
    pub since: SystemTime,
    /// Why it is away; `None` while it is present.
    pub away: Option<String>,
}

/// The presence of all agents at the last check.
#[derive(Clone, Debug, Default)]
pub struct Presences(Arc<Mutex<BTreeMap<NodeId, Presence>>>);

impl Presences {
    /// Records the present agents, and why each is away, if it is.
    pub fn look(&self, now: SystemTime, agents: impl IntoIterator<Item = (NodeId, Option<String>)>) {
        let mut noted = self.lock();
        let presences = agents.into_iter().map(|(node, away)| {
            let before = noted.get(&node).filter(|last| last.away.is_some() == away.is_some());
            let since = before.map_or(now, |last| last.since);
            (node, Presence { since, away })
        });
        *noted = presences.collect();
    }

    pub fn all(&self) -> BTreeMap<NodeId, Presence> {
        self.lock().clone()
    }

    /// Registers the metrics of the agents.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Presence>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Presences {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.all();
        let of = |node: &NodeId| [("node", node.to_string())];
        let up = all.iter().map(|(node, presence)| (of(node), u64::from(presence.away.is_none())));
        gauges(&mut encoder, "agent_up", "Whether the agent of a node can be called", up)?;
        let since = |presence: &Presence| presence.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let changed = all.iter().map(|(node, presence)| (of(node), since(presence)));
        let help = "Since when it has been there or away, in seconds since 1970";
        gauges(&mut encoder, "agent_since_timestamp_seconds", help, changed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_start_of_an_absence_is_recorded() {
        let presences = Presences::default();
        let at = |second: u64| UNIX_EPOCH + Duration::from_secs(second);
        let look = |second: u64, agents: &[(&str, Option<&str>)]| {
            let agents = agents.iter().map(|(node, away)| (NodeId::new(node).unwrap(), away.map(str::to_owned)));
            presences.look(at(second), agents);
            let mut registry = Registry::with_prefix("lvm_csi");
            presences.register_metrics(&mut registry);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.trim_start_matches("lvm_csi_agent_").to_owned()).collect::<Vec<_>>()
        };
        let lines = look(10, &[("a", None), ("b", Some("refused"))]);
        let since = "since_timestamp_seconds";
        assert_eq!(
            lines,
            ["up{node=\"a\"} 1", "up{node=\"b\"} 0", &format!("{since}{{node=\"a\"}} 10"), &format!("{since}{{node=\"b\"}} 10")]
        );
        // Another reason does not mean that the agent came back.
        let lines = look(20, &[("a", Some("silent")), ("b", Some("timed out"))]);
        assert_eq!(lines[2..], [format!("{since}{{node=\"a\"}} 20"), format!("{since}{{node=\"b\"}} 10")]);
        let lines = look(30, &[("b", None)]);
        assert_eq!(lines, ["up{node=\"b\"} 1".to_owned(), format!("{since}{{node=\"b\"}} 30")]);
    }
}
