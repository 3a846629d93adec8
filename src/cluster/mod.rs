//! Kubernetes: the agents' addresses, the nodes' fate, and the certificates of controller and agents. The only user of its API.
//!
//! ```text
//!  controller                                       API server                        lvm-csi node
//!  reads the authorities, or makes them ──────────▶ Secret
//!  signs its own certificate with them
//!                                                   CertificateSigningRequest ◀────── for a key that never leaves its memory
//!  approves it if the requester is the
//!  ServiceAccount of the agents on that node, signs ▶ status.certificate ───────────▶ its certificate, and the authorities it trusts
//!  watches the agents' pods, and the nodes that ◀── Pod, Node
//!  ever ran one
//! ```
//!
//! Nothing but the API server is needed. The controller reads and watches. An agent requests its certificate. Both ask who may read their
//! metrics, and an agent asks for nothing else.

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

/// A connection to the API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
}

/// A failure to get something from Kubernetes.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No API server is configured.
    #[error("cannot find the API server: run this in a pod with a ServiceAccount, or set KUBECONFIG to a file")]
    Nowhere(#[source] kube::config::InferConfigError),
    /// The API server refused, or did not answer.
    #[error("{doing}")]
    Api {
        /// The request.
        doing: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// A certificate cannot be made.
    #[error("{doing}")]
    Certificate {
        /// The step that failed.
        doing: &'static str,
        #[source]
        source: rcgen::Error,
    },
    /// An object of the API server is not as expected.
    #[error("{what}: {reason}")]
    Unusable { what: String, reason: String },
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
            Some(401 | 403) => "the driver's ServiceAccount may not do this; install the roles of the chart",
            Some(404) => "the API server does not have it (any more)",
            Some(409) => "it was changed or replaced meanwhile; this is retried",
            Some(_) => "the API server refused",
            None => "the API server cannot be asked",
        };
        Error::unavailable(what, format!("{why}: {}", chain(self)))
    }
}

impl Cluster {
    /// Finds the API server as a pod does, or by KUBECONFIG. Does not contact it yet.
    ///
    /// # Errors
    /// [`ClusterError::Nowhere`] if none is configured; [`ClusterError::Api`] if no client can be made.
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
        let text = |source: kube::Error| {
            ClusterError::api("asking for the claim")(source).unavailable("claim data".to_owned()).to_string()
        };
        let answered = |code: u16| {
            let status = serde_json::json!({"status": "Failure", "message": "no", "reason": "", "code": code});
            text(kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
        };
        for (code, word) in [(403, "ServiceAccount"), (404, "does not have it"), (409, "changed or replaced"), (500, "refused")] {
            let text = answered(code);
            assert!(text.contains(word) && !text.contains("cannot be asked"), "{code}: {text}");
        }
        assert!(text(kube::Error::LinesCodecMaxLineLengthExceeded).contains("cannot be asked"));
    }
}
