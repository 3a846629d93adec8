//! The node on which a claim's volume is made, recorded in an annotation of the claim: `DRIVER/node: UID-OF-THE-CLAIM/NODE`. Backup tools
//! restore annotations, so one counts only if it holds the UID of its claim.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};

use super::{Cluster, ClusterError};
use crate::types::{ClaimName, Error, NodeId};

/// Reads and writes the nodes of claims.
#[derive(Clone)]
pub struct Places {
    cluster: Cluster,
    key: String,
}

impl Cluster {
    /// The recorded nodes of a driver's volumes.
    pub fn places(&self, driver: &str) -> Places {
        Places { cluster: self.clone(), key: format!("{driver}/node") }
    }
}

impl Places {
    /// The recorded node of a claim. Anyone who may change the claim may have written it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the API server refuses or cannot be asked, or the claim was replaced by another one.
    pub async fn read(&self, claim: &ClaimName) -> Result<Option<NodeId>, Error> {
        // A patch that changes nothing: it reads with the same right that writing needs.
        let doing = "reading the node of its volume";
        let found = self.patch(claim, doing, serde_json::json!({"metadata": {"uid": claim.uid}})).await?;
        Ok(node_of(&found, &self.key, &claim.uid))
    }

    /// Records a node, or removes the record.
    ///
    /// # Errors
    /// Like [`Places::read`].
    pub async fn write(&self, claim: &ClaimName, node: Option<&NodeId>) -> Result<(), Error> {
        let node = node.map(|node| format!("{}/{node}", claim.uid));
        let patch = serde_json::json!({"metadata": {"uid": claim.uid, "annotations": {self.key.as_str(): node}}});
        self.patch(claim, "recording the node of its volume", patch).await.map(drop)
    }

    async fn patch(&self, claim: &ClaimName, doing: &str, patch: serde_json::Value) -> Result<PersistentVolumeClaim, Error> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), &claim.namespace);
        let patched = api.patch(&claim.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let what = || format!("claim {} in {}", claim.name, claim.namespace);
        patched.map_err(|error| ClusterError::api(doing)(error).unavailable(what()))
    }
}

fn node_of(claim: &PersistentVolumeClaim, key: &str, uid: &str) -> Option<NodeId> {
    let (of, node) = claim.annotations().get(key)?.split_once('/')?;
    (of == uid).then(|| NodeId::new(node)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_by_the_key_of_its_driver_and_the_uid_of_its_claim() {
        let text = r#"{"metadata":{"annotations":{"lvm-csi.dev/node":"uid-1/n1","other/node":"uid-1/n2","bare/node":"n3"}}}"#;
        let claim: PersistentVolumeClaim = serde_json::from_str(text).unwrap();
        let node = |key: &str, uid: &str| node_of(&claim, key, uid);
        assert_eq!(node("lvm-csi.dev/node", "uid-1"), NodeId::new("n1"));
        assert_eq!(node("lvm-csi/node", "uid-1"), None);
        // Restored from a backup of another claim, or written by somebody else.
        assert_eq!((node("lvm-csi.dev/node", "uid-2"), node("bare/node", "uid-1")), (None, None));
    }
}
