//! The configuration: a YAML file, flags that override it, and checks. The result is one [`Config`], before any socket is opened.

mod file;
mod role;

pub use role::{AgentAddress, Agents, ControllerConfig, Kubernetes, NodeConfig, Trust};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::types::{
    Bytes, LayoutConfig, LvName, NewThinPool, NodeId, PoolCare, PoolConfig, ThinPoolConfig, VgName, Zeroing, parse_size,
};

/// Default name of the driver; also the prefix of its topology keys.
pub const DRIVER_NAME: &str = "lvm-csi.dev";
/// Default size of a volume whose request names none.
const DEFAULT_SIZE: Bytes = Bytes::GIB;
/// Default for the largest inline ephemeral volume of a pool that allows them, unless the pool's default size is larger.
const EPHEMERAL_SIZE: Bytes = Bytes(10 << 30);
/// Default interval for collecting leftovers.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// Default time that a command of a group may run before the group counts as wedged.
const WEDGED_AFTER: Duration = Duration::from_secs(30);
/// Default wait at the start for an earlier driver to end.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// The longest configurable wait, in seconds: kubelet's probe gives a container two minutes.
const LONGEST_LOCK_WAIT: u64 = 100;
/// Default directory for state that must survive a restart, of a driver with the default name.
const STATE_DIR: &str = "/var/lib/lvm-csi";
/// Likewise, for state that may be lost.
const RUN_DIR: &str = "/run/lvm-csi";
/// Default minutes between copies of the groups' metadata.
const METADATA_COPY_MINUTES: u32 = 10;
/// Name of the linear pool of [`Flags::vg`].
const LINEAR: &str = "linear";
/// Name of the thin pool of [`Flags::vg`].
const THIN: &str = "thin";

/// The whole configuration of a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CSI name of the driver.
    pub driver_name: String,
    pub node_id: NodeId,
    /// Identifies this machine among all; detected if not set.
    pub machine_id: Option<String>,
    pub endpoint: PathBuf,
    /// State that must survive a restart: the attach ledger.
    pub state_dir: PathBuf,
    /// State that may be lost: LVM's configuration and links to the PVs.
    pub run_dir: PathBuf,
    /// Wait at the start for an earlier driver in the same directories to end.
    pub lock_wait: Duration,
    /// Most volumes attached to this node; 0 for no limit.
    pub max_volumes_per_node: usize,
    /// Whether the controller attaches a volume to a node before the node uses it, like `attachRequired` of the CSIDriver object.
    /// Otherwise the node grants itself the use of the volume.
    pub attach_required: bool,
    pub zeroing: Zeroing,
    /// Network address of `/metrics`, if served. In Kubernetes with TLS, for accounts with the right to read it; elsewhere it must
    /// be a loopback address.
    pub metrics_address: Option<SocketAddr>,
    /// Network address of the health service for kubelet's probes, if served.
    pub health_address: Option<SocketAddr>,
    /// Time that a command of a group may run before the group counts as wedged and refuses changes.
    pub wedged_after: Duration,
    /// Interval for collecting leftovers: inline volumes of deleted pods, grants of deleted volumes.
    pub housekeeping: Duration,
    /// Directory of the copies of the groups' metadata, and the shortest time between two of a group; `None` for no copies.
    pub metadata_copies: Option<(PathBuf, Duration)>,
    /// The only block devices that may be PVs, as paths that may be links. Without it, all that show an LVM label.
    pub devices: Option<Vec<PathBuf>>,
    /// At least one.
    pub pools: Vec<PoolConfig>,
}

