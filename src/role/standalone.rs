//! `lvm-csi standalone`.

use std::sync::Arc;

use anyhow::Context;

use crate::agent::Agent;
use crate::config::Config;
use crate::controller::{Controller, Fleet};
use crate::machine::register_metrics;
use crate::rpc::ControllerService;
use crate::server::{self, Services};

use super::parts::{Directories, NodeParts};

/// Runs controller, node service and agent in this process until a signal ends it.
///
/// # Errors
/// The driver cannot start, or stops serving.
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
    let parts = NodeParts::new(config, directories)?;
    let machine = Arc::clone(&parts.machine);
    let mut registry = super::registry();
    register_metrics(&mut registry, &machine);
    let snapshots = machine.offers_snapshots().await;
    let agent: Arc<dyn Agent> = Arc::new(Arc::clone(&machine));
    let controller = Arc::new(Controller::new(Fleet::new(vec![agent]), &driver_name));
    let (identity, groups, start) = (parts.identity(), parts.groups(), parts.start());
    let services = Services {
        identity,
        controller: Some(ControllerService::new(controller, snapshots, attach_required)),
        node: Some(parts.node),
        groups,
        health,
        metrics,
        registry,
    };
    server::serve(listener, services, parts.inflight, start, super::stop()?).await.context("serving")?;
    machine.last_backups().await;
    super::stopped(&endpoint);
    Ok(())
}
