//! Events: what a person finds who asks `kubectl describe` about a node or a claim.
//!
//! An event has a name made of what it says and of the present few minutes. So the same is told once in these, whichever replica of
//! the controller comes first: for the other the event exists already.

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

/// The same is told once in so long.
const ONCE_IN: Duration = Duration::from_secs(300);
/// Notification on their way; what is beyond is lost.
const ON_THE_WAY: usize = 64;
/// Bytes of a message (core/v1: 1024).
const LONGEST: usize = 1000;
/// Where the events of objects without a namespace are.
const NO_NAMESPACE: &str = "default";

impl Cluster {
    /// Tells what comes through the channel, as far as the API server takes it: nobody waits for it, and nothing is told twice because
    /// of an error.
    pub fn tell(&self, driver: &str) -> mpsc::Sender<Notification> {
        let (sender, notifications) = mpsc::channel(ON_THE_WAY);
        tokio::spawn(publish(self.clone(), driver.to_owned(), notifications));
        sender
    }
}

async fn publish(cluster: Cluster, driver: String, mut notifications: mpsc::Receiver<Notification>) {
    let mut told = SentEvents::default();
    while let Some(notification) = notifications.recv().await {
        let now = SystemTime::now();
        let Some(event) = told.new_event(&notification, &driver, now) else { continue };
        let namespace = event.metadata.namespace.as_deref().unwrap_or(NO_NAMESPACE);
        let api: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
        let made = api.create(&PostParams::default(), &event).await.map_err(ClusterError::api("making an event"));
        if let Err(error) = made
            && !error.is_conflict()
        {
            tracing::warn!(reason = notification.reason, text = notification.text, error = chain(&error), "nobody could be told");
        }
    }
}

/// What was told in the present span of time.
#[derive(Debug, Default)]
struct SentEvents {
    span: u64,
    names: BTreeSet<String>,
}

impl SentEvents {
    /// The event of a message; `None` where it was told already.
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
        // A claim is its tenant's, whom the devices of a node do not concern.
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
        // Another replica finds it there by its name.
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
        for (about, told) in [(claim, "reading a device: I/O error"), (node, "reading /dev/sdb: I/O error")] {
            let notification =
                Notification { text: "reading /dev/sdb: I/O error".to_owned(), ..notification(about, "VolumeWaits", "") };
            let event = SentEvents::default().new_event(&notification, "lvm-csi.dev", SystemTime::now()).unwrap();
            assert_eq!(event.message.as_deref(), Some(told));
        }
    }

    #[test]
    fn an_event_is_one_that_kubectl_describe_finds() {
        let claim = About::Claim { namespace: "shop".into(), name: "data-0".into(), uid: "1234".into() };
        let event =
            SentEvents::default().new_event(&notification(claim, "PoolFull", ""), "lvm-csi.dev", SystemTime::now()).unwrap();
        let told = serde_json::to_value(&event).unwrap();
        assert_eq!((told["metadata"]["namespace"].as_str(), told["type"].as_str()), (Some("shop"), Some("Warning")));
        let object = serde_json::json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "shop", "name": "data-0", "uid": "1234"});
        assert_eq!(told["involvedObject"], object);
        assert!(told["message"].as_str().unwrap().len() <= 1024 && told["lastTimestamp"].is_string(), "{told}");
        let node = About::Node(NodeId::new("n1").unwrap());
        let event =
            SentEvents::default().new_event(&notification(node, "AgentAway", ""), "lvm-csi.dev", SystemTime::now()).unwrap();
        let told = serde_json::to_value(&event).unwrap();
        assert_eq!(told["metadata"]["namespace"], "default");
        assert_eq!(told["involvedObject"], serde_json::json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"}));
    }
}