/// Command line flags. They override the file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    /// Offers this volume group without a file: a pool `linear` and a pool `thin`.
    pub vg: Option<String>,
    /// With `vg`: size of the thin pool to make if the group has none.
    pub create_thin_pool: Option<String>,
    /// `unix:///path` or a path.
    pub endpoint: Option<String>,
    pub node_id: Option<String>,
    /// See [`Config::machine_id`].
    pub machine_id: Option<String>,
    /// See [`Config::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// See [`Config::run_dir`].
    pub run_dir: Option<PathBuf>,
    /// See [`Config::lock_wait`]; in seconds.
    pub lock_wait_seconds: Option<u64>,
    /// See [`Config::driver_name`].
    pub driver_name: Option<String>,
    /// See [`Config::max_volumes_per_node`].
    pub max_volumes_per_node: Option<usize>,
    /// See [`Config::attach_required`].
    pub attach_required: Option<bool>,
    /// See [`Config::metrics_address`]; an address and a port.
    pub metrics_address: Option<String>,
    /// See [`Config::health_address`]; an address and a port.
    pub health_address: Option<String>,
    /// Minutes between copies of the metadata; 0 for none. See [`Config::metadata_copies`].
    pub metadata_copy_minutes: Option<u32>,
    /// See [`NodeConfig::agent_address`]; an address and a port.
    pub agent_address: Option<String>,
    /// See [`ControllerConfig::agents`]; each is `NODE=https://ADDRESS:PORT`.
    pub agents: Vec<String>,
    /// Certificate authorities that the peer's certificate must come from.
    pub tls_ca: Option<PathBuf>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("reading the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid YAML of the expected form; the reason names line and column.
    #[error("configuration {path}: {reason}")]
    Syntax {
        path: PathBuf,
        /// The parser's message.
        reason: String,
    },
    #[error("{key} {value:?}: {reason}")]
    Value {
        /// Key or flag.
        key: String,
        value: String,
        /// What is wrong with the value.
        reason: String,
    },
}

fn value(key: impl Into<String>, value: impl Into<String>, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.into(), value: value.into(), reason: reason.into() }
}

impl Config {
    /// Reads the file, applies the flags and checks the result. `host` is the machine's host name.
    ///
    /// # Errors
    /// The first error, with its key.
    pub fn load(flags: &Flags, host: &str) -> Result<Self, ConfigError> {
        let file = read(flags)?;
        role::refuse_in_standalone(&file)?;
        let config = Self::of(flags, file, host)?;
        only_this_machine(config.metrics_address).map(|()| config)
    }

    /// Like [`Config::load`], for a command run by a person: the file may contain settings for other roles.
    ///
    /// # Errors
    /// The first error, with its key.
    pub fn of_person(flags: &Flags, host: &str) -> Result<Self, ConfigError> {
        Self::of(flags, read(flags)?, host)
    }

    /// The state directory of earlier versions for a driver with a name of its own. They used one default directory for all names.
    /// `None` if this driver's directory is not the default for its name.
    pub fn former_state_dir(&self) -> Option<PathBuf> {
        let is_default = self.state_dir == Path::new(&directory(STATE_DIR, &self.driver_name));
        (is_default && self.driver_name != DRIVER_NAME).then(|| PathBuf::from(STATE_DIR))
    }

