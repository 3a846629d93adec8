//! A cluster of the lab (`hack/lab cluster`) with the driver in it, by kubectl and helm, as people use them.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Result, Trouble};
use crate::tool;

/// How long things may take in a cluster on two slow processors.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Pause between two looks at a cluster: each is a process or several, on the processors that the cluster needs.
const PAUSE: Duration = Duration::from_millis(500);
/// The namespace of the driver.
pub const DRIVER: &str = "lvm-csi";
/// The volume group on each node.
pub const VG: &str = "lvm-csi";
/// What pods of tests and of the demo run.
const IMAGE: &str = "lvm-csi.dev/busybox:1.37";

/// Looks at a cluster again and again, for [`LIMIT`] at most, until there is something to see.
///
/// # Errors
/// [`Trouble::Limit`] when the limit is over; an error of the look itself at once.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    tool::wait_slowly(what, LIMIT, PAUSE, look)
}

/// The cluster that this program was started in by `hack/lab cluster run` or `exec`.
#[derive(Clone, Debug)]
pub struct Cluster {
    hack: PathBuf,
    helm: PathBuf,
    namespace: String,
}

impl Cluster {
    /// Finds it.
    ///
    /// # Errors
    /// There is no cluster around this program, or no helm.
    pub fn find() -> Result<Self> {
        let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
        let hack = testkit.parent().unwrap_or(testkit);
        let helm = tool::finish(tool::command(hack.join("lib/go-tool")).args(["helm", "helm"]))?;
        let cluster = Self { hack: hack.to_owned(), helm: helm.trim().into(), namespace: "default".to_owned() };
        cluster.kubectl(&["get", "--raw", "/readyz"])?;
        Ok(cluster)
    }

