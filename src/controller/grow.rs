//! Claims that grow by themselves: the agents measure how full their filesystems are, and the controller raises the request of a claim
//! that is full enough. The rest happens as if a person had done that. Several replicas may do it at once: each changes the version of
//! the claim that it read before the measurement, so the API server accepts one change.
//!
//! Growth cannot be taken back. So a doubtful measurement grows nothing, and a wrong annotation is reported instead of guessed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::Fleet;
use crate::types::notification::{About, Notification};
use crate::types::{Asked, Bytes, Claim, Error, Usage, VgUuid, VolumeId, parse_size, write_size};
use crate::volume::grow::{Growth, Rule};

/// Longest time for an agent to measure its filesystems, of which one may hang.
const MEASURING: Duration = Duration::from_secs(10);

/// The claims of the cluster.
#[tonic::async_trait]
pub trait Claims: Send + Sync {
    /// The claims with a growth rule, and their volumes.
    fn all(&self) -> Vec<(Claim, VolumeId)>;

    /// Raises the request of a claim to `size`, if the claim still has this version.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the API server cannot be reached.
    async fn enlarge(&self, claim: &Claim, size: Bytes) -> Result<Asked, Error>;
}

/// Counts raised requests of claims.
#[derive(Clone, Debug, Default)]
pub struct Growths(Counter);

impl Growths {
    /// Registers the counter as a metric.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register("claims_grown", "Claims that ran full and were let ask for more", self.0.clone());
    }
}

/// Why a claim does not grow, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    reason: &'static str,
    /// Distinguishes notices with the same reason.
    subject: String,
    text: String,
}

impl Fleet {
    /// Starts to grow claims, checking them at the interval `every`; `driver` is the CSI name.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn grow(
        &self,
        claims: Arc<dyn Claims>,
        driver: &str,
        every: Duration,
        notifications: mpsc::Sender<Notification>,
    ) -> Growths {
        let mut grower = Grower::new(self.clone(), claims, driver, notifications);
        let growths = grower.growths();
        tokio::spawn(async move {
            let mut checks = tokio::time::interval(every);
            checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                checks.tick().await;
                grower.look().await;
            }
        });
        growths
    }

    /// Usage of the volumes' filesystems, as far as their agents can measure it now.
    async fn usage(&self, ids: &[&VolumeId]) -> BTreeMap<VolumeId, Usage> {
        // The list of nodes may be unknown yet.
        let Ok(sites) = self.sites().await else { return BTreeMap::new() };
        let mut asked = JoinSet::new();
        let contested: Vec<&VgUuid> =
            ids.iter().map(|id| &id.vg).filter(|vg| sites.iter().filter(|site| site.has(vg)).count() > 1).collect();
        for site in sites {
            // A volume in a contested group cannot grow, so it is not measured.
            let its: Vec<VolumeId> =
                ids.iter().filter(|id| site.has(&id.vg) && !contested.contains(&&id.vg)).map(|&id| id.clone()).collect();
            if its.is_empty() || site.agent.away().is_some() {
                continue;
            }
            asked.spawn(async move {
                let late = || Error::unavailable("its filesystems", "they were not measured in time; one of them may hang");
                let answer = tokio::time::timeout(MEASURING, site.agent.usage(its)).await;
                answer.unwrap_or_else(|_| Err(late())).unwrap_or_else(|error| {
                    tracing::warn!(node = %site.node(), error = error.chain(), "claims on this node do not grow for now");
                    Vec::new()
                })
            });
        }
        let mut usages = BTreeMap::new();
        while let Some(answer) = asked.join_next().await {
            usages.extend(answer.unwrap_or_default());
        }
        usages
    }
}

/// Grows the claims.
pub(super) struct Grower {
    fleet: Fleet,
    claims: Arc<dyn Claims>,
    /// Prefix of the claims' annotations.
    prefix: String,
    notifications: mpsc::Sender<Notification>,
    growths: Growths,
    /// Reason and subject of the last notice that still applies, by the UIDs of claims.
    notified: BTreeMap<String, (&'static str, String)>,
}

impl Grower {
    pub(super) fn new(fleet: Fleet, claims: Arc<dyn Claims>, driver: &str, notifications: mpsc::Sender<Notification>) -> Self {
        let prefix = format!("{driver}/grow-");
        Self { fleet, claims, prefix, notifications, growths: Growths::default(), notified: BTreeMap::new() }
    }

    pub(super) fn growths(&self) -> Growths {
        self.growths.clone()
    }

