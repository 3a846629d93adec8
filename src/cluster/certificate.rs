//! The agent's side of certificates. It requests one for a key that never leaves its memory, and a new one after half of its life.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::authority::validity;
use super::request::{USAGES, signer};
use super::{Cluster, ClusterError};
use crate::tls::{Credentials, Identity, agent_name};
use crate::types::{NodeId, chain};

/// Interval between checks whether a request was answered: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// After this time without an answer the agent makes a new request: the old one may have been removed.
const PATIENCE: Duration = Duration::from_secs(600);
/// Pause after a refusal or an API server failure: the first, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The last line of a PEM certificate.
const END: &str = "-----END CERTIFICATE-----\n";

impl Cluster {
    /// Keeps an agent's certificate valid for as long as it runs. Until the first one arrives, no controller can call the agent.
    pub fn certify(&self, node: NodeId, credentials: Arc<Credentials>) {
        tokio::spawn(keep(self.clone(), node, credentials));
    }

    /// Requests a certificate and waits for it.
    async fn certificate(&self, node: &NodeId, driver: &str) -> Result<Identity, ClusterError> {
        let unusable = |what: String, reason: String| ClusterError::Unusable { what, reason };
        let name = agent_name(driver, node).map_err(|error| unusable(format!("node {node}"), error.to_string()))?;
        let making = || ClusterError::certificate("making a request for a certificate");
        let key = KeyPair::generate().map_err(making())?;
        let mut params = CertificateParams::new([name.to_str().into_owned()]).map_err(making())?;
        params.distinguished_name = DistinguishedName::new();
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(making())?;
        let request = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some(format!("{driver}-{node}-")), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                signer_name: signer(driver),
                request: ByteString(pem.into_bytes()),
                usages: Some(USAGES.map(str::to_owned).to_vec()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let request = api.create(&PostParams::default(), &request).await;
        let id = request.map_err(ClusterError::api("asking for a certificate"))?.name_any();
        tracing::debug!(request = id, "requested a certificate");
        let (mut pause, begun) = (LOOKS.0, tokio::time::Instant::now());
        while begun.elapsed() < PATIENCE {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOKS.1);
            let current = api.get(&id).await.map_err(ClusterError::api(format!("reading request {id} for a certificate")))?;
            let Some(status) = current.status else { continue };
            let refused = status.conditions.iter().flatten().find(|one| matches!(one.type_.as_str(), "Denied" | "Failed"));
            if let Some(refused) = refused {
                return Err(unusable(format!("request {id} for a certificate"), refused.message.clone().unwrap_or_default()));
            }
            if let Some(answer) = status.certificate {
                let text = String::from_utf8_lossy(&answer.0).into_owned();
                let parts = text.split_once(END).map(|(own, trusted)| (format!("{own}{END}"), trusted.to_owned()));
                let none = || unusable(format!("the answer to request {id}"), "it has no certificate".to_owned());
                let (cert, ca) = parts.ok_or_else(none)?;
                return Ok(Identity { ca, cert, key: Arc::new(key.serialize_pem().into()) });
            }
        }
        let reason = format!("no controller has answered it for {} s; check whether one runs", PATIENCE.as_secs());
        Err(unusable(format!("request {id} for a certificate"), reason))
    }
}

async fn keep(cluster: Cluster, node: NodeId, credentials: Arc<Credentials>) {
    let mut again = AGAIN.0;
    loop {
        let made = cluster.certificate(&node, credentials.driver()).await.map_err(|error| chain(&error));
        let used = made.and_then(|identity| {
            credentials.give(&identity).map_err(|error| chain(&error))?;
            validity(&identity.cert).ok_or_else(|| "the certificate does not say how long it is valid".to_owned())
        });
        let pause = match used {
            Ok((_, until)) => {
                let left = until.duration_since(SystemTime::now()).unwrap_or_default();
                tracing::info!(valid_for = left.as_secs(), "the agent has a new certificate");
                again = AGAIN.0;
                (left / 2).max(LOOKS.1)
            }
            Err(error) => {
                tracing::warn!(error, "the agent got no new certificate and keeps the old one while it is valid");
                let pause = again;
                again = (2 * again).min(AGAIN.1);
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}
