//! The agents and their addresses. A member is a node that registered the driver at some time and still exists, with the address of the
//! driver's pod on it. A node without a running pod stays a member, because its volumes still exist.
//!
//! kubelet sets the label when the driver registers. If a node without a pod were no member, deleting one of its volumes would succeed
//! and leak it.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::watch;

use super::mirror::Mirror;
use super::{Cluster, ClusterError};
use crate::types::{Error, NodeId, chain};

/// The name of the pod's port at which its agent listens.
const PORT: &str = "agent";
/// The taint that a person sets on a node that is off and stays off (Kubernetes: non-graceful node shutdown).
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A node that has, or had, an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    /// The address of its agent (`host:port`); `None` while none of its pods runs.
    pub address: Option<String>,
}

/// The facts that matter of an agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    node: NodeId,
    address: Option<String>,
}

impl Cluster {
    /// Watches the agents: the pods that a selector chooses, and the nodes with a label. The channel holds `None` until both lists are
    /// complete. While the API server is away, the last known state stays.
    pub fn follow_agents(&self, selector: &str, label: &str) -> watch::Receiver<Option<Vec<Member>>> {
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(follow(self.clone(), selector.to_owned(), label.to_owned(), sender));
        receiver
    }

    /// Whether a person has taken a node out of service; `None` if the node no longer exists.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the API server cannot be asked.
    pub async fn out_of_service(&self, node: &NodeId) -> Result<Option<bool>, Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let found = api.get_opt(node.as_str()).await.map_err(ClusterError::api("reading the node"));
        let found = found.map_err(|error| error.unavailable(format!("node {node}")))?;
        Ok(found.map(|found| {
            let taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
            taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
        }))
    }
}

async fn follow(cluster: Cluster, selector: String, label: String, members: watch::Sender<Option<Vec<Member>>>) {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let nodes: Api<PartialObjectMeta<Node>> = Api::all(cluster.client);
    let mut pods = pin!(watcher(pods, Config::default().labels(&selector)).default_backoff());
    let mut nodes = pin!(watcher(nodes, Config::default().labels(&label)).default_backoff());
    let (mut places, mut node_ids) = (Mirror::default(), Mirror::default());
    // Neither stream ends.
    loop {
        tokio::select! {
            Some(event) = pods.next() => match event {
                Ok(event) => places.take(event, place),
                Err(error) => tracing::warn!(error = chain(&error), "cannot watch the agents' pods; the last known state stays in use"),
            },
            Some(event) = nodes.next() => match event {
                Ok(event) => node_ids.take(event, |node| registered(node, &label)),
                Err(error) => tracing::warn!(error = chain(&error), "cannot watch the nodes; the last known state stays in use"),
            },
            else => return,
        }
        if let (Some(places), Some(node_ids)) = (places.known(), node_ids.known()) {
            let now = Some(all(places.values(), node_ids.values()));
            members.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
    }
}

/// The node named by a label, which kubelet sets when the driver registers and never removes.
fn registered(node: &PartialObjectMeta<Node>, label: &str) -> (String, Option<NodeId>) {
    (node.name_any(), node.labels().get(label).and_then(|name| NodeId::new(name)))
}

/// The node and agent address of a pod; `None` if it is not on a node yet.
fn place(pod: &Pod) -> (String, Option<Place>) {
    let place = || {
        let spec = pod.spec.as_ref()?;
        let node = NodeId::new(spec.node_name.as_deref()?)?;
        let status = pod.status.as_ref();
        let ended =
            status.and_then(|status| status.phase.as_deref()).is_some_and(|phase| matches!(phase, "Failed" | "Succeeded"));
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        let port = ports.filter(|port| port.name.as_deref() == Some(PORT)).map(|port| port.container_port).next();
        let ip =
            status.and_then(|status| status.pod_ip.as_deref()).filter(|_| !ended && pod.metadata.deletion_timestamp.is_none());
        let address =
            ip.zip(port).map(|(ip, port)| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") });
        Some(Place { node, address })
    };
    (pod.name_any(), place())
}

/// Every node once, in order. Of two pods on one node, the one with an address counts.
fn all<'a>(places: impl Iterator<Item = &'a Place>, nodes: impl Iterator<Item = &'a NodeId>) -> Vec<Member> {
    let mut all: BTreeMap<&NodeId, Option<&String>> = nodes.map(|node| (node, None)).collect();
    for place in places {
        let address = all.entry(&place.node).or_default();
        *address = address.or(place.address.as_ref());
    }
    all.into_iter().map(|(node, address)| Member { node: node.clone(), address: address.cloned() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> (String, Option<Place>) {
        place(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_pod_tells_its_node_and_its_address_while_it_runs() {
        let running = r#"{"metadata":{"name":"p"},"spec":{"nodeName":"n1","containers":[{"name":"other","ports":[{"name":"x","containerPort":1}]},
            {"name":"lvm-csi","ports":[{"name":"agent","containerPort":9809}]}]},"status":{"phase":"Running","podIP":"10.0.0.7"}}"#;
        let address = |text: &str| pod(text).1.unwrap().address;
        assert_eq!(pod(running).0, "p");
        assert_eq!(address(running).unwrap(), "10.0.0.7:9809");
        assert_eq!(address(&running.replace("10.0.0.7", "fd00::7")).unwrap(), "[fd00::7]:9809");
        assert_eq!(address(&running.replace("Running", "Failed")), None);
        assert_eq!(address(&running.replace(r#","podIP":"10.0.0.7""#, "")), None);
        assert_eq!(address(&running.replace(r#""name":"agent""#, r#""name":"metrics""#)), None);
        let going = running.replace(r#""name":"p""#, r#""name":"p","deletionTimestamp":"2026-01-01T00:00:00Z""#);
        assert_eq!(address(&going), None);
        assert_eq!(pod(&running.replace(r#""nodeName":"n1","#, "")).1, None);
    }

    #[test]
    fn a_node_that_registered_stays_without_a_pod() {
        let id = |name: &str| NodeId::new(name).unwrap();
        let place = |node: &str, address: Option<&str>| Place { node: id(node), address: address.map(str::to_owned) };
        let places = [place("b", None), place("b", Some("1:2")), place("c", Some("3:4"))];
        let found = all(places.iter(), [id("a"), id("b")].iter());
        let members: Vec<_> = found.iter().map(|member| (member.node.as_str(), member.address.as_deref())).collect();
        assert_eq!(members, [("a", None), ("b", Some("1:2")), ("c", Some("3:4"))]);
        let node = r#"{"metadata":{"name":"n1","labels":{"topology.x/node":"n1"}}}"#;
        let node: PartialObjectMeta<Node> = serde_json::from_str(node).unwrap();
        assert_eq!(registered(&node, "topology.x/node"), ("n1".to_owned(), Some(id("n1"))));
        assert_eq!(registered(&node, "topology.y/node").1, None);
    }
}
