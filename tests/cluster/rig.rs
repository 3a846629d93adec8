//! Common parts of every test: the cluster with the chart installed, a namespace, and the check of what is left at the end.

use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};
use testkit::error::{Result, ensure};
use testkit::kube::{Cluster, LIMIT, until};
use testkit::tool;

use crate::examples;

/// The chart's StorageClass and VolumeSnapshotClass.
pub(crate) const CLASS: &str = "lvm-csi";

/// A StorageClass whose volumes are made before there is a pod.
pub(crate) const IMMEDIATE: &str = "lvm-csi-immediate";

/// The chart's settings: certificates are renewed all the time.
const SETTINGS: [&str; 1] = ["certificateMinutes=2"];

/// Installs the chart with the tests' settings, those that the examples need, and `more`, and waits until everything runs.
pub(crate) fn install(cluster: &Cluster, more: &[&str]) -> Result<()> {
    let needs = examples::needs()?;
    let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
    cluster.install(&[&SETTINGS, &needs[..], more].concat())
}

/// A StorageClass of this pool whose volumes are made before there is a pod.
pub(crate) fn immediate(name: &str, pool: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "lvm-csi.dev", "volumeBindingMode": "Immediate", "parameters": {"pool": pool},
    })
}

/// The `spec.nodeAffinity` of a PV that can be used only on one node.
pub(crate) fn only_on(node: &str) -> Value {
    json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "topology.lvm-csi.dev/node", "operator": "In", "values": [node]},
    ]}]}})
}

/// Returns the cluster. The first caller installs the chart if needed.
fn installed() -> Result<Cluster> {
    static READY: OnceLock<()> = OnceLock::new();
    static FIRST: Mutex<()> = Mutex::new(());
    let _first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::find()?;
    if READY.get().is_none() {
        for node in cluster.nodes()? {
            if cluster.on(&node, "vgs --noheadings --options vg_name")?.is_empty() {
                cluster.make_group(&node)?;
            }
        }
        install(&cluster, &[])?;
        cluster.apply(&[immediate(IMMEDIATE, "thin")])?;
        let _ = READY.set(());
    }
    Ok(cluster)
}

/// The test's own namespace in the cluster.
pub(crate) struct Rig {
    pub(crate) cluster: Cluster,
    name: String,
}

impl Rig {
    pub(crate) fn new(name: &str) -> Result<Self> {
        Ok(Self { cluster: installed()?.within(name)?, name: name.to_owned() })
    }

    /// Runs a command at the top of the repository, as a person would paste it. kubectl uses the test's namespace.
    pub(crate) fn paste(&self, command: &str) -> Result<String> {
        let script = format!("kubectl() {{ command kubectl --namespace={} \"$@\"; }}\n{command}", self.name);
        let mut bash = tool::command("bash");
        bash.args(["-euo", "pipefail", "-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR"));
        tool::finish_within(LIMIT, &mut bash)
    }

    /// Returns the names of the PVs of all claims in the namespace.
    pub(crate) fn volumes(&self) -> Result<Vec<String>> {
        let claims = self.cluster.kubectl(&["get", "pvc", "--output=jsonpath={.items[*].spec.volumeName}"])?;
        Ok(claims.split_whitespace().map(str::to_owned).collect())
    }

    /// Returns the name of a claim's PV.
    pub(crate) fn volume(&self, claim: &str) -> Result<String> {
        self.cluster.kubectl(&["get", "pvc", claim, "--output=jsonpath={.spec.volumeName}"])
    }

    /// Returns the node of a pod.
    pub(crate) fn node_of(&self, pod: &str) -> Result<String> {
        self.cluster.kubectl(&["get", "pod", pod, "--output=jsonpath={.spec.nodeName}"])
    }

