//! A cluster of the lab (`hack/lab cluster`) with the driver in it, through kubectl and helm, as people use them.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Result, Trouble};
use crate::tool;

/// Time limit of one wait or command: the cluster may have two slow processors.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Polling interval: each poll starts processes on the processors that the cluster needs.
const PAUSE: Duration = Duration::from_millis(500);
/// The driver's namespace.
pub const DRIVER: &str = "lvm-csi";
/// The volume group on each node, as the chart's default values name it.
pub const VG: &str = "lvm-csi";
/// The first disk of each node.
pub const DISK: &str = "/dev/ubda";
const IMAGE: &str = "lvm-csi.dev/busybox:1.37";

/// Polls until `look` returns something, for [`LIMIT`] at most.
///
/// # Errors
/// [`Trouble::Limit`] after that; an error of `look` at once.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    tool::wait_slowly(what, LIMIT, PAUSE, look)
}

/// The cluster in which `hack/lab cluster run` or `exec` started this program.
#[derive(Clone, Debug)]
pub struct Cluster {
    hack: PathBuf,
    helm: PathBuf,
    namespace: String,
}

impl Cluster {
    /// Builds helm, where that was not done yet, and asks the API server whether it is ready.
    ///
    /// # Errors
    /// There is no cluster, or helm cannot be built.
    pub fn find() -> Result<Self> {
        let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
        let hack = testkit.parent().unwrap_or(testkit);
        let helm = tool::finish(tool::command(hack.join("lib/go-tool")).args(["helm", "helm"]))?;
        let cluster = Self { hack: hack.to_owned(), helm: helm.trim().into(), namespace: "default".to_owned() };
        cluster.kubectl(&["get", "--raw", "/readyz"])?;
        Ok(cluster)
    }

