//! In a Kubernetes of one node: how much longer a pod takes to start with a volume, and what the driver uses when it has many volumes and
//! nothing to do.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use serde_json::Value;
use testkit::error::{Result, Trouble, ensure};
use testkit::kube::{Cluster, DRIVER, LIMIT, claim, pod, until};
use testkit::lab::complain;
use testkit::tool;

use super::calls::{self, Call};
use super::measure::{Bound, Pairs, Row, Times};

/// The StorageClass of the chart's default values: thin, ext4.
const CLASS: &str = "lvm-csi";
const SIZE: &str = "64Mi";
/// Samples of single pods and of crowds, each with and without volumes. The first of each does not count.
const ONE_BY_ONE: usize = 6;
const CROWDS: usize = 4;
/// Number of pods that start at once.
const CROWD: usize = 12;
/// Number of volumes while nothing happens.
const VOLUMES: usize = 50;
/// The calls before a pod starts.
const CALLS: [&str; 4] = ["CreateVolume", "ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"];
/// Between these calls kubelet waits until `volumesInUse` of its node names the volume. It sets that itself, when it next reports its
/// status.
const WAITED: (&str, &str) = ("ControllerPublishVolume", "NodeStageVolume");

/// Bounds of single pods, in seconds more than without a volume: without attachment, and with it, not counting those waits.
const UNATTACHED: Bound = Bound::AtMost(2.0);
const ATTACHED: Bound = Bound::AtMost(2.5);
/// Bound of a crowd, as a multiple of one without volumes, not counting those waits.
const AT_ONCE: Bound = Bound::AtMost(1.3);
/// Bounds of resident memory in MiB.
const NODE: Bound = Bound::AtMost(25.0);
const CONTROLLER: Bound = Bound::AtMost(30.0);

/// `idle` is how long nothing happens in the last measurement.
pub(crate) fn run(idle: Duration) -> Result<Vec<Row>> {
    let cluster = Cluster::find()?;
    let nodes = cluster.nodes()?;
    let [node] = nodes.as_slice() else {
        return Err(Trouble::wrong(format!("the cluster has {} nodes instead of one", nodes.len())));
    };
    cluster.make_group(node)?;
    let mut rows = Vec::new();
    for attached in [false, true] {
        complain(&format!("bench: {}", way(attached)));
        install(&cluster, attached)?;
        rows.extend(one_by_one(&cluster, attached)?);
        rows.extend(crowds(&cluster, node, attached)?);
    }
    rows.extend(many(&cluster, node, idle)?);
    Ok(rows)
}

fn install(cluster: &Cluster, attached: bool) -> Result<()> {
    // attachRequired of a CSIDriver is immutable.
    cluster.delete(&["csidriver/lvm-csi.dev"])?;
    // Log only the ends of calls: each line takes time on the node, and by default there are none.
    cluster.install(&[&format!("attachRequired={attached}"), "logging.level=lvm_csi::rpc=debug", "logging.format=json"])
}

fn way(attached: bool) -> String {
    format!("attachRequired={attached}")
}

/// A row without a comparison.
fn single(what: String, samples: &[Duration], figure: f64, unit: &str, bound: Bound) -> Row {
    let (place, against) = ("k8s".to_owned(), String::new());
    Row { place, what, driver: Times::of(samples), against, other: None, figure, unit: unit.to_owned(), bound }
}

fn one_by_one(cluster: &Cluster, attached: bool) -> Result<Vec<Row>> {
    let mut pairs = Pairs::default();
    let (mut waits, mut seen) = (Vec::new(), Vec::new());
    for round in 0..ONE_BY_ONE {
        let bare = started(cluster, &["pod".to_owned()], None)?;
        let with = started(cluster, &["pod".to_owned()], Some(attached))?;
        pairs.add(with.without_waits(), bare.last());
        if round > 0 {
            waits.extend(with.waits());
            seen.extend(with.calls);
        }
    }
    let way = way(attached);
    let (what, bound) =
        if attached { ("claim and pod to Ready, but for that", ATTACHED) } else { ("claim and pod to Ready", UNATTACHED) };
    let mut rows = wait_row(&way, &waits, attached);
    rows.push(pairs.difference("k8s", &format!("{way}: {what}"), "a pod without a volume", bound));
    rows.extend(shares(&way, &seen));
    Ok(rows)
}

