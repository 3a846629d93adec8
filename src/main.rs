//! The program: flags, configuration, and one role to run.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};

use lvm_csi::cli::{self, Claimant, ImportRequest, Question};
use lvm_csi::config::{self, Config, ControllerConfig, Flags, NodeConfig};
use lvm_csi::host::{self, confine, grow_ext4};
use lvm_csi::role;
use lvm_csi::server::{self, LogFormat};
use lvm_csi::types::{FsKind, LvName, VgName};
use lvm_csi::volume::import::Expected;

/// Where the chart puts the configuration.
const CONFIG: &str = "/etc/lvm-csi/config.yaml";

/// The exit status of a program that could not be run, as shells give it; of none that runs.
const NOT_RUN: u8 = 126;

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
    /// The node service, and the agent of this machine for a controller elsewhere.
    Node(Box<Node>),
    /// The controller, over the agents of all nodes. It touches no device and needs no rights.
    Controller(Box<Controller>),
    /// Makes a volume of an LV that somebody made by hand, and prints its PersistentVolume and PersistentVolumeClaim.
    ///
    /// Its name and its bytes stay. Only looks at it without --apply; an inactive LV is active meanwhile. A driver may run beside.
    Import(Box<Import>),
    /// Makes a volume group this machine's: its disks were moved here, or are a copy that is to live on.
    ///
    /// The first machine that changes a group is recorded in it, and every other refuses to. A driver may run beside.
    Adopt(Box<Adopt>),
    /// Every volume and snapshot on this machine: pool, size, what it holds, which node has it, at how many places it is in use.
    ///
    /// This and the three below look at the machine itself, with LVM's metadata and the driver's book of attachments: they need no
    /// cluster, and a driver may run beside or not. They change nothing.
    List(Box<Look>),
    /// Who has a volume of this machine, since when, on what device, and where it is in use.
    Who {
        /// The name of its LV (that of its PersistentVolume), VG/LV, or its handle.
        volume: String,
        #[command(flatten)]
        look: Box<Look>,
    },
    /// The pools of this machine: size, room, promises, how full.
    Pools(Box<Look>),
    /// What is wrong on this machine, a line for each: object, reason, what to do. Ends with 1 where there is something.
    Doctor(Box<Look>),
    /// The metrics of the driver on this machine, as it serves them to Prometheus.
    Metrics {
        /// Where the driver listens: unix:///path/csi.sock.
        #[arg(long, env = "CSI_ENDPOINT", value_name = "URL")]
        endpoint: Option<String>,
    },
    /// Prints a copy of a volume group's metadata, made to fit its thin pools as they are now: for vgcfgrestore --force.
    ///
    /// The pools must not be active. Comments at the beginning say what differs; nothing is changed.
    PrepareMetadata {
        /// The copy, in the format of vgcfgbackup.
        file: PathBuf,
    },
    /// Tells what is on a block device; the driver runs it as a child, since it reads what tenants wrote.
    #[command(hide = true)]
    Probe {
        /// How long that may take.
        #[arg(long, value_name = "COUNT", default_value_t = 30)]
        seconds: u32,
        /// The device.
        device: PathBuf,
    },
    /// Runs a program that parses what tenants wrote, without capabilities.
    #[command(hide = true)]
    Confined {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Grows a mounted ext4 filesystem; the driver runs it as a child.
    #[command(hide = true)]
    GrowExt4 {
        /// How many of its blocks it shall have.
        blocks: u64,
        /// Where it is mounted.
        mount_point: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Standalone {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    machine: MachineFlags,
}

#[derive(Debug, Args)]
struct Node {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    machine: MachineFlags,
    #[command(flatten)]
    tls: Tls,
    /// Where the agent listens for controllers, such as 10.0.0.7:9809.
    #[arg(long, env = "LVM_CSI_AGENT_ADDRESS", value_name = "ADDRESS")]
    agent_address: Option<String>,
}

#[derive(Debug, Args)]
struct Controller {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    tls: Tls,
    /// The agent of a node; once for each.
    #[arg(long = "agent", value_name = "NODE=https://ADDRESS:PORT")]
    agents: Vec<String>,
}

/// Which group of which driver a person changes something in.
#[derive(Debug, Args)]
struct OneGroup {
    /// The configuration file of the driver on this node; without one the group has the pools that the flag --vg gives a driver.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The volume group.
    #[arg(long, value_name = "NAME")]
    vg: String,
    /// The CSI name of the driver.
    #[arg(long, value_name = "NAME")]
    driver_name: Option<String>,
    /// The name of this node; the host's name without it.
    #[arg(long, env = "LVM_CSI_NODE_ID", value_name = "NAME")]
    node_id: Option<String>,
    /// What tells this machine from every other, of 8 characters at least, as the driver is told it; found out without it (see the documents).
    #[arg(long, env = "LVM_CSI_MACHINE_ID", value_name = "TEXT")]
    machine_id: Option<String>,
    /// What need not survive: LVM's private configuration. /run/lvm-csi without it.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

impl OneGroup {
    /// The configuration, with which nothing is served, and the group.
    fn configured(self, state_dir: Option<PathBuf>) -> anyhow::Result<(Config, VgName)> {
        let flags = Flags {
            vg: self.config.is_none().then(|| self.vg.clone()),
            config: self.config,
            node_id: self.node_id,
            machine_id: self.machine_id,
            driver_name: self.driver_name,
            state_dir,
            run_dir: self.run_dir,
            endpoint: Some("unix:///".to_owned()),
            ..Flags::default()
        };
        let config = Config::of_person(&flags, &host()?)?;
        server::init_logging(LogFormat::Text);
        Ok((config, VgName::new(&self.vg).with_context(|| format!("--vg {:?}", self.vg))?))
    }
}

#[derive(Debug, Args)]
struct Import {
    #[command(flatten)]
    group: OneGroup,
    /// The LV.
    #[arg(long, value_name = "NAME")]
    lv: String,
    /// The pool that it must lie in; found by the configuration without it.
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// What is on it; refused where something else is found.
    #[arg(long, value_enum)]
    filesystem: Option<Filesystem>,
    /// Do it.
    #[arg(long)]
    apply: bool,
    /// The claim that shall have it; without one any claim that selects its label.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    claim: Option<String>,
}

#[derive(Debug, Args)]
struct Adopt {
    #[command(flatten)]
    group: OneGroup,
    /// The devices of the group, where others show a group of that name too; once for each.
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<PathBuf>,
    /// Where the driver keeps its state. /var/lib/lvm-csi without it; /var/lib/lvm-csi-NAME with a driver name of its own.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// What a person says who looks at the machine.
#[derive(Debug, Args)]
struct Look {
    /// The configuration file of the driver on this node.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Instead of a file: the volume group, as the flag --vg of the driver.
    #[arg(long, value_name = "NAME")]
    vg: Option<String>,
    /// Where the driver listens, for the doctor: unix:///path/csi.sock.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// The name of this node; the host's name without it.
    #[arg(long, env = "LVM_CSI_NODE_ID", value_name = "NAME")]
    node_id: Option<String>,
    /// What tells this machine from every other, of 8 characters at least; found out without it (see the documents).
    #[arg(long, env = "LVM_CSI_MACHINE_ID", value_name = "TEXT")]
    machine_id: Option<String>,
    /// The CSI name of the driver, with --vg.
    #[arg(long, value_name = "NAME")]
    driver_name: Option<String>,
    /// Where the driver keeps its book of attachments. /var/lib/lvm-csi without it; /var/lib/lvm-csi-NAME with a driver name of its own.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Filesystem {
    Ext4,
    Xfs,
    Raw,
}

/// What every role has.
#[derive(Debug, Args)]
struct Common {
    /// A configuration file (YAML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen: unix:///path/csi.sock.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// The CSI name of the driver.
    #[arg(long, value_name = "NAME")]
    driver_name: Option<String>,
    /// Serve Prometheus metrics at /metrics of this address; such as 127.0.0.1:9808. In Kubernetes over TLS, to accounts with the right to
    /// get it; elsewhere on a loopback address only.
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// Answer questions after the driver's health (gRPC, as kubelet's probes ask) at this address too; such as 0.0.0.0:9810.
    #[arg(long, value_name = "ADDRESS")]
    health_address: Option<String>,
    /// Whether the controller attaches a volume before its node uses it: as attachRequired of the CSIDriver object says, for controller
    /// and nodes alike. true without it.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    attach_required: Option<bool>,
    /// How log lines look. Their level is set by LVM_CSI_LOG.
    #[arg(long, value_enum, default_value = "text")]
    log_format: Format,
}

/// What the roles on a machine with volume groups have.
#[derive(Debug, Args)]
struct MachineFlags {
    /// Offer this volume group, without a file: a pool `linear`, and a pool `thin` where the group holds one thin pool.
    #[arg(long, value_name = "NAME")]
    vg: Option<String>,
    /// With --vg: make a thin pool of this size, such as 10Gi, if the group has none.
    #[arg(long, value_name = "SIZE")]
    create_thin_pool: Option<String>,
    /// The name of this node; the host's name without it.
    #[arg(long, env = "LVM_CSI_NODE_ID", value_name = "NAME")]
    node_id: Option<String>,
    /// What tells this machine from every other, of 8 characters at least; found out without it (see the documents).
    #[arg(long, env = "LVM_CSI_MACHINE_ID", value_name = "TEXT")]
    machine_id: Option<String>,
    /// What must survive a restart: the attachments. /var/lib/lvm-csi without it; /var/lib/lvm-csi-NAME with a driver name of its own.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What need not: LVM's private configuration. /run/lvm-csi without it; /run/lvm-csi-NAME with a driver name of its own.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// How many seconds to wait at the start for an earlier driver in the same directories to end. 30 without it.
    #[arg(long, value_name = "COUNT")]
    lock_wait_seconds: Option<u64>,
    /// How many volumes this node may have attached; 0 for no limit.
    #[arg(long, value_name = "COUNT")]
    max_volumes_per_node: Option<usize>,
    /// Older copies of a volume group's metadata in DIR/metadata of --state-dir lie so many minutes apart; 0 for no copies. 10 without
    /// it.
    #[arg(long, value_name = "COUNT")]
    metadata_copy_minutes: Option<u32>,
}

/// What the two ends of the way between controller and agents have.
#[derive(Debug, Args)]
struct Tls {
    /// The authorities that sign the certificates of the other end (PEM). All three files are read again when they change.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The certificate of this end (PEM): for NODE.node.DRIVER, or for controller.DRIVER.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Common {
    /// Lays these over the flags of a role; gives the form of the log beside.
    fn over(self, flags: Flags) -> (Flags, LogFormat) {
        let format = match self.log_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
        let flags = Flags {
            config: self.config,
            endpoint: self.endpoint,
            driver_name: self.driver_name,
            metrics_address: self.metrics_address,
            health_address: self.health_address,
            attach_required: self.attach_required,
            ..flags
        };
        (flags, format)
    }
}

impl MachineFlags {
    fn over(self, flags: Flags) -> Flags {
        Flags {
            vg: self.vg,
            create_thin_pool: self.create_thin_pool,
            node_id: self.node_id,
            machine_id: self.machine_id,
            state_dir: self.state_dir,
            run_dir: self.run_dir,
            lock_wait_seconds: self.lock_wait_seconds,
            max_volumes_per_node: self.max_volumes_per_node,
            metadata_copy_minutes: self.metadata_copy_minutes,
            ..flags
        }
    }
}

impl Tls {
    fn over(self, flags: Flags) -> Flags {
        Flags { tls_ca: self.tls_ca, tls_cert: self.tls_cert, tls_key: self.tls_key, ..flags }
    }
}

/// The child that grows an ext4 filesystem: its parent quotes what it says.
fn grow(mount_point: &Path, blocks: u64) -> ExitCode {
    match grow_ext4(mount_point, blocks) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    host::keep_one_heap();
    let ended = match Cli::parse().role {
        Role::Probe { seconds, device } => {
            let (answer, code) = lvm_csi::device::probe_child(&device, || confine::for_parsing(seconds));
            // Nobody is left to hear of a closed pipe.
            let _ = writeln!(std::io::stdout(), "{answer}");
            return ExitCode::from(code);
        }
        Role::Confined { program, args } => {
            let error = confine::run_confined(&program, &args);
            let _ = writeln!(std::io::stderr(), "{}: {error}", program.display());
            return ExitCode::from(NOT_RUN);
        }
        Role::GrowExt4 { blocks, mount_point } => return grow(&mount_point, blocks),
        Role::Standalone(flags) => standalone(*flags),
        Role::Node(flags) => node(*flags),
        Role::Controller(flags) => controller(*flags),
        Role::Import(flags) => import(*flags),
        Role::Adopt(flags) => adopt(*flags),
        Role::List(flags) => report(*flags, &Question::List),
        Role::Who { volume, look } => report(*look, &Question::Who(volume)),
        Role::Pools(flags) => report(*flags, &Question::Pools),
        Role::Metrics { endpoint } => print(metrics(endpoint)),
        Role::PrepareMetadata { file } => print(cli::prepare_metadata(&file)),
        Role::Doctor(flags) => report(*flags, &Question::Doctor),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "lvm-csi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Looks at the machine for a person, and prints what there is.
fn report(given: Look, question: &Question) -> anyhow::Result<ExitCode> {
    // Only the doctor calls the driver, where it knows at which socket: from a flag, or from the file that it reads without --vg.
    let is_silent = *question != Question::Doctor || (given.endpoint.is_none() && given.vg.is_some());
    let flags = Flags {
        config: given.vg.is_none().then_some(given.config),
        vg: given.vg,
        endpoint: given.endpoint.or_else(|| is_silent.then(|| "unix:///".to_owned())),
        node_id: given.node_id,
        driver_name: given.driver_name,
        machine_id: given.machine_id,
        state_dir: given.state_dir,
        ..Flags::default()
    };
    let config = Config::of_person(&flags, &host()?)?;
    server::init_logging(LogFormat::Text);
    let told = cli::report(config, question, !is_silent)?;
    std::io::stdout().write_all(told.text.as_bytes()).context("printing")?;
    Ok(if told.well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn metrics(endpoint: Option<String>) -> anyhow::Result<String> {
    let socket = config::endpoint(endpoint)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(server::ask_metrics(&socket)).map_err(anyhow::Error::msg)
}

fn print(text: anyhow::Result<String>) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text?.as_bytes()).context("printing")?;
    Ok(ExitCode::SUCCESS)
}

fn host() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("asking for the host's name")?;
    Ok(name.to_string_lossy().into_owned())
}

fn standalone(given: Standalone) -> anyhow::Result<ExitCode> {
    let (flags, format) = given.common.over(given.machine.over(Flags::default()));
    let config = Config::load(&flags, &host()?)?;
    server::init_logging(format);
    role::standalone(config).map(|()| ExitCode::SUCCESS)
}

fn node(given: Node) -> anyhow::Result<ExitCode> {
    let flags = Flags { agent_address: given.agent_address, ..Flags::default() };
    let (flags, format) = given.common.over(given.machine.over(given.tls.over(flags)));
    let config = NodeConfig::load(&flags, &host()?)?;
    server::init_logging(format);
    role::node(config).map(|()| ExitCode::SUCCESS)
}

fn import(given: Import) -> anyhow::Result<ExitCode> {
    let (config, vg) = given.group.configured(None)?;
    let claim = match &given.claim {
        None => None,
        Some(text) => Some(Claimant::parse(text).with_context(|| format!("--claim {text:?}: must be NAMESPACE/NAME"))?),
    };
    let wish = ImportRequest {
        vg,
        lv: LvName::new(&given.lv).with_context(|| format!("--lv {:?}", given.lv))?,
        pool: given.pool,
        expected: given.filesystem.map(|said| match said {
            Filesystem::Ext4 => Expected::Filesystem(FsKind::Ext4),
            Filesystem::Xfs => Expected::Filesystem(FsKind::Xfs),
            Filesystem::Raw => Expected::Raw,
        }),
        apply: given.apply,
        claim,
    };
    print(cli::import(config, wish))
}

fn adopt(given: Adopt) -> anyhow::Result<ExitCode> {
    let (config, vg) = given.group.configured(given.state_dir)?;
    print(cli::adopt(config, vg, given.devices))
}

fn controller(given: Controller) -> anyhow::Result<ExitCode> {
    let flags = Flags { agents: given.agents, ..Flags::default() };
    let (flags, format) = given.common.over(given.tls.over(flags));
    let config = ControllerConfig::load(&flags)?;
    server::init_logging(format);
    role::controller(config).map(|()| ExitCode::SUCCESS)
}
