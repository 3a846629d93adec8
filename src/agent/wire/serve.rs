//! Serves the agent to the controller on another machine.
//!
//! The answer of a verb names the version of the report that follows it. A controller waits for that version, so its next list shows
//! the change.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lvm_csi_proto::agent as wire;
use lvm_csi_proto::agent::agent_server::Agent as Service;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::convert::{self, Malformed};
use crate::agent::{Agent, Holdings, PROTOCOL};
use crate::inflight::CallId;
use crate::types::{Change, Changed, Error};
use crate::volume::inventory::Volume;

/// How often to look at the disks while a controller watches: a look reads the header of each metadata area, and runs no command.
const LOOK: Duration = Duration::from_secs(2);
/// How often a controller hears at least that the agent is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long the answer of a verb waits for the look after it: the disk of another group may hang.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long a watch lasts until the controller begins another: the connection beneath may have got old.
const WATCH: Duration = Duration::from_secs(300);
/// Queue length of updates to one controller.
const ON_THE_WAY: usize = 2;

/// What the node had at the last look.
#[derive(Debug)]
pub(super) struct NodeSnapshot {
    version: u64,
    holdings: Arc<Holdings>,
    /// The version in which each group changed last.
    groups: Vec<u64>,
    /// The same for the pools.
    pools: u64,
    /// The same for the grants.
    grants: u64,
}

impl NodeSnapshot {
    /// The state after a new look; `None` if nothing changed.
    pub(super) fn next(before: Option<&Self>, holdings: Arc<Holdings>) -> Option<Self> {
        let Some(before) = before else {
            // A later process continues with higher versions.
            let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let version = u64::try_from(clock.as_millis()).unwrap_or(1);
            let groups = vec![version; holdings.groups.len()];
            return Some(Self { version, holdings, groups, pools: version, grants: version });
        };
        let version = before.version + 1;
        let since = |same: bool, last: u64| if same { last } else { version };
        let old = &before.holdings;
        let groups = holdings.groups.iter().enumerate().map(|(at, (name, known))| {
            let same = old.groups.get(at).is_some_and(|(old_name, old)| {
                let unmoved = matches!((old, known), (Ok(Some(old)), Ok(Some(new))) if Arc::ptr_eq(old, new));
                old_name == name && (unmoved || old == known)
            });
            since(same, before.groups.get(at).copied().unwrap_or(version))
        });
        let groups: Vec<u64> = groups.collect();
        let same = old.pools == holdings.pools
            && old.notices == holdings.notices
            && old.strangers == holdings.strangers
            && old.away == holdings.away;
        let pools = since(same, before.pools);
        let grants = since(old.grants == holdings.grants, before.grants);
        let changed = groups.contains(&version) || pools == version || grants == version;
        changed.then_some(Self { version, holdings, groups, pools, grants })
    }

    /// The update for a receiver that has everything up to a version.
    pub(super) fn since(&self, version: u64) -> wire::Update {
        let groups = self.holdings.groups.iter().zip(&self.groups).filter(|(_, changed)| **changed > version);
        let pools = || convert::of_pools(&self.holdings);
        let grants = || wire::Grants { grants: self.holdings.grants.iter().map(convert::of_grant).collect() };
        wire::Update {
            version: self.version,
            groups: groups.map(|((name, known), _)| convert::of_group(name, known)).collect(),
            pools: (self.pools > version).then(pools),
            grants: (self.grants > version).then(grants),
        }
    }
}

/// The agent as a service.
pub struct AgentService {
    agent: Arc<dyn Agent>,
    driver: String,
    latest: watch::Receiver<Option<Arc<NodeSnapshot>>>,
    /// The number of looks requested, and of looks taken.
    asked: Arc<watch::Sender<u64>>,
    taken: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
}

impl AgentService {
    /// The service over the agent of a driver with this CSI name. Watches end when `stop` becomes true.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(agent: Arc<dyn Agent>, driver: &str, stop: watch::Receiver<bool>) -> Self {
        let (latest, latest_changes) = watch::channel(None);
        let (asked, asked_changes) = watch::channel(0);
        let (taken, taken_changes) = watch::channel(0);
        tokio::spawn(look(Arc::clone(&agent), asked_changes, latest, taken));
        Self { agent, driver: driver.to_owned(), latest: latest_changes, asked: Arc::new(asked), taken: taken_changes, stop }
    }

    /// The version that a look from now on finds, or the last version if that takes too long.
    async fn look(&self) -> u64 {
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let mut taken = self.taken.clone();
        // After a timeout the last version counts.
        let _ = tokio::time::timeout(LOOK_LIMIT, taken.wait_for(|taken| *taken >= number)).await;
        self.latest.borrow().as_ref().map_or(0, |latest| latest.version)
    }

    /// Runs a verb under the id of the controller's call, looks at what it left, and answers with both.
    async fn verb<T>(&self, call: &'static str, work: impl Future<Output = Result<T, Error>>) -> (u64, Result<T, wire::Error>) {
        let span = tracing::info_span!("call", rpc = call, id = %CallId::present());
        let done = async {
            let done = work.await;
            match &done {
                Ok(_) => tracing::debug!("OK"),
                Err(error) => tracing::debug!(error = error.chain(), "not OK"),
            }
            done
        };
        let done = done.instrument(span).await;
        (self.look().await, done.map_err(|error| convert::of_error(&error)))
    }
}

