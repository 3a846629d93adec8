//! `kubectl lvm`, the plugin in deploy/, against a cluster that is a directory of answers: what it reports, and what it does not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use testkit::tool;

/// A `kubectl` that answers `get KIND` with `KIND.json`, and from the second time on with `KIND.2.json` if that exists. It filters
/// events by the object they are about. A pod's metrics come from the file of its name; a pod without one is on a node that is off.
const KUBECTL: &str = r#"#!/bin/bash
cd "$(dirname "$0")"
kind=$2 all=$*
if [[ $1 == exec ]]; then
    cat "$4.metrics" 2>/dev/null || { echo "Unable to connect: no route to host" >&2; exit 1; }
    exit
fi
for word; do [[ $word == csidrivers || $word == nodes || $word == pods || $word == events || $word == *s ]] && kind=$word && break; done
[[ $all != *--all-namespaces* || $kind != pods ]] || kind=all-pods
if [[ $kind == events ]]; then
    about=${all##*involvedObject.}
    about=${about#*=}
    jq --arg about "${about%%,*}" '{items: [.items[] | select(.about == $about)]}' events.json
    exit
fi
count=$(($(cat "$kind.count" 2>/dev/null || echo 0) + 1))
echo $count >"$kind.count"
((count < 2)) || [[ ! -f $kind.2.json ]] || kind=$kind.2
cat "$kind.json" 2>/dev/null || echo '{"items": []}'
"#;

fn list(items: &[Value]) -> String {
    json!({"items": items}).to_string()
}

fn pv(name: &str, claim: &str) -> Value {
    json!({
        "metadata": {"name": name}, "status": {"phase": "Bound"},
        "spec": {"csi": {"driver": "lvm-csi.dev", "volumeHandle": format!("g/{name}")}, "capacity": {"storage": "1Gi"},
            "claimRef": {"namespace": "shop", "name": claim}},
    })
}

fn own(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app.kubernetes.io/component": "node"}},
        "spec": {"nodeName": node, "containers": [{"ports": [{"name": "metrics", "containerPort": 9808}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn node(name: &str, ready: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"topology.lvm-csi.dev/node": name}},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    })
}

fn claim(name: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
        "spec": {"storageClassName": "fast"}, "status": {"phase": "Pending"},
    })
}

/// The last warning about an object.
fn warning(about: &str, reason: &str, message: &str) -> Value {
    json!({"about": about, "reason": reason, "message": message, "lastTimestamp": "2026-01-01T00:00:00Z"})
}

fn cluster(directory: &Path) {
    let write = |name: &str, text: &str| fs::write(directory.join(name), text).expect("a file can be written");
    for (name, text) in [("kubectl", KUBECTL), ("sleep", "#!/bin/sh\n")] {
        write(name, text);
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).expect("its rights can be set");
    }
    write("csidrivers.json", &list(&[json!({"metadata": {"name": "lvm-csi.dev"}})]));
    let set = |kind: &str| json!({"kind": kind, "metadata": {"name": "lvm"}, "status": {"availableReplicas": 1}});
    write("deployments,daemonsets.json", &list(&[set("Deployment"), set("DaemonSet")]));
    // Node n2 is off.
    write("pods.json", &list(&[own("on-n1", "n1"), own("on-n2", "n2")]));
    write("nodes.json", &list(&[node("n1", "True"), node("n2", "Unknown")]));
    write(
        "csinodes.json",
        &list(&["n1", "n2"].map(|name| json!({"metadata": {"name": name}, "spec": {"drivers": [{"name": "lvm-csi.dev"}]}}))),
    );
    write(
        "on-n1.metrics",
        "lvm_csi_pool_size_bytes{pool=\"fast\",vg=\"vg0\"} 10737418240\nlvm_csi_pool_available_bytes{pool=\"fast\",vg=\"vg0\"} 5368709120\n\
         lvm_csi_volume_size_bytes{volume_id=\"g/kept\",pool=\"fast\"} 1\nlvm_csi_volume_size_bytes{volume_id=\"g/new\",pool=\"fast\"} 1\n\
         lvm_csi_volume_size_bytes{volume_id=\"g/orphan\",pool=\"fast\"} 1\nlvm_csi_volume_size_bytes{volume_id=\"g/eh-inline\",pool=\"fast\"} 1\n",
    );
    write("persistentvolumes.json", &list(&[pv("kept", "data")]));
    write("persistentvolumes.2.json", &list(&[pv("kept", "data"), pv("new", "other")]));
    let pod = |name: &str, node: &str| {
        json!({
            "metadata": {"namespace": "shop", "name": name}, "status": {"phase": "Pending"},
            "spec": {"nodeName": node, "volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]},
        })
    };
    write("all-pods.json", &list(&[pod("web", "n1"), pod("starting", "n1")]));
    write("storageclasses.json", &list(&[json!({"metadata": {"name": "fast"}, "provisioner": "lvm-csi.dev"})]));
    write("persistentvolumeclaims.json", &list(&["full", "wrong", "lost"].map(claim)));
    let contents = |name: &str, driver: &str, status: Value| json!({"spec": {"driver": driver, "volumeSnapshotRef": {"namespace": "shop", "name": name}}, "status": status});
    let failed = json!({"readyToUse": false, "error": {"message": "node n2 cannot be asked"}});
    write(
        "volumesnapshotcontents.json",
        &list(&[
            contents("nightly", "lvm-csi.dev", failed.clone()),
            contents("others", "other.dev", failed),
            contents("done", "lvm-csi.dev", json!({"readyToUse": true})),
        ]),
    );
    write(
        "events.json",
        &list(&[
            warning("web", "FailedMount", "MountVolume.SetUp failed:\nno route to host"),
            warning("starting", "BackOff", "something else"),
            warning("uid-full", "ProvisioningFailed", "rpc error: code = ResourceExhausted desc = no room"),
            warning("uid-wrong", "ProvisioningFailed", "rpc error: code = InvalidArgument desc = no such pool"),
            warning("uid-lost", "ProvisioningFailed", "rpc error: code = NotFound desc = no such snapshot"),
        ]),
    );
}

/// Returns what the plugin prints, whether or not it finds something.
fn plugin(directory: &Path, command: &str) -> Vec<String> {
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").expect("there is a path"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubectl-lvm");
    let output = tool::output(tool::command("bash").arg(script).arg(command).env("PATH", path)).expect("the plugin runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    said.lines().map(str::to_owned).collect()
}

#[test]
fn the_doctor_says_what_hangs_and_nothing_of_what_is_on_its_way() {
    let directory = tempfile::tempdir().unwrap();
    cluster(directory.path());
    let said = plugin(directory.path(), "doctor");
    let expected = [
        "node/n2: it is not ready, and its volumes wait for it;",
        "pod/on-n2: its metrics on node n2 cannot be read:",
        "pod/web in shop: it waits on node n1 for volume kept: MountVolume.SetUp failed: no route to host;",
        "pvc/full in shop: rpc error: code = ResourceExhausted desc = no room; it is tried again and again",
        "pvc/lost in shop: rpc error: code = NotFound desc = no such snapshot; what it names does not exist",
        "pvc/wrong in shop: rpc error: code = InvalidArgument desc = no such pool; it can never be met as it is",
        "volume g/orphan on node/n1: no PersistentVolume names it;",
        "volumesnapshot/nightly in shop: node n2 cannot be asked;",
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (line, expected) in said.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line:?} does not begin with {expected:?}");
    }
}

#[test]
fn a_node_that_is_off_stands_beside_the_pools() {
    let directory = tempfile::tempdir().unwrap();
    cluster(directory.path());
    let said = plugin(directory.path(), "pools");
    assert_eq!(said.len(), 3, "{said:#?}");
    assert!(said[1].split_whitespace().eq(["n1", "fast", "vg0", "10", "5", "-", "-", "-"]), "{said:#?}");
    assert_eq!(said[2], "node/n2: its pools are not known: it is not ready");
}
