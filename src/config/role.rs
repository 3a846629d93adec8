//! The configuration of the roles `node` and `controller`, where it differs from that of a driver in one process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::Files;
use crate::types::NodeId;

use super::{Config, ConfigError, Flags, address, attach_required, driver_name, endpoint, file, only_this_machine, read, value};

/// Default life of a certificate.
const CERTIFICATE_MINUTES: u32 = 24 * 60;
/// The longest configurable life of a certificate: a month.
const MOST_CERTIFICATE_MINUTES: u32 = 30 * 24 * 60;
/// The longest configurable interval for checking claims that grow by themselves, in seconds.
const LONGEST_GROW: u64 = 3600;

/// Configuration of `lvm-csi node`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// As in a driver of one process.
    pub config: Config,
    /// Address where the agent listens for the controller.
    pub agent_address: SocketAddr,
    /// Certificates for the connection to the controller.
    pub trust: Trust,
}

/// Configuration of `lvm-csi controller`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// See [`Config::driver_name`].
    pub driver_name: String,
    /// See [`Config::endpoint`].
    pub endpoint: PathBuf,
    /// See [`Config::metrics_address`].
    pub metrics_address: Option<SocketAddr>,
    /// See [`Config::health_address`].
    pub health_address: Option<SocketAddr>,
    /// See [`Config::attach_required`].
    pub attach_required: bool,
    /// The agents, and the certificates for the connections to them.
    pub agents: Agents,
}

/// Source of the certificates between controller and agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Files that someone else renews.
    Files(Files),
    Kubernetes(Kubernetes),
}

/// How a controller finds its agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agents {
    /// From a list of at least one.
    Listed(Vec<AgentAddress>, Files),
    /// From the pods in Kubernetes.
    Kubernetes(Kubernetes),
}

/// Kubernetes objects that the driver uses, in the namespace of its own pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// Label selector of the pods that run `lvm-csi node`; each has a port named `agent`.
    pub agent_selector: String,
    /// The Secret with the authorities that sign the certificates of controller and agents. It exists, empty at first.
    pub authority_secret: String,
    /// The ServiceAccount of these pods, whose certificate requests are signed.
    pub node_service_account: String,
    /// How long a certificate is valid; it is renewed after half that time.
    pub certificate_life: Duration,
    /// Interval for checking whether claims that grow by themselves are full; `None` to disable.
    pub grow: Option<Duration>,
}

/// Address of a node's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAddress {
    pub node: NodeId,
    /// `host:port`.
    pub address: String,
}

impl NodeConfig {
    /// Reads the file, applies the flags and checks the result. `host` is the machine's host name.
    ///
    /// # Errors
    /// The first error, with its key.
    pub fn load(flags: &Flags, host: &str) -> Result<Self, ConfigError> {
        let mut file = read(flags)?;
        let kubernetes = kubernetes(file.kubernetes.take())?;
        let listen = address("agentAddress", flags.agent_address.clone().or(file.agent_address.take()))?;
        let missing = || value("agentAddress", "", "is not set; give --agent-address, such as 10.0.0.7:9809, for the controller");
        let config = Self {
            agent_address: listen.ok_or_else(missing)?,
            trust: match kubernetes {
                Some(kubernetes) => {
                    no_tls(flags, file.tls.as_ref())?;
                    Trust::Kubernetes(kubernetes)
                }
                None => Trust::Files(tls(flags, file.tls.take())?),
            },
            config: Config::of(flags, file, host)?,
        };
        if matches!(config.trust, Trust::Files(_)) {
            only_this_machine(config.config.metrics_address)?;
        }
        Ok(config)
    }
}

