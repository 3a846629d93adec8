//! Which agents are there and which are away, and since when.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::types::{NodeId, figure::gauges};

/// Whether an agent is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Since when it has been there, or away; at the earliest since the first look.
    pub since: SystemTime,
    /// Why it is away; `None` while it is there.
    pub away: Option<String>,
}

/// The agents at the last look.
#[derive(Clone, Debug, Default)]
pub struct Presences(Arc<Mutex<BTreeMap<NodeId, Presence>>>);

impl Presences {
    /// Takes down which agents there are now, and why each of them is away, if it is.
    pub fn look(&self, now: SystemTime, agents: impl IntoIterator<Item = (NodeId, Option<String>)>) {
        let mut noted = self.lock();
        let presences = agents.into_iter().map(|(node, away)| {
            let before = noted.get(&node).filter(|known| known.away.is_some() == away.is_some());
            let since = before.map_or(now, |known| known.since);
            (node, Presence { since, away })
        });
        *noted = presences.collect();
    }

    /// Every agent.
    pub fn all(&self) -> BTreeMap<NodeId, Presence> {
        self.lock().clone()
    }

    /// Adds the agents to the figures that are told.
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
    fn it_is_known_since_when_an_agent_is_away() {
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
        let told = look(10, &[("a", None), ("b", Some("refused"))]);
        let since = "since_timestamp_seconds";
        assert_eq!(
            told,
            ["up{node=\"a\"} 1", "up{node=\"b\"} 0", &format!("{since}{{node=\"a\"}} 10"), &format!("{since}{{node=\"b\"}} 10")]
        );
        // Another reason is no return.
        let told = look(20, &[("a", Some("silent")), ("b", Some("timed out"))]);
        assert_eq!(told[2..], [format!("{since}{{node=\"a\"}} 20"), format!("{since}{{node=\"b\"}} 10")]);
        let told = look(30, &[("b", None)]);
        assert_eq!(told, ["up{node=\"b\"} 1".to_owned(), format!("{since}{{node=\"b\"}} 30")]);
    }
}
