//! What users need from volumes in Kubernetes, beyond what `hack/demo k8s` shows.

use serde_json::json;
use testkit::error::{Result, ensure};
use testkit::kube::{claim, copy, pod, snapshot, until};

use crate::rig::{CLASS, IMMEDIATE, Rig, only_on};

#[test]
fn a_volume_is_made_before_its_pod_where_the_class_says_so() -> Result<()> {
    let rig = Rig::new("immediate")?;
    rig.cluster.apply(&[claim("data", IMMEDIATE, "64Mi"), claim("greedy", IMMEDIATE, "1Ti")])?;
    rig.heard("greedy", "PoolFull")?;
    rig.cluster.wait("jsonpath={.status.phase}=Bound", &["pvc/data"])?;
    let node = rig.node_of_volume(&rig.volume("data")?)?;
    rig.cluster.apply(&[pod("app", &["data"])])?;
    rig.cluster.wait_ready(&["app"])?;
    let found = rig.node_of("app")?;
    ensure(found == node, || format!("the volume is on {node}, but its pod on {found}"))?;
    rig.finish()
}

#[test]
fn a_pod_that_is_not_root_may_write_as_its_group() -> Result<()> {
    let rig = Rig::new("group")?;
    let mut app = pod("app", &["data"]);
    app["spec"]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000});
    rig.cluster.apply(&[claim("data", CLASS, "64Mi"), app])?;
    rig.cluster.wait_ready(&["app"])?;
    let found = rig.cluster.exec("app", "echo x >/data/file; stat -c '%u %g' /data/file; stat -c %g /data")?;
    ensure(found == "1000 2000\n2000", || format!("the owners are {found}"))?;
    rig.finish()
}

#[test]
fn a_block_device_keeps_its_bytes_from_pod_to_pod() -> Result<()> {
    let rig = Rig::new("block")?;
    let mut wanted = claim("data", CLASS, "64Mi");
    wanted["spec"]["volumeMode"] = json!("Block");
    let app = |name: &str| {
        let mut app = pod(name, &["data"]);
        app["spec"]["containers"][0]["volumeMounts"] = json!([]);
        app["spec"]["containers"][0]["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/data"}]);
        app
    };
    rig.cluster.apply(&[wanted, app("first")])?;
    rig.cluster.wait_ready(&["first"])?;
    let zeros = rig.cluster.exec("first", "cmp -n 67108864 /dev/data /dev/zero && echo zeros")?;
    ensure(zeros == "zeros", || format!("a new device contains: {zeros}"))?;
    let script =
        "dd if=/dev/urandom of=/dev/data bs=1M count=8 2>/dev/null; sync; dd if=/dev/data bs=1M count=8 2>/dev/null | sha256sum";
    let written = rig.cluster.exec("first", script)?;
    rig.cluster.delete(&["pod/first"])?;
    rig.cluster.apply(&[app("second")])?;
    rig.cluster.wait_ready(&["second"])?;
    let found = rig.cluster.exec("second", "dd if=/dev/data bs=1M count=8 2>/dev/null | sha256sum")?;
    ensure(found == written, || format!("the digest is {found} instead of {written}"))?;
    rig.finish()
}

