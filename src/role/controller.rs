//! `lvm-csi controller`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

use crate::agent::{Agent, Remote};
use crate::cluster::{Claims, Cluster, Issuing, Member, Places};
use crate::config::{Agents, ControllerConfig, Kubernetes};
use crate::controller::{self, Controller, Fate, Fleet, Nodes, topology_key};
use crate::inflight::Inflight;
use crate::rpc::{ControllerService, IdentityService};
use crate::server::{self, Groups, Services};
use crate::tls::Credentials;
use crate::types::notification::{About, Notification};
use crate::types::{Asked, Bytes, Claim, ClaimName, Error, NodeId, VolumeId, chain};

/// Snapshots are always announced: a sidecar asks once, perhaps before any agent has reported its pools. Without a thin pool, the call
/// itself says so.
const SNAPSHOTS: bool = true;
/// How many notifications may wait for the log.
const ON_THE_WAY: usize = 16;

/// Runs the controller over the nodes' agents until a signal ends it. It needs no device, privilege or LVM.
///
/// # Errors
/// The controller cannot start, or stops serving.
pub fn controller(config: ControllerConfig) -> anyhow::Result<()> {
    super::run(serve(config))
}

async fn serve(config: ControllerConfig) -> anyhow::Result<()> {
    let listener = server::bind(&config.endpoint).await?;
    let mut metrics = super::metrics(config.metrics_address).await?;
    let health = super::health(config.health_address).await?;
    tracing::info!(driver = config.driver_name, "starting");
    let mut registry = super::registry();
    let (fleet, notifications, book) = match config.agents {
        Agents::Listed(listed, files) => {
            let credentials = Arc::new(Credentials::load(files, &config.driver_name)?);
            let mut agents: Vec<Arc<dyn Agent>> = Vec::new();
            for agent in listed {
                agents.push(Arc::new(Remote::new(agent.node, Some(&agent.address), Arc::clone(&credentials))?));
            }
            let fleet = Fleet::new(agents);
            let presences = fleet.track_presence();
            presences.register_metrics(&mut registry);
            credentials.register_metrics(&mut registry);
            fleet.report(presences, logged());
            (fleet, None, None)
        }
        Agents::Kubernetes(kubernetes) => {
            let cluster = Cluster::connect().await?;
            let credentials = Arc::new(Credentials::awaited(&config.driver_name));
            super::guard(&mut metrics, &cluster, &credentials);
            let book: Arc<dyn controller::Book> = Arc::new(Chosen(cluster.places(&config.driver_name)));
            let named = metrics.is_some();
            let (fleet, notifications) = discovered(kubernetes, &config.driver_name, cluster, credentials, named, &mut registry);
            (fleet, Some(notifications), Some(book))
        }
    };
    let controller = Arc::new(Controller::new(fleet, &config.driver_name).telling(notifications).keeping(book));
    let services = Services {
        // An agent that is away is no reason to report the controller as not ready.
        identity: IdentityService::new(config.driver_name.clone(), Box::new(|| Ok(true))),
        controller: Some(ControllerService::new(controller, SNAPSHOTS, config.attach_required)),
        node: None,
        groups: Groups::none(),
        health,
        metrics,
        registry,
    };
    server::serve(listener, services, Inflight::default(), || (), super::stop()?).await.context("serving")?;
    super::stopped(&config.endpoint);
    Ok(())
}

type NotificationSender = mpsc::Sender<Notification>;

/// Logs notifications that would be events in Kubernetes.
fn logged() -> NotificationSender {
    let (sender, mut received) = mpsc::channel::<Notification>(ON_THE_WAY);
    tokio::spawn(async move {
        while let Some(Notification { about, reason, warning, subject, text }) = received.recv().await {
            let About::Node(node) = about else { continue };
            if warning {
                tracing::warn!(%node, reason, subject, text, "a node has a problem");
            } else {
                tracing::info!(%node, reason, subject, text, "a problem of a node is solved");
            }
        }
    });
    sender
}

