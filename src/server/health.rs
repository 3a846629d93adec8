//! The health of each volume group. The driver watches it, serves it in the health service as `vg/<name>`, and logs each change.
//!
//! The health of the driver itself (the service with the empty name) does not depend on it. Killing a driver for a sick disk would end
//! running commands and help nobody. The same disk may also hold up the first look at the machine, so liveness probes ask the service
//! `live`, which does not wait for that look.

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

/// The service that says whether the driver answers at all.
pub(super) const LIVE: &str = "live";

/// How often to check for hanging commands, which costs nothing.
const TICK: Duration = Duration::from_secs(1);
/// How often to check the disks.
const LOOK: Duration = Duration::from_secs(2);
/// Timeout for `ask`. The driver answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);
/// Concurrent requests on one network connection.
const STREAMS: u32 = 16;
/// After this much silence the server pings a network client; after the same time without an answer it drops the client.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Serves health on the network too, for as long as the driver runs: kubelet's probes cannot reach the socket.
pub(super) fn serve(listener: TcpListener, service: HealthServer<impl Health>) {
    let door = listener::plain(Listener::Tcp(listener), Limits::HEALTH);
    let routes = Routes::new(service).into_axum_router();
    tokio::spawn(async move {
        let server = Server::builder().max_concurrent_streams(STREAMS);
        let server = server.http2_keepalive_interval(Some(KEEPALIVE)).http2_keepalive_timeout(Some(KEEPALIVE));
        if let Err(error) = door.serve(server, routes, std::future::pending(), std::future::pending()).await {
            tracing::error!(error = chain(&error), "the health service no longer answers on the network");
        }
    });
}

/// Asks a driver on this machine, over its socket, for the health of services such as `vg/<name>`. The empty name is the driver itself.
///
/// # Errors
/// The socket, and why no answer came within five seconds.
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
    pub names: Vec<VgName>,
    /// Checks the disks of a group. Blocks as long as they do.
    pub state: Arc<dyn Fn(&VgName) -> GroupState + Send + Sync>,
    /// Says who waits to change a group. Does not touch a disk.
    pub queue: Arc<dyn Fn(&VgName) -> GroupQueue + Send + Sync>,
    /// How long the disks may take for one check.
    pub patience: Duration,
}

impl Groups {
    /// No groups, for a role that touches no device.
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

/// The result of the last check of each group.
pub(super) type States = Arc<Mutex<BTreeMap<VgName, GroupState>>>;

/// Starts watching every group.
pub(super) fn watch(groups: &Groups, reporter: &HealthReporter) -> States {
    let states = States::default();
    for name in &groups.names {
        tokio::spawn(follow(name.clone(), groups.clone(), reporter.clone(), Arc::clone(&states)));
    }
    states
}

/// The checks of one group's disks, one at a time.
struct Look {
    since: Instant,
    running: Option<JoinHandle<GroupState>>,
    /// The result of the last check; `None` before the first.
    found: Option<GroupState>,
}

impl Look {
    fn begin(&mut self, name: &VgName, groups: &Groups) {
        let (state, name) = (Arc::clone(&groups.state), name.clone());
        self.since = Instant::now();
        self.running = Some(tokio::task::spawn_blocking(move || state(&name)));
    }

    /// Takes the result of the check, or starts the next one when it is due.
    async fn go_on(&mut self, name: &VgName, groups: &Groups) {
        let age = self.since.elapsed();
        match self.running.take() {
            Some(ended) if ended.is_finished() => {
                let failed = |error| GroupState::Unreadable(format!("the check of its disks failed: {error}"));
                self.found = Some(ended.await.unwrap_or_else(failed));
            }
            Some(running) => {
                self.running = Some(running);
                if age > groups.patience {
                    let text = format!("a check of its disks has been running for {} s and still is", age.as_secs());
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
    let mut last_logged = None;
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        look.go_on(&name, &groups).await;
        let Some(found) = &look.found else { continue };
        states.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), found.clone());
        let wedge = (groups.queue)(&name).wedge;
        let (state, why) = wedge.as_ref().map_or_else(|| found.told(), |wedge| ("wedged", wedge.text.as_str()));
        if last_logged == Some(state) {
            continue;
        }
        let good = wedge.is_none() && *found == GroupState::Complete;
        if !good {
            let process = wedge.as_ref().and_then(|wedge| wedge.pid).map(whereabouts);
            tracing::error!(vg = %name, state, why, process, "the volume group is sick");
        } else if last_logged.is_some() {
            tracing::info!(vg = %name, "the volume group is well again");
        }
        let status = if good { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status(&service, status).await;
        last_logged = Some(state);
    }
}
