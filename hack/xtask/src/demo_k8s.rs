//! Installs the chart in a cluster of the lab and shows what people do with it: claims, pods, expansion, snapshots, clones, a StatefulSet.
//!
//! `hack/demo k8s` starts it inside `hack/lab cluster run`. It succeeds only if every check held and no volume was left.

use std::time::Instant;

use serde_json::{Value, json};
use testkit::driver::NAME;
use testkit::error::{Result, ensure};
use testkit::kube::{Cluster, VG, claim, copy, pod, pod_spec, snapshot, until};
use testkit::lab::say;

/// The StorageClass and VolumeSnapshotClass of the chart's default values.
const CLASS: &str = "lvm-csi";
/// Writes random bytes and prints their digest.
const WRITE: &str = "dd if=/dev/urandom of=/data/bytes bs=1M count=32 2>/dev/null; sync; sha256sum </data/bytes";

pub(crate) fn run() -> Result<()> {
    play(&Cluster::find()?)
}

/// Runs a step and prints its time.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let done = work();
    say(&format!("  {what:<86} {:>7.1} s", begun.elapsed().as_secs_f64()));
    done
}

fn same(what: &str, found: &str, expected: &str) -> Result<()> {
    ensure(found == expected, || format!("{what}: {found:?} instead of {expected:?}"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn play(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes()?;
    say(&format!("A cluster of {} nodes, each with an empty disk", nodes.len()));
    step("a volume group with a thin pool on each node", || nodes.iter().try_for_each(|node| cluster.make_group(node)))?;
    step("helm install lvm-csi, until all pods are ready", || cluster.install(&[]))?;
    shown(cluster, &nodes)?;
    life(cluster)?;
    set(cluster)?;
    let left = step("delete everything, until no volume is left on any node", || {
        cluster.delete(&["statefulset/database", "pod/app", "pod/restored", "pod/copied"])?;
        cluster.delete(&["volumesnapshot/before"])?;
        cluster.delete(&["pvc", "--all"])?;
        let empty = || nodes.iter().map(|node| cluster.volumes(node)).collect::<Result<Vec<_>>>();
        until("no volume to be left", || {
            let left = empty()?.concat();
            let volumes = cluster.kubectl(&["get", "pv,volumesnapshotcontents,volumeattachments", "--output=name"])?;
            Ok((left.is_empty() && volumes.trim().is_empty()).then_some(left))
        })
    })?;
    ensure(left.is_empty(), || format!("volumes left on the nodes: {left:?}"))?;
    whole(cluster, &nodes)?;
    say("\nEvery check held.");
    Ok(())
}

/// Shows what the driver has published to Kubernetes.
fn shown(cluster: &Cluster, nodes: &[String]) -> Result<()> {
    say("\nWhat Kubernetes knows about the driver");
    let driver = cluster.get(&[&format!("csidriver/{NAME}")])?;
    let spec = &driver["spec"];
    say(&format!(
        "  csidriver: attachRequired {}, podInfoOnMount {}, storageCapacity {}, fsGroupPolicy {}",
        spec["attachRequired"], spec["podInfoOnMount"], spec["storageCapacity"], spec["fsGroupPolicy"]
    ));
    for node in nodes {
        // Kubelet registers the driver some time after the driver's pod is ready.
        let ours = until(&format!("csinode {node} to have {NAME}"), || {
            let found = cluster.get(&[&format!("csinode/{node}")])?;
            let mut drivers = found.pointer("/spec/drivers").and_then(Value::as_array).into_iter().flatten();
            Ok(drivers.find(|driver| text(driver, "/name") == NAME).cloned())
        })?;
        say(&format!("  csinode {node}: node id {}, topology {}", ours["nodeID"], ours["topologyKeys"]));
    }
    let capacities = step("until the capacity of each node is published", || {
        until("a capacity for each node", || {
            let found = cluster.get(&["csistoragecapacities", "--all-namespaces"])?;
            let found = found["items"].as_array().cloned().unwrap_or_default();
            let ready = found.iter().filter(|one| !text(one, "/capacity").is_empty() && text(one, "/capacity") != "0").count();
            Ok((ready == nodes.len()).then_some(found))
        })
    })?;
    for one in capacities {
        let node = one.pointer("/nodeTopology/matchLabels").map(Value::to_string).unwrap_or_default();
        say(&format!("  capacity of {}: {} on {node}", text(&one, "/storageClassName"), text(&one, "/capacity")));
    }
    Ok(())
}

/// Shows the life of a volume and its copies.
fn life(cluster: &Cluster) -> Result<()> {
    say("\nThe life of a claim");
    step("PVC data (1 Gi) and a pod that uses it, until the pod is ready", || {
        cluster.apply(&[claim("data", CLASS, "1Gi"), pod("app", &["data"])])?;
        cluster.wait_ready(&["app"])
    })?;
    let written = step("the pod writes 32 MiB", || cluster.exec("app", WRITE))?;
    step("expand the claim to 2 Gi while the pod runs, until its filesystem has grown", || {
        cluster.apply(&[claim("data", CLASS, "2Gi")])?;
        cluster.wait("jsonpath={.status.capacity.storage}=2Gi", &["pvc/data"])?;
        let size = cluster.filesystem("app", "/data")?;
        ensure(size > 1 << 30, || format!("the filesystem has {size} bytes"))
    })?;
    step("VolumeSnapshot before, until it is ready to use", || {
        cluster.apply(&[snapshot("before", "data")])?;
        cluster.wait("jsonpath={.status.readyToUse}=true", &["volumesnapshot/before"])
    })?;
    step("the pod writes something else", || cluster.exec("app", "echo other >/data/bytes; sync").map(drop))?;
    let restored = step("PVC restored (3 Gi) from the snapshot, and a pod, until it is ready", || {
        cluster.apply(&[copy("restored", CLASS, "3Gi", "VolumeSnapshot", "before"), pod("restored", &["restored"])])?;
        cluster.wait_ready(&["restored"])?;
        cluster.exec("restored", "sha256sum </restored/bytes")
    })?;
    same("the restored file", &restored, &written)?;
    let size = cluster.filesystem("restored", "/restored")?;
    ensure(size > 2 << 30, || format!("the restored filesystem has {size} bytes"))?;
    say("    the same bytes as before, in a larger filesystem");
    let cloned = step("PVC copied (2 Gi), a clone of data, and a pod, until it is ready", || {
        cluster.apply(&[copy("copied", CLASS, "2Gi", "PersistentVolumeClaim", "data"), pod("copied", &["copied"])])?;
        cluster.wait_ready(&["copied"])?;
        cluster.exec("copied", "cat /copied/bytes")
    })?;
    same("the cloned file", &cloned, "other")
}

/// Scales a StatefulSet to 0 and back.
fn set(cluster: &Cluster) -> Result<()> {
    say("\nA StatefulSet of 3");
    let mut spec = pod_spec(&["disk"]);
    spec["volumes"] = json!([]);
    let replicas = |count: u32| {
        let labels = json!({"app": "database"});
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "database"},
            "spec": {
                "serviceName": "database", "replicas": count, "podManagementPolicy": "Parallel", "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
                "volumeClaimTemplates": [{"metadata": {"name": "disk"}, "spec": claim("disk", CLASS, "200Mi")["spec"]}],
            },
        })
    };
    let pods = ["database-0", "database-1", "database-2"];
    let ready = |count| {
        cluster.apply(&[replicas(count)])?;
        cluster.wait(&format!("jsonpath={{.status.readyReplicas}}={count}"), &["statefulset/database"])
    };
    step("until all are ready", || ready(3))?;
    let write = |name: &&str| {
        cluster.exec(name, "dd if=/dev/urandom of=/disk/bytes bs=1M count=4 2>/dev/null; sync; sha256sum </disk/bytes")
    };
    let before = step("each writes 4 MiB", || pods.iter().map(write).collect::<Result<Vec<_>>>())?;
    step("scaled to 0, until no pod is left", || {
        cluster.apply(&[replicas(0)])?;
        cluster.wait("delete", &pods.map(|name| format!("pod/{name}")).each_ref().map(String::as_str))
    })?;
    step("scaled to 3, until all are ready", || ready(3))?;
    for (name, before) in pods.iter().zip(before) {
        same(name, &cluster.exec(name, "sha256sum </disk/bytes")?, &before)?;
    }
    say("    each pod found its own bytes");
    Ok(())
}

/// Makes a claim for the whole pool of a node.
fn whole(cluster: &Cluster, nodes: &[String]) -> Result<()> {
    say("\nA claim for a whole pool");
    let size = cluster.on(&nodes[0], &format!("lvs --noheadings --nosuffix --units b --options lv_size {VG}/thin"))?;
    step(&format!("PVC whole ({size} bytes) and a pod, until it is ready"), || {
        cluster.apply(&[claim("whole", CLASS, &size), pod("whole", &["whole"])])?;
        cluster.wait_ready(&["whole"])
    })?;
    step("deleted", || cluster.delete(&["pod/whole", "pvc/whole"]))
}