    /// The same in another namespace, which is made where it is not there.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn within(&self, namespace: &str) -> Result<Self> {
        self.apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})])?;
        let cluster = Self { namespace: namespace.to_owned(), ..self.clone() };
        // Without it no pod can be made.
        until("the ServiceAccount of the namespace", || Ok((!cluster.is_gone("serviceaccount/default")?).then_some(())))?;
        Ok(cluster)
    }

    fn command(&self) -> Command {
        let mut command = tool::command("kubectl");
        command.args(["--namespace", &self.namespace]);
        command
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// It ended with another status than 0.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        tool::finish_within(LIMIT, self.command().args(arguments))
    }

    /// An object, or a list of them, as the API server has it.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| Trouble::wrong(format!("kubectl get {arguments:?}: {error}")))
    }

    /// Whether there is no such object.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub fn is_gone(&self, object: &str) -> Result<bool> {
        Ok(self.kubectl(&["get", "--ignore-not-found", "--output=name", object])?.trim().is_empty())
    }

    /// Makes objects, or changes them.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.apply_text(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())
    }

    /// The same, of objects that somebody else has written down.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn apply_text(&self, objects: &str) -> Result<()> {
        tool::feed(LIMIT, self.command().args(["apply", "--filename", "-"]), objects).map(drop)
    }

    /// Makes an object as a user that the options name, such as `--as=NAME`.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn create_as(&self, user: &[&str], object: &Value) -> Result<()> {
        let mut command = self.command();
        command.args(["create", "--filename", "-"]).args(user);
        tool::feed(LIMIT, &mut command, &object.to_string()).map(drop)
    }

    /// Waits for a condition of objects, as `kubectl wait` takes it; its limit is [`LIMIT`].
    ///
    /// # Errors
    /// It did not come about; tells what happened to the objects meanwhile.
    pub fn wait(&self, condition: &str, objects: &[&str]) -> Result<()> {
        let limit = format!("--timeout={}s", LIMIT.as_secs() - 5);
        let waited = self.kubectl(&[&["wait", &format!("--for={condition}"), &limit], objects].concat());
        waited.map(drop).map_err(|trouble| {
            let events = self.kubectl(&[
                "get",
                "events",
                "--sort-by=.lastTimestamp",
                "--output=custom-columns=O:.involvedObject.name,M:.message",
            ]);
            let events = events.unwrap_or_default();
            let last: Vec<&str> = events.lines().rev().take(12).collect();
            Trouble::wrong(format!("{trouble}; the last events: {}", last.join(" | ")))
        })
    }

    /// Waits until pods are ready.
    ///
    /// # Errors
    /// As [`Cluster::wait`].
    pub fn wait_ready(&self, pods: &[&str]) -> Result<()> {
        let pods: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
        self.wait("condition=Ready", &pods.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// When each of some pods was ready, from `start` on.
    ///
    /// # Errors
    /// One is not within [`LIMIT`].
    pub fn each_ready(&self, pods: &[&str], start: Instant) -> Result<HashMap<String, Duration>> {
        const COLUMNS: &str = "--output=custom-columns=N:.metadata.name,R:.status.conditions[?(@.type==\"Ready\")].status";
        let limit = format!("--request-timeout={}s", LIMIT.as_secs());
        let mut watch = self.command();
        watch.args(["get", "pods", "--watch", "--no-headers", COLUMNS, &limit]).stdout(Stdio::piped());
        let mut watch = watch.spawn().map_err(Trouble::io("starting kubectl".to_owned()))?;
        let lines = watch.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines().map_while(io::Result::ok));
        let mut ready = HashMap::new();
        for line in lines {
            if let Some((pod, "True")) = line.split_once(' ').map(|(pod, ready)| (pod, ready.trim()))
                && pods.contains(&pod)
            {
                ready.entry(pod.to_owned()).or_insert_with(|| start.elapsed());
            }
            if ready.len() == pods.len() {
                break;
            }
        }
        // One that has ended by itself has said why on standard error.
        watch.kill().and_then(|()| watch.wait()).map_err(Trouble::io("ending kubectl".to_owned()))?;
        if ready.len() < pods.len() {
            return Err(Trouble::wrong(format!("of {} pods, only {} became ready", pods.len(), ready.len())));
        }
        Ok(ready)
    }

    /// Removes objects, and waits until they are gone.
    ///
    /// # Errors
    /// They do not go.
    pub fn delete(&self, objects: &[&str]) -> Result<()> {
        let limit = format!("--timeout={}s", LIMIT.as_secs() - 5);
        self.kubectl(&[&["delete", "--ignore-not-found", &limit], objects].concat()).map(drop)
    }

    /// Runs a script in a pod.
    ///
    /// # Errors
    /// It ended with another status than 0.
    pub fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-ec", script]).map(|text| text.trim().to_owned())
    }

    /// The size of the filesystem that a pod has at a path, in bytes.
    ///
    /// # Errors
    /// As [`Cluster::exec`], and when `df` says something else.
    pub fn filesystem(&self, pod: &str, path: &str) -> Result<u64> {
        let said = self.exec(pod, &format!("df -k {path} | tail -n 1 | awk '{{print $2}}'"))?;
        said.parse::<u64>().map(|kib| kib << 10).map_err(|_| Trouble::wrong(format!("df of {path} in {pod} says {said:?}")))
    }

    /// Runs a script on a node.
    ///
    /// # Errors
    /// It ended with another status than 0.
    pub fn on(&self, node: &str, script: &str) -> Result<String> {
        let mut command = tool::command(self.hack.join("lab"));
        command.args(["cluster", "node", node, "exec", "sh", "-ec", script]);
        tool::finish_within(LIMIT, &mut command).map(|text| text.trim().to_owned())
    }

    /// Does something to the lab: `node n1 power-off`, `control stop kube-apiserver`.
    ///
    /// # Errors
    /// It failed.
    pub fn lab(&self, words: &[&str]) -> Result<()> {
        tool::finish_within(LIMIT, tool::command(self.hack.join("lab")).arg("cluster").args(words)).map(drop)
    }

    /// What the plugin of kubectl says.
    ///
    /// # Errors
    /// It ended with another status than 0.
    pub fn plugin(&self, words: &[&str]) -> Result<String> {
        tool::finish(tool::command(self.plugin_path()).args(words))
    }

    fn plugin_path(&self) -> PathBuf {
        self.hack.with_file_name("deploy").join("kubectl-lvm")
    }

    /// What `kubectl lvm doctor` finds of the driver in a namespace: nothing where all is well.
    ///
    /// # Errors
    /// It could not look.
    pub fn doctor(&self, namespace: &str) -> Result<Vec<String>> {
        let mut command = tool::command(self.plugin_path());
        let output = tool::output(command.arg("doctor").env("LVM_CSI_NAMESPACE", namespace))?;
        let found: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        match (output.status.success(), found.as_slice()) {
            (true, [_]) => Ok(Vec::new()),
            (false, [_, ..]) => Ok(found),
            _ => Err(Trouble::wrong(format!("the doctor ended with {}: {}", output.status, tool::said(&output)))),
        }
    }

    /// The driver's pod on a node.
    ///
    /// # Errors
    /// There is none.
    pub fn node_pod(&self, node: &str) -> Result<String> {
        let pods = self.kubectl(&[
            "get",
            "pods",
            "--namespace",
            DRIVER,
            "--selector=app.kubernetes.io/component=node",
            "--field-selector",
            &format!("spec.nodeName={node}"),
            "--output=jsonpath={.items[*].metadata.name}",
        ])?;
        let pod = pods.split_whitespace().next().map(str::to_owned);
        pod.ok_or_else(|| Trouble::wrong(format!("the driver has no pod on {node}")))
    }

    /// What the driver's program says on a node, in the driver's pod there.
    ///
    /// # Errors
    /// It ended with another status than 0.
    pub fn on_machine(&self, node: &str, question: &[&str]) -> Result<String> {
        let pod = self.node_pod(node)?;
        let inside = ["exec", "--namespace", DRIVER, &pod, "--container=lvm-csi", "--", "lvm-csi"];
        self.kubectl(&[&inside, question].concat())
    }

    /// The names of the nodes.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let names = self.kubectl(&["get", "nodes", "--output=jsonpath={.items[*].metadata.name}"])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// Makes the volume group of the driver's default pool on the first disk of a node, with a thin pool of most of it.
    ///
    /// # Errors
    /// LVM refuses.
    pub fn make_group(&self, node: &str) -> Result<()> {
        let script = format!(
            "vgcreate --quiet --metadatasize 16m {VG} /dev/ubda; lvcreate --quiet --type thin-pool --extents 70%FREE --name thin {VG}; \
             vgchange --quiet --setautoactivation n {VG}"
        );
        self.on(node, &script).map(drop)
    }

    /// Installs the chart, or brings what is installed to these settings, and waits until all of it runs and nothing of before does.
    ///
    /// # Errors
    /// helm refuses, or it does not run in time.
    pub fn install(&self, settings: &[&str]) -> Result<()> {
        let mut command = self.helm(&["upgrade", "--install", "lvm-csi", "--create-namespace"]);
        command.arg("--values").arg(self.hack.join("lab.d/cluster/values.yaml"));
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.arg(self.hack.with_file_name("deploy").join("chart"));
        tool::finish_within(LIMIT, &mut command)?;
        self.former_pods_gone()
    }

    /// Brings the release back to what it was before the last [`Cluster::install`], and waits as that does.
    ///
    /// # Errors
    /// As [`Cluster::install`].
    pub fn roll_back(&self) -> Result<()> {
        tool::finish_within(LIMIT, &mut self.helm(&["rollback", "lvm-csi"]))?;
        self.former_pods_gone()
    }

    /// helm does not wait for the pods that it replaces: they are still there for as long as they take to end.
    fn former_pods_gone(&self) -> Result<()> {
        until("the former pods of the driver to go", || {
            let pods = self.get(&["pods", "--namespace", DRIVER])?;
            let mut pods = pods["items"].as_array().into_iter().flatten();
            Ok(pods.all(|pod| pod["metadata"]["deletionTimestamp"].is_null()).then_some(()))
        })
    }

    fn helm(&self, words: &[&str]) -> Command {
        let mut command = tool::command(&self.helm);
        command.args(words).args(["--namespace", DRIVER, "--wait", "--timeout=170s"]);
        command
    }

    /// The volumes of the driver on a node: the names of LVs with its tag, apart from pools.
    ///
    /// # Errors
    /// LVM refuses.
    pub fn volumes(&self, node: &str) -> Result<Vec<String>> {
        let names = self.on(node, "lvs --noheadings --options lv_name --select 'lv_tags=lvm-csi=1 && lv_layout!=pool'")?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }
}

/// A claim.
pub fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    })
}

/// A claim whose content comes from another object: `PersistentVolumeClaim` or `VolumeSnapshot`.
pub fn copy(name: &str, class: &str, size: &str, kind: &str, of: &str) -> Value {
    let mut claim = claim(name, class, size);
    let group = if kind == "VolumeSnapshot" { "snapshot.storage.k8s.io" } else { "" };
    claim["spec"]["dataSource"] = json!({"apiGroup": group, "kind": kind, "name": of});
    claim
}

/// A snapshot of a claim.
pub fn snapshot(name: &str, of: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "lvm-csi", "source": {"persistentVolumeClaimName": of}},
    })
}

/// What a pod with volumes consists of: each claim is mounted at `/NAME`.
pub fn pod_spec(claims: &[&str]) -> Value {
    let mounts: Vec<Value> = claims.iter().map(|name| json!({"name": name, "mountPath": format!("/{name}")})).collect();
    let volumes: Vec<Value> =
        claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
    json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": IMAGE, "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"],
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    })
}

/// A pod that does nothing, with claims mounted at `/NAME`.
pub fn pod(name: &str, claims: &[&str]) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec(claims)})
}
