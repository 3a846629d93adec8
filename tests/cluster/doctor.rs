//! What `kubectl lvm doctor` reports when things are broken on purpose: one line each, and nothing once they are repaired.

use serde_json::json;
use testkit::error::{Result, ensure};
use testkit::kube::{Cluster, DRIVER, claim, pod, until};

use crate::rig::{self, CLASS, IMMEDIATE, Rig, immediate, only_on};

/// Waits until the doctor prints a line with each of these beginnings.
pub(crate) fn diagnosed(cluster: &Cluster, lines: &[&str]) -> Result<()> {
    until(&format!("the doctor to print {lines:?}"), || {
        let printed = cluster.doctor(DRIVER)?;
        Ok(lines.iter().all(|line| printed.iter().any(|found| found.starts_with(line))).then_some(()))
    })
}

/// Waits until the doctor reports nothing.
fn well(cluster: &Cluster) -> Result<()> {
    until("the doctor to report nothing", || Ok(cluster.doctor(DRIVER)?.is_empty().then_some(())))
}

#[test]
fn claims_and_volumes() -> Result<()> {
    let rig = Rig::new("doctor")?;
    well(&rig.cluster)?;
    let mut foreign = claim("foreign", CLASS, "64Mi");
    foreign["spec"]["dataSource"] = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "none"});
    let released = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "doctor-released"},
        "spec": {
            "capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": "lvm-csi.dev", "volumeHandle": "none"},
            "claimRef": {"namespace": "doctor", "name": "gone", "uid": "0b6c6a0e-1111-4222-8333-444455556666"},
        },
    });
    // Somebody has removed its LV.
    let group = rig.cluster.on("n1", "vgs --noheadings --options vg_uuid lvm-csi")?;
    let lost = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "doctor-lost"},
        "spec": {
            "capacity": {"storage": "64Mi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "", "csi": {"driver": "lvm-csi.dev", "volumeHandle": format!("{group}/none")},
            "nodeAffinity": only_on("n1"),
        },
    });
    let mut wanting = claim("lost", "", "64Mi");
    wanting["spec"]["volumeName"] = json!("doctor-lost");
    // Kept and forgotten later: a volume that a provisioner has not seen bound before it goes is provisioned once more, and
    // deleted.
    let orphan = claim("orphan", IMMEDIATE, "64Mi");
    rig.cluster.apply(&[orphan, foreign, pod("foreign", &["foreign"]), released, lost, wanting, pod("lost", &["lost"])])?;
    diagnosed(
        &rig.cluster,
        &["pvc/foreign in doctor: ", "pv/doctor-released: it is Released", "volumeattachment of doctor-lost: "],
    )?;
    rig.cluster.wait("jsonpath={.status.phase}=Bound", &["pvc/orphan"])?;
    let orphan = rig.volume("orphan")?;
    let node = rig.node_of_volume(&orphan)?;
    rig.reclaim(&orphan, "Retain")?;
    rig.cluster.delete(&["pvc/orphan", &format!("pv/{orphan}")])?;
    let group = rig.cluster.on(&node, "vgs --noheadings --options vg_uuid lvm-csi")?;
    diagnosed(&rig.cluster, &[&format!("volume {group}/{orphan} on node/{node}: no PersistentVolume names it")])?;
    rig.cluster.on(&node, &format!("lvremove --quiet --yes lvm-csi/{orphan}"))?;
    rig.cluster.delete(&["pod/foreign", "pod/lost", "pvc/foreign", "pvc/lost"])?;
    rig.forget(&["doctor-released", "doctor-lost"])?;
    well(&rig.cluster)?;
    rig.finish()
}