    fn of(flags: &Flags, file: file::File, host: &str) -> Result<Self, ConfigError> {
        let pools = pools(flags, &file)?;
        let node = flags.node_id.clone().or(file.node_id).unwrap_or_else(|| host.to_owned());
        let node_id = NodeId::new(&node).ok_or_else(|| {
            value("nodeId", &node, "must be 1 to 63 letters, digits, '-', '_', '.', with a letter or digit at both ends")
        })?;
        let driver_name = driver_name(flags.driver_name.clone().or(file.driver_name))?;
        let endpoint = endpoint(flags.endpoint.clone().or(file.endpoint))?;
        let state_dir = absolute("stateDir", flags.state_dir.clone().or(file.state_dir), &directory(STATE_DIR, &driver_name))?;
        let run_dir = absolute("runDir", flags.run_dir.clone().or(file.run_dir), &directory(RUN_DIR, &driver_name))?;
        let lock_wait = match flags.lock_wait_seconds.or(file.lock_wait_seconds) {
            Some(seconds) if seconds > LONGEST_LOCK_WAIT => {
                return Err(value("lockWaitSeconds", seconds.to_string(), format!("must be at most {LONGEST_LOCK_WAIT}")));
            }
            given => given.map_or(LOCK_WAIT, Duration::from_secs),
        };
        let copies = file.metadata_copies;
        let copies_dir =
            copies.dir.map_or(Ok(state_dir.join("metadata")), |dir| absolute("metadataCopies.dir", Some(dir), ""))?;
        let minutes = flags.metadata_copy_minutes.or(copies.minutes).unwrap_or(METADATA_COPY_MINUTES);
        Ok(Self {
            driver_name,
            node_id,
            machine_id: flags.machine_id.clone().or(file.machine_id).map(machine_id).transpose()?,
            endpoint,
            state_dir,
            metadata_copies: (minutes > 0).then(|| (copies_dir, Duration::from_secs(60 * u64::from(minutes)))),
            run_dir,
            lock_wait,
            max_volumes_per_node: flags.max_volumes_per_node.or(file.max_volumes_per_node).unwrap_or(0),
            attach_required: attach_required(flags, file.attach_required),
            zeroing: file.zeroing.check()?,
            metrics_address: address("metricsAddress", flags.metrics_address.clone().or(file.metrics_address))?,
            health_address: address("healthAddress", flags.health_address.clone().or(file.health_address))?,
            wedged_after: match file.wedged_after_seconds {
                Some(0) => return Err(value("wedgedAfterSeconds", "0", "must be at least 1")),
                given => given.map_or(WEDGED_AFTER, Duration::from_secs),
            },
            housekeeping: match file.housekeeping_seconds {
                Some(0) => return Err(value("housekeepingSeconds", "0", "must be at least 1")),
                given => given.map_or(HOUSEKEEPING, Duration::from_secs),
            },
            devices: file::devices(file.devices)?,
            pools,
        })
    }
}

fn pools(flags: &Flags, file: &file::File) -> Result<Vec<PoolConfig>, ConfigError> {
    let mut pools = file.pools.iter().enumerate().map(|(at, pool)| pool.check(at)).collect::<Result<Vec<_>, _>>()?;
    if let Some(name) = &flags.vg {
        if !pools.is_empty() {
            return Err(value(
                "--vg",
                name,
                "cannot be combined with a configuration file that has pools; name the group in the file",
            ));
        }
        pools = of_group(name, flags.create_thin_pool.as_deref())?;
    } else if let Some(size) = &flags.create_thin_pool {
        return Err(value("--create-thin-pool", size, "needs --vg; in a file, use createThinPool of a pool"));
    }
    if pools.is_empty() {
        return Err(value("pools", "", "there is no pool; give --vg NAME, or --config FILE with at least one pool"));
    }
    for (at, pool) in pools.iter().enumerate() {
        if pools[..at].iter().any(|other| other.name == pool.name) {
            return Err(value(format!("pools[{at}].name"), &pool.name, "another pool has that name"));
        }
    }
    if pools.iter().filter(|pool| pool.is_default).count() > 1 {
        return Err(value("pools", "default: true", "only one pool can be the default"));
    }
    if !pools.iter().any(|pool| pool.is_default) && pools.len() == 1 {
        pools[0].is_default = true;
    }
    Ok(pools)
}

/// The pools that `--vg` defines.
fn of_group(name: &str, create: Option<&str>) -> Result<Vec<PoolConfig>, ConfigError> {
    let vg = VgName::new(name).map_err(|why| value("--vg", name, why.to_string()))?;
    let create =
        create.map(|size| parse_size(size).map_err(|why| value("--create-thin-pool", size, why.to_string()))).transpose()?;
    let pool = |name: &str, layout, is_default| PoolConfig {
        name: name.into(),
        vg: vg.clone(),
        layout,
        default_size: DEFAULT_SIZE,
        is_default,
        ephemeral: None,
    };
    let thin = LayoutConfig::Thin(ThinPoolConfig {
        pool: None,
        create: create.map(|size| NewThinPool { size, metadata: None, chunk: None }),
        overprovision_percent: file::OVERPROVISION_PERCENT,
        max_snapshots: file::MAX_SNAPSHOTS,
        care: PoolCare::default(),
        if_present: create.is_none(),
    });
    Ok(vec![pool(LINEAR, LayoutConfig::LINEAR, true), pool(THIN, thin, false)])
}

