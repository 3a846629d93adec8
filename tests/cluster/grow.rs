//! Claims that grow automatically, and never shrink. The lab's chart values switch this on.

use serde_json::json;
use testkit::error::{Result, ensure};
use testkit::kube::{claim, pod, until};

use crate::rig::{CLASS, Rig};

#[test]
fn a_claim_grows_when_it_runs_full_up_to_its_limit_and_nothing_shrinks() -> Result<()> {
    let rig = Rig::new("grow")?;
    let mut grows = claim("grows", CLASS, "64Mi");
    grows["metadata"]["annotations"] =
        json!({"lvm-csi.dev/grow-to": "120Mi", "lvm-csi.dev/grow-by": "32Mi", "lvm-csi.dev/grow-at": "60%"});
    let mut wrong = claim("wrong", CLASS, "64Mi");
    wrong["metadata"]["annotations"] = json!({"lvm-csi.dev/grow-to": "1Gi", "lvm-csi.dev/grow-at": "60"});
    rig.cluster.apply(&[grows, wrong, claim("stays", CLASS, "64Mi"), pod("app", &["grows", "wrong", "stays"])])?;
    rig.cluster.wait_ready(&["app"])?;
    let fill = |name: &str, mib: u64| {
        rig.cluster.exec("app", &format!("dd if=/dev/urandom bs=1M count={mib} 2>/dev/null >>/{name}/bytes; sync /{name}/bytes"))
    };
    for name in ["grows", "wrong", "stays"] {
        fill(name, 45)?;
    }
    rig.heard("wrong", "lvm-csi.dev/grow-at \"60\"")?;
    // First by the step, then by what is left up to the limit.
    for (from, to, more) in [("64Mi", "96Mi", 25), ("96Mi", "120Mi", 10)] {
        rig.heard("grows", &format!("grows from {from} to {to}"))?;
        rig.cluster.wait(&format!("jsonpath={{.status.capacity.storage}}={to}"), &["pvc/grows"])?;
        let least = to.trim_end_matches("Mi").parse::<u64>().unwrap_or(0) * 4 / 5;
        until("the pod to see the new size", || Ok((rig.cluster.filesystem("app", "/grows")? >> 20 >= least).then_some(())))?;
        fill("grows", more)?;
    }
    rig.heard("grows", "grows no further")?;
    for (name, expected) in [("grows", "120Mi"), ("wrong", "64Mi"), ("stays", "64Mi")] {
        let found = rig.cluster.kubectl(&["get", "pvc", name, "--output=jsonpath={.spec.resources.requests.storage}"])?;
        ensure(found == expected, || format!("{name} requests {found} instead of {expected}"))?;
    }
    let Err(refused) = rig.cluster.apply(&[claim("stays", CLASS, "32Mi")]) else {
        return ensure(false, || "a claim could request less than it has".to_owned());
    };
    ensure(refused.to_string().contains("less than"), || format!("a smaller request is refused for another reason: {refused}"))?;
    rig.cluster.exec("app", "test $(stat -c %s /stays/bytes) = 47185920")?;
    rig.finish()
}
