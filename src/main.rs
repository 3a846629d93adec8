//! The program: parses flags, loads the configuration, and runs one role.

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

/// Where the chart puts the configuration file.
const CONFIG: &str = "/etc/lvm-csi/config.yaml";

/// Exit status of a program that could not be run, as in shells; no program that runs uses it.
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
    /// Runs controller, node service and agent in one process on one socket, for the volume groups of this machine.
    Standalone(Box<Standalone>),
    /// Runs the node service, and this machine's agent for a controller elsewhere.
    Node(Box<Node>),
    /// Runs the controller for the agents of all nodes. It needs no device access and no privileges.
    Controller(Box<Controller>),
    /// Makes a volume of an LV created by hand, and prints its PersistentVolume and PersistentVolumeClaim.
    ///
    /// The LV keeps its name and its data. Without --apply the LV is only examined; an inactive LV is activated meanwhile. A driver
    /// may run at the same time.
    Import(Box<Import>),
    /// Makes a volume group this machine's: its disks were moved here, or are a copy to be used from now on.
    ///
    /// The first machine that changes a group is recorded in it, and all others refuse to change it. A driver may run at the same
    /// time.
    Adopt(Box<Adopt>),
    /// Lists every volume and snapshot on this machine: pool, size, contents, the node that has it, and the number of places it is
    /// used at.
    ///
    /// This command, who, pools and doctor read LVM's metadata and the driver's ledger of attachments. They need no cluster, and work
    /// with or without a running driver. They change nothing, except that doctor makes a device to test udevd, and removes it.
    List(Box<Look>),
    /// Shows who has a volume of this machine, since when, on what device, and where it is used.
    Who {
        /// The name of its LV (that of its PersistentVolume), VG/LV, or its handle.
        volume: String,
        #[command(flatten)]
        look: Box<Look>,
    },
    /// Lists the pools of this machine: size, free space, space promised, and how full they are.
    Pools(Box<Look>),
    /// Lists what is wrong on this machine, one line each: object, reason, what to do. Exits with 1 if anything is wrong.
    Doctor(Box<Look>),
    /// Prints the metrics of the driver on this machine, as served to Prometheus.
    Metrics {
        /// Socket of the driver: unix:///path/csi.sock.
        #[arg(long, env = "CSI_ENDPOINT", value_name = "URL")]
        endpoint: Option<String>,
    },
    /// Prints a copy of a volume group's metadata, adapted to the present state of its thin pools, for vgcfgrestore --force.
    ///
    /// The pools must be inactive. Comments at the beginning list the differences; nothing is changed.
    PrepareMetadata {
        /// The copy, in the format of vgcfgbackup.
        file: PathBuf,
    },
    /// Reports what is on a block device. The driver runs it as a child, because it parses data written by tenants.
    #[command(hide = true)]
    Probe {
        /// Time limit in seconds.
        #[arg(long, value_name = "COUNT", default_value_t = 30)]
        seconds: u32,
        /// The device.
        device: PathBuf,
    },
    /// Runs a program that parses data written by tenants, without capabilities.
    #[command(hide = true)]
    Confined {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Grows a mounted ext4 filesystem. The driver runs it as a child.
    #[command(hide = true)]
    GrowExt4 {
        /// Target size, in blocks of the filesystem.
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
    /// The agent of a node; repeat for each node.
    #[arg(long = "agent", value_name = "NODE=https://ADDRESS:PORT")]
    agents: Vec<String>,
}

/// Selects one volume group and the driver that it belongs to.
#[derive(Debug, Args)]
struct OneGroup {
    /// The driver's configuration file on this node. Without it, the group has the pools that --vg gives a driver.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The volume group.
    #[arg(long, value_name = "NAME")]
    vg: String,
    /// The CSI name of the driver.
    #[arg(long, value_name = "NAME")]
    driver_name: Option<String>,
    /// Name of this node; default: the host name.
    #[arg(long, env = "LVM_CSI_NODE_ID", value_name = "NAME")]
    node_id: Option<String>,
    /// Identifies this machine among all, at least 8 characters, as in the driver's configuration. Detected by default (see the
    /// documentation).
    #[arg(long, env = "LVM_CSI_MACHINE_ID", value_name = "TEXT")]
    machine_id: Option<String>,
    /// Directory for LVM's private configuration; may be lost. Default: /run/lvm-csi.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

impl OneGroup {
    /// The configuration, without a server, and the group.
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
    /// The pool that must contain the LV; default: the one in the configuration.
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// The expected contents; the import fails if it finds anything else.
    #[arg(long, value_enum)]
    filesystem: Option<Filesystem>,
    /// Make the change.
    #[arg(long)]
    apply: bool,
    /// The claim that gets the volume; default: any claim that selects its label.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    claim: Option<String>,
}

#[derive(Debug, Args)]
struct Adopt {
    #[command(flatten)]
    group: OneGroup,
    /// A device of the group, if other devices show a group of that name too; repeat for each device.
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<PathBuf>,
    /// The driver's state directory. Default: /var/lib/lvm-csi, or /var/lib/lvm-csi-NAME with a driver name of its own.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Flags of the commands that examine the machine.
#[derive(Debug, Args)]
struct Look {
    /// The driver's configuration file on this node.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Volume group to use instead of a file, like the driver's flag --vg.
    #[arg(long, value_name = "NAME")]
    vg: Option<String>,
    /// Socket of the driver, for the doctor: unix:///path/csi.sock.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// Name of this node; default: the host name.
    #[arg(long, env = "LVM_CSI_NODE_ID", value_name = "NAME")]
    node_id: Option<String>,
    /// Identifies this machine among all, at least 8 characters. Detected by default (see the documentation).
    #[arg(long, env = "LVM_CSI_MACHINE_ID", value_name = "TEXT")]
    machine_id: Option<String>,
    /// The CSI name of the driver, with --vg.
    #[arg(long, value_name = "NAME")]
    driver_name: Option<String>,
    /// Directory of the driver's ledger of attachments. Default: /var/lib/lvm-csi, or /var/lib/lvm-csi-NAME with a driver name of
    /// its own.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Filesystem {
    Ext4,
    Xfs,
    Raw,
}

/// Flags of every role.
#[derive(Debug, Args)]
struct Common {
    /// A configuration file (YAML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Socket to listen on: unix:///path/csi.sock.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// The CSI name of the driver.
    #[arg(long, value_name = "NAME")]
    driver_name: Option<String>,
    /// Serve Prometheus metrics at /metrics of this address, such as 127.0.0.1:9808. In Kubernetes with TLS, to accounts with the
    /// right to get it; elsewhere only on a loopback address.
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// Also serve the health service (gRPC, for kubelet's probes) at this address, such as 0.0.0.0:9810.
    #[arg(long, value_name = "ADDRESS")]
    health_address: Option<String>,
    /// Whether the controller attaches a volume before its node uses it. Must equal attachRequired of the CSIDriver object, on
    /// controller and nodes alike. Default: true.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    attach_required: Option<bool>,
    /// Format of log lines. LVM_CSI_LOG sets the level.
    #[arg(long, value_enum, default_value = "text")]
    log_format: Format,
}

/// Flags of the roles on machines with volume groups.
#[derive(Debug, Args)]
struct MachineFlags {
    /// Offer this volume group without a file: a pool `linear`, and a pool `thin` if the group has exactly one thin pool.
    #[arg(long, value_name = "NAME")]
    vg: Option<String>,
    /// With --vg: make a thin pool of this size, such as 10Gi, if the group has none.
    #[arg(long, value_name = "SIZE")]
    create_thin_pool: Option<String>,
    /// Name of this node; default: the host name.
    #[arg(long, env = "LVM_CSI_NODE_ID", value_name = "NAME")]
    node_id: Option<String>,
    /// Identifies this machine among all, at least 8 characters. Detected by default (see the documentation).
    #[arg(long, env = "LVM_CSI_MACHINE_ID", value_name = "TEXT")]
    machine_id: Option<String>,
    /// Directory for state that must survive a restart: the attachments. Default: /var/lib/lvm-csi, or /var/lib/lvm-csi-NAME with a
    /// driver name of its own.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Directory for LVM's private configuration and the locks of programs that outlive a driver: it must survive a restart of the
    /// driver, and a reboot empties it. Default: /run/lvm-csi, or /run/lvm-csi-NAME with a driver name of its own.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Seconds to wait at the start for an earlier driver in the same directories to end. Default: 30.
    #[arg(long, value_name = "COUNT")]
    lock_wait_seconds: Option<u64>,
    /// Most volumes attached to this node; 0 for no limit.
    #[arg(long, value_name = "COUNT")]
    max_volumes_per_node: Option<usize>,
    /// Minutes between the copies of a volume group's metadata in DIR/metadata of --state-dir; 0 for no copies. Default: 10.
    #[arg(long, value_name = "COUNT")]
    metadata_copy_minutes: Option<u32>,
}

/// Flags of controller and agents for their connection.
#[derive(Debug, Args)]
struct Tls {
    /// Certificate authorities (PEM) that sign the peer's certificate. All three files are read again when they change.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Own certificate (PEM): for NODE.node.DRIVER, or for controller.DRIVER.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Common {
    /// Applies these to the flags of a role; returns the log format too.
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

/// The child that grows an ext4 filesystem. Its parent quotes its output.
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
            // If the pipe is closed, nobody is left to read the answer.
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

/// Examines the machine for a person and prints the answer.
fn report(given: Look, question: &Question) -> anyhow::Result<ExitCode> {
    // Only the doctor calls the driver, if it knows the socket: from a flag, or from the file that it reads without --vg.
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
    let answer = cli::report(config, question, !is_silent)?;
    std::io::stdout().write_all(answer.text.as_bytes()).context("printing")?;
    Ok(if answer.well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    let name = nix::unistd::gethostname().context("reading the host name")?;
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
