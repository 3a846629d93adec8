//! The controller's side of certificates: it keeps its own valid and answers the agents' requests. Every replica does; the slower one sees
//! a conflict and leaves the object alone.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use rcgen::KeyPair;
use tokio::sync::watch;

use super::authority::{Authorities, End};
use super::request::{Rules, Verdict, judge, signer};
use super::{Cluster, ClusterError, Issuing};
use crate::tls::{Credentials, Identity, controller_name};
use crate::types::chain;

/// Pause after an API server failure.
const AGAIN: Duration = Duration::from_secs(2);
/// Interval between two reads of the authorities: the longest and the shortest.
const LOOKS: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(2));

type AuthoritySender = watch::Sender<Option<Arc<Authorities>>>;

impl Cluster {
    /// Keeps the controller's certificate valid and answers the agents' requests, for as long as it runs.
    pub fn issue(&self, issuing: Issuing, credentials: Arc<Credentials>) {
        let (sender, authorities) = watch::channel(None);
        tokio::spawn(keep(self.clone(), issuing.clone(), credentials, sender));
        tokio::spawn(answer(self.clone(), issuing, authorities));
    }

    /// Makes a certificate for the controller, together with the authorities that it trusts.
    fn own(authorities: &Authorities, issuing: &Issuing) -> Result<Identity, ClusterError> {
        let now = SystemTime::now();
        let key = KeyPair::generate().map_err(ClusterError::certificate("making a key"))?;
        let cert = authorities.issue(&controller_name(&issuing.driver), End::Caller, &key, issuing.life, now)?;
        Ok(Identity { ca: authorities.trusted(now), cert, key: Arc::new(key.serialize_pem().into()) })
    }
}

/// Publishes the authorities and keeps the controller's certificate valid.
async fn keep(cluster: Cluster, issuing: Issuing, credentials: Arc<Credentials>, sender: AuthoritySender) {
    let mut renewal = SystemTime::now();
    let mut trusted = String::new();
    loop {
        let authorities = match cluster.authorities(&issuing).await {
            Ok(authorities) => Arc::new(authorities),
            Err(error) => {
                if !error.is_conflict() {
                    let until = if trusted.is_empty() {
                        "no agent can be called until then"
                    } else {
                        "the present certificate stays in use"
                    };
                    tracing::warn!(error = chain(&error), until, "cannot read the certificate authorities");
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let (now, trust) = (SystemTime::now(), authorities.trusted(SystemTime::now()));
        if now >= renewal || trust != trusted {
            let made = Cluster::own(&authorities, &issuing).map_err(|error| chain(&error));
            match made.and_then(|identity| credentials.give(&identity).map_err(|error| chain(&error))) {
                Ok(()) => {
                    tracing::info!(valid_for = issuing.life.as_secs(), "the controller has a new certificate");
                    (renewal, trusted) = (now + issuing.life / 2, trust);
                }
                Err(error) => tracing::error!(error, "cannot make the controller's certificate"),
            }
        }
        sender.send_replace(Some(authorities));
        tokio::time::sleep((issuing.life / 8).clamp(LOOKS.1, LOOKS.0)).await;
    }
}

/// Answers the agents' requests.
async fn answer(cluster: Cluster, issuing: Issuing, mut authorities: watch::Receiver<Option<Arc<Authorities>>>) {
    let username = format!("system:serviceaccount:{}:{}", cluster.namespace, issuing.account);
    let rules = Rules { driver: issuing.driver.clone(), username };
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client);
    // Nothing can be answered without authorities.
    if authorities.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let config = Config::default().fields(&format!("spec.signerName={}", signer(&issuing.driver)));
    let mut requests = pin!(watcher(api.clone(), config).default_backoff());
    // Requests that could not be answered yet, by name.
    let mut open: BTreeMap<String, CertificateSigningRequest> = BTreeMap::new();
    loop {
        let request = tokio::select! {
            event = requests.next() => match event {
                Some(Ok(Event::Apply(request) | Event::InitApply(request))) => request,
                Some(Ok(Event::Delete(request))) => {
                    open.remove(&request.name_any());
                    continue;
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    tracing::warn!(error = chain(&error), "cannot watch the agents' certificate requests");
                    continue;
                }
                None => return,
            },
            () = tokio::time::sleep(AGAIN), if !open.is_empty() => match open.pop_first() {
                Some((_, request)) => request,
                None => continue,
            },
        };
        let Some(current) = authorities.borrow().clone() else { continue };
        let name = request.name_any();
        // A newer version replaces the one that could not be answered.
        open.remove(&name);
        match settle(&api, &request, &rules, &current, issuing.life).await {
            Ok(()) => {}
            // Another replica was faster; the watch delivers its change.
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                tracing::warn!(request = name, error = chain(&error), "cannot answer a certificate request; retrying");
                open.insert(name, request);
            }
        }
    }
}

fn condition(kind: &str, message: String) -> CertificateSigningRequestCondition {
    let (reason, status) = (Some("LvmCsi".to_owned()), "True".to_owned());
    CertificateSigningRequestCondition { type_: kind.to_owned(), status, reason, message: Some(message), ..Default::default() }
}

/// Settles one request.
async fn settle(
    api: &Api<CertificateSigningRequest>,
    request: &CertificateSigningRequest,
    rules: &Rules,
    authorities: &Authorities,
    life: Duration,
) -> Result<(), ClusterError> {
    let id = request.name_any();
    let mut request = request.clone();
    let set = |request: &mut CertificateSigningRequest, new: CertificateSigningRequestCondition| {
        request.status.get_or_insert_default().conditions.get_or_insert_default().push(new);
    };
    let (params, wrong) = (PostParams::default(), |doing: &str| ClusterError::api(format!("{doing} request {id}")));
    match judge(&request, rules) {
        Verdict::Nothing => Ok(()),
        Verdict::Refuse(reason) => {
            tracing::warn!(request = id, reason, "refused a certificate request");
            set(&mut request, condition("Denied", reason));
            api.replace_subresource("approval", &id, &params, &request).await.map_err(wrong("refusing")).map(drop)
        }
        Verdict::Sign { node, name, key, approved } => {
            if !approved {
                set(&mut request, condition("Approved", format!("the agent of node {node} requested its own certificate")));
                request = api.replace_subresource("approval", &id, &params, &request).await.map_err(wrong("approving"))?;
            }
            let now = SystemTime::now();
            // The certificate comes first; the authorities that the agent must trust follow.
            let text = authorities.issue(&name, End::Called, &key, life, now)? + &authorities.trusted(now);
            request.status.get_or_insert_default().certificate = Some(ByteString(text.into_bytes()));
            api.replace_status(&id, &params, &request).await.map_err(wrong("signing"))?;
            tracing::info!(request = id, %node, "signed a new certificate for the agent of a node");
            Ok(())
        }
    }
}