#[test]
fn a_volume_of_one_pod_only_waits_for_the_first_to_go() -> Result<()> {
    let rig = Rig::new("rwop")?;
    let mut wanted = claim("data", CLASS, "64Mi");
    wanted["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    rig.cluster.apply(&[wanted, pod("first", &["data"])])?;
    rig.cluster.wait_ready(&["first"])?;
    rig.cluster.apply(&[pod("second", &["data"])])?;
    rig.heard("second", "ReadWriteOncePod")?;
    rig.cluster.delete(&["pod/first"])?;
    rig.cluster.wait_ready(&["second"])?;
    rig.finish()
}

#[test]
fn a_volume_that_is_retained_finds_its_way_back() -> Result<()> {
    let rig = Rig::new("retain")?;
    rig.cluster.apply(&[claim("data", CLASS, "64Mi"), pod("app", &["data"])])?;
    rig.cluster.wait_ready(&["app"])?;
    rig.cluster.exec("app", "echo kept >/data/file; sync")?;
    let volume = rig.volume("data")?;
    let patch = |what: &str| rig.cluster.kubectl(&["patch", "pv", &volume, "--patch", what]).map(drop);
    rig.reclaim(&volume, "Retain")?;
    rig.cluster.delete(&["pod/app", "pvc/data"])?;
    let object = format!("pv/{volume}");
    rig.cluster.wait("jsonpath={.status.phase}=Released", &[&object])?;
    // The volume forgets its claim, and a new claim names it.
    patch(r#"{"spec": {"claimRef": null}}"#)?;
    let mut back = claim("back", CLASS, "64Mi");
    back["spec"]["volumeName"] = json!(volume);
    rig.cluster.apply(&[back, pod("app", &["back"])])?;
    rig.cluster.wait_ready(&["app"])?;
    let found = rig.cluster.exec("app", "cat /back/file")?;
    ensure(found == "kept", || format!("the file contains {found:?}"))?;
    rig.reclaim(&volume, "Delete")?;
    rig.finish()
}

#[test]
fn copies_lie_on_the_node_of_their_source() -> Result<()> {
    let rig = Rig::new("copies")?;
    rig.cluster.apply(&[claim("data", CLASS, "64Mi"), pod("app", &["data"])])?;
    rig.cluster.wait_ready(&["app"])?;
    rig.cluster.apply(&[snapshot("cut", "data")])?;
    rig.cluster.wait("jsonpath={.status.readyToUse}=true", &["volumesnapshot/cut"])?;
    let source = rig.node_of_volume(&rig.volume("data")?)?;
    for (name, kind, of) in [("restored", "VolumeSnapshot", "cut"), ("cloned", "PersistentVolumeClaim", "data")] {
        // The scheduler does not know about sources and may choose the other node first.
        rig.cluster.apply(&[copy(name, CLASS, "64Mi", kind, of), pod(name, &[name])])?;
        rig.cluster.wait_ready(&[name])?;
        let (node, runs) = (rig.node_of_volume(&rig.volume(name)?)?, rig.node_of(name)?);
        ensure(node == source && runs == source, || format!("{name}: volume on {node}, pod on {runs}, source on {source}"))?;
    }
    rig.cluster.delete(&["volumesnapshot/cut"])?;
    rig.finish()
}

#[test]
fn a_volume_lives_as_long_as_its_pod() -> Result<()> {
    let rig = Rig::new("ephemeral")?;
    let mut app = pod("app", &["scratch"]);
    app["spec"]["volumes"] =
        json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim("x", CLASS, "64Mi")["spec"]}}}]);
    rig.cluster.apply(&[app])?;
    rig.cluster.wait_ready(&["app"])?;
    rig.cluster.exec("app", "echo x >/scratch/file; sync")?;
    let volume = rig.volume("app-scratch")?;
    rig.cluster.delete(&["pod/app"])?;
    rig.gone(&[volume])?;
    rig.finish()
}

#[test]
fn a_pod_may_have_a_volume_of_its_own_without_a_claim() -> Result<()> {
    let rig = Rig::new("inline")?;
    let app = |name: &str, size: &str| {
        let mut app = pod(name, &["scratch"]);
        let volume = json!({"driver": "lvm-csi.dev", "fsType": "ext4", "volumeAttributes": {"size": size}});
        app["spec"]["volumes"] = json!([{"name": "scratch", "csi": volume}]);
        app
    };
    rig.cluster.apply(&[app("app", "64Mi"), app("greedy", "5Gi")])?;
    rig.cluster.wait_ready(&["app"])?;
    rig.cluster.exec("app", "echo x >/scratch/file; sync; grep -q ' /scratch ext4 ' /proc/mounts")?;
    let node = rig.node_of("app")?;
    let inline = || rig.cluster.on(&node, "lvs --noheadings --options lv_name --select 'lv_name=~^eh-'");
    ensure(!inline()?.is_empty(), || format!("the pod has no inline volume on {node}"))?;
    // More than the pool allows.
    rig.heard("greedy", "size")?;
    rig.cluster.delete(&["pod/app", "pod/greedy"])?;
    until("the volume to go with its pod", || Ok(inline()?.is_empty().then_some(())))?;
    rig.finish()
}