    /// Returns the node that a PV can be used on.
    pub(crate) fn node_of_volume(&self, volume: &str) -> Result<String> {
        let volume = self.cluster.get(&["pv", volume])?;
        let path = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values/0";
        Ok(volume.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Sets what happens to a PV when its claim is deleted: `Retain` or `Delete`.
    pub(crate) fn reclaim(&self, volume: &str, policy: &str) -> Result<()> {
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": policy}}).to_string();
        self.cluster.kubectl(&["patch", "pv", volume, "--patch", &patch]).map(drop)
    }

    /// Scales the controllers without waiting for them.
    pub(crate) fn scale_controllers(&self, replicas: u32) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        self.cluster.kubectl(&["--namespace=lvm-csi", "scale", "deployment/lvm-csi-controller", &replicas]).map(drop)
    }

    /// Removes PVs that could not be attached, after their pods and claims. Kubernetes retries a failed attachment only after
    /// minutes and keeps the PV until then, so the attachment is deleted by hand.
    pub(crate) fn forget(&self, volumes: &[&str]) -> Result<()> {
        for volume in volumes {
            let object = format!("pv/{volume}");
            self.cluster.kubectl(&["delete", "--wait=false", &object])?;
            until(&format!("{object} to go"), || {
                let attachments = self.cluster.get(&["volumeattachments"])?;
                let of_it = |one: &&Value| one["spec"]["source"]["persistentVolumeName"] == *volume;
                for attachment in attachments["items"].as_array().into_iter().flatten().filter(of_it) {
                    let name = attachment["metadata"]["name"].as_str().unwrap_or_default();
                    self.cluster.kubectl(&["delete", "--wait=false", "--ignore-not-found", "volumeattachment", name])?;
                }
                Ok(self.cluster.is_gone(&object)?.then_some(()))
            })?;
        }
        Ok(())
    }

    /// Waits for an event about an object of the namespace with this word in its message, or as its reason. Returns the message.
    pub(crate) fn heard(&self, object: &str, word: &str) -> Result<String> {
        self.heard_in(&[], object, word)
    }

    /// The same for a node. Events about objects without a namespace are in `default`.
    pub(crate) fn heard_of_node(&self, node: &str, word: &str) -> Result<String> {
        self.heard_in(&["--namespace=default"], node, word)
    }

    fn heard_in(&self, place: &[&str], object: &str, word: &str) -> Result<String> {
        until(&format!("an event about {object} that says {word:?}"), || {
            let events = self.cluster.get(&[&["events"], place].concat())?;
            let events = events["items"].as_array().cloned().unwrap_or_default();
            let about = |event: &&Value| event["involvedObject"]["name"] == object;
            let said =
                |event: &&Value| event["reason"] == word || event["message"].as_str().is_some_and(|text| text.contains(word));
            Ok(events.iter().filter(about).find(said).map(|event| event["message"].to_string()))
        })
    }

    /// Removes the namespace. Fails if anything of its volumes is left: PV, attachment, LV, device or mount.
    pub(crate) fn finish(self) -> Result<()> {
        self.clear()
    }

    /// Like [`Rig::finish`], while the cluster is still needed.
    pub(crate) fn clear(&self) -> Result<()> {
        let volumes = self.volumes()?;
        self.cluster.delete(&["pods,pvc,volumesnapshots", "--all"])?;
        // Nothing waits for an empty namespace: Kubernetes takes some seconds to look into it.
        self.cluster.kubectl(&["delete", "--wait=false", &format!("namespace/{}", self.name)])?;
        self.gone(&volumes)
    }

    /// Waits until nothing of these PVs is left anywhere.
    pub(crate) fn gone(&self, volumes: &[String]) -> Result<()> {
        if volumes.is_empty() {
            return Ok(());
        }
        let objects: Vec<String> = volumes.iter().map(|volume| format!("pv/{volume}")).collect();
        self.cluster.wait("delete", &objects.iter().map(String::as_str).collect::<Vec<_>>())?;
        let attachments = self.cluster.kubectl(&["get", "volumeattachments", "--output=jsonpath={.items[*].spec.source}"])?;
        for volume in volumes {
            ensure(!attachments.contains(volume.as_str()), || format!("a VolumeAttachment of {volume} is left: {attachments}"))?;
        }
        for node in self.cluster.nodes()? {
            let there = self.cluster.on(&node, "lvs --noheadings --options lv_name; dmsetup ls; cat /proc/self/mountinfo")?;
            for volume in volumes {
                let dm = volume.replace('-', "--");
                ensure(!there.contains(volume.as_str()) && !there.contains(&dm), || {
                    format!("{volume} is left on {node}: {there}")
                })?;
            }
        }
        Ok(())
    }
}