/// Looks at the node on request, and every now and then.
async fn look(
    agent: Arc<dyn Agent>,
    mut asked: watch::Receiver<u64>,
    latest: watch::Sender<Option<Arc<NodeSnapshot>>>,
    taken: watch::Sender<u64>,
) {
    loop {
        let number = *asked.borrow_and_update();
        match agent.holdings().await {
            Ok(holdings) => {
                let next = NodeSnapshot::next(latest.borrow().as_deref(), holdings);
                if let Some(next) = next {
                    latest.send_replace(Some(Arc::new(next)));
                }
            }
            Err(error) => tracing::warn!(error = error.chain(), "cannot look at this node; the controller keeps its last state"),
        }
        taken.send_replace(number);
        match tokio::time::timeout(LOOK, asked.changed()).await {
            // The service is gone.
            Ok(Err(_)) => return,
            Ok(Ok(())) => {}
            // Only the service itself watches: nobody needs a look.
            Err(_) if latest.receiver_count() <= 1 => {
                if asked.changed().await.is_err() {
                    return;
                }
            }
            Err(_) => {}
        }
    }
}

fn bad(error: Malformed) -> Status {
    Status::invalid_argument(format!(
        "the agent cannot read the request: {error}; check that controller and node have the same version"
    ))
}

/// The answer of a verb that returns no object.
fn empty((version, done): (u64, Result<Change, wire::Error>)) -> Response<wire::EmptyAnswer> {
    let (change, error) = done.map_or_else(|error| (Change::Unknown, Some(error)), |change| (change, None));
    Response::new(wire::EmptyAnswer { version, error, change: convert::of_change(change).into() })
}

/// The answer of a verb that returns a volume.
fn volume((version, done): (u64, Result<Changed<Volume>, wire::Error>)) -> Response<wire::VolumeAnswer> {
    use wire::volume_answer::Result::{Error, Ok};
    let change = done.as_ref().map_or(Change::Unknown, |made| made.change);
    let result = done.map_or_else(Error, |made| Ok(convert::of_volume(&made.object)));
    Response::new(wire::VolumeAnswer { version, result: Some(result), change: convert::of_change(change).into() })
}

#[tonic::async_trait]
impl Service for AgentService {
    async fn hello(&self, message: Request<wire::HelloRequest>) -> Result<Response<wire::HelloResponse>, Status> {
        let asks = message.into_inner();
        tracing::debug!(protocol = asks.protocol, version = asks.driver_version, "a controller says hello");
        let offers = self.agent.offers().await.map_err(|error| Status::unavailable(error.chain()))?;
        Ok(Response::new(wire::HelloResponse {
            protocol: PROTOCOL,
            driver_version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.agent.node().to_string(),
            driver: self.driver.clone(),
            offers: offers.iter().map(convert::of_offer).collect(),
        }))
    }

