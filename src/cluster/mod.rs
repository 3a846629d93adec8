//! Kubernetes, and the only user of its API: where the agents are, what becomes of nodes, and the certificates of both ends of the way
//! between controller and agents.
//!
//! ```text
//!  controller                                       API server                        lvm-csi node
//!  reads the authorities, or makes them ──────────▶ Secret
//!  signs its own certificate with them
//!                                                   CertificateSigningRequest ◀────── for a key that never leaves its memory
//!  approves it when the one who asks is the
//!  ServiceAccount of the agents on that node, signs ▶ status.certificate ───────────▶ its certificate, and the authorities it trusts
//!  watches the agents' pods, and the nodes that ◀── Pod, Node
//!  ever ran one
//! ```
//!
//! Nobody but the API server is needed for it. The controller asks and watches; an agent asks for its certificate, both ask who may read
//! their metrics, and an agent for nothing else.

mod agents;
mod authority;
mod certificate;
mod claims;
mod events;
mod mirror;
mod places;
mod readers;
mod request;
mod signer;
mod volumes;

pub use agents::Member;
pub use authority::Issuing;
pub use claims::Claims;
pub use places::Places;
pub use readers::Tokens;
pub use volumes::VolumeNames;

use kube::Client;

use crate::types::{Error, chain};

/// A connection to the API server, as a pod of the driver has it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
}

/// Why something cannot be had of Kubernetes.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no way to an API server.
    #[error("finding the API server: neither does this run in a pod with a ServiceAccount, nor does KUBECONFIG name a file")]
    Nowhere(#[source] kube::config::InferConfigError),
    /// The API server refused, or did not answer.
    #[error("{doing}")]
    Api {
        /// What was asked of it.
        doing: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// A certificate cannot be made.
    #[error("{doing}")]
    Certificate {
        /// What for.
        doing: &'static str,
        #[source]
        source: rcgen::Error,
    },
    /// What the API server has is not what it should be.
    #[error("{what}: {reason}")]
    Unusable {
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ClusterError {
    fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Api { doing, source: Box::new(source) }
    }

    fn certificate(doing: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Certificate { doing, source }
    }

    /// Whether somebody else has changed the object since it was read.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 409))
    }

    fn unavailable(&self, what: String) -> Error {
        let code = match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        };
        let why = match code {
            Some(401 | 403) => "the driver's ServiceAccount lacks the right to do this; install the roles of the chart",
            Some(404) => "the API server does not have it (any more)",
            Some(409) => "it was changed or replaced meanwhile; this is tried again",
            Some(_) => "the API server refused",
            None => "the API server cannot be asked",
        };
        Error::unavailable(what, format!("{why}: {}", chain(self)))
    }
}

impl Cluster {
    /// Finds the API server as a pod finds it, or by KUBECONFIG. It is not asked yet.
    ///
    /// # Errors
    /// [`ClusterError::Nowhere`].
    pub async fn connect() -> Result<Self, ClusterError> {
        let config = kube::Config::infer().await.map_err(ClusterError::Nowhere)?;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(ClusterError::api("making a client of the API server"))?;
        Ok(Self { client, namespace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_whether_the_api_server_answered() {
        let told = |source: kube::Error| {
            ClusterError::api("asking for the claim")(source).unavailable("claim data".to_owned()).to_string()
        };
        let answered = |code: u16| {
            let status = serde_json::json!({"status": "Failure", "message": "no", "reason": "", "code": code});
            told(kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
        };
        for (code, word) in [(403, "ServiceAccount"), (404, "does not have it"), (409, "changed or replaced"), (500, "refused")] {
            let told = answered(code);
            assert!(told.contains(word) && !told.contains("cannot be asked"), "{code}: {told}");
        }
        assert!(told(kube::Error::LinesCodecMaxLineLengthExceeded).contains("cannot be asked"));
    }
}
