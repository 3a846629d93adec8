//! `lvm-csi controller`.

use std::sync::Arc;

use anyhow::Context;

use crate::agent::{Agent, Remote};
use crate::config::ControllerConfig;
use crate::controller::{Controller, Fleet};
use crate::inflight::Inflight;
use crate::rpc::{ControllerService, IdentityService};
use crate::server::{self, Groups, Services};
use crate::tls::Credentials;

/// Whether snapshots are on offer, which a sidecar asks once, before any agent may have told of its pools. Where there is no thin pool,
/// the call says so.
const SNAPSHOTS: bool = true;

/// Runs the controller over the agents of the nodes, until it is told to end. It needs no device, no right and no LVM.
///
/// # Errors
/// What could not be begun.
pub fn controller(config: ControllerConfig) -> anyhow::Result<()> {
    super::run(serve(config))
}

async fn serve(config: ControllerConfig) -> anyhow::Result<()> {
    let credentials = Arc::new(Credentials::load(config.tls, &config.driver_name)?);
    let listener = server::bind(&config.endpoint).await?;
    let metrics = super::metrics(config.metrics_address).await?;
    tracing::info!(agents = config.agents.len(), driver = config.driver_name, "starting");
    let mut agents: Vec<Arc<dyn Agent>> = Vec::new();
    for agent in config.agents {
        agents.push(Arc::new(Remote::new(agent.node, &agent.address, Arc::clone(&credentials))?));
    }
    let controller = Arc::new(Controller::new(Fleet::new(agents), &config.driver_name));
    let services = Services {
        // An agent that is away is no reason to take the controller away from the others.
        identity: IdentityService::new(config.driver_name.clone(), Box::new(|| Ok(true))),
        controller: Some(ControllerService::new(controller, SNAPSHOTS)),
        node: None,
        groups: Groups::none(),
        metrics,
    };
    server::serve(listener, services, Inflight::default(), || (), super::stop()?).await.context("serving")?;
    super::stopped(&config.endpoint);
    Ok(())
}
