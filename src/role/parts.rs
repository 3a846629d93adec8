//! The common parts of the roles with devices: this machine's agent and the node service over it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::attach::{Exposures, Hold, Holder, Ledger, hold};
use crate::config::{Config, DRIVER_NAME};
use crate::host::{HostTools, Kernel, Linux, Tools, files, machine_id};
use crate::inflight::Inflight;
use crate::lvm::{Backups, Commands, Devices, Pins, Program, Trust};
use crate::machine::{Keeping, Machine, Setup};
use crate::node::Node;
use crate::rpc::{IdentityService, NodeService};
use crate::server::Groups;
use crate::types::{LvUuid, chain};

/// The agent of this machine and what is built on it.
pub(super) struct NodeParts {
    pub(super) machine: Arc<Machine>,
    pub(super) node: NodeService,
    pub(super) inflight: Inflight,
    driver_name: String,
    wedged_after: Duration,
    housekeeping: Duration,
    /// Held until the role has finished serving, because its shutdown still works in them.
    _directories: Directories,
}

/// Locks on the driver's directories, held for its life.
pub(super) struct Directories {
    _state: Hold,
    _run: Hold,
}

impl Directories {
    /// Makes and locks the directories, before anything else: an earlier driver that is about to exit may still hold them, and the socket.
    pub(super) async fn take(config: &Config) -> anyhow::Result<Self> {
        let config = config.clone();
        tokio::task::spawn_blocking(move || Self::hold(&config)).await.context("locking the driver's directories")?
    }

    fn hold(config: &Config) -> anyhow::Result<Self> {
        let (state, run) = (&config.state_dir, &config.run_dir);
        refuse_former_state(config)?;
        for (what, dir) in [("state", state), ("run", run)] {
            files::make_directories(dir).with_context(|| format!("making the {what} directory {}", dir.display()))?;
        }
        anyhow::ensure!(state != run, "stateDir and runDir are both {}; they must differ", state.display());
        let holder = Holder { driver: &config.driver_name, endpoint: &config.endpoint };
        let held = Hold::take_state(state, holder, config.lock_wait)?;
        if hold::owner(state)?.is_none()
            && let Err(error) = hold::sign(state, &config.driver_name, &used_before(config)?)
        {
            tracing::warn!(
                error = chain(&error),
                "cannot write the driver's name into its state directory; a driver of another name could take it once this one exits"
            );
        }
        Ok(Self { _state: held, _run: Hold::take(run, holder, config.lock_wait)? })
    }
}

/// The LVs that an earlier version of this driver used without writing a driver's name on them: those that it attached, showed to pods, or
/// kept in metadata copies. The driver with the default name needs no such proof.
fn used_before(config: &Config) -> anyhow::Result<BTreeSet<LvUuid>> {
    if config.driver_name == DRIVER_NAME {
        return Ok(BTreeSet::new());
    }
    let mut lvs: BTreeSet<LvUuid> = Ledger::look(&config.state_dir)?.grants().into_iter().map(|grant| grant.lv).collect();
    lvs.extend(Exposures::open(&config.state_dir)?.all());
    if let Some((dir, interval)) = &config.metadata_copies {
        let backups = Backups::new(dir.clone(), *interval);
        let kept = config.pools.iter().filter_map(|pool| backups.last_named(&pool.vg));
        lvs.extend(kept.flat_map(|vg| vg.lvs).map(|lv| lv.uuid));
    }
    Ok(lvs)
}

/// Refuses to start if an earlier version kept its state in the directory that all drivers shared. Whether `stateDir` exists says nothing:
/// kubelet makes it before the driver starts.
fn refuse_former_state(config: &Config) -> anyhow::Result<()> {
    let former = config.former_state_dir().filter(|_| !Ledger::is_in(&config.state_dir));
    former.map_or(Ok(()), |former| refuse_state(&former, &config.state_dir, &config.driver_name))
}

fn refuse_state(former: &Path, ours: &Path, driver: &str) -> anyhow::Result<()> {
    if hold::owner(former)?.is_some() {
        return Ok(());
    }
    if Ledger::look(former)?.grants().is_empty() && !Exposures::are_in(former) {
        return Ok(());
    }
    anyhow::bail!(
        "state directory {} holds attachments or records of an earlier version that names no driver. If they belong to {driver}, stop \
         it and move the directory to {}. If not, upgrade their driver first, which then writes its name there, or set stateDir",
        former.display(),
        ours.display()
    )
}

