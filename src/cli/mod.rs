//! The commands that a person runs, with or without a running driver.

mod adopt;
mod import;
mod report;
mod restore;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::attach::{Exposures, Ledger, hold};
use crate::config::{Config, DRIVER_NAME};
use crate::host::{HostTools, Linux, files, machine_id};
use crate::inflight::{Inflight, Operation, Reservation};
use crate::lvm::{Commands, Devices, Pins, Program, Trust};
use crate::machine::{Machine, Setup};
use crate::types::{Error, chain};

pub use adopt::adopt;
pub use import::{Claimant, ImportRequest, import};
pub use report::{Answer, Question, report};
pub use restore::prepare_metadata;

/// The agent of this machine for a single command. It makes no attachments and keeps no copies of metadata.
fn without_server(
    config: Config,
    ledger: Ledger,
    exposures: Exposures,
    pins: Pins,
    run_dir: PathBuf,
    lvm: Result<Arc<dyn Commands>, String>,
    inflight: Inflight,
) -> Machine {
    Machine::new(Setup {
        is_default: config.driver_name == DRIVER_NAME,
        used: hold::used(&config.state_dir).unwrap_or_default(),
        driver: config.driver_name,
        id: machine_id(config.node_id.clone(), config.machine_id.as_deref()),
        node: config.node_id,
        pools: config.pools,
        max_volumes: 0,
        ledger,
        exposures,
        run_dir,
        lvm,
        wedged_after: config.wedged_after,
        kernel: Arc::new(Linux),
        tools: Arc::new(HostTools::find()),
        trust: Trust { pins, devices: Devices::of_host(config.devices), ..Trust::default() },
        zeroing: config.zeroing,
        keeping: None,
        inflight,
    })
}

/// Runs one operation on this machine, possibly beside a running driver. It uses a run directory of this name of its own: the
/// driver links its PVs in its LVM configuration, which another process must not change.
fn run_apart<A: Clone + Send + Sync + 'static>(
    config: Config,
    name: &str,
    pins: Pins,
    operation: Operation,
    work: impl FnOnce(&Machine, &Reservation) -> Result<A, Error> + Send + 'static,
) -> anyhow::Result<A> {
    let own = config.run_dir.join(name);
    files::make_directories(&own).with_context(|| format!("making {}", own.display()))?;
    let inflight = Inflight::default();
    let lvm = Arc::new(Program::find()?) as Arc<dyn Commands>;
    let machine = without_server(config, Ledger::open(&own)?, Exposures::none(), pins, own, Ok(lvm), inflight.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let done = runtime.block_on(inflight.run(operation, move |reservation| work(&machine, reservation)));
    done.map_err(|error| anyhow::anyhow!(chain(&error)))
}
