//! `lvm-csi node`.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

use crate::agent::{Agent, AgentService};
use crate::cluster::Cluster;
use crate::config::{NodeConfig, Trust};
use crate::machine::register_metrics;
use crate::server::{self, Services};
use crate::tls::{Credentials, agent_name};

use super::parts::{Directories, NodeParts};

/// Runs the node service, and this machine's agent for controllers elsewhere, until a signal ends it.
///
/// # Errors
/// The node cannot start, or stops serving.
pub fn node(config: NodeConfig) -> anyhow::Result<()> {
    super::run(serve(config))
}

async fn serve(config: NodeConfig) -> anyhow::Result<()> {
    let NodeConfig { config, agent_address, trust } = config;
    agent_name(&config.driver_name, &config.node_id)?;
    let kubernetes = matches!(trust, Trust::Kubernetes(_));
    let credentials = Arc::new(match trust {
        Trust::Files(files) => Credentials::load(files, &config.driver_name)?,
        Trust::Kubernetes(_) => Credentials::awaited(&config.driver_name),
    });
    let directories = Directories::take(&config).await?;
    let listener = server::bind(&config.endpoint).await?;
    let door = server::listen(agent_address).await.with_context(|| format!("listening on {agent_address} for the controller"))?;
    let mut metrics = super::metrics(config.metrics_address).await?;
    let health = super::health(config.health_address).await?;
    if kubernetes {
        let cluster = Cluster::connect().await?;
        super::guard(&mut metrics, &cluster, &credentials);
        cluster.certify(config.node_id.clone(), Arc::clone(&credentials));
    }
    let (endpoint, driver_name) = (config.endpoint.clone(), config.driver_name.clone());
    let parts = NodeParts::new(config, directories)?;
    let machine = Arc::clone(&parts.machine);
    let mut registry = super::registry();
    register_metrics(&mut registry, &machine);
    credentials.register_metrics(&mut registry);
    let (identity, groups, start) = (parts.identity(), parts.groups(), parts.start());
    let operations = (parts.inflight.clone(), groups.clone());
    let services = Services { identity, controller: None, node: Some(parts.node), groups, health, metrics, registry };
    let (stopping, stops) = watch::channel(false);
    let agent: Arc<dyn Agent> = Arc::new(Arc::clone(&machine));
    let service = AgentService::new(agent, &driver_name, stops.clone());
    let stop_signal = super::stop()?;
    let stop = async move {
        stop_signal.await;
        // Ends the streams of watching controllers, which never end by themselves.
        stopping.send_replace(true);
    };
    let mut stops = stops;
    let stop_agent = async move { drop(stops.wait_for(|stop| *stop).await) };
    let csi = server::serve(listener, services, parts.inflight, start, stop);
    let agent = server::serve_agent(door, credentials, service, operations, stop_agent);
    tokio::try_join!(csi, agent).context("serving")?;
    machine.last_backups().await;
    super::stopped(&endpoint);
    Ok(())
}
