//! An agent's part in certificates: it asks for one with a key that stays in its memory, and again after half of its life.

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

/// The pause between two looks whether a request was answered: at first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// After so long without an answer a request is made anew: it may have been removed.
const PATIENCE: Duration = Duration::from_secs(600);
/// The pause after a refusal, or when the API server cannot be asked: at first, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// What a certificate in PEM ends with.
const END: &str = "-----END CERTIFICATE-----\n";

impl Cluster {
    /// Gives the agent of a node its certificates, for as long as it runs. Until the first is there no controller can call it.
    pub fn certify(&self, node: NodeId, credentials: Arc<Credentials>) {
        tokio::spawn(keep(self.clone(), node, credentials));
    }

    /// Asks for a certificate and waits until it is there.
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
        tracing::debug!(request = id, "a certificate is asked for");
        let (mut pause, begun) = (LOOKS.0, tokio::time::Instant::now());
        while begun.elapsed() < PATIENCE {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOKS.1);
            let seen = api.get(&id).await.map_err(ClusterError::api(format!("looking at request {id} for a certificate")))?;
            let Some(status) = seen.status else { continue };
            let refused = status.conditions.iter().flatten().find(|one| matches!(one.type_.as_str(), "Denied" | "Failed"));
            if let Some(refused) = refused {
                return Err(unusable(format!("request {id} for a certificate"), refused.message.clone().unwrap_or_default()));
            }
            if let Some(answer) = status.certificate {
                let text = String::from_utf8_lossy(&answer.0).into_owned();
                let parts = text.split_once(END).map(|(own, trusted)| (format!("{own}{END}"), trusted.to_owned()));
                let none = || unusable(format!("the answer to request {id}"), "it holds no certificate".to_owned());
                let (cert, ca) = parts.ok_or_else(none)?;
                return Ok(Identity { ca, cert, key: key.serialize_pem() });
            }
        }
        let reason = format!("no controller has answered it for {} s; see whether one runs", PATIENCE.as_secs());
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
                tracing::warn!(error, "the agent has no new certificate; the one before is used while it is valid");
                let pause = again;
                again = (2 * again).min(AGAIN.1);
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}
