//! The program: flags, configuration, the choice of effects, and one role to run.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use lvm_csi::agent::{Agent, Keeping, Local, Setup};
use lvm_csi::attach::Ledger;
use lvm_csi::config::{Config, Flags};
use lvm_csi::controller::{Controller, Fleet};
use lvm_csi::host::{self, HostTools, Kernel, Linux, Tools, files};
use lvm_csi::inflight::Inflight;
use lvm_csi::lvm::{Backups, Commands, Program};
use lvm_csi::node::Node;
use lvm_csi::rpc::{self, ControllerService, IdentityService, NodeService};
use lvm_csi::server::{self, Groups, LogFormat, Services};
use prometheus_client::registry::Registry;

/// A CSI driver that cuts block volumes from LVM volume groups.
#[derive(Debug, Parser)]
#[command(name = "lvm-csi", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Controller, node service and agent in one process on one socket, for the volume groups of this machine.
    Standalone(Box<Standalone>),
    /// Tells what is on a block device; the driver runs it as a child, since it reads what tenants wrote.
    #[command(hide = true)]
    Probe {
        /// The device.
        device: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Standalone {
    /// A configuration file (YAML) with pools.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Offer this volume group, without a file: a pool `linear`, and a pool `thin` where the group holds one thin pool.
    #[arg(long, value_name = "NAME")]
    vg: Option<String>,
    /// With --vg: make a thin pool of this size, such as 10Gi, if the group has none.
    #[arg(long, value_name = "SIZE")]
    create_thin_pool: Option<String>,
    /// Where to listen: unix:///path/csi.sock.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// The name of this node; the host's name without it.
    #[arg(long, env = "LVM_CSI_NODE_ID", value_name = "NAME")]
    node_id: Option<String>,
    /// What must survive a restart: the attachments. /var/lib/lvm-csi without it.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What need not: LVM's private configuration. /run/lvm-csi without it.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// The CSI name of the driver.
    #[arg(long, value_name = "NAME")]
    driver_name: Option<String>,
    /// How many volumes this node may have attached; 0 for no limit.
    #[arg(long, value_name = "COUNT")]
    max_volumes_per_node: Option<usize>,
    /// Serve Prometheus metrics at http://ADDRESS/metrics, to whoever can connect; such as 127.0.0.1:9808.
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// At least this many minutes lie between two copies of a volume group's metadata in DIR/metadata of --state-dir; 0 for none. 10
    /// without it.
    #[arg(long, value_name = "COUNT")]
    metadata_copy_minutes: Option<u32>,
    /// How log lines look. Their level is set by LVM_CSI_LOG.
    #[arg(long, value_enum, default_value = "text")]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    match Cli::parse().role {
        Role::Probe { device } => {
            let (answer, code) = lvm_csi::device::probe_child(&Linux, &device);
            // Nobody is left to hear of a closed pipe.
            let _ = writeln!(std::io::stdout(), "{answer}");
            ExitCode::from(code)
        }
        Role::Standalone(flags) => match standalone(*flags) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "lvm-csi: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn standalone(flags: Standalone) -> anyhow::Result<()> {
    let host = nix::unistd::gethostname().context("asking for the host's name")?;
    let format = flags.log_format;
    let config = Config::load(
        &Flags {
            config: flags.config,
            vg: flags.vg,
            create_thin_pool: flags.create_thin_pool,
            endpoint: flags.endpoint,
            node_id: flags.node_id,
            state_dir: flags.state_dir,
            run_dir: flags.run_dir,
            driver_name: flags.driver_name,
            max_volumes_per_node: flags.max_volumes_per_node,
            metrics_address: flags.metrics_address,
            metadata_copy_minutes: flags.metadata_copy_minutes,
        },
        &host.to_string_lossy(),
    )?;
    server::init_logging(match format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting the runtime")?;
    let ended = runtime.block_on(run(config));
    if ended.is_ok() {
        // All operations have ended; what may still wait for a disk that hangs is a last copy of its metadata.
        runtime.shutdown_background();
    }
    ended
}

async fn run(config: Config) -> anyhow::Result<()> {
    // First the socket: a second driver on it must not touch the ledger of the first.
    let listener = server::bind(&config.endpoint).await?;
    let metrics = match config.metrics_address {
        Some(address) => {
            let listener = server::bind_metrics(address).await.with_context(|| format!("listening on {address} for metrics"))?;
            let mut registry = Registry::with_prefix("lvm_csi");
            host::register_metrics(&mut registry);
            rpc::register_metrics(&mut registry);
            Some((listener, registry))
        }
        None => None,
    };
    files::make_directories(&config.state_dir)
        .with_context(|| format!("making the state directory {}", config.state_dir.display()))?;
    let ledger = Ledger::open(&config.state_dir)?;
    let kernel: Arc<dyn Kernel> = Arc::new(Linux);
    let tools = HostTools::find();
    for missing in tools.missing() {
        tracing::warn!(error = %missing, "a tool is missing; what needs it is refused");
    }
    let tools: Arc<dyn Tools> = Arc::new(tools);
    let lvm = Program::find().map_err(|error| {
        let reason = format!("{:#}", anyhow::Error::new(error));
        tracing::error!(reason, "there is no LVM to drive; every pool is absent");
        reason
    });
    if let Ok(program) = &lvm {
        tracing::info!(lvm = %program.version, node = %config.node_id, driver = config.driver_name, "starting");
    }
    let inflight = Inflight::default();
    let local = Arc::new(Local::new(Setup {
        node: config.node_id.clone(),
        pools: config.pools.clone(),
        max_volumes: config.max_volumes_per_node,
        run_dir: config.run_dir.clone(),
        lvm: lvm.map(|program| Arc::new(program) as Arc<dyn Commands>),
        wedged_after: config.wedged_after,
        kernel,
        tools,
        ledger,
        zeroing: config.zeroing,
        keeping: config.metadata_copies.map(|(dir, interval)| Keeping { backups: Backups::new(dir), interval }),
        inflight: inflight.clone(),
    }));
    let snapshots = {
        let local = Arc::clone(&local);
        tokio::task::spawn_blocking(move || local.offers_snapshots()).await.context("looking for thin pools")?
    };
    let agent: Arc<dyn Agent> = Arc::new(Arc::clone(&local));
    let controller = Arc::new(Controller::new(Fleet::new(vec![agent]), &config.driver_name));
    let binds = config.run_dir.join("binds");
    files::make_directories(&binds).with_context(|| format!("making {}", binds.display()))?;
    let node = Arc::new(Node::new(Arc::clone(&local), config.node_id, binds));
    let services = Services {
        identity: {
            let local = Arc::clone(&local);
            IdentityService::new(config.driver_name.clone(), Box::new(move || local.is_ready()))
        },
        controller: ControllerService::new(controller, snapshots),
        node: NodeService::new(node, &config.driver_name, config.max_volumes_per_node),
        groups: groups(&local, config.wedged_after),
        metrics,
    };
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: no new calls; running ones end first"),
            _ = interrupt.recv() => tracing::info!("SIGINT: no new calls; running ones end first"),
        }
    };
    let start = {
        let local = Arc::clone(&local);
        move || {
            local.start();
            local.watch_pools();
            local.keep_backups();
        }
    };
    server::serve(listener, services, inflight, start, stop).await.context("serving")?;
    local.last_backups().await;
    // A socket that nobody answers on would only puzzle clients.
    let _ = files::remove_file(&config.endpoint);
    tracing::info!("stopped");
    Ok(())
}

/// The groups of an agent, for those who watch their health.
fn groups(local: &Arc<Local>, patience: std::time::Duration) -> Groups {
    let (looked_at, asked) = (Arc::clone(local), Arc::clone(local));
    Groups {
        names: local.group_names(),
        state: Arc::new(move |name| looked_at.group_state(name)),
        queue: Arc::new(move |name| asked.group_queue(name)),
        patience,
    }
}
