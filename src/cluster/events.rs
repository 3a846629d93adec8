//! Events: what `kubectl describe` shows for a node or a claim.
//!
//! An event's name is made of its content and the present five-minute span. So the same event appears once per span, whichever replica of
//! the controller sends it first: for the other it exists already.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Cluster, ClusterError};
use crate::types::notification::{About, Notification};
use crate::types::{chain, cut, discreet};

/// The span within which the same event is sent once.
const ONCE_IN: Duration = Duration::from_secs(300);
/// Capacity of the queue of notifications; what exceeds it is lost.
const ON_THE_WAY: usize = 64;
/// The longest message, in bytes (core/v1 allows 1024).
const LONGEST: usize = 1000;
/// The namespace for events of objects without one.
const NO_NAMESPACE: &str = "default";

impl Cluster {
    /// Publishes what comes through the channel, as far as the API server accepts it. Nobody waits for it, and errors are not retried.
    pub fn tell(&self, driver: &str) -> mpsc::Sender<Notification> {
        let (sender, notifications) = mpsc::channel(ON_THE_WAY);
        tokio::spawn(publish(self.clone(), driver.to_owned(), notifications));
        sender
    }
}

async fn publish(cluster: Cluster, driver: String, mut notifications: mpsc::Receiver<Notification>) {
    let mut sent = SentEvents::default();
    while let Some(notification) = notifications.recv().await {
        let now = SystemTime::now();
        let Some(event) = sent.new_event(&notification, &driver, now) else { continue };
        let namespace = event.metadata.namespace.as_deref().unwrap_or(NO_NAMESPACE);
        let api: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
        let made = api.create(&PostParams::default(), &event).await.map_err(ClusterError::api("creating an event"));
        if let Err(error) = made
            && !error.is_conflict()
        {
            tracing::warn!(
                reason = notification.reason,
                text = notification.text,
                error = chain(&error),
                "cannot create an event"
            );
        }
    }
}

/// The events sent in the present span.
#[derive(Debug, Default)]
struct SentEvents {
    span: u64,
    names: BTreeSet<String>,
}

impl SentEvents {
    /// The event of a notification; `None` if it was sent in this span.
    fn new_event(&mut self, notification: &Notification, driver: &str, now: SystemTime) -> Option<Event> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let span = since.as_secs() / ONCE_IN.as_secs();
        if span != self.span {
            *self = Self { span, names: BTreeSet::new() };
        }
        let object = reference(&notification.about);
        let (of, namespace) = (object.name.clone().unwrap_or_default(), object.namespace.clone());
        let words =
            [driver, &namespace.clone().unwrap_or_default(), &of, notification.reason, &notification.subject, &span.to_string()]
                .join("\n");
        let digest: String = Sha256::digest(words)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{of}.{digest}");
        if !self.names.insert(name.clone()) {
            return None;
        }
        // A claim belongs to a tenant, so its events name no device of a node.
        let text = match notification.about {
            About::Claim { .. } => discreet(&notification.text).text,
            About::Node(_) => notification.text.clone(),
        };
        let time = Timestamp::from_second(i64::try_from(since.as_secs()).ok()?).ok().map(Time);
        Some(Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace.unwrap_or_else(|| NO_NAMESPACE.to_owned())),
                ..ObjectMeta::default()
            },
            involved_object: object,
            reason: Some(notification.reason.to_owned()),
            message: Some(cut(&text, LONGEST)),
            type_: Some(if notification.warning { "Warning" } else { "Normal" }.to_owned()),
            source: Some(EventSource { component: Some(driver.to_owned()), ..EventSource::default() }),
            first_timestamp: time.clone(),
            last_timestamp: time,
            count: Some(1),
            ..Event::default()
        })
    }
}

fn reference(about: &About) -> ObjectReference {
    let (kind, name, namespace, uid) = match about {
        // As kubelet does, and as `kubectl describe node` asks: the UID of a node is its name.
        About::Node(node) => ("Node", node.to_string(), None, node.to_string()),
        About::Claim { namespace, name, uid } => ("PersistentVolumeClaim", name.clone(), Some(namespace.clone()), uid.clone()),
    };
    let uid = Some(uid).filter(|uid| !uid.is_empty());
    let version = Some("v1".to_owned());
    ObjectReference { api_version: version, kind: Some(kind.to_owned()), name: Some(name), namespace, uid, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn notification(about: About, reason: &'static str, subject: &str) -> Notification {
        Notification { about, reason, warning: true, subject: subject.to_owned(), text: "ü".repeat(2000) }
    }

    #[test]
    fn the_same_is_told_once_in_a_while_whoever_tells_it() {
        let at = |second: u64| UNIX_EPOCH + Duration::from_secs(second);
        let node = || About::Node(NodeId::new("n1").unwrap());
        let (mut one, mut other) = (SentEvents::default(), SentEvents::default());
        let first = one.new_event(&notification(node(), "VolumeGroupSick", "vg0"), "lvm-csi.dev", at(600)).unwrap();
        // Another replica finds the event under its name.
        let again = other.new_event(&notification(node(), "VolumeGroupSick", "vg0"), "lvm-csi.dev", at(899)).unwrap();
        assert_eq!(first.metadata.name, again.metadata.name);
        assert_eq!(one.new_event(&notification(node(), "VolumeGroupSick", "vg0"), "lvm-csi.dev", at(899)), None);
        for (reason, subject, second) in
            [("VolumeGroupWell", "vg0", 899), ("VolumeGroupSick", "vg1", 899), ("VolumeGroupSick", "vg0", 900)]
        {
            let event = one.new_event(&notification(node(), reason, subject), "lvm-csi.dev", at(second)).unwrap();
            assert_ne!(event.metadata.name, first.metadata.name);
        }
    }

    #[test]
    fn a_claim_is_told_of_no_device_and_a_node_is() {
        let claim = About::Claim { namespace: "shop".into(), name: "data-0".into(), uid: "1234".into() };
        let node = About::Node(NodeId::new("n1").unwrap());
        for (about, message) in [(claim, "reading a device: I/O error"), (node, "reading /dev/sdb: I/O error")] {
            let notification =
                Notification { text: "reading /dev/sdb: I/O error".to_owned(), ..notification(about, "VolumeWaits", "") };
            let event = SentEvents::default().new_event(&notification, "lvm-csi.dev", SystemTime::now()).unwrap();
            assert_eq!(event.message.as_deref(), Some(message));
        }
    }

    #[test]
    fn an_event_is_one_that_kubectl_describe_finds() {
        let claim = About::Claim { namespace: "shop".into(), name: "data-0".into(), uid: "1234".into() };
        let event =
            SentEvents::default().new_event(&notification(claim, "PoolFull", ""), "lvm-csi.dev", SystemTime::now()).unwrap();
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!((json["metadata"]["namespace"].as_str(), json["type"].as_str()), (Some("shop"), Some("Warning")));
        let object = serde_json::json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "shop", "name": "data-0", "uid": "1234"});
        assert_eq!(json["involvedObject"], object);
        assert!(json["message"].as_str().unwrap().len() <= 1024 && json["lastTimestamp"].is_string(), "{json}");
        let node = About::Node(NodeId::new("n1").unwrap());
        let event =
            SentEvents::default().new_event(&notification(node, "AgentAway", ""), "lvm-csi.dev", SystemTime::now()).unwrap();
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["metadata"]["namespace"], "default");
        assert_eq!(json["involvedObject"], serde_json::json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"}));
    }
}
