//! What happens to nodes, to the driver's pods and to the control plane while volumes are in use: no data is lost, nothing is left
//! behind, and what has begun is finished. The tests run one at a time, since each affects the whole cluster.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::error::{Result, ensure};
use testkit::kube::{Cluster, claim, copy, pod, snapshot, until};

use crate::doctor::diagnosed;
use crate::rig::{self, CLASS, IMMEDIATE, Rig};

/// A pod on a node, with a claim of the same name.
fn app(node: &str, name: &str) -> Value {
    let mut app = pod(name, &[name]);
    app["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    app
}

/// Such a pod with its claim.
fn on(node: &str, name: &str) -> [Value; 2] {
    [claim(name, CLASS, "64Mi"), app(node, name)]
}

/// Writes a file of random bytes and returns its digest.
fn write(cluster: &Cluster, name: &str) -> Result<String> {
    cluster.exec(name, &format!("dd if=/dev/urandom of=/{name}/bytes bs=1M count=8 2>/dev/null; sync; sha256sum </{name}/bytes"))
}

fn read(cluster: &Cluster, name: &str) -> Result<String> {
    cluster.exec(name, &format!("sha256sum </{name}/bytes"))
}

fn same(name: &str, found: &str, expected: &str) -> Result<()> {
    ensure(found == expected, || format!("{name} contains {found} instead of {expected}"))
}

/// A pod that durably appends the time to a file on its volume four times a second.
fn ticking(node: &str, name: &str) -> [Value; 2] {
    let [claim, mut app] = on(node, name);
    let script = format!(
        "trap 'exit 0' TERM; while :; do cut -d' ' -f1 /proc/uptime >>/{name}/ticks; sync /{name}/ticks; sleep 0.25; done"
    );
    app["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
    [claim, app]
}

/// Returns the longest pause between two ticks in seconds, and the number of ticks.
fn pauses(cluster: &Cluster, name: &str) -> Result<(f64, usize)> {
    let text = cluster.exec(name, &format!("cat /{name}/ticks"))?;
    let ticks: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    Ok((ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max), ticks.len()))
}

/// Fails unless there are more than `before` ticks and no long pause.
fn ticked_on(cluster: &Cluster, name: &str, before: usize) -> Result<()> {
    let (longest, count) = pauses(cluster, name)?;
    ensure(count > before && longest < 10.0, || format!("{count} ticks (must be more than {before}), longest pause {longest} s"))
}

/// Kills the driver on a node `times` times, each time while LVM or another program works for it. Use it sparingly: kubelet doubles
/// its wait after each failed call, up to two minutes.
fn kill_at_work(cluster: &Cluster, node: &str, times: u32) -> Result<()> {
    // With `sh -e` the last `test` ends the script when no more work comes.
    let script = "i=0; until pid=$(pgrep -o -f '^/usr/sbin/lvm-csi node') && \
         pgrep -P $pid -f 'lvcreate|lvextend|lvchange|mkfs|grow-ext4' >/dev/null && kill -KILL $pid; do i=$((i + 1)); test $i -lt 3000; done";
    (0..times).try_for_each(|_| cluster.on(node, script).map(drop))
}

#[test]
fn a_node_plugin_that_is_killed_at_work_again_and_again_leaves_nothing_half_done() -> Result<()> {
    let rig = Rig::new("killed-node")?;
    let names = ["one", "two", "three", "four"];
    let objects: Vec<Value> = names.iter().flat_map(|name| on("n1", name)).collect();
    rig.cluster.apply(&objects)?;
    kill_at_work(&rig.cluster, "n1", 3)?;
    rig.cluster.wait_ready(&names)?;
    let written = names.iter().map(|name| write(&rig.cluster, name)).collect::<Result<Vec<_>>>()?;
    let larger: Vec<Value> = names.iter().map(|name| claim(name, CLASS, "128Mi")).collect();
    rig.cluster.apply(&larger)?;
    kill_at_work(&rig.cluster, "n1", 2)?;
    for (name, written) in names.iter().zip(&written) {
        rig.cluster.wait("jsonpath={.status.capacity.storage}=128Mi", &[&format!("pvc/{name}")])?;
        same(name, &read(&rig.cluster, name)?, written)?;
        let size = rig.cluster.filesystem(name, &format!("/{name}"))?;
        ensure(size > 100 << 20, || format!("{name} has {size} bytes"))?;
    }
    rig.finish()
}

#[test]
fn a_controller_that_is_killed_while_it_creates_leaks_nothing() -> Result<()> {
    let rig = Rig::new("killed-controller")?;
    let names = ["one", "two", "three", "four", "five", "six"];
    let before: usize =
        rig.cluster.nodes()?.iter().map(|node| rig.cluster.volumes(node).map(|found| found.len())).sum::<Result<_>>()?;
    let kill = || {
        let arguments =
            ["--namespace=lvm-csi", "delete", "pods", "--selector=app.kubernetes.io/component=controller", "--grace-period=0"];
        rig.cluster.kubectl(&[&arguments[..], &["--force", "--wait=false"]].concat())
    };
    let objects: Vec<Value> = names.iter().flat_map(|name| [claim(name, CLASS, "64Mi"), pod(name, &[name])]).collect();
    rig.cluster.apply(&objects)?;
    rig.heard("one", "provisioning volume")?;
    kill()?;
    rig.cluster.wait_ready(&names)?;
    let cuts: Vec<Value> = names.iter().map(|name| snapshot(name, name)).collect();
    rig.cluster.apply(&cuts)?;
    rig.heard("one", "Waiting for a snapshot")?;
    kill()?;
    for name in names {
        rig.cluster.wait("jsonpath={.status.readyToUse}=true", &[&format!("volumesnapshot/{name}")])?;
    }
    let now: usize =
        rig.cluster.nodes()?.iter().map(|node| rig.cluster.volumes(node).map(|found| found.len())).sum::<Result<_>>()?;
    ensure(now == before + 2 * names.len(), || format!("{before} volumes and snapshots before, {now} now"))?;
    rig.cluster.delete(&["volumesnapshots", "--all"])?;
    rig.finish()
}

#[test]
fn pods_go_on_while_kubelet_restarts() -> Result<()> {
    let rig = Rig::new("kubelet")?;
    rig.cluster.apply(&ticking("n1", "clock"))?;
    rig.cluster.wait_ready(&["clock"])?;
    let old = rig.cluster.on("n1", "pgrep -x kubelet")?;
    rig.cluster.on("n1", "pkill -KILL -x kubelet")?;
    until("another kubelet", || {
        let now = rig.cluster.on("n1", "pgrep -x kubelet || true")?;
        Ok((!now.is_empty() && now != old).then_some(()))
    })?;
    // The new kubelet takes up pods with their volumes again.
    rig.cluster.apply(&on("n1", "next"))?;
    rig.cluster.wait_ready(&["next", "clock"])?;
    ticked_on(&rig.cluster, "clock", 10)?;
    rig.finish()
}

#[test]
fn a_pod_finds_its_bytes_after_a_power_cut() -> Result<()> {
    let rig = Rig::new("power")?;
    rig.cluster.apply(&on("n2", "data"))?;
    rig.cluster.wait_ready(&["data"])?;
    let written = write(&rig.cluster, "data")?;
    rig.cluster.lab(&["node", "n2", "power-off"])?;
    rig.cluster.lab(&["node", "n2", "boot"])?;
    // The container is a new one after the power cut.
    until("the pod to run again", || match read(&rig.cluster, "data") {
        Ok(found) => same("data", &found, &written).map(Some),
        Err(_) => Ok(None),
    })?;
    rig.finish()
}

#[test]
fn pods_write_on_while_the_api_server_is_away() -> Result<()> {
    let rig = Rig::new("api")?;
    rig.cluster.apply(&ticking("n1", "clock"))?;
    rig.cluster.wait_ready(&["clock"])?;
    let first = pauses(&rig.cluster, "clock")?.1;
    rig.cluster.lab(&["control", "stop", "kube-apiserver"])?;
    // A minute, against which the pod's own ticks are compared.
    let begun = Instant::now();
    until("a minute without an API server", || Ok((begun.elapsed() > Duration::from_secs(60)).then_some(())))?;
    rig.cluster.lab(&["control", "start", "kube-apiserver"])?;
    until("the API server", || Ok(rig.cluster.kubectl(&["get", "--raw", "/readyz"]).ok()))?;
    ticked_on(&rig.cluster, "clock", first + 60)?;
    // The driver works as before.
    rig.cluster.apply(&on("n2", "next"))?;
    rig.cluster.wait_ready(&["next"])?;
    rig.finish()
}

#[test]
fn a_node_that_is_out_of_service_lets_go_of_its_volumes() -> Result<()> {
    let rig = Rig::new("out-of-service")?;
    rig.cluster.apply(&on("n2", "data"))?;
    rig.cluster.wait_ready(&["data"])?;
    let written = write(&rig.cluster, "data")?;
    let volume = rig.volume("data")?;
    let attached = || {
        let all = rig.cluster.kubectl(&[
            "get",
            "volumeattachments",
            "--output=jsonpath={.items[*].spec.source.persistentVolumeName}",
        ])?;
        Ok::<_, testkit::Trouble>(all.contains(&volume))
    };
    ensure(attached()?, || "there is no VolumeAttachment".to_owned())?;
    rig.cluster.lab(&["node", "n2", "power-off"])?;
    rig.cluster.apply(&[copy("copied", IMMEDIATE, "64Mi", "PersistentVolumeClaim", "data")])?;
    rig.heard("copied", "VolumeWaits")?;
    rig.cluster.delete(&["pvc/copied"])?;
    diagnosed(&rig.cluster, &["node/n2: it is not ready"])?;
    // Nobody is notified of a node that is off for less than a minute.
    rig.heard_of_node("n2", "AgentAway")?;
    let taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
    rig.cluster.kubectl(&["taint", "node", "n2", taint])?;
    rig.cluster.wait("delete", &["pod/data"])?;
    until("the volume to be detached", || Ok((!attached()?).then_some(())))?;
    // The node is repaired and comes back with its volume.
    rig.cluster.lab(&["node", "n2", "boot"])?;
    rig.cluster.kubectl(&["taint", "node", "n2", &format!("{taint}-")])?;
    rig.cluster.apply(&on("n2", "data"))?;
    rig.cluster.wait_ready(&["data"])?;
    same("data", &read(&rig.cluster, "data")?, &written)?;
    rig.heard_of_node("n2", "AgentBack")?;
    rig.finish()
}

#[test]
fn a_volume_is_made_once_when_its_node_and_the_controllers_are_lost_together() -> Result<()> {
    let rig = Rig::new("lost-together")?;
    let nodes = rig.cluster.nodes()?;
    // Whichever node is chosen, its driver waits for somebody else's lvm lock.
    for node in &nodes {
        rig.cluster.on(node, "nohup flock --no-fork /run/lock/lvm/V_lvm-csi sleep 600 >/dev/null 2>&1 & echo $! >/run/locker")?;
    }
    rig.cluster.apply(&[claim("data", IMMEDIATE, "64Mi")])?;
    let (node, volume) = until("a node to be recorded in the claim", || {
        let found = rig.cluster.get(&["pvc/data"])?;
        let node = found["metadata"]["annotations"]["lvm-csi.dev/node"].as_str().and_then(|note| note.split_once('/'));
        Ok(node.map(|(uid, node)| (node.to_owned(), format!("pvc-{uid}"))))
    })?;
    // Neither these controllers nor their successors hear of the volume.
    rig.scale_controllers(0)?;
    let controllers = ["pods", "--namespace=lvm-csi", "--selector=app.kubernetes.io/component=controller"];
    rig.cluster.kubectl(&[&["delete", "--force", "--grace-period=0"], &controllers[..]].concat())?;
    for node in &nodes {
        rig.cluster.on(node, "kill $(cat /run/locker)")?;
    }
    let has = |node: &String| Ok::<_, testkit::Trouble>(rig.cluster.volumes(node)?.contains(&volume));
    until("the volume to be made", || Ok(has(&node)?.then_some(())))?;
    rig.cluster.lab(&["node", &node, "power-off"])?;
    rig.scale_controllers(2)?;
    rig.heard("data", "VolumeWaits")?;
    rig.cluster.lab(&["node", &node, "boot"])?;
    rig.cluster.wait("jsonpath={.status.phase}=Bound", &["pvc/data"])?;
    ensure(rig.node_of_volume(&volume)? == node, || format!("{volume} does not belong to {node}"))?;
    for other in nodes.iter().filter(|other| **other != node) {
        ensure(!has(other)?, || format!("{volume} was also made on {other}"))?;
    }
    rig.finish()
}

#[test]
fn pods_write_on_while_the_driver_is_upgraded_and_rolled_back() -> Result<()> {
    let rig = Rig::new("upgrade")?;
    rig.cluster.apply(&ticking("n1", "clock"))?;
    rig.cluster.wait_ready(&["clock"])?;
    let first = pauses(&rig.cluster, "clock")?.1;
    // The upgrade interrupts calls, which are then repeated.
    rig.cluster.apply(&on("n2", "during"))?;
    rig::install(&rig.cluster, &["node.podAnnotations.release=next", "controller.podAnnotations.release=next"])?;
    rig.cluster.apply(&on("n1", "between"))?;
    rig.cluster.wait_ready(&["during", "between"])?;
    rig.cluster.roll_back()?;
    rig.cluster.apply(&on("n2", "after"))?;
    rig.cluster.wait_ready(&["after"])?;
    ticked_on(&rig.cluster, "clock", first + 20)?;
    rig.finish()
}

#[test]
fn volumes_need_no_attachment_where_the_driver_says_so() -> Result<()> {
    let rig = Rig::new("unattached")?;
    // The CSIDriver's attachRequired cannot be changed, so the object is made anew.
    let install = |attached: bool| {
        rig.cluster.delete(&["csidriver/lvm-csi.dev"])?;
        rig::install(&rig.cluster, &[&format!("attachRequired={attached}")])
    };
    install(false)?;
    let names = ["one", "two"];
    for (node, name) in ["n1", "n2"].iter().zip(names) {
        rig.cluster.apply(&on(node, name))?;
    }
    rig.cluster.wait_ready(&names)?;
    let attachments = rig.cluster.kubectl(&["get", "volumeattachments", "--output=name"])?;
    ensure(attachments.is_empty(), || format!("there are VolumeAttachments: {attachments}"))?;
    let written = names.iter().map(|name| write(&rig.cluster, name)).collect::<Result<Vec<_>>>()?;
    // A volume grows where it is used, its driver is killed meanwhile, and the volume is used again.
    rig.cluster.apply(&[claim("one", CLASS, "128Mi"), snapshot("cut", "two")])?;
    kill_at_work(&rig.cluster, "n1", 1)?;
    rig.cluster.wait("jsonpath={.status.capacity.storage}=128Mi", &["pvc/one"])?;
    rig.cluster.wait("jsonpath={.status.readyToUse}=true", &["volumesnapshot/cut"])?;
    rig.cluster.delete(&["pod/one", "pod/two"])?;
    rig.cluster.apply(&[app("n1", "one"), app("n2", "two")])?;
    rig.cluster.apply(&[copy("restored", CLASS, "64Mi", "VolumeSnapshot", "cut"), app("n2", "restored")])?;
    rig.cluster.wait_ready(&["one", "two", "restored"])?;
    for (name, written) in names.iter().zip(&written) {
        same(name, &read(&rig.cluster, name)?, written)?;
    }
    same("restored", &read(&rig.cluster, "restored")?, &written[1])?;
    rig.cluster.delete(&["volumesnapshot/cut"])?;
    rig.clear()?;
    install(true)
}

#[test]
fn twenty_pods_come_and_go_at_once() -> Result<()> {
    let rig = Rig::new("twenty")?;
    let names: Vec<String> = (1..=20).map(|number| format!("pod{number}")).collect();
    let objects: Vec<Value> = names.iter().flat_map(|name| [claim(name, CLASS, "64Mi"), pod(name, &[name])]).collect();
    rig.cluster.apply(&objects)?;
    rig.cluster.wait_ready(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    rig.finish()
}