    /// This cluster with another default namespace, created if it is missing.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn within(&self, namespace: &str) -> Result<Self> {
        self.apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})])?;
        let cluster = Self { namespace: namespace.to_owned(), ..self.clone() };
        // No pod can be created without it.
        until("the ServiceAccount of the namespace", || Ok((!cluster.is_gone("serviceaccount/default")?).then_some(())))?;
        Ok(cluster)
    }

    fn command(&self) -> Command {
        let mut command = tool::command("kubectl");
        command.args(["--namespace", &self.namespace]);
        command
    }

    /// Runs kubectl and returns its standard output.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        tool::finish_within(LIMIT, self.command().args(arguments))
    }

    /// Runs `kubectl get`; returns an object, or a list of them.
    ///
    /// # Errors
    /// kubectl fails, as it does for an object that does not exist.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| Trouble::wrong(format!("kubectl get {arguments:?}: {error}")))
    }

    /// # Errors
    /// The API server does not respond.
    pub fn is_gone(&self, object: &str) -> Result<bool> {
        Ok(self.kubectl(&["get", "--ignore-not-found", "--output=name", object])?.trim().is_empty())
    }

    /// Runs `kubectl apply` for objects.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.apply_text(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())
    }

    /// Runs `kubectl apply` for a manifest.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn apply_text(&self, objects: &str) -> Result<()> {
        tool::feed(LIMIT, self.command().args(["apply", "--filename", "-"]), objects).map(drop)
    }

    /// Creates an object as the user that kubectl's options name, such as `--as=NAME`.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn create_as(&self, user: &[&str], object: &Value) -> Result<()> {
        let mut command = self.command();
        command.args(["create", "--filename", "-"]).args(user);
        tool::feed(LIMIT, &mut command, &object.to_string()).map(drop)
    }

    /// Runs `kubectl wait` with a condition, for [`LIMIT`] at most.
    ///
    /// # Errors
    /// The condition is not met. The text has the namespace's last events.
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

    /// For each pod the time from `start` until it was ready.
    ///
    /// # Errors
    /// One is not ready within [`LIMIT`].
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
        // A kubectl that ended by itself has printed why.
        watch.kill().and_then(|()| watch.wait()).map_err(Trouble::io("ending kubectl".to_owned()))?;
        if ready.len() < pods.len() {
            return Err(Trouble::wrong(format!("of {} pods, only {} became ready", pods.len(), ready.len())));
        }
        Ok(ready)
    }

    /// Deletes objects and waits until they are gone.
    ///
    /// # Errors
    /// They are not gone in time.
    pub fn delete(&self, objects: &[&str]) -> Result<()> {
        let limit = format!("--timeout={}s", LIMIT.as_secs() - 5);
        self.kubectl(&[&["delete", "--ignore-not-found", &limit], objects].concat()).map(drop)
    }

    /// Runs a shell script in a pod and returns its trimmed output.
    ///
    /// # Errors
    /// The script fails.
    pub fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-ec", script]).map(|text| text.trim().to_owned())
    }

    /// The size in bytes of the filesystem at a path in a pod.
    ///
    /// # Errors
    /// Those of [`Cluster::exec`], or `df` prints something unexpected.
    pub fn filesystem(&self, pod: &str, path: &str) -> Result<u64> {
        let said = self.exec(pod, &format!("df -k {path} | tail -n 1 | awk '{{print $2}}'"))?;
        said.parse::<u64>().map(|kib| kib << 10).map_err(|_| Trouble::wrong(format!("df of {path} in {pod} printed {said:?}")))
    }

    /// Runs a shell script on a node and returns its trimmed output.
    ///
    /// # Errors
    /// The script fails.
    pub fn on(&self, node: &str, script: &str) -> Result<String> {
        let mut command = tool::command(self.hack.join("lab"));
        command.args(["cluster", "node", node, "exec", "sh", "-ec", script]);
        tool::finish_within(LIMIT, &mut command).map(|text| text.trim().to_owned())
    }

    /// Copies a file of this machine to a path on a node.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn copy_to(&self, node: &str, file: &Path, path: &str) -> Result<()> {
        let script = "exec \"$0\" cluster node \"$1\" exec sh -c \"cat >$3\" <\"$2\"";
        let mut command = tool::command("bash");
        command.args(["-c", script]).arg(self.hack.join("lab")).arg(node).arg(file).arg(path);
        tool::finish_within(LIMIT, &mut command).map(drop)
    }

    /// Runs `hack/lab cluster WORDS`, such as `node n1 power-off` or `control stop kube-apiserver`.
    ///
    /// # Errors
    /// The command fails.
    pub fn lab(&self, words: &[&str]) -> Result<()> {
        tool::finish_within(LIMIT, tool::command(self.hack.join("lab")).arg("cluster").args(words)).map(drop)
    }

    /// Runs the kubectl plugin (`kubectl lvm`).
    ///
    /// # Errors
    /// The plugin fails.
    pub fn plugin(&self, words: &[&str]) -> Result<String> {
        tool::finish(tool::command(self.plugin_path()).args(words))
    }

    fn plugin_path(&self) -> PathBuf {
        self.hack.with_file_name("deploy").join("kubectl-lvm")
    }

    /// The findings of `kubectl lvm doctor` about the driver in a namespace; empty when all is well.
    ///
    /// # Errors
    /// The doctor could not look.
    pub fn doctor(&self, namespace: &str) -> Result<Vec<String>> {
        let mut command = tool::command(self.plugin_path());
        let output = tool::output(command.arg("doctor").env("LVM_CSI_NAMESPACE", namespace))?;
        let found: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        match (output.status.success(), found.as_slice()) {
            (true, [_]) => Ok(Vec::new()),
            (false, [_, ..]) => Ok(found),
            _ => Err(Trouble::wrong(format!("kubectl lvm doctor exited with {}: {}", output.status, tool::said(&output)))),
        }
    }

    /// The name of the driver's pod on a node.
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

    /// Runs the program lvm-csi with a subcommand in the driver's pod on a node.
    ///
    /// # Errors
    /// The subcommand fails.
    pub fn on_machine(&self, node: &str, question: &[&str]) -> Result<String> {
        let pod = self.node_pod(node)?;
        let inside = ["exec", "--namespace", DRIVER, &pod, "--container=lvm-csi", "--", "lvm-csi"];
        self.kubectl(&[&inside, question].concat())
    }

    /// The names of the nodes.
    ///
    /// # Errors
    /// The API server does not respond.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let names = self.kubectl(&["get", "nodes", "--output=jsonpath={.items[*].metadata.name}"])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// Creates the volume group [`VG`] on the first disk of a node, with a thin pool, by the recipe of the documents.
    ///
    /// # Errors
    /// LVM fails.
    pub fn make_group(&self, node: &str) -> Result<()> {
        let script = format!(
            "vgcreate --quiet --metadatasize 16m {VG} {DISK}; vgchange --quiet --setautoactivation n {VG}; \
             lvcreate --quiet --type thin-pool --extents 90%FREE --name thin {VG}"
        );
        self.on(node, &script).map(drop)
    }

    /// Installs or upgrades the chart with these settings, and waits until all new pods run and all old ones are gone.
    ///
    /// # Errors
    /// helm fails, or the pods are not ready in time.
    pub fn install(&self, settings: &[&str]) -> Result<()> {
        let mut command = self.helm(&["upgrade", "--install", "lvm-csi", "--create-namespace"]);
        for file in ["images.yaml", "values.yaml"] {
            command.arg("--values").arg(self.values(file));
        }
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.arg(self.hack.with_file_name("deploy").join("chart"));
        tool::finish_within(LIMIT, &mut command)?;
        self.former_pods_gone()
    }

    /// The path of a file with values of the chart for the lab's clusters.
    fn values(&self, file: &str) -> PathBuf {
        self.hack.join("lab.d/cluster").join(file)
    }

    /// A program for people's commands: helm, and where it installs something with the lab's images of the sidecars. The nodes cannot
    /// fetch others.
    pub fn helm_with_images(&self) -> String {
        let (helm, values) = (self.helm.display(), self.values("images.yaml"));
        format!(
            "#!/bin/bash\ncase $1 in install | upgrade | template) set -- \"$@\" --values '{}' ;; esac\nexec '{helm}' \"$@\"\n",
            values.display()
        )
    }

    /// Removes the driver with its namespace.
    ///
    /// # Errors
    /// It is not gone in time.
    pub fn uninstall(&self) -> Result<()> {
        // The pods end while they still have their rights.
        self.delete(&["--namespace", DRIVER, "--cascade=foreground", "deployments,daemonsets", "--all"])?;
        tool::finish_within(LIMIT, &mut self.helm(&["uninstall", "lvm-csi", "--ignore-not-found"]))?;
        self.delete(&[&format!("namespace/{DRIVER}")])
    }

    /// Rolls the release back by one revision, and waits as [`Cluster::install`] does.
    ///
    /// # Errors
    /// Those of [`Cluster::install`].
    pub fn roll_back(&self) -> Result<()> {
        tool::finish_within(LIMIT, &mut self.helm(&["rollback", "lvm-csi"]))?;
        self.former_pods_gone()
    }

    /// `helm --wait` does not wait until the pods that it replaces have terminated.
    fn former_pods_gone(&self) -> Result<()> {
        until("the driver's old pods to terminate", || {
            let pods = self.get(&["pods", "--namespace", DRIVER])?;
            let mut pods = pods["items"].as_array().into_iter().flatten();
            Ok(pods.all(|pod| pod["metadata"]["deletionTimestamp"].is_null()).then_some(()))
        })
    }

    /// What Helm says to an upgrade with these settings that it must refuse; nothing is changed.
    ///
    /// # Errors
    /// Helm refuses nothing.
    pub fn refused_upgrade(&self, settings: &[&str]) -> Result<String> {
        let mut command = self.helm(&["upgrade", "lvm-csi", "--dry-run=server", "--reuse-values"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.arg(self.hack.with_file_name("deploy").join("chart"));
        match tool::finish_within(LIMIT, &mut command) {
            Ok(_) => Err(Trouble::wrong(format!("helm upgrades with {settings:?}"))),
            Err(refused) => Ok(format!("{refused:?}")),
        }
    }

    fn helm(&self, words: &[&str]) -> Command {
        let mut command = tool::command(&self.helm);
        command.args(words).args(["--namespace", DRIVER, "--wait", "--timeout=170s"]);
        command
    }

    /// The names of the driver's LVs on a node, without thin pools.
    ///
    /// # Errors
    /// LVM fails.
    pub fn volumes(&self, node: &str) -> Result<Vec<String>> {
        let names = self.on(node, "lvs --noheadings --options lv_name --select 'lv_tags=lvm-csi=1 && lv_layout!=pool'")?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }
}

/// A PersistentVolumeClaim.
pub fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    })
}

/// A PersistentVolumeClaim with a data source of kind `PersistentVolumeClaim` or `VolumeSnapshot`.
pub fn copy(name: &str, class: &str, size: &str, kind: &str, of: &str) -> Value {
    let mut claim = claim(name, class, size);
    let group = if kind == "VolumeSnapshot" { "snapshot.storage.k8s.io" } else { "" };
    claim["spec"]["dataSource"] = json!({"apiGroup": group, "kind": kind, "name": of});
    claim
}

/// A VolumeSnapshot of a claim.
pub fn snapshot(name: &str, of: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "lvm-csi", "source": {"persistentVolumeClaimName": of}},
    })
}

/// The spec of a pod that sleeps, with each claim mounted at `/NAME`.
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

/// A pod that sleeps, with each claim mounted at `/NAME`.
pub fn pod(name: &str, claims: &[&str]) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod_spec(claims)})
}
