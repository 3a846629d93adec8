//! Who may read the metrics. The API server knows the account of a token (TokenReview) and its rights (SubjectAccessReview).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::{Cluster, ClusterError};
use crate::types::{Reading, Secret, chain};

/// An account needs the verb `get` on this non-resource path.
const PATH: &str = "/metrics";
/// How long each answer is cached. A revoked or new right takes effect after this time.
const HOLDS: [(Reading, Duration); 3] = [
    (Reading::Allowed, Duration::from_secs(60)),
    (Reading::Forbidden, Duration::from_secs(10)),
    (Reading::Unknown, Duration::from_secs(10)),
];
/// Maximum number of cached answers.
const KEPT: usize = 64;
/// How long an expired Allowed answer is remembered. Reviews of such tokens do not queue behind those of strangers.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Concurrent reviews of strangers' tokens, and as many of known readers' tokens.
const AT_ONCE: usize = 4;
/// Time limit for a review, including its wait for a turn.
const PATIENCE: Duration = Duration::from_secs(4);

/// Judges tokens and caches the answers. It stores only digests of tokens.
pub struct Tokens {
    cluster: Cluster,
    cached: Mutex<HashMap<[u8; 32], (Instant, Reading)>>,
    /// Turns for unknown tokens, which anyone can invent, and turns for tokens that were allowed before.
    strangers: Semaphore,
    readers: Semaphore,
}

impl Cluster {
    /// Judges who may read the metrics.
    pub fn readers(&self) -> Tokens {
        Tokens {
            cluster: self.clone(),
            cached: Mutex::default(),
            strangers: Semaphore::new(AT_ONCE),
            readers: Semaphore::new(AT_ONCE),
        }
    }
}

impl Tokens {
    /// Whether the owner of a token may read the metrics.
    pub async fn judge(&self, token: &Secret) -> Reading {
        let digest: [u8; 32] = Sha256::digest(token.reveal()).into();
        let before = self.cached().get(&digest).copied();
        if let Some((until, reading)) = before
            && Instant::now() < until
        {
            return reading;
        }
        let was_allowed = before.is_some_and(|(_, reading)| reading == Reading::Allowed);
        let turns = if was_allowed { &self.readers } else { &self.strangers };
        let asked = async {
            let _turn = turns.acquire().await;
            self.ask(token).await
        };
        let reading = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(reading)) => reading,
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "cannot ask the API server who may read the metrics");
                Reading::Undecided
            }
            Err(_) => Reading::Undecided,
        };
        if let Some((_, holds)) = HOLDS.iter().find(|(of, _)| *of == reading) {
            let now = Instant::now();
            let mut cached = self.cached();
            cached.remove(&digest);
            cached.retain(|_, (until, of)| now < *until + if *of == Reading::Allowed { REMEMBERED } else { Duration::ZERO });
            // Anyone can invent tokens, so only an Allowed answer displaces a cached one.
            if cached.len() < KEPT || reading == Reading::Allowed {
                if cached.len() >= KEPT
                    && let Some(other) =
                        cached.iter().min_by_key(|(_, (until, of))| (*of == Reading::Allowed, *until)).map(|(other, _)| *other)
                {
                    cached.remove(&other);
                }
                cached.insert(digest, (now + *holds, reading));
            }
        }
        reading
    }

    fn cached(&self) -> MutexGuard<'_, HashMap<[u8; 32], (Instant, Reading)>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, token: &Secret) -> Result<Reading, ClusterError> {
        let spec = TokenReviewSpec { token: Some(token.reveal_text().to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.cluster.client.clone());
        let review = reviews.create(&PostParams::default(), &review).await.map_err(ClusterError::api("reviewing a token"))?;
        let status = review.status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else { return Ok(Reading::Unknown) };
        let spec = SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes { path: Some(PATH.to_owned()), verb: Some("get".to_owned()) }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviews: Api<SubjectAccessReview> = Api::all(self.cluster.client.clone());
        let review = reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(ClusterError::api("reviewing the rights of an account"))?;
        Ok(if review.status.is_some_and(|status| status.allowed) { Reading::Allowed } else { Reading::Forbidden })
    }
}

#[cfg(test)]
mod tests;
