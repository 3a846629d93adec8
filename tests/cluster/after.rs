//! What must be true at the end of a run.

use testkit::error::Result;
use testkit::kube::{Cluster, DRIVER, until};

#[test]
fn every_node_has_renewed_its_certificate_three_times_since_it_last_began() -> Result<()> {
    let cluster = Cluster::find()?;
    for node in cluster.nodes()? {
        let pod = cluster.node_pod(&node)?;
        until(&format!("three renewals in {pod}"), || {
            let log = cluster.kubectl(&["logs", "--namespace", DRIVER, &pod, "--container=lvm-csi", "--tail=-1"])?;
            // The first certificate is not a renewal.
            Ok((log.matches("the agent has a new certificate").count() > 3).then_some(()))
        })?;
    }
    Ok(())
}
