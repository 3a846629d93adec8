//! Notifications about nodes and claims: pure decisions, one notification for each change.
//!
//! ```text
//!   agent:   present ──away for a minute──▶ AgentAway ──▶ AgentBack
//!   group:   well ──▶ VolumeGroupSick ──▶ VolumeGroupWell
//!   groups:  unique UUID ──▶ VolumeGroupTwice ──▶ VolumeGroupOnce
//!   pool:    in order ──▶ ThinPoolFull ──▶ ThinPoolInOrder
//!   group:   no lookalike ──▶ VolumeGroupLookalike ──▶ VolumeGroupAlone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crate::agent::{GroupReading, Holdings, Offer};
use crate::types::notification::{About, Notification};
use crate::types::{ClaimName, Error, NodeId, VgName};

use super::Presence;
use super::holder::remedy;

/// How long an agent may be away before a notification; a restart takes less.
const AWAY: Duration = Duration::from_secs(60);
/// The state of a node at one check.
#[derive(Clone, Debug)]
pub(super) struct NodeView<'a> {
    pub(super) node: &'a NodeId,
    pub(super) presence: &'a Presence,
    pub(super) offers: &'a [Offer],
    /// Its last report.
    pub(super) holdings: &'a Holdings,
}

impl NodeView<'_> {
    /// Whether this view can show that a trouble has ended.
    fn shows(&self, trouble: Trouble, subject: &str) -> bool {
        let there = self.presence.away.is_none();
        match trouble {
            Trouble::Away | Trouble::ThinPool | Trouble::Stranger => there,
            Trouble::Group | Trouble::Twins => {
                let is_present =
                    |(vg, reading): &(VgName, GroupReading)| vg.as_str() == subject && matches!(reading, Ok(Some(_)));
                there && self.holdings.groups.iter().any(is_present)
            }
        }
    }
}

/// Something that can be wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Away,
    Group,
    Twins,
    ThinPool,
    Stranger,
}

impl Trouble {
    /// The event reasons for its start and its end.
    fn reasons(self) -> [&'static str; 2] {
        match self {
            Self::Away => ["AgentAway", "AgentBack"],
            Self::Group => ["VolumeGroupSick", "VolumeGroupWell"],
            Self::Twins => ["VolumeGroupTwice", "VolumeGroupOnce"],
            Self::ThinPool => ["ThinPoolFull", "ThinPoolInOrder"],
            Self::Stranger => ["VolumeGroupLookalike", "VolumeGroupAlone"],
        }
    }

    /// The text for its end.
    fn over(self, subject: &str) -> String {
        match self {
            Self::Away => "the agent of this node answers again".to_owned(),
            Self::Group => format!("volume group {subject} is well again"),
            Self::Twins => format!("no other node has volume group {subject} any more"),
            Self::ThinPool => format!("the thin pool of pool {subject} is in order again"),
            Self::Stranger => format!("no other device of this node looks like volume group {subject} any more"),
        }
    }
}

/// The troubles with a notification of their start and none of their end.
#[derive(Debug, Default)]
pub(super) struct Notifier(BTreeSet<(NodeId, Trouble, String)>);

