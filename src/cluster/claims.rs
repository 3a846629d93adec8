//! Claims with growth annotations (`DRIVER/grow-…`). Nothing is kept of other claims.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, watcher};
use kube::{Api, ResourceExt};

use super::mirror::Mirror;
use super::{Cluster, ClusterError, VolumeNames};
use crate::types::{Asked, Bytes, Claim, Error, VolumeId, chain, write_size};

/// The resource name of a claim's size.
const STORAGE: &str = "storage";

/// The claims of a cluster with growth annotations.
#[derive(Clone)]
pub struct Claims {
    cluster: Cluster,
    volumes: VolumeNames,
    mirror: Arc<Mutex<Mirror<Claim>>>,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").finish_non_exhaustive()
    }
}

impl Cluster {
    /// Watches the claims with growth annotations. While the API server is away, the last known state stays.
    pub fn follow_claims(&self, driver: &str, volumes: VolumeNames) -> Claims {
        let claims = Claims { cluster: self.clone(), volumes, mirror: Arc::default() };
        tokio::spawn(follow(claims.clone(), format!("{driver}/grow-")));
        claims
    }
}

async fn follow(claims: Claims, prefix: String) {
    let api: Api<PersistentVolumeClaim> = Api::all(claims.cluster.client.clone());
    let mut events = pin!(watcher(api, Config::default()).default_backoff());
    // The stream does not end.
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let mut mirror = claims.mirror.lock().unwrap_or_else(PoisonError::into_inner);
                mirror.take(event, |claim| {
                    (format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any()), growing(claim, &prefix))
                });
            }
            Err(error) => tracing::warn!(error = chain(&error), "cannot watch the claims; the last known state stays in use"),
        }
    }
}

/// The facts that matter of a claim; `None` if it is unbound, being deleted, or has no growth annotation.
fn growing(claim: &PersistentVolumeClaim, prefix: &str) -> Option<Claim> {
    let word = |(key, value): (&String, &String)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone()));
    let words: BTreeMap<String, String> = claim.annotations().iter().filter_map(word).collect();
    let (spec, status) = (claim.spec.as_ref()?, claim.status.as_ref()?);
    let bound = status.phase.as_deref() == Some("Bound") && claim.metadata.deletion_timestamp.is_none();
    if words.is_empty() || !bound {
        return None;
    }
    Some(Claim {
        namespace: claim.namespace()?,
        name: claim.name_any(),
        uid: claim.uid()?,
        version: claim.resource_version()?,
        volume: spec.volume_name.clone()?,
        block: spec.volume_mode.as_deref() == Some("Block"),
        request: spec.resources.as_ref()?.requests.as_ref()?.get(STORAGE)?.0.clone(),
        capacity: status.capacity.as_ref()?.get(STORAGE)?.0.clone(),
        words,
    })
}

impl Claims {
    /// The claims with a volume of the driver, and its id.
    pub fn all(&self) -> Vec<(Claim, VolumeId)> {
        let mirror = self.mirror.lock().unwrap_or_else(PoisonError::into_inner);
        let known = mirror.known().into_iter().flat_map(|known| known.values());
        let ours = known.filter_map(|claim| {
            let id = self.volumes.handle(&claim.volume, &claim.namespace, &claim.name)?;
            Some((claim.clone(), id))
        });
        ours.collect()
    }

    /// Raises a claim's request, if the claim has not changed since it was read: another replica or a person may have been faster.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the API server cannot be asked.
    pub async fn enlarge(&self, claim: &Claim, size: Bytes) -> Result<Asked, Error> {
        let patch = serde_json::json!({
            "metadata": {"uid": claim.uid, "resourceVersion": claim.version},
            "spec": {"resources": {"requests": {STORAGE: write_size(size)}}},
        });
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), &claim.namespace);
        match api.patch(&claim.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(Asked::Taken),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Asked::Changed),
            // Forbidden by the class or by a quota, or invalid.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => Ok(Asked::Refused(status.message)),
            Err(error) => {
                let what = format!("claim {} in {}", claim.name, claim.namespace);
                Err(ClusterError::api("raising its request")(error).unavailable(what))
            }
        }
    }
}

#[cfg(test)]
mod tests;
