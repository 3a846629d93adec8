//! The controller's part in certificates: it keeps its own valid, and answers the requests of agents. Every replica does; who comes
//! second finds the object changed and leaves it.

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

/// The pause after the API server did not do what it should.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest pause between two looks at the authorities, and the shortest.
const LOOKS: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(2));

type AuthoritySender = watch::Sender<Option<Arc<Authorities>>>;

impl Cluster {
    /// Gives the controller its certificates and answers the agents' requests, for as long as it runs.
    pub fn issue(&self, issuing: Issuing, credentials: Arc<Credentials>) {
        let (known, authorities) = watch::channel(None);
        tokio::spawn(keep(self.clone(), issuing.clone(), credentials, known));
        tokio::spawn(answer(self.clone(), issuing, authorities));
    }

    /// A certificate of the controller's own, with those that it trusts.
    fn own(authorities: &Authorities, issuing: &Issuing) -> Result<Identity, ClusterError> {
        let now = SystemTime::now();
        let key = KeyPair::generate().map_err(ClusterError::certificate("making a key"))?;
        let cert = authorities.issue(&controller_name(&issuing.driver), End::Caller, &key, issuing.life, now)?;
        Ok(Identity { ca: authorities.trusted(now), cert, key: key.serialize_pem() })
    }
}

/// Keeps the authorities known and the controller's certificate valid.
async fn keep(cluster: Cluster, issuing: Issuing, credentials: Arc<Credentials>, known: AuthoritySender) {
    let mut renewal = SystemTime::now();
    let mut trusted = String::new();
    loop {
        let authorities = match cluster.authorities(&issuing).await {
            Ok(authorities) => Arc::new(authorities),
            Err(error) => {
                if !error.is_conflict() {
                    let until = if trusted.is_empty() { "no agent can be called until then" } else { "what was made stays" };
                    tracing::warn!(error = chain(&error), until, "the authorities of certificates cannot be had");
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
                Err(error) => tracing::error!(error, "the controller's certificate could not be made"),
            }
        }
        known.send_replace(Some(authorities));
        tokio::time::sleep((issuing.life / 8).clamp(LOOKS.1, LOOKS.0)).await;
    }
}

/// Answers the requests of agents.
async fn answer(cluster: Cluster, issuing: Issuing, mut authorities: watch::Receiver<Option<Arc<Authorities>>>) {
    let username = format!("system:serviceaccount:{}:{}", cluster.namespace, issuing.account);
    let rules = Rules { driver: issuing.driver.clone(), username };
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client);
    // Before there are authorities nothing can be answered.
    if authorities.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let config = Config::default().fields(&format!("spec.signerName={}", signer(&issuing.driver)));
    let mut requests = pin!(watcher(api.clone(), config).default_backoff());
    // Those that could not be answered, by name.
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
                    tracing::warn!(error = chain(&error), "requests of agents for certificates cannot be watched");
                    continue;
                }
                None => return,
            },
            () = tokio::time::sleep(AGAIN), if !open.is_empty() => match open.pop_first() {
                Some((_, request)) => request,
                None => continue,
            },
        };
        let Some(known) = authorities.borrow().clone() else { continue };
        let name = request.name_any();
        // What is newer replaces what could not be answered.
        open.remove(&name);
        match settle(&api, &request, &rules, &known, issuing.life).await {
            Ok(()) => {}
            // Whoever was faster has changed it, which is heard of.
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                tracing::warn!(request = name, error = chain(&error), "a request for a certificate could not be answered");
                open.insert(name, request);
            }
        }
    }
}

fn condition(kind: &str, message: String) -> CertificateSigningRequestCondition {
    let (reason, status) = (Some("LvmCsi".to_owned()), "True".to_owned());
    CertificateSigningRequestCondition { type_: kind.to_owned(), status, reason, message: Some(message), ..Default::default() }
}

/// Brings one request to its end.
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
            tracing::warn!(request = id, reason, "a request for a certificate is refused");
            set(&mut request, condition("Denied", reason));
            api.replace_subresource("approval", &id, &params, &request).await.map_err(wrong("refusing")).map(drop)
        }
        Verdict::Sign { node, name, key, approved } => {
            if !approved {
                set(&mut request, condition("Approved", format!("the agent of node {node} asks for its own certificate")));
                request = api.replace_subresource("approval", &id, &params, &request).await.map_err(wrong("approving"))?;
            }
            let now = SystemTime::now();
            // The first is the certificate; those that follow are what the agent is to trust from now on.
            let text = authorities.issue(&name, End::Called, &key, life, now)? + &authorities.trusted(now);
            request.status.get_or_insert_default().certificate = Some(ByteString(text.into_bytes()));
            api.replace_status(&id, &params, &request).await.map_err(wrong("signing"))?;
            tracing::info!(request = id, %node, "the agent of a node has a new certificate");
            Ok(())
        }
    }
}
