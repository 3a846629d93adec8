//! `lvm-csi standalone`.

use std::sync::Arc;

use anyhow::Context;

use crate::agent::{self, Agent};
use crate::config::Config;
use crate::controller::{Controller, Fleet};
use crate::rpc::ControllerService;
use crate::server::{self, Services};

use super::machine::{Directories, Machine};

/// Runs controller, node service and agent in this process, until it is told to end.
///
/// # Errors
/// What could not be begun.
pub fn standalone(config: Config) -> anyhow::Result<()> {
    super::run(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let directories = Directories::take(&config).await?;
    let listener = server::bind(&config.endpoint).await?;
    let metrics = super::metrics(config.metrics_address).await?;
    let health = super::health(config.health_address).await?;
    let (endpoint, driver_name) = (config.endpoint.clone(), config.driver_name.clone());
    let attach_required = config.attach_required;
    let machine = Machine::new(config, directories)?;
    let local = Arc::clone(&machine.local);
    let mut registry = super::registry();
    agent::register_metrics(&mut registry, &local);
    let snapshots = local.offers_snapshots().await;
    let agent: Arc<dyn Agent> = Arc::new(Arc::clone(&local));
    let controller = Arc::new(Controller::new(Fleet::new(vec![agent]), &driver_name));
    let (identity, groups, start) = (machine.identity(), machine.groups(), machine.start());
    let services = Services {
        identity,
        controller: Some(ControllerService::new(controller, snapshots, attach_required)),
        node: Some(machine.node),
        groups,
        health,
        metrics,
        registry,
    };
    server::serve(listener, services, machine.inflight, start, super::stop()?).await.context("serving")?;
    local.last_backups().await;
    super::stopped(&endpoint);
    Ok(())
}
