//! The commands that a person runs, beside the driver or without it.

mod import;
mod restore;
mod survey;

use std::path::PathBuf;
use std::sync::Arc;

use crate::agent::{Local, Setup};
use crate::attach::{Exposures, Ledger};
use crate::config::{Config, DRIVER_NAME};
use crate::host::{HostTools, Linux};
use crate::inflight::Inflight;
use crate::lvm::{Commands, Devices, Pins, Trust};

pub use import::{Claimant, Wish, import};
pub use restore::prepare_metadata;
pub use survey::{Question, Told, survey};

/// The agent of this machine for one command of a person, which makes no attachments and keeps no copies of metadata.
fn local(config: Config, ledger: Ledger, run_dir: PathBuf, lvm: Result<Arc<dyn Commands>, String>, inflight: Inflight) -> Local {
    Local::new(Setup {
        is_default: config.driver_name == DRIVER_NAME,
        driver: config.driver_name,
        node: config.node_id,
        pools: config.pools,
        max_volumes: 0,
        ledger,
        // No command of a person shows a volume.
        exposures: Exposures::none(),
        run_dir,
        lvm,
        wedged_after: config.wedged_after,
        kernel: Arc::new(Linux),
        tools: Arc::new(HostTools::find()),
        trust: Trust { pins: Pins::looked_at(&config.state_dir), devices: Devices::of_host(config.devices), ..Trust::default() },
        zeroing: config.zeroing,
        keeping: None,
        inflight,
    })
}
