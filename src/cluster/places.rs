//! On which node the volume of a claim is made, written down as an annotation of the claim: `DRIVER/node: UID-OF-THE-CLAIM/NODE`.
//! Backup tools restore annotations, so one counts only with the UID of the claim that it stands on.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};

use super::{Cluster, ClusterError};
use crate::types::{ClaimName, Error, NodeId};

/// The nodes of claims.
#[derive(Clone)]
pub struct Places {
    cluster: Cluster,
    key: String,
}

impl Cluster {
    /// The nodes that volumes of a driver were to be made on.
    pub fn places(&self, driver: &str) -> Places {
        Places { cluster: self.clone(), key: format!("{driver}/node") }
    }
}

impl Places {
    /// The node that is written down for a claim. Whoever may change the claim may have written it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the API server cannot be asked or refuses, or the claim is another one by now.
    pub async fn read(&self, claim: &ClaimName) -> Result<Option<NodeId>, Error> {
        // A patch that changes nothing: it reads by the right that writing needs.
        let doing = "reading on which node its volume was begun";
        let found = self.patch(claim, doing, serde_json::json!({"metadata": {"uid": claim.uid}})).await?;
        Ok(node_of(&found, &self.key, &claim.uid))
    }

    /// Writes a node down, or nothing.
    ///
    /// # Errors
    /// As [`Places::read`].
    pub async fn write(&self, claim: &ClaimName, node: Option<&NodeId>) -> Result<(), Error> {
        let node = node.map(|node| format!("{}/{node}", claim.uid));
        let patch = serde_json::json!({"metadata": {"uid": claim.uid, "annotations": {self.key.as_str(): node}}});
        self.patch(claim, "writing down the node of its volume", patch).await.map(drop)
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
        // Restored from a backup of another claim, or written by somebody.
        assert_eq!((node("lvm-csi.dev/node", "uid-2"), node("bare/node", "uid-1")), (None, None));
    }
}