/// The fleet of the agents in Kubernetes, and the sender for notifications. With `named`, metrics also give the Kubernetes names of
/// volumes.
fn discovered(
    kubernetes: Kubernetes,
    driver: &str,
    cluster: Cluster,
    credentials: Arc<Credentials>,
    named: bool,
    registry: &mut Registry,
) -> (Fleet, NotificationSender) {
    let issuing = Issuing {
        driver: driver.to_owned(),
        secret: kubernetes.authority_secret,
        account: kubernetes.node_service_account,
        life: kubernetes.certificate_life,
    };
    cluster.issue(issuing, Arc::clone(&credentials));
    let members = cluster.follow_agents(&kubernetes.agent_selector, &topology_key(driver));
    let (sender, agents) = watch::channel(None);
    tokio::spawn(muster(members, Arc::clone(&credentials), sender));
    let fleet = Fleet::following(agents, Arc::new(Fates(cluster.clone())));
    let presences = fleet.track_presence();
    presences.register_metrics(registry);
    credentials.register_metrics(registry);
    let volumes = (named || kubernetes.grow.is_some()).then(|| cluster.follow_volumes(driver));
    volumes.iter().for_each(|volumes| volumes.register_metrics(registry));
    let notifications = cluster.tell(driver);
    fleet.report(presences, notifications.clone());
    if let Some((every, volumes)) = kubernetes.grow.zip(volumes) {
        let claims = Arc::new(Growing(cluster.follow_claims(driver, volumes)));
        let growths = fleet.grow(claims, driver, every, notifications.clone());
        growths.register_metrics(registry);
    }
    (fleet, notifications)
}

/// Keeps one `Remote` per member, with its last known state, wherever the member's pod goes.
async fn muster(
    mut members: watch::Receiver<Option<Vec<Member>>>,
    credentials: Arc<Credentials>,
    agents: watch::Sender<Option<controller::Agents>>,
) {
    let mut remotes: BTreeMap<NodeId, Arc<Remote>> = BTreeMap::new();
    while members.changed().await.is_ok() {
        let Some(now) = members.borrow_and_update().clone() else { continue };
        remotes.retain(|node, _| {
            let stays = now.iter().any(|member| member.node == *node);
            if !stays {
                tracing::info!(%node, "the node no longer exists; dropped its last known state");
            }
            stays
        });
        for Member { node, address } in now {
            if let Some(remote) = remotes.get(&node) {
                remote.move_to(address.as_deref());
                continue;
            }
            match Remote::new(node.clone(), address.as_deref(), Arc::clone(&credentials)) {
                Ok(remote) => drop(remotes.insert(node, Arc::new(remote))),
                Err(error) => tracing::error!(%node, error = chain(&error), "cannot call the agent of this node"),
            }
        }
        let all: controller::Agents = remotes.values().map(|remote| Arc::clone(remote) as Arc<dyn Agent>).collect();
        agents.send_replace(Some(all));
    }
}

/// The fate of nodes, from Kubernetes.
struct Fates(Cluster);

#[tonic::async_trait]
impl Nodes for Fates {
    async fn fate(&self, node: &NodeId) -> Result<Fate, Error> {
        Ok(match self.0.out_of_service(node).await? {
            None => Fate::Gone,
            Some(true) => Fate::OutOfService,
            Some(false) => Fate::Expected,
        })
    }
}

/// The claims with growth annotations, from Kubernetes.
struct Growing(Claims);

#[tonic::async_trait]
impl controller::Claims for Growing {
    fn all(&self) -> Vec<(Claim, VolumeId)> {
        self.0.all()
    }

    async fn enlarge(&self, claim: &Claim, size: Bytes) -> Result<Asked, Error> {
        self.0.enlarge(claim, size).await
    }
}

/// The nodes chosen for volumes, recorded on their claims.
struct Chosen(Places);

#[tonic::async_trait]
impl controller::Book for Chosen {
    async fn read(&self, claim: &ClaimName) -> Result<Option<NodeId>, Error> {
        self.0.read(claim).await
    }

    async fn write(&self, claim: &ClaimName, node: Option<&NodeId>) -> Result<(), Error> {
        self.0.write(claim, node).await
    }
}
