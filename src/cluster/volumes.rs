//! The Kubernetes names of volumes (PVs and claims), for the metrics.
//!
//! They are watched and not stored in tags: every LVM command reads and writes each byte of a tag.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, watcher};
use kube::{Api, ResourceExt};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::Cluster;
use super::mirror::Mirror;
use crate::types::{VolumeId, chain, figure::gauges};

/// The facts of a PV.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    volume_id: String,
    /// Namespace and name of the claim, if it is bound to one.
    claim: Option<(String, String)>,
}

/// The names of all volumes of the driver.
#[derive(Clone, Default)]
pub struct VolumeNames(Arc<Mutex<Mirror<Named>>>);

impl fmt::Debug for VolumeNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeNames").finish_non_exhaustive()
    }
}

impl Cluster {
    /// Watches the names of a driver's volumes. While the API server is away, the last known names stay.
    pub fn follow_volumes(&self, driver: &str) -> VolumeNames {
        let names = VolumeNames::default();
        tokio::spawn(follow(self.clone(), driver.to_owned(), names.clone()));
        names
    }
}

async fn follow(cluster: Cluster, driver: String, names: VolumeNames) {
    let volumes: Api<PersistentVolume> = Api::all(cluster.client);
    let mut volumes = pin!(watcher(volumes, Config::default()).default_backoff());
    // The stream does not end.
    while let Some(event) = volumes.next().await {
        match event {
            Ok(event) => {
                let mut mirror = names.0.lock().unwrap_or_else(PoisonError::into_inner);
                mirror.take(event, |volume| (volume.name_any(), named(volume, &driver)));
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot watch the PersistentVolumes; the last known names stay in use");
            }
        }
    }
}

/// The facts of a PV; `None` for a volume of another driver.
fn named(volume: &PersistentVolume, driver: &str) -> Option<Named> {
    let spec = volume.spec.as_ref()?;
    let csi = spec.csi.as_ref().filter(|csi| csi.driver == driver)?;
    let claim = spec.claim_ref.as_ref().and_then(|claim| Some((claim.namespace.clone()?, claim.name.clone()?)));
    Some(Named { volume_id: csi.volume_handle.clone(), claim })
}

impl VolumeNames {
    /// The volume id of a PV that is bound to a claim; `None` for another driver's volume, or another claim's.
    pub(super) fn handle(&self, pv: &str, namespace: &str, claim: &str) -> Option<VolumeId> {
        let mirror = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = mirror.known()?.get(pv)?;
        let bound = named.claim.as_ref().is_some_and(|(within, name)| (within.as_str(), name.as_str()) == (namespace, claim));
        VolumeId::parse(&named.volume_id).filter(|_| bound)
    }

    /// Adds the names to the metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Collector for VolumeNames {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mirror = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let infos = mirror.known().into_iter().flatten().map(|(pv, named)| {
            let (namespace, pvc) = named.claim.clone().unwrap_or_default();
            let id = named.volume_id.clone();
            ([("volume_id", id), ("namespace", namespace), ("pvc", pvc), ("pv", pv.clone())], 1u64)
        });
        gauges(&mut encoder, "volume_info", "What Kubernetes calls a volume; always 1", infos)
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;

    use super::*;

    #[test]
    fn a_volume_is_told_with_its_claim() {
        let pv = |name: &str, driver: &str, claim: &str| -> PersistentVolume {
            let text = format!(
                r#"{{"metadata":{{"name":"{name}"}},"spec":{{"csi":{{"driver":"{driver}","volumeHandle":"vg/{name}"}}{claim}}}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let names = VolumeNames::default();
        let bound = r#","claimRef":{"namespace":"shop","name":"data-0"}"#;
        let volumes = [pv("pv1", "lvm-csi.dev", bound), pv("pv2", "lvm-csi.dev", ""), pv("pv3", "other", bound)];
        let events = [Event::Init].into_iter().chain(volumes.map(Event::InitApply)).chain([Event::InitDone]);
        for event in events {
            names.0.lock().unwrap().take(event, |volume| (volume.name_any(), named(volume, "lvm-csi.dev")));
        }
        let mut registry = Registry::with_prefix("lvm_csi");
        names.register_metrics(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                r#"lvm_csi_volume_info{volume_id="vg/pv1",namespace="shop",pvc="data-0",pv="pv1"} 1"#,
                r#"lvm_csi_volume_info{volume_id="vg/pv2",namespace="",pvc="",pv="pv2"} 1"#,
            ]
        );
    }
}