fn crowds(cluster: &Cluster, node: &str, attached: bool) -> Result<Vec<Row>> {
    let names: Vec<String> = (0..CROWD).map(|number| format!("pod-{number}")).collect();
    let (mut whole, mut pairs) = (Pairs::default(), Pairs::default());
    let (mut waits, mut seen) = (Vec::new(), Vec::new());
    for round in 0..CROWDS {
        settle(cluster, node)?;
        let bare = started(cluster, &names, None)?;
        settle(cluster, node)?;
        let with = started(cluster, &names, Some(attached))?;
        whole.add(with.last(), bare.last());
        pairs.add(with.without_waits(), bare.last());
        if round > 0 {
            waits.extend(with.waits());
            seen.extend(with.calls);
        }
    }
    let way = format!("{}, {CROWD} at once", way(attached));
    let mut rows = wait_row(&way, &waits, attached);
    let row = |pairs: &Pairs, but: &str, bound| {
        pairs.ratio("k8s", &format!("{way}: to the last's Ready{but}"), "pods without volumes", bound)
    };
    if attached {
        rows.push(row(&pairs, ", each but for that", AT_ONCE));
        rows.push(row(&whole, "", Bound::None));
    } else {
        rows.push(row(&whole, "", AT_ONCE));
    }
    rows.extend(shares(&way, &seen));
    Ok(rows)
}

/// The row of kubelet's waits, if volumes are attached.
fn wait_row(way: &str, waits: &[Duration], attached: bool) -> Vec<Row> {
    let what = format!("{way}: kubelet's wait for volumesInUse");
    attached.then(|| single(what, waits, Times::of(waits).p50 / 1e3, "s", Bound::None)).into_iter().collect()
}

/// The start of some pods.
struct Started {
    /// For each the time from the request to Ready, and the part of it in which kubelet waited for `volumesInUse`.
    pods: Vec<(Duration, Duration)>,
    /// The driver's calls for them.
    calls: Vec<Call>,
}

impl Started {
    /// When the last pod was ready.
    fn last(&self) -> Duration {
        self.pods.iter().map(|(ready, _)| *ready).max().unwrap_or_default()
    }

    /// When the last pod would have been ready without kubelet's waits.
    fn without_waits(&self) -> Duration {
        self.pods.iter().map(|(ready, wait)| ready.saturating_sub(*wait)).max().unwrap_or_default()
    }

    fn waits(&self) -> impl Iterator<Item = Duration> {
        self.pods.iter().map(|(_, wait)| *wait)
    }
}

/// Starts pods at once, then deletes them. With `attached` each has a claim of its name; its value is the driver's `attachRequired`.
fn started(cluster: &Cluster, names: &[String], attached: Option<bool>) -> Result<Started> {
    let mut objects = Vec::new();
    for name in names {
        if attached.is_some() {
            objects.extend([claim(name, CLASS, SIZE), pod(name, &[name])]);
        } else {
            objects.push(pod(name, &[]));
        }
    }
    let since = now()?;
    let start = Instant::now();
    cluster.apply(&objects)?;
    let ready = cluster.each_ready(&names.iter().map(String::as_str).collect::<Vec<_>>(), start)?;
    let volumes = (attached == Some(true)).then(|| volumes(cluster)).transpose()?;
    remove(cluster)?;
    let calls = if attached.is_some() { calls_since(cluster, &since)? } else { Vec::new() };
    let pod = |name: &String| {
        let ready = ready.get(name.as_str()).copied().unwrap_or_default();
        let wait = match &volumes {
            Some(volumes) => waited(&calls, volumes.get(name).map_or("", String::as_str))?,
            None => Duration::ZERO,
        };
        Ok((ready, wait))
    };
    Ok(Started { pods: names.iter().map(pod).collect::<Result<_>>()?, calls })
}

/// Volume ids by the names of their claims.
fn volumes(cluster: &Cluster) -> Result<HashMap<String, String>> {
    let list = cluster.get(&["persistentvolumes"])?;
    let text = |volume: &Value, pointer| volume.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let pair = |volume| (text(volume, "/spec/claimRef/name"), text(volume, "/spec/csi/volumeHandle"));
    Ok(list["items"].as_array().into_iter().flatten().map(pair).collect())
}