/// The file that the flags name; the default without one.
fn read(flags: &Flags) -> Result<file::File, ConfigError> {
    let Some(path) = &flags.config else { return Ok(file::File::default()) };
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
    file::File::parse(&text).map_err(|reason| ConfigError::Syntax { path: path.clone(), reason })
}

fn machine_id(given: String) -> Result<String, ConfigError> {
    if (8..=128).contains(&given.len()) && given.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(given);
    }
    Err(value("machineId", given, "must be 8 to 128 letters, digits or punctuation characters, different on each machine"))
}

fn driver_name(given: Option<String>) -> Result<String, ConfigError> {
    let name = given.unwrap_or_else(|| DRIVER_NAME.to_owned());
    check_driver_name(&name).map(|()| name)
}

/// For controller and node: the controller offers the calls, the node waits for them.
fn attach_required(flags: &Flags, file: Option<bool>) -> bool {
    flags.attach_required.or(file).unwrap_or(true)
}

/// The path of the socket in `--endpoint`.
///
/// # Errors
/// The endpoint is missing or not a path.
pub fn endpoint(given: Option<String>) -> Result<PathBuf, ConfigError> {
    let missing = || value("endpoint", "", "is not set; give --endpoint or CSI_ENDPOINT as unix:///path/csi.sock");
    socket_path(&given.ok_or_else(missing)?)
}

/// CSI: at most 63 characters, letters, digits, `-` and `.`; the conformance suite wants a letter at both ends.
fn check_driver_name(name: &str) -> Result<(), ConfigError> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphabetic);
    let bytes = name.as_bytes();
    if bytes.len() <= 63 && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last()) {
        return Ok(());
    }
    Err(value("driverName", name, "must be at most 63 letters, digits, '-' and '.', with a letter at both ends"))
}

/// The path of `unix:///path`, `unix:/path` or a bare absolute path.
fn socket_path(endpoint: &str) -> Result<PathBuf, ConfigError> {
    let path = match endpoint.strip_prefix("unix:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None => endpoint,
    };
    // sun_path holds 108 bytes including the final zero.
    if !path.starts_with('/') || path.len() > 107 {
        return Err(value("endpoint", endpoint, "must be unix:///path/of/a.sock with an absolute path of at most 107 bytes"));
    }
    Ok(PathBuf::from(path))
}

fn address(key: &str, given: Option<String>) -> Result<Option<SocketAddr>, ConfigError> {
    let parse = |text: String| match text.parse() {
        Ok(address) => Ok(address),
        Err(_) => Err(value(key, text, "must be an address and a port, such as 127.0.0.1:9808 or [::]:9808")),
    };
    given.map(parse).transpose()
}

/// Metrics name every tenant's objects. Without anyone to decide who may read them, they are for this machine only.
fn only_this_machine(metrics: Option<SocketAddr>) -> Result<(), ConfigError> {
    match metrics.filter(|address| !address.ip().is_loopback()) {
        None => Ok(()),
        Some(address) => {
            let reason =
                "must be a loopback address, such as 127.0.0.1:9808: outside of Kubernetes nothing controls who may read metrics";
            Err(value("metricsAddress", address.to_string(), reason))
        }
    }
}

fn absolute(key: &str, given: Option<PathBuf>, default: &str) -> Result<PathBuf, ConfigError> {
    let path = given.unwrap_or_else(|| PathBuf::from(default));
    if Path::new(&path).is_absolute() {
        Ok(path)
    } else {
        Err(value(key, path.display().to_string(), "must be an absolute path"))
    }
}

/// The default directory of a driver: each driver on a machine has its own.
fn directory(of_default: &str, driver: &str) -> String {
    if driver == DRIVER_NAME { of_default.to_owned() } else { format!("{of_default}-{driver}") }
}

fn lv_name(key: String, text: &str) -> Result<LvName, ConfigError> {
    LvName::new(text).map_err(|why| value(key, text, why.to_string()))
}