#[test]
fn a_static_volume_is_bound_by_its_label_and_believed_only_if_its_attributes_agree() -> Result<()> {
    let rig = Rig::new("static")?;
    rig.cluster.apply(&[claim("data", CLASS, "64Mi"), pod("app", &["data"])])?;
    rig.cluster.wait_ready(&["app"])?;
    rig.cluster.exec("app", "echo kept >/data/file; sync")?;
    let (volume, node) = (rig.volume("data")?, rig.node_of("app")?);
    let handle = rig.cluster.kubectl(&["get", "pv", &volume, "--output=jsonpath={.spec.csi.volumeHandle}"])?;
    rig.reclaim(&volume, "Retain")?;
    rig.cluster.delete(&["pod/app", "pvc/data", &format!("pv/{volume}")])?;
    // What an administrator writes for an existing volume.
    let lv = handle.rsplit('/').next().unwrap_or_default();
    let fixed = |name: &str, attributes: serde_json::Value| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "labels": {"volume": name}},
            "spec": {
                "capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Delete",
                "csi": {"driver": "lvm-csi.dev", "volumeHandle": handle, "volumeAttributes": attributes},
                "nodeAffinity": only_on(&node),
            },
        })
    };
    let selecting = |name: &str| {
        let mut claim = claim(name, "", "64Mi");
        claim["spec"]["selector"] = json!({"matchLabels": {"volume": name}});
        claim
    };
    let mut wrong = fixed("static-wrong", json!({"volumegroup": "lvm-csi", "volumeid": lv}));
    wrong["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    rig.cluster.apply(&[wrong, selecting("static-wrong"), pod("wrong", &["static-wrong"])])?;
    rig.heard("wrong", "volumeid")?;
    rig.cluster.delete(&["pod/wrong", "pvc/static-wrong"])?;
    rig.forget(&["static-wrong"])?;
    let right = fixed("static-right", json!({"volumegroup": "lvm-csi", "volumeID": lv}));
    rig.cluster.apply(&[right, selecting("static-right"), pod("right", &["static-right"])])?;
    rig.cluster.wait_ready(&["right"])?;
    let found = rig.cluster.exec("right", "cat /static-right/file")?;
    ensure(found == "kept", || format!("the file contains {found:?}"))?;
    rig.finish()
}

#[test]
fn a_claim_that_no_node_has_room_for_says_so_and_binds_when_there_is_room() -> Result<()> {
    let rig = Rig::new("room")?;
    rig.cluster.apply(&[claim("data", CLASS, "1Ti"), pod("app", &["data"])])?;
    rig.heard("app", "free storage")?;
    rig.cluster.delete(&["pod/app", "pvc/data"])?;
    rig.cluster.apply(&[claim("data", CLASS, "64Mi"), pod("app", &["data"])])?;
    rig.cluster.wait_ready(&["app"])?;
    rig.finish()
}

#[test]
fn an_expansion_beyond_the_pool_is_told_and_the_volume_goes_on() -> Result<()> {
    let rig = Rig::new("expand")?;
    rig.cluster.apply(&[claim("data", CLASS, "64Mi"), pod("app", &["data"])])?;
    rig.cluster.wait_ready(&["app"])?;
    rig.cluster.apply(&[claim("data", CLASS, "1Ti")])?;
    rig.heard("data", "pool")?;
    rig.cluster.exec("app", "echo x >/data/file; sync")?;
    // A person reduces the request.
    rig.cluster.apply(&[claim("data", CLASS, "128Mi")])?;
    rig.cluster.wait("jsonpath={.status.capacity.storage}=128Mi", &["pvc/data"])?;
    until("the filesystem to grow", || Ok((rig.cluster.filesystem("app", "/data")? > 100 << 20).then_some(())))?;
    rig.finish()
}