    type WatchStream = ReceiverStream<Result<wire::Update, Status>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(ON_THE_WAY);
        let (mut latest, mut stop) = (self.latest.clone(), self.stop.clone());
        self.look().await;
        tokio::spawn(async move {
            let mut heard = 0;
            let end = tokio::time::Instant::now() + WATCH;
            loop {
                let now = latest.borrow_and_update().clone();
                if let Some(now) = now {
                    let update = now.since(heard);
                    heard = now.version;
                    if sender.send(Ok(update)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = latest.changed() => if changed.is_err() { return },
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = sender.closed() => return,
                    () = tokio::time::sleep_until(end) => return,
                    () = tokio::time::sleep(HEARTBEAT) => {}
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn look(&self, _: Request<wire::LookRequest>) -> Result<Response<wire::LookResponse>, Status> {
        Ok(Response::new(wire::LookResponse { version: self.look().await }))
    }

    async fn create(&self, message: Request<wire::CreateRequest>) -> Result<Response<wire::VolumeAnswer>, Status> {
        let (pool, spec) = convert::create(message.into_inner()).map_err(bad)?;
        Ok(volume(self.verb("Create", self.agent.create(pool, spec)).await))
    }

    async fn delete(&self, message: Request<wire::DeleteRequest>) -> Result<Response<wire::EmptyAnswer>, Status> {
        let id = convert::volume_id(&message.into_inner().volume_id).map_err(bad)?;
        Ok(empty(self.verb("Delete", self.agent.delete(id)).await))
    }

    async fn expand(&self, message: Request<wire::ExpandRequest>) -> Result<Response<wire::VolumeAnswer>, Status> {
        let message = message.into_inner();
        let id = convert::volume_id(&message.volume_id).map_err(bad)?;
        Ok(volume(self.verb("Expand", self.agent.expand(id, convert::size(message.size))).await))
    }

    async fn snapshot(&self, message: Request<wire::SnapshotRequest>) -> Result<Response<wire::SnapshotAnswer>, Status> {
        use wire::snapshot_answer::Result::{Error, Ok as Done};
        let request = convert::snapshot_wish(message.into_inner()).map_err(bad)?;
        let (version, done) = self.verb("Snapshot", self.agent.snapshot(request)).await;
        let change = done.as_ref().map_or(Change::Unknown, |made| made.change);
        let result = done.map_or_else(Error, |made| Done(convert::of_snapshot(&made.object)));
        Ok(Response::new(wire::SnapshotAnswer { version, result: Some(result), change: convert::of_change(change).into() }))
    }

    async fn delete_snapshot(
        &self,
        message: Request<wire::DeleteSnapshotRequest>,
    ) -> Result<Response<wire::EmptyAnswer>, Status> {
        let id = convert::snapshot_id(&message.into_inner().snapshot_id).map_err(bad)?;
        Ok(empty(self.verb("DeleteSnapshot", self.agent.delete_snapshot(id)).await))
    }

    async fn grant(&self, message: Request<wire::GrantRequest>) -> Result<Response<wire::GrantAnswer>, Status> {
        use wire::grant_answer::Result::{Error, Ok as Done};
        let (id, node, mode) = convert::grant_wish(&message.into_inner()).map_err(bad)?;
        let (version, done) = self.verb("Grant", self.agent.grant(id, node, mode)).await;
        let result = done.map_or_else(Error, |context| Done(convert::of_context(&context)));
        Ok(Response::new(wire::GrantAnswer { version, result: Some(result) }))
    }

    async fn release(&self, message: Request<wire::ReleaseRequest>) -> Result<Response<wire::EmptyAnswer>, Status> {
        let message = message.into_inner();
        let id = convert::volume_id(&message.volume_id).map_err(bad)?;
        let node = message.node.map(|node| convert::node("release.node", &node)).transpose().map_err(bad)?;
        let released = async { self.agent.release(id, node).await.map(|()| Change::Unknown) };
        Ok(empty(self.verb("Release", released).await))
    }

    async fn usage(&self, message: Request<wire::UsageRequest>) -> Result<Response<wire::UsageAnswer>, Status> {
        let ids = message.into_inner().volume_ids.iter().map(|id| convert::volume_id(id)).collect::<Result<_, _>>();
        let answer = match self.agent.usage(ids.map_err(bad)?).await {
            Ok(measured) => wire::UsageAnswer { volumes: measured.iter().map(convert::of_usage).collect(), error: None },
            Err(error) => wire::UsageAnswer { volumes: vec![], error: Some(convert::of_error(&error)) },
        };
        Ok(Response::new(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VgName;

    fn holdings(unknown: &[(&str, &str)]) -> Arc<Holdings> {
        let groups = unknown.iter().map(|(name, why)| (VgName::new(*name).unwrap(), Err((*why).to_owned()))).collect();
        Arc::new(Holdings { groups, ..Holdings::default() })
    }

    #[test]
    fn only_what_has_changed_is_told_again() {
        let first = NodeSnapshot::next(None, holdings(&[("a", "x"), ("b", "x")])).unwrap();
        let all = first.since(0);
        assert!(all.groups.len() == 2 && all.pools.is_some() && all.grants.is_some());
        assert!(NodeSnapshot::next(Some(&first), holdings(&[("a", "x"), ("b", "x")])).is_none());
        let second = NodeSnapshot::next(Some(&first), holdings(&[("a", "x"), ("b", "y")])).unwrap();
        let news = second.since(first.version);
        assert_eq!(news.groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert!(news.pools.is_none() && news.grants.is_none() && news.version > all.version);
        assert_eq!(second.since(0).groups.len(), 2);
        assert!(second.since(second.version).groups.is_empty());
    }
}