/// Parses the bytes as a file and as a size, for the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = parse_size(text);
    if let Ok(file) = file::File::parse(text) {
        let flags = Flags { endpoint: Some("/run/csi.sock".to_owned()), ..Flags::default() };
        if let Ok(config) = Config::of(&flags, file, "host") {
            assert!(!config.pools.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Reserve;

    fn load(yaml: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, yaml).unwrap();
        let flags = Flags { config: Some(path), endpoint: Some("unix:///run/csi.sock".into()), ..Flags::default() };
        Config::load(&flags, "host-1")
    }

    fn refused(yaml: &str) -> String {
        load(yaml).unwrap_err().to_string()
    }

    #[test]
    fn a_group_on_the_command_line_is_two_pools() {
        let flags = Flags { vg: Some("vg0".into()), endpoint: Some("unix:///run/csi.sock".into()), ..Flags::default() };
        let config = Config::load(&flags, "host-1").unwrap();
        assert_eq!(config.node_id.as_str(), "host-1");
        let names: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
        assert_eq!(names, ["linear", "thin"]);
        assert!(matches!(config.pools[1].thin(), Some(ThinPoolConfig { if_present: true, create: None, .. })));
        let flags = Flags { create_thin_pool: Some("10Gi".into()), ..flags };
        let config = Config::load(&flags, "host-1").unwrap();
        let wanted = Some(NewThinPool { size: Bytes(10 << 30), metadata: None, chunk: None });
        assert!(matches!(config.pools[1].thin(), Some(ThinPoolConfig { if_present: false, create, .. }) if *create == wanted));
    }

    #[test]
    fn a_file_says_the_same_in_more_words() {
        let config = load(
            "driverName: lvm.example.com\nnodeId: n1\nmaxVolumesPerNode: 5\nmetricsAddress: 127.0.0.1:9808\nhealthAddress: '[::]:9810'\npools:\n- name: fast\n  volumeGroup: vg0\n  layout: thin\n  \
             thinPool: p0\n  overprovisionPercent: 200\n  defaultSize: 2Gi\n",
        )
        .unwrap();
        assert_eq!((config.driver_name.as_str(), config.max_volumes_per_node), ("lvm.example.com", 5));
        assert_eq!(config.metrics_address, Some(([127, 0, 0, 1], 9808).into()));
        assert_eq!(config.health_address, Some((std::net::Ipv6Addr::UNSPECIFIED, 9810).into()));
        assert_eq!(config.wedged_after, Duration::from_secs(30));
        assert!(config.pools[0].is_default);
        assert_eq!(config.pools[0].default_size, Bytes(2 << 30));
        assert_eq!(config.zeroing, Zeroing::default());
        assert_eq!(config.devices, None);
        let copies = |minutes: u64| Some(("/var/lib/lvm-csi/metadata".into(), Duration::from_secs(60 * minutes)));
        let of_name: PathBuf = "/var/lib/lvm-csi-lvm.example.com/metadata".into();
        assert_eq!(config.metadata_copies, Some((of_name, Duration::from_secs(600))));
        let listed = load("devices: [/dev/disk/by-id/a]\npools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n").unwrap();
        assert_eq!(listed.devices, Some(vec!["/dev/disk/by-id/a".into()]));
        for (minutes, expected) in [(0, None), (3, copies(3))] {
            let copies = format!("metadataCopies:\n  minutes: {minutes}\n");
            let config = load(&format!("{copies}pools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n")).unwrap();
            assert_eq!(config.metadata_copies, expected);
        }
        let config = load("zeroing:\n  percent: 20\npools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n").unwrap();
        assert_eq!(config.zeroing, Zeroing { percent: 20, ..Zeroing::default() });
    }

    #[test]
    fn directories_follow_the_name_of_the_driver() {
        let pools = "pools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n";
        let dirs = |keys: &str| load(&format!("{keys}{pools}")).map(|config| (config.state_dir, config.run_dir)).unwrap();
        // The default name keeps its old directories, so that an upgrade finds them.
        for of_default in ["", "driverName: lvm-csi.dev\n"] {
            assert_eq!(dirs(of_default), ("/var/lib/lvm-csi".into(), "/run/lvm-csi".into()));
        }
        assert_eq!(dirs("driverName: a.example\n"), ("/var/lib/lvm-csi-a.example".into(), "/run/lvm-csi-a.example".into()));
        assert_eq!(dirs("driverName: a.example\nstateDir: /s\nrunDir: /r\n"), ("/s".into(), "/r".into()));
        let former = |keys: &str| load(&format!("{keys}{pools}")).unwrap().former_state_dir();
        assert_eq!(former("driverName: a.example\n"), Some("/var/lib/lvm-csi".into()));
        assert_eq!((former(""), former("driverName: a.example\nstateDir: /s\n")), (None, None));
        assert_eq!(load(&format!("lockWaitSeconds: 3\n{pools}")).unwrap().lock_wait, Duration::from_secs(3));
    }

    #[test]
    fn a_pool_gives_inline_volumes_only_where_it_says_so() {
        let most = |keys: &str| {
            let pools = format!("pools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n{keys}");
            load(&pools).map(|config| config.pools[0].ephemeral).map_err(|error| error.to_string())
        };
        assert_eq!(most("").unwrap(), None);
        assert_eq!(most("  ephemeral: true\n").unwrap(), Some(EPHEMERAL_SIZE));
        assert_eq!(most("  ephemeral: true\n  defaultSize: 20Gi\n").unwrap(), Some(Bytes(20 << 30)));
        assert_eq!(most("  ephemeral: true\n  ephemeralMaxSize: 2Gi\n").unwrap(), Some(Bytes(2 << 30)));
        for wrong in [
            "  ephemeralMaxSize: 2Gi\n",
            "  ephemeral: true\n  ephemeralMaxSize: 1Mi\n",
            "  ephemeral: true\n  ephemeralMaxSize: x\n",
        ] {
            assert!(most(wrong).unwrap_err().contains("ephemeralMaxSize"), "{wrong}");
        }
    }

    #[test]
    fn a_thin_pool_is_made_and_looked_after_as_the_file_says() {
        let thin = |more: &str| {
            let config =
                load(&format!("pools:\n- name: a\n  volumeGroup: vg0\n  layout: thin\n  createThinPool: 1Gi\n{more}")).unwrap();
            let thin = config.pools[0].thin().unwrap();
            (thin.create.unwrap(), thin.care)
        };
        let size = Bytes(1 << 30);
        assert_eq!(thin(""), (NewThinPool { size, metadata: None, chunk: None }, PoolCare::default()));
        let (create, care) = thin(
            "  thinPoolMetadata: 16Mi\n  thinPoolChunk: 128Ki\n  thinPoolReserve: 20Gi\n  thinPoolFullPercent: 90\n  \
             thinPoolPollSeconds: 2\n  autoExtend: false\n",
        );
        assert_eq!(create, NewThinPool { size, metadata: Some(Bytes(16 << 20)), chunk: Some(Bytes(128 << 10)) });
        let reserve = Reserve::Bytes(Bytes(20 << 30));
        let poll = std::time::Duration::from_secs(2);
        assert_eq!(care, PoolCare { reserve, full_percent: 90, auto_extend: false, poll });
        assert_eq!(thin("  thinPoolReserve: 12%\n").1.reserve, Reserve::Percent(12));
    }

    #[test]
    fn snapshots_of_a_volume_are_limited_also_without_a_word() {
        let most = |more: &str| {
            let config = load(&format!("pools:\n- name: a\n  volumeGroup: vg0\n  layout: thin\n{more}")).unwrap();
            config.pools[0].thin().unwrap().max_snapshots
        };
        assert_eq!([most(""), most("  maxSnapshotsPerVolume: 7\n"), most("  maxSnapshotsPerVolume: 0\n")], [64, 7, 0]);
    }

    #[test]
    fn an_unknown_key_is_told_with_its_place() {
        let text = refused("pools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n  colour: red\n");
        assert!(text.contains("colour") && text.contains('5'), "{text}");
        assert!(refused("pools: []\nnodeId: a\nnodeId: b\n").contains("nodeId"));
    }

    #[test]
    fn wrong_values_are_named() {
        let pool = |more: &str| format!("pools:\n- name: a\n  volumeGroup: vg0\n{more}");
        for (yaml, word) in [
            ("pools: []\n".to_owned(), "pools"),
            (pool("  layout: raid1\n"), "raid1"),
            (pool("  layout: linear\n  thinPool: p\n"), "thinPool"),
            (pool("  layout: linear\n  defaultSize: 1X\n"), "1X"),
            (pool("  layout: thin\n  overprovisionPercent: 0\n"), "overprovisionPercent"),
            (pool("  layout: linear\n  maxSnapshotsPerVolume: 5\n"), "layout thin"),
            (pool("  layout: thin\n  maxSnapshotsPerVolume: -1\n"), "maxSnapshotsPerVolume"),
            (pool("  layout: thin\n  thinPoolFullPercent: 101\n"), "thinPoolFullPercent"),
            (pool("  layout: thin\n  thinPoolPollSeconds: 0\n"), "thinPoolPollSeconds"),
            (pool("  layout: thin\n  thinPoolReserve: 100%\n"), "1% to 99%"),
            (pool("  layout: thin\n  thinPoolReserve: much\n"), "percentage"),
            (pool("  layout: thin\n  thinPoolChunk: 64Ki\n"), "goes with createThinPool"),
            (pool("  layout: thin\n  thinPoolMetadata: 4Mi\n"), "goes with createThinPool"),
            (pool("  layout: thin\n  createThinPool: 1Gi\n  thinPoolChunk: 96Ki\n"), "multiple"),
            (pool("  layout: thin\n  createThinPool: 1Gi\n  thinPoolMetadata: 1Mi\n"), "between"),
            (pool("  layout: linear\n  autoExtend: false\n"), "layout thin"),
            (pool("  layout: linear\n  thinPoolReserve: 1Gi\n"), "layout thin"),
            (pool("  layout: linear\n- name: a\n  volumeGroup: vg1\n  layout: linear\n"), "another pool"),
            ("pools:\n- name: a\n  volumeGroup: -vg\n  layout: linear\n".to_owned(), "volumeGroup"),
            ("pools:\n- name: a b\n  volumeGroup: vg\n  layout: linear\n".to_owned(), "name"),
            (format!("driverName: lvm2\n{}", pool("  layout: linear\n")), "driverName"),
            (format!("nodeId: -\n{}", pool("  layout: linear\n")), "nodeId"),
            (format!("machineId: short\n{}", pool("  layout: linear\n")), "machineId"),
            (format!("machineId: 'of two words'\n{}", pool("  layout: linear\n")), "machineId"),
            (format!("stateDir: x\n{}", pool("  layout: linear\n")), "stateDir"),
            (format!("metadataCopies:\n  dir: x\n{}", pool("  layout: linear\n")), "metadataCopies.dir"),
            (format!("zeroing:\n  percent: 0\n{}", pool("  layout: linear\n")), "zeroing.percent"),
            (format!("zeroing:\n  callSeconds: 120\n{}", pool("  layout: linear\n")), "zeroing.callSeconds"),
            (format!("metricsAddress: ':9808'\n{}", pool("  layout: linear\n")), "metricsAddress"),
            (format!("metricsAddress: 10.0.0.7:9808\n{}", pool("  layout: linear\n")), "loopback"),
            (format!("healthAddress: '9810'\n{}", pool("  layout: linear\n")), "healthAddress"),
            (format!("devices: []\n{}", pool("  layout: linear\n")), "devices"),
            (format!("devices: [sda]\n{}", pool("  layout: linear\n")), "sda"),
            (format!("devices: [/dev/../etc]\n{}", pool("  layout: linear\n")), "devices"),
            (format!("lockWaitSeconds: 101\n{}", pool("  layout: linear\n")), "lockWaitSeconds"),
            (format!("wedgedAfterSeconds: 0\n{}", pool("  layout: linear\n")), "wedgedAfterSeconds"),
        ] {
            assert!(refused(&yaml).contains(word), "{yaml}: {}", refused(&yaml));
        }
    }
}
