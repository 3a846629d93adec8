//! Decides which certificate requests are granted. Pure.
//!
//! The API server says which node the requesting pod runs on, so no agent gets the certificate of another node. The answer holds the
//! authorities to trust next to the certificate, so an agent needs no right to read them.

use std::collections::BTreeSet;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::{CertificateSigningRequestParams, PublicKey, SanType};

use crate::tls;
use crate::types::NodeId;

/// The field in which the API server names the node of the pod whose token made the request.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// The permitted uses of an agent's certificate (`spec.usages`).
pub(super) const USAGES: [&str; 2] = ["digital signature", "server auth"];

#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// The CSI name of the driver.
    pub(super) driver: String,
    /// The agents' account, as the API server names it.
    pub(super) username: String,
}

/// The decision on a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is settled, or for another signer.
    Nothing,
    /// Sign a certificate for a node's agent. `approved` says whether the request is approved already.
    Sign { node: NodeId, name: String, key: PublicKey, approved: bool },
    /// Refuse, with this reason.
    Refuse(String),
}

/// The signer name of a driver's agents (`spec.signerName`).
pub(super) fn signer(driver: &str) -> String {
    format!("{driver}/agent")
}

/// Judges a request. An agent gets a certificate only for the node that its token is bound to.
pub(super) fn judge(request: &CertificateSigningRequest, rules: &Rules) -> Verdict {
    let spec = &request.spec;
    let is = |wanted: &str| {
        let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.filter(|condition| condition.type_ == wanted && condition.status == "True").count() > 0
    };
    let done = request.status.as_ref().is_some_and(|status| status.certificate.is_some());
    if spec.signer_name != signer(&rules.driver) || done || is("Denied") || is("Failed") {
        return Verdict::Nothing;
    }
    match granted(request, rules) {
        Ok((node, name, key)) => Verdict::Sign { node, name, key, approved: is("Approved") },
        Err(reason) => Verdict::Refuse(reason),
    }
}

fn granted(request: &CertificateSigningRequest, rules: &Rules) -> Result<(NodeId, String, PublicKey), String> {
    let spec = &request.spec;
    let username = spec.username.as_deref().unwrap_or_default();
    if username != rules.username {
        return Err(format!("it was made by {username}; only {} may ask for it", rules.username));
    }
    let nodes = spec.extra.as_ref().and_then(|extra| extra.get(NODE_NAME)).map(Vec::as_slice);
    let Some([node]) = nodes else {
        return Err(format!(
            "the requesting token is not bound to a pod on a node ({NODE_NAME}, set by Kubernetes 1.30 or newer)"
        ));
    };
    let node = NodeId::new(node).ok_or_else(|| format!("node {node:?} is not a valid CSI node id"))?;
    let name = tls::agent_name(&rules.driver, &node).map_err(|error| error.to_string())?.to_str().into_owned();
    let usages: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    if usages != BTreeSet::from(USAGES) {
        return Err(format!("its usages are {usages:?}; they must be {USAGES:?}"));
    }
    let pem = std::str::from_utf8(&spec.request.0).map_err(|_| "its content is not PEM".to_owned())?;
    let asked = CertificateSigningRequestParams::from_pem(pem).map_err(|error| format!("it cannot be read: {error}"))?;
    let names = &asked.params.subject_alt_names;
    let matches = |san: &SanType| matches!(san, SanType::DnsName(asked) if asked.as_str() == name);
    if names.len() != 1 || !names.iter().all(matches) {
        return Err(format!(
            "it is for {names:?}, but the requesting token belongs to a pod on node {node}, which may have {name} only"
        ));
    }
    Ok((node, name, asked.public_key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
    };
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    const AGENT: &str = "system:serviceaccount:lvm-csi:lvm-csi-node";

    fn rules() -> Rules {
        Rules { driver: "lvm-csi.dev".to_owned(), username: AGENT.to_owned() }
    }

    fn pem(names: &[&str]) -> ByteString {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        ByteString(request.pem().unwrap().into_bytes())
    }

    fn good() -> CertificateSigningRequest {
        let extra = BTreeMap::from([(NODE_NAME.to_owned(), vec!["n1".to_owned()])]);
        CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                signer_name: "lvm-csi.dev/agent".to_owned(),
                username: Some(AGENT.to_owned()),
                extra: Some(extra),
                usages: Some(USAGES.map(str::to_owned).to_vec()),
                request: pem(&["n1.node.lvm-csi.dev"]),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn with(condition: &str) -> CertificateSigningRequest {
        let condition =
            CertificateSigningRequestCondition { type_: condition.to_owned(), status: "True".to_owned(), ..Default::default() };
        let status = CertificateSigningRequestStatus { conditions: Some(vec![condition]), certificate: None };
        CertificateSigningRequest { status: Some(status), ..good() }
    }

    #[test]
    fn an_agent_gets_the_certificate_of_its_own_node() {
        for (request, was) in [(good(), false), (with("Approved"), true)] {
            let verdict = judge(&request, &rules());
            let Verdict::Sign { node, name, approved, .. } = verdict else { panic!("{verdict:?}") };
            assert_eq!((node.as_str(), name.as_str(), approved), ("n1", "n1.node.lvm-csi.dev", was));
        }
    }

    #[test]
    fn what_is_done_with_or_of_another_signer_is_let_alone() {
        let mut other = good();
        other.spec.signer_name = "kubernetes.io/kubelet-serving".to_owned();
        let mut issued = with("Approved");
        issued.status.as_mut().unwrap().certificate = Some(ByteString(vec![]));
        for request in [other, issued, with("Denied"), with("Failed")] {
            let verdict = judge(&request, &rules());
            assert!(matches!(verdict, Verdict::Nothing), "{verdict:?}");
        }
    }

    #[test]
    fn everybody_else_is_refused_with_the_reason() {
        let change = |change: &dyn Fn(&mut CertificateSigningRequestSpec)| {
            // Refused even if somebody has approved it.
            let mut request = with("Approved");
            change(&mut request.spec);
            request
        };
        let node = |name: &str| Some(BTreeMap::from([(NODE_NAME.to_owned(), vec![name.to_owned()])]));
        for (request, word) in [
            (change(&|spec| spec.username = Some("system:serviceaccount:default:pod".to_owned())), "default:pod"),
            (change(&|spec| spec.username = None), "only system:serviceaccount"),
            (change(&|spec| spec.extra = node("n2")), "n2.node.lvm-csi.dev only"),
            (change(&|spec| spec.extra = None), "not bound to a pod"),
            (change(&|spec| spec.extra = node("..")), "not a valid CSI node id"),
            (change(&|spec| spec.request = pem(&["controller.lvm-csi.dev"])), "controller.lvm-csi.dev"),
            (change(&|spec| spec.request = pem(&["n1.node.lvm-csi.dev", "controller.lvm-csi.dev"])), "only"),
            (change(&|spec| spec.request = pem(&[])), "only"),
            (change(&|spec| spec.request = ByteString(b"x".to_vec())), "cannot be read"),
            (change(&|spec| spec.usages = Some(vec!["server auth".to_owned(), "client auth".to_owned()])), "usages"),
            (change(&|spec| spec.usages = None), "usages"),
        ] {
            let verdict = judge(&request, &rules());
            let Verdict::Refuse(reason) = verdict else { panic!("{word}: {verdict:?}") };
            assert!(reason.contains(word), "{reason}");
        }
    }
}