fn remove(cluster: &Cluster) -> Result<()> {
    cluster.delete(&["pods", "--all"])?;
    cluster.delete(&["persistentvolumeclaims", "--all"])?;
    until("all volumes to be deleted", || {
        let left = cluster.kubectl(&["get", "persistentvolumes,volumeattachments", "--output=name"])?;
        Ok(left.trim().is_empty().then_some(()))
    })
}

/// Waits until kubelet has removed the dead sandboxes of earlier pods. It does so once a minute, and a crowd's take seconds of processor
/// time, which would otherwise hit some later sample by chance.
fn settle(cluster: &Cluster, node: &str) -> Result<()> {
    const COUNT: &str = "ctr --namespace k8s.io containers ls --quiet | wc -l; ctr --namespace k8s.io tasks ls --quiet | wc -l";
    tool::wait_slowly("kubelet to remove dead containers", LIMIT, Duration::from_secs(3), || {
        let counts = cluster.on(node, COUNT)?;
        let mut counts = counts.split_whitespace();
        Ok((counts.next() == counts.next()).then_some(()))
    })
}

/// The time, in the format of `kubectl logs --since-time`.
fn now() -> Result<String> {
    tool::run("date", &["--utc", "+%Y-%m-%dT%H:%M:%SZ"]).map(|time| time.trim().to_owned())
}

/// The calls of controllers and node plugin since then.
fn calls_since(cluster: &Cluster, since: &str) -> Result<Vec<Call>> {
    let mut found = Vec::new();
    for component in ["controller", "node"] {
        let selector = format!("--selector=app.kubernetes.io/component={component}");
        let since = format!("--since-time={since}");
        let log = cluster.kubectl(&["logs", "--namespace", DRIVER, &selector, "--container=lvm-csi", "--tail=-1", &since])?;
        found.extend(calls::read(&log)?);
    }
    Ok(found)
}

/// How long kubelet waited for a volume: between these two calls nobody else works on it, apart from a moment of the attacher.
fn waited(calls: &[Call], volume: &str) -> Result<Duration> {
    let find = |name: &str| {
        let call = calls.iter().find(|call| call.name == name && call.about == volume);
        call.ok_or_else(|| Trouble::wrong(format!("the driver's log has no {name} of the volume {volume:?}")))
    };
    Ok(find(WAITED.0)?.until(find(WAITED.1)?))
}

/// The driver's own share: the times of its calls.
fn shares(way: &str, seen: &[Call]) -> Vec<Row> {
    let samples = |name: &str| seen.iter().filter(|call| call.name == name).map(|call| call.took).collect::<Vec<_>>();
    let of = CALLS.map(|name| (name, samples(name)));
    let with = of.iter().filter(|(_, samples)| !samples.is_empty());
    with.map(|(name, samples)| single(format!("{way}: {name}"), samples, Times::of(samples).p50 / 1e3, "s", Bound::None))
        .collect()
}