    /// Checks all claims once.
    pub(super) async fn look(&mut self) {
        let mut held = BTreeMap::new();
        let mut growing = Vec::new();
        for (claim, id) in self.claims.all() {
            match rule_of(&claim, &self.prefix) {
                Ok(None) => {}
                Ok(Some((rule, size))) => growing.push((claim, id, rule, size)),
                Err(notice) => self.hold(&claim, notice, &mut held),
            }
        }
        let ids: Vec<&VolumeId> = growing.iter().map(|(_, id, _, _)| id).collect();
        // Without a claim that may grow no agent is called.
        let usages = if ids.is_empty() { BTreeMap::new() } else { self.fleet.usage(&ids).await };
        for (claim, id, rule, size) in growing {
            let Some(usage) = usages.get(&id) else {
                // It is not mounted, or its node is away, so the last notice may still apply.
                held.extend(self.notified.remove_entry(&claim.uid));
                continue;
            };
            if let Some(notice) = self.settle(&claim, &rule, size, *usage).await {
                self.hold(&claim, notice, &mut held);
            }
        }
        self.notified = held;
    }

    /// Grows a claim if it is full enough; returns why a full one does not grow.
    async fn settle(&self, claim: &Claim, rule: &Rule, size: Bytes, usage: Usage) -> Option<Notice> {
        let percent = usage.percent();
        let next = match rule.decide(size, usage) {
            Growth::Roomy => return None,
            Growth::To(next) => next,
            Growth::AtLimit(limit) => {
                let (has, limit) = (&claim.capacity, write_size(limit));
                let text = format!("it is {percent} % full, has {has} and grows no further: {}to is {limit}", self.prefix);
                return Some(Notice { reason: "GrowthLimit", subject: limit, text });
            }
        };
        let (from, to) = (&claim.capacity, write_size(next));
        match self.claims.enlarge(claim, next).await {
            Ok(Asked::Taken) => {
                self.growths.0.inc();
                let text = format!("it is {percent} % full and grows from {from} to {to}");
                self.tell(claim, "Grows", false, to, text);
                None
            }
            Ok(Asked::Changed) => None,
            Ok(Asked::Refused(why)) => {
                let text = format!("it is {percent} % full and cannot grow from {from} to {to}: {why}");
                Some(Notice { reason: "GrowthRefused", subject: to, text })
            }
            Err(error) => {
                tracing::warn!(
                    claim = claim.name,
                    namespace = claim.namespace,
                    error = error.chain(),
                    "a claim does not grow for now"
                );
                None
            }
        }
    }

    /// Records why a claim does not grow, and sends a notification if that is new.
    fn hold(&self, claim: &Claim, notice: Notice, held: &mut BTreeMap<String, (&'static str, String)>) {
        let Notice { reason, subject, text } = notice;
        let now = (reason, subject.clone());
        if self.notified.get(&claim.uid) != Some(&now) {
            self.tell(claim, reason, true, subject, text);
        }
        held.insert(claim.uid.clone(), now);
    }

    fn tell(&self, claim: &Claim, reason: &'static str, warning: bool, subject: String, text: String) {
        tracing::info!(claim = claim.name, namespace = claim.namespace, reason, text, "notification for a claim");
        let Claim { namespace, name, uid, .. } = claim.clone();
        // If the notification cannot be sent, the log has it.
        let _ = self.notifications.try_send(Notification {
            about: About::Claim { namespace, name, uid },
            reason,
            warning,
            subject,
            text,
        });
    }
}

/// The growth rule and the size of a claim; `None` while it is growing. `prefix` is that of its annotations.
fn rule_of(claim: &Claim, prefix: &str) -> Result<Option<(Rule, Bytes)>, Notice> {
    let wrong = |what: String| {
        let text = format!("{what}; the claim does not grow by itself until somebody corrects that");
        Notice { reason: "GrowthMisconfigured", subject: what, text }
    };
    let rule = Rule::read(&claim.words).map_err(|error| wrong(format!("{prefix}{} {}", error.word, error.reason)))?;
    if claim.block {
        let text = "it is a raw block device and does not grow by itself: only its user knows how full it is".to_owned();
        return Err(Notice { reason: "GrowthImpossible", subject: String::new(), text });
    }
    let size = |what: &str, text: &str| parse_size(text).map_err(|why| wrong(format!("{what} {text:?} {why}")));
    let request = size("spec.resources.requests.storage", &claim.request)?;
    let capacity = size("status.capacity.storage", &claim.capacity)?;
    Ok((capacity >= request).then_some((rule, capacity)))
}