impl ControllerConfig {
    /// Reads the file, applies the flags and checks the result. Settings for nodes may be in the file.
    ///
    /// # Errors
    /// The first error, with its key.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let mut file = read(flags)?;
        let agents = match kubernetes(file.kubernetes.take())? {
            Some(kubernetes) => {
                no_tls(flags, file.tls.as_ref())?;
                if !file.agents.is_empty() || !flags.agents.is_empty() {
                    return Err(value("agents", "", "cannot be combined with the section kubernetes, which finds the agents"));
                }
                Agents::Kubernetes(kubernetes)
            }
            None => Agents::Listed(listed(flags, &file)?, tls(flags, file.tls.take())?),
        };
        let metrics_address = address("metricsAddress", flags.metrics_address.clone().or(file.metrics_address))?;
        if matches!(agents, Agents::Listed(..)) {
            only_this_machine(metrics_address)?;
        }
        Ok(Self {
            attach_required: attach_required(flags, file.attach_required),
            driver_name: driver_name(flags.driver_name.clone().or(file.driver_name))?,
            endpoint: endpoint(flags.endpoint.clone().or(file.endpoint))?,
            metrics_address,
            health_address: address("healthAddress", flags.health_address.clone().or(file.health_address))?,
            agents,
        })
    }
}

fn listed(flags: &Flags, file: &file::File) -> Result<Vec<AgentAddress>, ConfigError> {
    let mut agents = Vec::new();
    for (at, given) in file.agents.iter().enumerate() {
        agents.push(agent(&format!("agents[{at}]"), &given.node, &given.address)?);
    }
    for given in &flags.agents {
        let form = || value("--agent", given, "must be NODE=https://ADDRESS:PORT");
        let (node, address) = given.split_once('=').ok_or_else(form)?;
        agents.push(agent("--agent", node, address)?);
    }
    for (at, one) in agents.iter().enumerate() {
        if agents[..at].iter().any(|other| other.node == one.node) {
            return Err(value("agents", one.node.as_str(), "is listed twice"));
        }
    }
    if agents.is_empty() {
        return Err(value("agents", "", "there is no agent; give --agent NODE=https://ADDRESS:PORT for each node"));
    }
    Ok(agents)
}

/// Refuses settings that have no effect in a driver of one process.
pub(super) fn refuse_in_standalone(file: &file::File) -> Result<(), ConfigError> {
    for (key, given) in [
        ("agentAddress", file.agent_address.is_some()),
        ("tls", file.tls.is_some()),
        ("agents", !file.agents.is_empty()),
        ("kubernetes", file.kubernetes.is_some()),
    ] {
        if given {
            return Err(value(key, "", "is only for lvm-csi node and lvm-csi controller"));
        }
    }
    Ok(())
}

fn kubernetes(file: Option<file::FileKubernetes>) -> Result<Option<Kubernetes>, ConfigError> {
    let Some(file) = file else { return Ok(None) };
    let given = |key: &str, text: String| match text.trim() {
        "" => Err(value(format!("kubernetes.{key}"), text, "must not be empty")),
        _ => Ok(text),
    };
    let minutes = file.certificate_minutes.unwrap_or(CERTIFICATE_MINUTES);
    if !(1..=MOST_CERTIFICATE_MINUTES).contains(&minutes) {
        let reason = format!("must be 1 to {MOST_CERTIFICATE_MINUTES}");
        return Err(value("kubernetes.certificateMinutes", minutes.to_string(), reason));
    }
    if let Some(seconds) = file.grow_seconds.filter(|seconds| !(1..=LONGEST_GROW).contains(seconds)) {
        return Err(value("kubernetes.growSeconds", seconds.to_string(), format!("must be 1 to {LONGEST_GROW}")));
    }
    Ok(Some(Kubernetes {
        // An empty selector would match every pod.
        agent_selector: given("agentSelector", file.agent_selector)?,
        authority_secret: given("authoritySecret", file.authority_secret)?,
        node_service_account: given("nodeServiceAccount", file.node_service_account)?,
        certificate_life: Duration::from_secs(60 * u64::from(minutes)),
        grow: file.grow_seconds.map(Duration::from_secs),
    }))
}