#[test]
fn parts_of_the_driver() -> Result<()> {
    let rig = Rig::new("doctor-parts")?;
    let elsewhere = rig.cluster.doctor("default")?;
    ensure(elsewhere.iter().any(|line| line.starts_with("namespace/default: the driver is not installed")), || {
        format!("for another namespace the doctor prints {elsewhere:?}")
    })?;
    // kubelet forgets a driver whose socket is removed.
    rig.cluster.on("n1", "rm /var/lib/kubelet/plugins_registry/lvm-csi.dev-reg.sock")?;
    diagnosed(&rig.cluster, &["csinode/n1: kubelet does not know the driver"])?;
    rig.cluster.delete(&["--namespace", DRIVER, "pod", &rig.cluster.node_pod("n1")?])?;
    well(&rig.cluster)?;
    // The driver stops, and later kubelet restarts it.
    let pod = rig.cluster.node_pod("n2")?;
    rig.cluster.on("n2", "pkill -STOP -f '^/usr/sbin/lvm-csi node'")?;
    diagnosed(
        &rig.cluster,
        &[
            &format!("pod/{pod}: its metrics on node n2 cannot be read"),
            "node/n2: the controller cannot call its agent",
            &format!("pod/{pod}: it is not ready on node n2"),
        ],
    )?;
    rig.cluster.on("n2", "pkill -CONT -f '^/usr/sbin/lvm-csi node' || true")?;
    well(&rig.cluster)?;
    rig.scale_controllers(0)?;
    rig.cluster.delete(&["csidriver/lvm-csi.dev"])?;
    diagnosed(
        &rig.cluster,
        &["deployment/lvm-csi-controller: no replica is available", "csidriver/lvm-csi.dev: it does not exist"],
    )?;
    rig.scale_controllers(2)?;
    rig::install(&rig.cluster, &[])?;
    well(&rig.cluster)?;
    rig.finish()
}

#[test]
fn groups_and_pools() -> Result<()> {
    let rig = Rig::new("doctor-groups")?;
    // A small group of its own, with a disk that can be taken away.
    let take = "losetup --detach /dev/loop0";
    let bring = "losetup /dev/loop0 /run/more";
    rig.cluster.on(
        "n1",
        &format!(
            "modprobe loop; truncate -s 64M /run/more; {bring}; vgcreate --quiet small /dev/ubdb; \
             lvcreate --quiet --type thin-pool --extents 100%FREE --name thin small; vgextend --quiet small /dev/loop0; pvchange --quiet --allocatable n /dev/loop0; \
             vgchange --quiet --setautoactivation n small"
        ),
    )?;
    let pools = ["pools[1].name=small", "pools[1].volumeGroup=small", "pools[1].layout=thin"];
    rig::install(&rig.cluster, &[&pools[..], &["config.wedgedAfterSeconds=5"]].concat())?;
    rig.cluster.apply(&[immediate("small", "small")])?;
    well(&rig.cluster)?;
    for node in rig.cluster.nodes()? {
        // The machine's own doctor exits with 0 only if nothing is wrong.
        until(&format!("nothing to be wrong on {node}"), || Ok(rig.cluster.on_machine(&node, &["doctor"]).ok()))?;
    }
    // Its disk goes away and comes back.
    rig.cluster.on("n1", take)?;
    diagnosed(&rig.cluster, &["group small on node/n1: a disk of it is away"])?;
    rig.cluster.on("n1", bring)?;
    well(&rig.cluster)?;
    // Somebody holds LVM's lock.
    rig.cluster.on("n1", "setsid flock /run/lock/lvm/V_small sleep 1000 >/dev/null 2>&1 </dev/null &")?;
    rig.cluster.apply(&[claim("data", "small", "16Mi")])?;
    diagnosed(&rig.cluster, &["group small on node/n1: an LVM command hangs"])?;
    rig.cluster.on("n1", "pkill -f 'sleep 1000'")?;
    rig.cluster.wait("jsonpath={.status.phase}=Bound", &["pvc/data"])?;
    well(&rig.cluster)?;
    // Somebody fills the pool.
    rig.cluster.on(
        "n1",
        "size=$(lvs --noheadings --nosuffix --units m --options lv_size small/thin | cut -d. -f1); \
         lvcreate --quiet --virtualsize ${size}M --thinpool thin --name filler small; \
         dd if=/dev/zero of=/dev/small/filler bs=1M count=$((size * 95 / 100)) conv=fsync 2>/dev/null",
    )?;
    diagnosed(&rig.cluster, &["pool small on node/n1: its data are 9"])?;
    rig.cluster.on("n1", "lvremove --quiet --yes small/filler")?;
    well(&rig.cluster)?;
    rig.clear()?;
    rig.cluster.delete(&["storageclass/small"])?;
    rig::install(&rig.cluster, &[])?;
    rig.cluster.on(
        "n1",
        &format!("vgremove --quiet --yes --force small; pvremove --quiet /dev/ubdb /dev/loop0; {take}; rm /run/more"),
    )?;
    well(&rig.cluster)
}
