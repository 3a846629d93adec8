//! Who may read the metrics: the API server knows the account of a token (TokenReview) and its rights (SubjectAccessReview).

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
use crate::types::{Reading, chain};

/// What an account needs: the verb `get` on this path, which is no resource.
const PATH: &str = "/metrics";
/// How long an answer holds: a right that was taken away ends by then, and one that was given counts.
const HOLDS: [(Reading, Duration); 3] = [
    (Reading::Allowed, Duration::from_secs(60)),
    (Reading::Forbidden, Duration::from_secs(10)),
    (Reading::Unknown, Duration::from_secs(10)),
];
/// Answers that are kept.
const KEPT: usize = 64;
/// For how long it is remembered that a token was good for reading: it is asked about anew beside those of strangers, not after them.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Questions at once about tokens of strangers, and as many about others.
const AT_ONCE: usize = 4;
/// How long a question may take, and how long it may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(4);

/// Judges tokens, and remembers its answers for a while. Of a token only a digest is kept.
pub struct Tokens {
    cluster: Cluster,
    known: Mutex<HashMap<[u8; 32], (Instant, Reading)>>,
    /// Turns to ask about tokens that nothing is known of, which anybody can make, and about those that were good before.
    strangers: Semaphore,
    readers: Semaphore,
}

impl Cluster {
    /// Judges who may read the metrics.
    pub fn readers(&self) -> Tokens {
        Tokens {
            cluster: self.clone(),
            known: Mutex::default(),
            strangers: Semaphore::new(AT_ONCE),
            readers: Semaphore::new(AT_ONCE),
        }
    }
}

impl Tokens {
    /// Whether the owner of a token may read the metrics.
    pub async fn judge(&self, token: &str) -> Reading {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let before = self.known().get(&digest).copied();
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
                tracing::warn!(error = chain(&error), "nobody can say who may read the metrics");
                Reading::Undecided
            }
            Err(_) => Reading::Undecided,
        };
        if let Some((_, holds)) = HOLDS.iter().find(|(of, _)| *of == reading) {
            let now = Instant::now();
            let mut known = self.known();
            known.remove(&digest);
            known.retain(|_, (until, of)| now < *until + if *of == Reading::Allowed { REMEMBERED } else { Duration::ZERO });
            // Tokens that nobody knows can be had without end: they never take the place of one that is known.
            if known.len() < KEPT || reading == Reading::Allowed {
                if known.len() >= KEPT
                    && let Some(other) =
                        known.iter().min_by_key(|(_, (until, of))| (*of == Reading::Allowed, *until)).map(|(other, _)| *other)
                {
                    known.remove(&other);
                }
                known.insert(digest, (now + *holds, reading));
            }
        }
        reading
    }

    fn known(&self) -> MutexGuard<'_, HashMap<[u8; 32], (Instant, Reading)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, token: &str) -> Result<Reading, ClusterError> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.cluster.client.clone());
        let review =
            reviews.create(&PostParams::default(), &review).await.map_err(ClusterError::api("asking whose a token is"))?;
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
            .map_err(ClusterError::api("asking for the rights of an account"))?;
        Ok(if review.status.is_some_and(|status| status.allowed) { Reading::Allowed } else { Reading::Forbidden })
    }
}

#[cfg(test)]
mod tests;