impl Notifier {
    /// The notifications for all changes since the last check. A trouble that cannot be checked now has not ended.
    pub(super) fn look(&mut self, now: SystemTime, views: &[NodeView<'_>]) -> Vec<Notification> {
        let mut notifications = Vec::new();
        for view in views {
            let mut present = troubles(now, view);
            present.extend(twins(view, views));
            let over = self.0.iter().filter(|(node, trouble, subject)| {
                node == view.node && !present.contains_key(&(*trouble, subject.clone())) && view.shows(*trouble, subject)
            });
            for ended in over.cloned().collect::<Vec<_>>() {
                self.0.remove(&ended);
                let (_, trouble, subject) = ended;
                let text = trouble.over(&subject);
                notifications.push(about_node(view.node, trouble.reasons()[1], false, subject, text));
            }
            for ((trouble, subject), text) in present {
                if self.0.insert((view.node.clone(), trouble, subject.clone())) {
                    notifications.push(about_node(view.node, trouble.reasons()[0], true, subject, text));
                }
            }
        }
        // The troubles of a removed node interest nobody.
        self.0.retain(|(node, _, _)| views.iter().any(|view| view.node == node));
        notifications
    }
}

fn about_node(node: &NodeId, reason: &'static str, warning: bool, subject: String, text: String) -> Notification {
    Notification { about: About::Node(node.clone()), reason, warning, subject, text }
}

/// The present troubles of a node, each with its text.
fn troubles(now: SystemTime, view: &NodeView<'_>) -> BTreeMap<(Trouble, String), String> {
    if let Some(why) = &view.presence.away {
        let long = now.duration_since(view.presence.since).is_ok_and(|since| since >= AWAY);
        let text = format!("the agent of this node cannot be reached ({why}); calls about its volumes wait until it can");
        return long.then(|| ((Trouble::Away, String::new()), text)).into_iter().collect();
    }
    let Holdings { groups, pools, notices, strangers, away, .. } = view.holdings;
    let mut present = BTreeMap::new();
    for (vg, reading) in groups {
        let of_pool = || {
            view.offers.iter().filter(|offer| offer.vg == *vg).find_map(|offer| {
                let (_, state) = pools.iter().find(|(name, _)| *name == offer.name)?;
                state.as_ref().err().map(String::as_str)
            })
        };
        let why = match reading {
            Err(why) => Some(why.as_str()),
            Ok(Some(_)) => of_pool(),
            // The absence of a group is a trouble only if the node once had it.
            Ok(None) if away.iter().any(|(name, _)| name.as_ref() == Some(vg)) => {
                Some(of_pool().unwrap_or("the node had it before its driver restarted, and none of its disks is there now"))
            }
            Ok(None) => None,
        };
        if let Some(why) = why {
            let text = format!("volume group {vg} is sick, and nothing is changed in it until it is well: {why}");
            present.insert((Trouble::Group, vg.to_string()), text);
        }
    }
    for (pool, text) in notices {
        present.insert((Trouble::ThinPool, pool.clone()), format!("pool {pool}: {text}"));
    }
    for (vg, text) in strangers {
        let text =
            format!("{text}; not used as volume group {vg}. Find out whose it is: another machine's disk, a guest's, a copy");
        present.insert((Trouble::Stranger, vg.to_string()), text);
    }
    present
}

/// The groups of a node that other nodes have too, by the last report of each.
fn twins(view: &NodeView<'_>, views: &[NodeView<'_>]) -> BTreeMap<(Trouble, String), String> {
    let mut present = BTreeMap::new();
    if view.presence.away.is_some() {
        return present;
    }
    for contents in view.holdings.contents() {
        let has = |other: &&NodeView<'_>| other.node != view.node && other.holdings.contents().any(|held| held.vg == contents.vg);
        let others: Vec<&str> = views.iter().filter(has).map(|other| other.node.as_str()).collect();
        let Some(name) = view.holdings.group_names(&contents.vg).first().copied() else { continue };
        if !others.is_empty() {
            let text = format!(
                "volume group {name} ({}) is on this node {} and on node {}, from copied disks or disks that both see; nothing in it is \
                 changed on any of them: {}",
                contents.vg,
                view.node,
                others.join(", "),
                remedy("one of them")
            );
            present.insert((Trouble::Twins, name.to_string()), text);
        }
    }
    present
}