impl NodeParts {
    /// Builds the parts in locked directories. The socket must be bound before.
    pub(super) fn new(config: Config, directories: Directories) -> anyhow::Result<Self> {
        let ledger = Ledger::open(&config.state_dir)?;
        let exposures = Exposures::open(&config.state_dir)
            .with_context(|| format!("reading the records of shown volumes in {}", config.state_dir.display()))?;
        let kernel: Arc<dyn Kernel> = Arc::new(Linux);
        let tools = HostTools::find();
        for missing in tools.missing() {
            tracing::warn!(error = %missing, "a tool is missing; calls that need it are refused");
        }
        let tools: Arc<dyn Tools> = Arc::new(tools);
        let lvm = Program::find().map_err(|error| {
            let reason = chain(&error);
            tracing::error!(reason, "LVM is not usable; every pool is absent");
            reason
        });
        if let Ok(program) = &lvm {
            tracing::info!(lvm = %program.version, node = %config.node_id, driver = config.driver_name, "starting");
        }
        let inflight = Inflight::default();
        let machine = Arc::new(Machine::new(Setup {
            node: config.node_id.clone(),
            driver: config.driver_name.clone(),
            is_default: config.driver_name == DRIVER_NAME,
            used: hold::used(&config.state_dir)?,
            id: machine_id(config.node_id.clone(), config.machine_id.as_deref()),
            pools: config.pools,
            max_volumes: config.max_volumes_per_node,
            run_dir: config.run_dir.clone(),
            lvm: lvm.map(|program| Arc::new(program) as Arc<dyn Commands>),
            wedged_after: config.wedged_after,
            kernel,
            tools,
            trust: Trust { pins: Pins::kept(&config.state_dir), devices: Devices::of_host(config.devices), ..Trust::default() },
            ledger,
            exposures,
            zeroing: config.zeroing,
            keeping: config.metadata_copies.map(|(dir, interval)| Keeping { backups: Backups::new(dir, interval), interval }),
            inflight: inflight.clone(),
        }));
        let binds = config.run_dir.join("binds");
        files::make_directories(&binds).with_context(|| format!("making {}", binds.display()))?;
        let node = Arc::new(Node::new(Arc::clone(&machine), config.node_id, binds, config.attach_required));
        let node = NodeService::new(node, &config.driver_name, config.max_volumes_per_node);
        Ok(Self {
            machine,
            node,
            inflight,
            driver_name: config.driver_name,
            wedged_after: config.wedged_after,
            housekeeping: config.housekeeping,
            _directories: directories,
        })
    }

    /// The Identity service. It is ready once the first look at the machine is over.
    pub(super) fn identity(&self) -> IdentityService {
        let machine = Arc::clone(&self.machine);
        IdentityService::new(self.driver_name.clone(), Box::new(move || machine.is_ready()))
    }

    /// The first look at the machine, and the background work after it.
    pub(super) fn start(&self) -> impl FnOnce() + Send + 'static {
        let (machine, housekeeping) = (Arc::clone(&self.machine), self.housekeeping);
        move || {
            machine.begin();
            machine.keep_house(housekeeping);
            machine.watch_udev();
            machine.watch_pools();
            machine.keep_working();
            machine.keep_backups();
        }
    }

    /// The volume groups, for health.
    pub(super) fn groups(&self) -> Groups {
        let (state_of, queue_of) = (Arc::clone(&self.machine), Arc::clone(&self.machine));
        Groups {
            names: self.machine.group_names(),
            state: Arc::new(move |name| state_of.group_state(name)),
            queue: Arc::new(move |name| queue_of.group_queue(name)),
            patience: self.wedged_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::{Exposure, Holder};
    use crate::types::{Bytes, Life, VgUuid};

    #[test]
    fn a_former_state_directory_is_refused_until_somebody_has_it() {
        let (former, ours) = (tempfile::tempdir().unwrap(), Path::new("/var/lib/lvm-csi-a.example"));
        let refuse = || refuse_state(former.path(), ours, "a.example").map_err(|error| error.to_string());
        assert_eq!(refuse_state(&former.path().join("none"), ours, "a.example").map_err(|error| error.to_string()), Ok(()));
        let ledger = Ledger::open(former.path()).unwrap();
        assert!(ledger.grants().is_empty() && Ledger::is_in(former.path()));
        let exposures = Exposures::open(former.path()).unwrap();
        assert_eq!(refuse(), Ok(()), "nothing is in it");
        let lv = LvUuid::from_compact(&"l".repeat(32)).unwrap();
        let shown = Exposure { life: Life::Raw, shown: Bytes(1) };
        exposures.record(&VgUuid::from_compact(&"v".repeat(32)).unwrap(), &lv, shown).unwrap();
        let error = refuse().unwrap_err();
        assert!(["a.example", "move the directory", "stateDir"].iter().all(|word| error.contains(word)), "{error}");
        let holder = Holder { driver: "lvm-csi.dev", endpoint: Path::new("/s") };
        let _held = Hold::take_state(former.path(), holder, Duration::ZERO).unwrap();
        hold::sign(former.path(), holder.driver, &BTreeSet::new()).unwrap();
        assert_eq!(refuse(), Ok(()));
    }
}
