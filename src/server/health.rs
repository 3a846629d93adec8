//! The health of each volume group: watched, told by the health service as `vg/<name>`, and logged when it changes.
//!
//! The health of the driver itself, the service of no name, does not depend on it: a driver that is killed because of a sick disk
//! serves nobody, and takes running commands along. The same disk may hold up its first look at the machine, so whether it should be
//! killed is told by a service that does not wait for that either, `live`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Endpoint, Server};
use tonic_health::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{self, HealthCheckRequest};
use tonic_health::server::HealthReporter;

use crate::host::whereabouts;
use crate::types::{GroupQueue, GroupState, VgName, chain};

use super::listener::{self, Limits, Listener};

/// The service that a driver which answers at all is well of.
pub(super) const LIVE: &str = "live";

/// How often what hangs is looked for, which costs nothing.
const TICK: Duration = Duration::from_secs(1);
/// How often the disks are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long the answer to a person may take: it is there already.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions at once on one connection of the network.
const STREAMS: u32 = 16;
/// After so long without a word, and as long again without an answer to a ping, who asks over the network counts as gone.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Tells health at an address of the network too, for as long as the driver runs: kubelet's probes cannot reach the socket.
pub(super) fn serve(listener: TcpListener, service: HealthServer<impl Health>) {
    let door = listener::plain(Listener::Tcp(listener), Limits::HEALTH);
    let routes = Routes::new(service).into_axum_router();
    tokio::spawn(async move {
        let server = Server::builder().max_concurrent_streams(STREAMS);
        let server = server.http2_keepalive_interval(Some(KEEPALIVE)).http2_keepalive_timeout(Some(KEEPALIVE));
        if let Err(error) = door.serve(server, routes, std::future::pending(), std::future::pending()).await {
            tracing::error!(error = chain(&error), "health is no longer told over the network");
        }
    });
}

/// Asks a driver of this machine, by its socket, for the health of some services, such as `vg/<name>`; of no name for the driver's own.
///
/// # Errors
/// The socket, and why nobody answers there within five seconds.
pub async fn ask(socket: &Path, services: &[String]) -> Result<Vec<bool>, String> {
    let asked = async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(|error| chain(&error))?;
        let mut client = HealthClient::new(endpoint.connect().await.map_err(|error| chain(&error))?);
        let mut answers = Vec::new();
        for service in services {
            let answer =
                client.check(HealthCheckRequest { service: service.clone() }).await.map_err(|status| status.to_string())?;
            answers.push(answer.into_inner().status() == pb::health_check_response::ServingStatus::Serving);
        }
        Ok(answers)
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} seconds", PATIENCE.as_secs())));
    asked.map_err(|error| format!("{}: {error}", socket.display()))
}

/// The volume groups to watch.
#[derive(Clone)]
pub struct Groups {
    /// Their names.
    pub names: Vec<VgName>,
    /// Looks at the disks of one; blocks as long as they do.
    pub state: Arc<dyn Fn(&VgName) -> GroupState + Send + Sync>,
    /// Says who waits to change one; asks no disk.
    pub queue: Arc<dyn Fn(&VgName) -> GroupQueue + Send + Sync>,
    /// How long the disks may take for a look.
    pub patience: Duration,
}

impl Groups {
    /// None at all, of a role that touches no device.
    pub fn none() -> Self {
        Self {
            names: Vec::new(),
            state: Arc::new(|_| GroupState::Absent("this role has no volume group".to_owned())),
            queue: Arc::new(|_| GroupQueue::default()),
            patience: Duration::ZERO,
        }
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("names", &self.names).finish_non_exhaustive()
    }
}

/// What the last looks found.
pub(super) type States = Arc<Mutex<BTreeMap<VgName, GroupState>>>;

/// Watches every group from now on.
pub(super) fn watch(groups: &Groups, reporter: &HealthReporter) -> States {
    let states = States::default();
    for name in &groups.names {
        tokio::spawn(follow(name.clone(), groups.clone(), reporter.clone(), Arc::clone(&states)));
    }
    states
}

/// The looks at the disks of a group, one after the other.
struct Look {
    since: Instant,
    running: Option<JoinHandle<GroupState>>,
    /// What the last one found; nothing before the first.
    found: Option<GroupState>,
}

impl Look {
    fn begin(&mut self, name: &VgName, groups: &Groups) {
        let (state, name) = (Arc::clone(&groups.state), name.clone());
        self.since = Instant::now();
        self.running = Some(tokio::task::spawn_blocking(move || state(&name)));
    }

    /// Takes what the look found, or begins the next one when it is time.
    async fn go_on(&mut self, name: &VgName, groups: &Groups) {
        let age = self.since.elapsed();
        match self.running.take() {
            Some(ended) if ended.is_finished() => {
                let failed = |error| GroupState::Unreadable(format!("the look at it failed: {error}"));
                self.found = Some(ended.await.unwrap_or_else(failed));
            }
            Some(running) => {
                self.running = Some(running);
                if age > groups.patience {
                    let text = format!("a look at its disks has taken {} s and is not over", age.as_secs());
                    self.found = Some(GroupState::Unreadable(text));
                }
            }
            None if age >= LOOK => self.begin(name, groups),
            None => {}
        }
    }
}

/// Follows one group for as long as the driver runs.
async fn follow(name: VgName, groups: Groups, reporter: HealthReporter, states: States) {
    let service = format!("vg/{name}");
    reporter.set_service_status(&service, ServingStatus::NotServing).await;
    let mut look = Look { since: Instant::now(), running: None, found: None };
    look.begin(&name, &groups);
    let mut told = None;
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        look.go_on(&name, &groups).await;
        let Some(found) = &look.found else { continue };
        states.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), found.clone());
        let wedge = (groups.queue)(&name).wedge;
        let (state, why) = wedge.as_ref().map_or_else(|| found.told(), |wedge| ("wedged", wedge.text.as_str()));
        if told == Some(state) {
            continue;
        }
        let good = wedge.is_none() && *found == GroupState::Complete;
        if !good {
            let process = wedge.as_ref().and_then(|wedge| wedge.pid).map(whereabouts);
            tracing::error!(vg = %name, state, why, process, "the volume group is sick");
        } else if told.is_some() {
            tracing::info!(vg = %name, "the volume group is well again");
        }
        let status = if good { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status(&service, status).await;
        told = Some(state);
    }
}