/// The notification for a claim whose volume could not be made. `None` if the error does not mean waiting. The
/// provisioner reports every error; this marks those that wait for a person.
pub(super) fn of_creation(claim: &ClaimName, error: &Error) -> Option<Notification> {
    let reason = match error {
        Error::Unavailable { .. } => "VolumeWaits",
        Error::Exhausted { .. } => "PoolFull",
        _ => return None,
    };
    let ClaimName { namespace, name, uid } = claim.clone();
    let about = About::Claim { namespace, name, uid };
    Some(Notification { about, reason, warning: true, subject: String::new(), text: error.chain() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::agent::Contents;
    use crate::types::{Bytes, VgUuid};
    use crate::volume::capacity::Capacity;

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn present() -> GroupReading {
        let vg = VgUuid::from_compact(&"v".repeat(32)).unwrap();
        Ok(Some(Arc::new(Contents { vg, volumes: vec![], snapshots: vec![], unfinished: vec![] })))
    }

    /// A node with a group `vg0` and a pool `fast` in it.
    fn has(group: GroupReading, pool: Result<(), &str>, notice: Option<&str>) -> Holdings {
        Holdings {
            groups: vec![(VgName::new("vg0").unwrap(), group)],
            pools: vec![("fast".to_owned(), pool.map(|()| Capacity::default()).map_err(str::to_owned))],
            notices: notice.map(|text| ("fast".to_owned(), text.to_owned())).into_iter().collect(),
            ..Holdings::default()
        }
    }

    /// Checks a node with these holdings, whose agent has been away since the second `away`; returns the reasons and subjects, warnings
    /// with `!`.
    fn look(notifier: &mut Notifier, second: u64, away: Option<u64>, holdings: &Holdings) -> Vec<String> {
        let vg = VgName::new("vg0").unwrap();
        let offers = [Offer { name: "fast".to_owned(), vg, default_size: Bytes(1), is_default: true }];
        let node = NodeId::new("a").unwrap();
        let presence = Presence { since: at(away.unwrap_or(0)), away: away.map(|_| "refused".to_owned()) };
        let view = NodeView { node: &node, presence: &presence, offers: &offers, holdings };
        let notifications = notifier.look(at(second), &[view]);
        let is_of_node = |notification: &Notification| notification.about == About::Node(node.clone());
        assert!(notifications.iter().all(is_of_node));
        notifications
            .into_iter()
            .map(|notification| {
                format!("{}{} {}", if notification.warning { "!" } else { "" }, notification.reason, notification.subject)
            })
            .collect()
    }

    #[test]
    fn an_absent_agent_is_reported_once_after_a_minute() {
        let (mut notifier, fine) = (Notifier::default(), has(present(), Ok(()), None));
        assert!(look(&mut notifier, 100, Some(100), &fine).is_empty());
        assert!(look(&mut notifier, 159, Some(100), &fine).is_empty());
        assert_eq!(look(&mut notifier, 160, Some(100), &fine), ["!AgentAway "]);
        assert!(look(&mut notifier, 500, Some(100), &fine).is_empty());
        assert_eq!(look(&mut notifier, 501, None, &fine), ["AgentBack "]);
        // A short absence gives no notification, nor does its end.
        assert!(look(&mut notifier, 510, Some(509), &fine).is_empty());
        assert!(look(&mut notifier, 511, None, &fine).is_empty());
    }

    #[test]
    fn a_sick_group_is_reported_and_so_is_its_recovery() {
        let (mut notifier, fine) = (Notifier::default(), has(present(), Ok(()), None));
        assert!(look(&mut notifier, 1, None, &fine).is_empty());
        let sick = |why| has(present(), Err(why), None);
        assert_eq!(look(&mut notifier, 2, None, &sick("lvextend runs since 31 s")), ["!VolumeGroupSick vg0"]);
        // The same trouble in other words.
        assert!(look(&mut notifier, 3, None, &sick("lvextend runs since 33 s")).is_empty());
        assert!(look(&mut notifier, 4, None, &has(Err("it hangs".into()), Err("it hangs"), None)).is_empty());
        // While the agent is away, the group cannot be checked.
        assert!(look(&mut notifier, 5, Some(4), &fine).is_empty());
        // The agent restarted, and its disk is still away.
        assert!(look(&mut notifier, 5, None, &has(Ok(None), Err("there is no volume group vg0"), None)).is_empty());
        assert_eq!(look(&mut notifier, 6, None, &fine), ["VolumeGroupWell vg0"]);
        // Its disk was removed while the agent was down, and there was no notification before.
        let lost = has(Ok(None), Err("no disk of volume group vg0 is there"), None);
        let away =
            Holdings { away: vec![(VgName::new("vg0").ok(), VgUuid::from_compact(&"v".repeat(32)).unwrap())], ..lost.clone() };
        assert_eq!(look(&mut notifier, 7, None, &away), ["!VolumeGroupSick vg0"]);
        assert!(look(&mut notifier, 8, None, &away).is_empty());
        // A restarted controller reports it again.
        assert_eq!(look(&mut Notifier::default(), 8, None, &away), ["!VolumeGroupSick vg0"]);
        // Without its pin the node counts as never having had it. The recovery is reported once the group is present.
        assert!(look(&mut notifier, 9, None, &lost).is_empty());
        assert_eq!(look(&mut notifier, 10, None, &fine), ["VolumeGroupWell vg0"]);
        // A node that never had the group.
        assert!(look(&mut notifier, 7, None, &has(Ok(None), Err("there is no volume group vg0"), None)).is_empty());
    }

    #[test]
    fn groups_with_one_uuid_are_reported_for_both_nodes() {
        let (mut notifier, fine, none) = (Notifier::default(), has(present(), Ok(()), None), has(Ok(None), Ok(()), None));
        let nodes = ["a", "b", "c"].map(|name| NodeId::new(name).unwrap());
        let presence = Presence { since: at(0), away: None };
        let away = Presence { since: at(1), away: Some("refused".to_owned()) };
        let mut look = |second, [a, b, c]: [(&Holdings, &Presence); 3]| {
            let views = [(&nodes[0], a), (&nodes[1], b), (&nodes[2], c)];
            let views = views.map(|(node, (holdings, presence))| NodeView { node, presence, offers: &[], holdings });
            notifier.look(at(second), &views)
        };
        assert!(look(1, [(&fine, &presence), (&none, &presence), (&none, &presence)]).is_empty());
        let sent = look(2, [(&fine, &presence), (&fine, &presence), (&none, &presence)]);
        assert_eq!(sent.len(), 2);
        for (notification, [here, there]) in sent.iter().zip([["a", "b"], ["b", "a"]]) {
            assert_eq!(
                (&notification.about, notification.reason),
                (&About::Node(NodeId::new(here).unwrap()), "VolumeGroupTwice")
            );
            assert!(
                notification.warning && notification.text.contains(&format!("this node {here} and on node {there},")),
                "{}",
                notification.text
            );
            assert!(notification.text.contains("vgimportclone") && notification.text.len() < 1000, "{}", notification.text);
        }
        // A node that is away may still have it.
        assert!(look(3, [(&fine, &presence), (&fine, &away), (&none, &presence)]).is_empty());
        let sent = look(4, [(&fine, &presence), (&none, &presence), (&none, &presence)]);
        assert_eq!(
            sent.iter().map(|notification| (notification.reason, notification.warning)).collect::<Vec<_>>(),
            [("VolumeGroupOnce", false)]
        );
    }

    #[test]
    fn a_device_that_looks_like_a_group_is_reported() {
        let (mut notifier, fine) = (Notifier::default(), has(present(), Ok(()), None));
        let lookalike = |device: &str| {
            let strangers = vec![(VgName::new("vg0").unwrap(), format!("{device} shows a volume group vg0"))];
            Holdings { strangers, ..fine.clone() }
        };
        assert_eq!(look(&mut notifier, 1, None, &lookalike("/dev/sdx")), ["!VolumeGroupLookalike vg0"]);
        assert!(look(&mut notifier, 2, None, &lookalike("/dev/sdy")).is_empty());
        assert_eq!(look(&mut notifier, 3, None, &fine), ["VolumeGroupAlone vg0"]);
    }

    #[test]
    fn a_thin_pool_with_a_notice_is_reported() {
        let (mut notifier, fine) = (Notifier::default(), has(present(), Ok(()), None));
        assert_eq!(look(&mut notifier, 1, None, &has(present(), Ok(()), Some("it runs full"))), ["!ThinPoolFull fast"]);
        assert!(look(&mut notifier, 2, None, &has(present(), Ok(()), Some("it is full"))).is_empty());
        assert_eq!(look(&mut notifier, 3, None, &fine), ["ThinPoolInOrder fast"]);
        // Nothing is kept of a removed node.
        look(&mut notifier, 4, None, &has(present(), Ok(()), Some("it runs full")));
        assert!(notifier.look(at(5), &[]).is_empty() && notifier.0.is_empty());
    }

    #[test]
    fn a_claim_is_notified_what_its_volume_waits_for() {
        let claim = ClaimName { namespace: "x".into(), name: "x".into(), uid: "1234".into() };
        let away = Error::unavailable("node a", "its agent is away");
        let notification = of_creation(&claim, &away).unwrap();
        let about = About::Claim { namespace: "x".into(), name: "x".into(), uid: "1234".into() };
        assert_eq!(
            (notification.about, notification.reason, notification.text.as_str()),
            (about, "VolumeWaits", "node a: its agent is away")
        );
        let full = Error::Exhausted { what: "volume v".into(), reason: "nothing is left".into() };
        assert_eq!(of_creation(&claim, &full).unwrap().reason, "PoolFull");
        assert_eq!(of_creation(&claim, &Error::busy("v", "it runs")), None);
    }
}