/// Measures memory with many volumes in use, and what the driver does while nothing happens.
fn many(cluster: &Cluster, node: &str, idle: Duration) -> Result<Vec<Row>> {
    let names: Vec<String> = (0..VOLUMES).map(|number| format!("claim-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut objects: Vec<Value> = names.iter().map(|name| claim(name, CLASS, SIZE)).collect();
    // Kubelet mounts a pod's volumes one by one, and those of several pods in parallel.
    let crowd: Vec<String> = (0..5).map(|number| format!("pod-{number}")).collect();
    for (name, claims) in crowd.iter().zip(names.chunks(VOLUMES / crowd.len())) {
        objects.push(pod(name, claims));
    }
    cluster.apply(&objects)?;
    cluster.wait_ready(&crowd.iter().map(String::as_str).collect::<Vec<_>>())?;
    complain(&format!("bench: {VOLUMES} volumes in use, nothing happens for {} s", idle.as_secs()));
    let audit = audit_log()?;
    let (commands, asked) = (lvm_commands(cluster, node)?, node_requests(&audit)?);
    thread::sleep(idle);
    let (commands, asked) = (lvm_commands(cluster, node)? - commands, node_requests(&audit)? - asked);
    let memory = |role: &str, bound| {
        let mib = resident(cluster, node, role)?;
        Ok(single(format!("{role}, resident with {VOLUMES} volumes"), &[], mib, "MiB", bound))
    };
    let minutes = idle.as_secs() / 60;
    let rows = vec![
        memory("node", NODE)?,
        memory("controller", CONTROLLER)?,
        single(format!("LVM commands in {minutes} idle minutes, {VOLUMES} volumes"), &[], commands, "", Bound::AtMost(0.0)),
        single(format!("requests of the node plugin in {minutes} idle minutes"), &[], asked, "", Bound::AtMost(0.0)),
    ];
    remove(cluster)?;
    Ok(rows)
}

/// Resident memory in MiB of the driver in a role; of the largest process, if there are several.
fn resident(cluster: &Cluster, node: &str, role: &str) -> Result<f64> {
    let script = format!(
        "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in *lvm-csi\\ {role}\\ *--config*) \
         awk '/^VmRSS:/ {{print $2}}' $p/status;; esac; done 2>/dev/null"
    );
    let found = cluster.on(node, &script)?;
    let most = found.split_whitespace().filter_map(|kib| kib.parse::<f64>().ok()).fold(0.0, f64::max);
    ensure(most > 0.0, || format!("no process lvm-csi {role} runs on {node}"))?;
    Ok(most / 1024.0)
}

/// Number of LVM commands that the node plugin has run so far.
fn lvm_commands(cluster: &Cluster, node: &str) -> Result<f64> {
    let metrics = cluster.on_machine(node, &["metrics"])?;
    let counts: Vec<f64> = ["lv", "vg", "pv"]
        .iter()
        .flat_map(|prefix| {
            let start = format!("lvm_csi_effect_seconds_count{{effect=\"{prefix}");
            metrics.lines().filter(move |line| line.starts_with(&start)).filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        })
        .collect();
    // It has just created and activated volumes.
    ensure(!counts.is_empty(), || format!("the metrics on {node} count no LVM command"))?;
    Ok(counts.iter().sum())
}

/// The API server's audit log, which is beside the cluster's kubeconfig.
fn audit_log() -> Result<PathBuf> {
    let kubeconfig = env::var_os("KUBECONFIG").ok_or_else(|| Trouble::wrong("KUBECONFIG is not set"))?;
    Ok(Path::new(&kubeconfig).with_file_name("audit.log"))
}

/// Number of the node plugin's API requests so far, without those for its certificate.
fn node_requests(audit: &Path) -> Result<f64> {
    let log = fs::read_to_string(audit).map_err(Trouble::io(format!("reading {}", audit.display())))?;
    let account = format!("system:serviceaccount:{DRIVER}:lvm-csi-node");
    let events = log.lines().filter(|line| line.contains(&account)).filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let counted = events.filter(|event| {
        let text = |pointer| event.pointer(pointer).and_then(Value::as_str);
        text("/user/username") == Some(&account) && text("/objectRef/resource") != Some("certificatesigningrequests")
    });
    Ok(f64::from(u32::try_from(counted.count()).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_wait_is_subtracted_from_a_pods_time() {
        let second = Duration::from_secs;
        let started =
            Started { pods: vec![(second(20), second(9)), (second(14), second(1)), (second(9), second(0))], calls: Vec::new() };
        assert_eq!((started.last(), started.without_waits()), (second(20), second(13)));
    }

    #[test]
    fn a_wait_is_between_the_calls_of_one_volume() {
        let line = |second: u32, rpc: &str, about: &str| {
            format!(
                r#"{{"timestamp":"2026-01-31T12:00:{second:02}.0Z","fields":{{"message":"OK","ms":"1000"}},"span":{{"rpc":"{rpc}","about":"{about}"}}}}"#
            )
        };
        let log = [(1, WAITED.0, "a"), (2, WAITED.0, "b"), (5, WAITED.1, "b"), (9, WAITED.1, "a")]
            .map(|(s, rpc, about)| line(s, rpc, about));
        let calls = calls::read(&log.join("\n")).unwrap();
        assert_eq!(
            (waited(&calls, "a").unwrap(), waited(&calls, "b").unwrap()),
            (Duration::from_secs(7), Duration::from_secs(2))
        );
        assert!(waited(&calls, "c").is_err());
    }
}
