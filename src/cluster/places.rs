//! On which node the volume of a claim is made, written down as an annotation of the claim: `DRIVER/node`.

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
    /// The node that is written down for a claim.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the API server cannot be asked, or the claim is another one by now.
    pub async fn read(&self, claim: &ClaimName) -> Result<Option<NodeId>, Error> {
        // A patch that changes nothing: it reads by the right that writing needs.
        let found = self.patch(claim, serde_json::json!({"metadata": {"uid": claim.uid}})).await?;
        Ok(node_of(&found, &self.key))
    }

    /// Writes a node down, or nothing.
    ///
    /// # Errors
    /// As [`Places::read`].
    pub async fn write(&self, claim: &ClaimName, node: Option<&NodeId>) -> Result<(), Error> {
        let node = node.map(NodeId::as_str);
        let patch = serde_json::json!({"metadata": {"uid": claim.uid, "annotations": {self.key.as_str(): node}}});
        self.patch(claim, patch).await.map(drop)
    }

    async fn patch(&self, claim: &ClaimName, patch: serde_json::Value) -> Result<PersistentVolumeClaim, Error> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), &claim.namespace);
        let patched = api.patch(&claim.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let what = || format!("claim {} in {}", claim.name, claim.namespace);
        patched.map_err(|error| ClusterError::api("writing down the node of its volume")(error).unavailable(what()))
    }
}

fn node_of(claim: &PersistentVolumeClaim, key: &str) -> Option<NodeId> {
    claim.annotations().get(key).and_then(|node| NodeId::new(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_by_the_key_of_its_driver() {
        let text = r#"{"metadata":{"annotations":{"lvm-csi.dev/node":"n1","other/node":"n2"}}}"#;
        let claim: PersistentVolumeClaim = serde_json::from_str(text).unwrap();
        let node = |key: &str| node_of(&claim, key);
        assert_eq!(node("lvm-csi.dev/node"), NodeId::new("n1"));
        assert_eq!(node("lvm-csi/node"), None);
    }
}
