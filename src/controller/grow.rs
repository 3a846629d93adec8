//! Claims that grow by themselves: the agents are asked how full their filesystems are, and a claim that is full enough is let ask for
//! more. What follows is what follows when a person does that. Several replicas may do so at once: each asks for more of a claim as it
//! was before its filesystem was measured, and the API server lets one of them have it.

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

/// How long an agent may take to measure filesystems, of which one may hang.
const MEASURING: Duration = Duration::from_secs(10);

/// Who knows the claims.
#[tonic::async_trait]
pub trait Claims: Send + Sync {
    /// Those that say something of their growth, with their volumes.
    fn all(&self) -> Vec<(Claim, VolumeId)>;

    /// Lets a claim ask for a size, if it is as it was seen.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where nobody can be asked.
    async fn enlarge(&self, claim: &Claim, size: Bytes) -> Result<Asked, Error>;
}

/// How many claims were let ask for more.
#[derive(Clone, Debug, Default)]
pub struct Growths(Counter);

impl Growths {
    /// Adds them to the figures that are told.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register("claims_grown", "Claims that ran full and were let ask for more", self.0.clone());
    }
}

/// Why a claim does not grow, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    reason: &'static str,
    /// What makes it another one.
    subject: String,
    text: String,
}

impl Fleet {
    /// Lets claims grow from now on, looking after them every so often; `driver` is the CSI name.
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
            let mut looks = tokio::time::interval(every);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                grower.look().await;
            }
        });
        growths
    }

    /// How full the filesystems of volumes are, as far as their agents can tell now.
    async fn usage(&self, ids: &[&VolumeId]) -> BTreeMap<VolumeId, Usage> {
        // Nothing is known of nodes that are not known yet.
        let Ok(sites) = self.sites().await else { return BTreeMap::new() };
        let mut asked = JoinSet::new();
        let contested: Vec<&VgUuid> =
            ids.iter().map(|id| &id.vg).filter(|vg| sites.iter().filter(|site| site.has(vg)).count() > 1).collect();
        for site in sites {
            // What cannot grow is not measured.
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

/// Who looks after the claims.
pub(super) struct Grower {
    fleet: Fleet,
    claims: Arc<dyn Claims>,
    /// What the words of claims begin with.
    prefix: String,
    notifications: mpsc::Sender<Notification>,
    growths: Growths,
    /// What was told and still holds, by the UIDs of claims: reason and subject.
    told: BTreeMap<String, (&'static str, String)>,
}

impl Grower {
    pub(super) fn new(fleet: Fleet, claims: Arc<dyn Claims>, driver: &str, notifications: mpsc::Sender<Notification>) -> Self {
        let prefix = format!("{driver}/grow-");
        Self { fleet, claims, prefix, notifications, growths: Growths::default(), told: BTreeMap::new() }
    }

    pub(super) fn growths(&self) -> Growths {
        self.growths.clone()
    }

    /// Looks after all claims once.
    pub(super) async fn look(&mut self) {
        let mut held = BTreeMap::new();
        let mut wishes = Vec::new();
        for (claim, id) in self.claims.all() {
            match wish(&claim, &self.prefix) {
                Ok(None) => {}
                Ok(Some((rule, size))) => wishes.push((claim, id, rule, size)),
                Err(notice) => self.hold(&claim, notice, &mut held),
            }
        }
        let ids: Vec<&VolumeId> = wishes.iter().map(|(_, id, _, _)| id).collect();
        // Nobody is asked where nobody wants to grow.
        let usages = if ids.is_empty() { BTreeMap::new() } else { self.fleet.usage(&ids).await };
        for (claim, id, rule, size) in wishes {
            let Some(usage) = usages.get(&id) else {
                // Nobody has it mounted, or its node is away; what was told is not known to be over.
                held.extend(self.told.remove_entry(&claim.uid));
                continue;
            };
            if let Some(notice) = self.settle(&claim, &rule, size, *usage).await {
                self.hold(&claim, notice, &mut held);
            }
        }
        self.told = held;
    }

    /// Lets a claim grow where it is full enough; gives why it does not.
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

    /// Takes down why a claim does not grow, and tells it where it was not told.
    fn hold(&self, claim: &Claim, notice: Notice, held: &mut BTreeMap<String, (&'static str, String)>) {
        let Notice { reason, subject, text } = notice;
        let now = (reason, subject.clone());
        if self.told.get(&claim.uid) != Some(&now) {
            self.tell(claim, reason, true, subject, text);
        }
        held.insert(claim.uid.clone(), now);
    }

    fn tell(&self, claim: &Claim, reason: &'static str, warning: bool, subject: String, text: String) {
        tracing::info!(claim = claim.name, namespace = claim.namespace, reason, text, "told to a claim");
        let Claim { namespace, name, uid, .. } = claim.clone();
        // What cannot be told is in the log.
        let _ = self.notifications.try_send(Notification {
            about: About::Claim { namespace, name, uid },
            reason,
            warning,
            subject,
            text,
        });
    }
}

/// What a claim says of its growth, and its size; nothing of one that is growing already. `prefix` is what its words begin with.
fn wish(claim: &Claim, prefix: &str) -> Result<Option<(Rule, Bytes)>, Notice> {
    let wrong = |what: String| {
        let text = format!("{what}; it does not grow by itself until that is put right");
        Notice { reason: "GrowthMisconfigured", subject: what, text }
    };
    let rule = Rule::read(&claim.words).map_err(|found| wrong(format!("{prefix}{} {}", found.word, found.reason)))?;
    if claim.block {
        let text = "it is a raw block device, and only who uses it knows how full it is: it does not grow by itself".to_owned();
        return Err(Notice { reason: "GrowthImpossible", subject: String::new(), text });
    }
    let size = |what: &str, text: &str| parse_size(text).map_err(|why| wrong(format!("{what} {text:?} {why}")));
    let request = size("spec.resources.requests.storage", &claim.request)?;
    let capacity = size("status.capacity.storage", &claim.capacity)?;
    Ok((capacity >= request).then_some((rule, capacity)))
}