/// Refuses certificate files where Kubernetes provides the certificates.
fn no_tls(flags: &Flags, file: Option<&file::FileTls>) -> Result<(), ConfigError> {
    if file.is_some() || flags.tls_ca.is_some() || flags.tls_cert.is_some() || flags.tls_key.is_some() {
        return Err(value("tls", "", "cannot be combined with the section kubernetes, which provides the certificates"));
    }
    Ok(())
}

fn agent(key: &str, node: &str, address: &str) -> Result<AgentAddress, ConfigError> {
    let wrong = |why: &str| value(key, format!("{node}={address}"), why);
    let node = NodeId::new(node).ok_or_else(|| wrong("does not begin with the name of a node"))?;
    let form = || wrong("must have an address https://HOST:PORT");
    let place = address.strip_prefix("https://").ok_or_else(form)?;
    let place = place.strip_suffix('/').unwrap_or(place);
    let (host, port) = place.rsplit_once(':').ok_or_else(form)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]%".contains(&b);
    if host.is_empty() || !host.bytes().all(plain) || port.parse::<u16>().is_err() {
        return Err(form());
    }
    Ok(AgentAddress { node, address: place.to_owned() })
}

fn tls(flags: &Flags, file: Option<file::FileTls>) -> Result<Files, ConfigError> {
    let file = file.unwrap_or_default();
    let need = |key: &str, flag: &str, given: Option<PathBuf>| {
        given.ok_or_else(|| {
            value(key, "", format!("is not set; give {flag} FILE (PEM): controller and agents require mutual TLS"))
        })
    };
    Ok(Files {
        ca: need("tls.ca", "--tls-ca", flags.tls_ca.clone().or(file.ca))?,
        cert: need("tls.cert", "--tls-cert", flags.tls_cert.clone().or(file.cert))?,
        key: need("tls.key", "--tls-key", flags.tls_key.clone().or(file.key))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(agents: &[&str]) -> Flags {
        Flags {
            endpoint: Some("/run/csi.sock".into()),
            agents: agents.iter().map(|&text| text.to_owned()).collect(),
            agent_address: Some("127.0.0.1:9809".into()),
            tls_ca: Some("/ca".into()),
            tls_cert: Some("/cert".into()),
            tls_key: Some("/key".into()),
            ..Flags::default()
        }
    }

    fn with_file(text: &str, flags: Flags) -> (tempfile::TempDir, Flags) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        (dir, Flags { config: Some(path), ..flags })
    }

    #[test]
    fn the_agents_of_a_controller_come_from_flags_and_file() {
        let (_dir, flags) = with_file("agents:\n- node: a\n  address: https://[::1]:9809/\n", flags(&["b=https://b.example:1"]));
        let config = ControllerConfig::load(&flags).unwrap();
        let Agents::Listed(agents, tls) = config.agents else { panic!("{config:?}") };
        let agents: Vec<_> = agents.iter().map(|one| (one.node.as_str(), one.address.as_str())).collect();
        assert_eq!(agents, [("a", "[::1]:9809"), ("b", "b.example:1")]);
        assert_eq!(tls, Files { ca: "/ca".into(), cert: "/cert".into(), key: "/key".into() });
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let refused = |flags: &Flags| ControllerConfig::load(flags).unwrap_err().to_string();
        for (agents, word) in [
            (&[][..], "there is no agent"),
            (&["a"][..], "NODE=https"),
            (&["a=http://h:1"][..], "https://HOST:PORT"),
            (&["a=https://h"][..], "https://HOST:PORT"),
            (&["a=https://h:99999"][..], "https://HOST:PORT"),
            (&["a=https://h:1/x"][..], "https://HOST:PORT"),
            (&["-=https://h:1"][..], "name of a node"),
            (&["a=https://h:1", "a=https://g:1"][..], "twice"),
        ] {
            let text = refused(&flags(agents));
            assert!(text.contains(word), "{agents:?}: {text}");
        }
        assert!(refused(&Flags { tls_key: None, ..flags(&["a=https://h:1"]) }).contains("--tls-key"));
        let node = |flags: &Flags| NodeConfig::load(flags, "host").unwrap_err().to_string();
        assert!(node(&Flags { agent_address: None, ..flags(&[]) }).contains("--agent-address"));
        // Nothing controls who may read them.
        let metrics = || Some("0.0.0.0:9808".to_owned());
        assert!(refused(&Flags { metrics_address: metrics(), ..flags(&["a=https://h:1"]) }).contains("loopback"));
        let vg = Some("vg0".to_owned());
        assert!(node(&Flags { metrics_address: metrics(), vg, ..flags(&[]) }).contains("loopback"));
        assert!(node(&flags(&[])).contains("pools"));
    }

    #[test]
    fn kubernetes_gives_agents_and_certificates_alone() {
        let section = |more: &str| {
            format!(
                "kubernetes:\n  agentSelector: app=x\n  authoritySecret: ca\n  nodeServiceAccount: n\n{more}\
                 pools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n"
            )
        };
        let bare = || Flags { tls_ca: None, tls_cert: None, tls_key: None, ..flags(&[]) };
        let (_dir, given) = with_file(&section(""), Flags { metrics_address: Some("0.0.0.0:9808".to_owned()), ..bare() });
        let Agents::Kubernetes(kubernetes) = ControllerConfig::load(&given).unwrap().agents else { panic!("{given:?}") };
        assert_eq!(kubernetes.certificate_life, Duration::from_secs(24 * 3600));
        assert_eq!(kubernetes.grow, None);
        assert_eq!(NodeConfig::load(&given, "host").unwrap().trust, Trust::Kubernetes(kubernetes));
        assert!(Config::load(&given, "host").unwrap_err().to_string().contains("kubernetes"));
        let (_dir, given) = with_file(&section("  growSeconds: 5\n"), bare());
        let Agents::Kubernetes(kubernetes) = ControllerConfig::load(&given).unwrap().agents else { panic!("{given:?}") };
        assert_eq!(kubernetes.grow, Some(Duration::from_secs(5)));
        for (text, flags, word) in [
            (section(""), flags(&[]), "tls"),
            (section(""), Flags { agents: vec!["a=https://h:1".to_owned()], ..bare() }, "agents"),
            (section("  certificateMinutes: 0\n"), bare(), "certificateMinutes"),
            (section("  growSeconds: 0\n"), bare(), "growSeconds"),
            (section("  growSeconds: 3601\n"), bare(), "growSeconds"),
            (section("").replace("app=x", "''"), bare(), "agentSelector"),
        ] {
            let (_dir, given) = with_file(&text, flags);
            let refused = ControllerConfig::load(&given).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn attaching_is_required_unless_flag_or_file_say_otherwise_to_both_ends() {
        let pools = "pools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n";
        for (file, flag, required) in [
            ("", None, true),
            ("attachRequired: false\n", None, false),
            ("attachRequired: false\n", Some(true), true),
            ("", Some(false), false),
        ] {
            let (_dir, flags) =
                with_file(&format!("{file}{pools}"), Flags { attach_required: flag, ..flags(&["a=https://h:1"]) });
            assert_eq!(ControllerConfig::load(&flags).unwrap().attach_required, required, "{file:?} {flag:?}");
            assert_eq!(NodeConfig::load(&flags, "host").unwrap().config.attach_required, required, "{file:?} {flag:?}");
        }
    }

    #[test]
    fn one_process_takes_nothing_that_is_for_two() {
        let pools = "pools:\n- name: a\n  volumeGroup: vg0\n  layout: linear\n";
        for (more, key) in [("agentAddress: 127.0.0.1:1\n", "agentAddress"), ("tls:\n  ca: /x\n", "tls")] {
            let (_dir, flags) = with_file(&format!("{more}{pools}"), flags(&[]));
            assert!(Config::load(&flags, "host").unwrap_err().to_string().contains(key));
            assert!(NodeConfig::load(&flags, "host").is_ok());
        }
    }
}
