//! Which peers are accepted or refused, and renewals.

use std::path::Path;
use std::time::SystemTime;

use testkit::certs::{self, Authority};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const DRIVER: &str = "lvm-csi.dev";

fn files(of: &certs::Files) -> Files {
    Files { ca: of.ca.clone(), cert: of.cert.clone(), key: of.key.clone() }
}

fn issued(authority: &Authority, directory: &Path, name: &str) -> Credentials {
    let made = authority.issue(&directory.join(name), name).unwrap();
    Credentials::load(files(&made), DRIVER).unwrap()
}

fn node(name: &str) -> ServerName<'static> {
    agent_name(DRIVER, &NodeId::new(name).unwrap()).unwrap()
}

/// Connects a caller to an agent and returns both results. The caller succeeds once it has read one byte.
async fn meet(
    agent: &Credentials,
    caller: &Credentials,
    called: ServerName<'static>,
) -> (Result<(), String>, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let door = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = agent.accept(stream, "a caller".to_owned()).await.map_err(|error| chain(&error))?;
        stream.write_all(b"x").await.map_err(|error| error.to_string())?;
        stream.shutdown().await.map_err(|error| error.to_string())
    };
    let visit = async {
        let mut stream = caller.connect(&address, called).await.map_err(|error| error.to_string())?;
        stream.read_u8().await.map(drop).map_err(|error| error.to_string())
    };
    tokio::join!(door, visit)
}

#[tokio::test]
async fn only_a_controller_is_taken_and_only_the_node_that_was_called() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    let agent = issued(&authority, directory.path(), "a.node.lvm-csi.dev");
    let controller = issued(&authority, directory.path(), "controller.lvm-csi.dev");
    let (taken, content) = meet(&agent, &controller, node("a")).await;
    assert_eq!((taken, content), (Ok(()), Ok(())));

    // Another node's agent answers at the address.
    let (_, refused) = meet(&agent, &controller, node("b")).await;
    assert!(refused.unwrap_err().contains("not valid for name \"b.node.lvm-csi.dev\""));
    // An agent with a certificate of another authority.
    let false_agent = issued(&other, directory.path(), "false/a.node.lvm-csi.dev".strip_prefix("false/").unwrap());
    let (_, refused) = meet(&false_agent, &controller, node("a")).await;
    assert!(refused.unwrap_err().contains("invalid peer certificate"));

    let agent = issued(&authority, directory.path(), "a.node.lvm-csi.dev");
    // A node, somebody's pod, and the controller of another driver, all with certificates of the right authority.
    for stranger in ["b.node.lvm-csi.dev", "shop.default.pod", "controller.other.dev"] {
        let caller = issued(&authority, directory.path(), stranger);
        let (refused, _) = meet(&agent, &caller, node("a")).await;
        let text = refused.unwrap_err();
        assert!(text.contains("no certificate of controller.lvm-csi.dev"), "{stranger}: {text}");
    }
    // The right name from the wrong authority, while the caller trusts the right one.
    let forged = other.issue(&directory.path().join("forged"), "controller.lvm-csi.dev").unwrap();
    std::fs::copy(directory.path().join("a.node.lvm-csi.dev/ca.pem"), &forged.ca).unwrap();
    let (refused, noticed) = meet(&agent, &Credentials::load(files(&forged), DRIVER).unwrap(), node("a")).await;
    assert!(refused.unwrap_err().contains("invalid peer certificate"));
    assert!(noticed.is_err());
}

#[tokio::test]
async fn who_shows_none_or_an_expired_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let agent = issued(&authority, directory.path(), "a.node.lvm-csi.dev");
    let second = Duration::from_secs(1);
    let now = SystemTime::now();
    for (from, until, word) in
        [(now - 90 * second, now - second, "expired"), (now + 60 * second, now + 90 * second, "not valid yet")]
    {
        let life = |name: &str| {
            let made = authority.write(&directory.path().join("odd").join(name), name, from, until).unwrap();
            Credentials::load(files(&made), DRIVER).unwrap()
        };
        let (refused, noticed) = meet(&agent, &life("controller.lvm-csi.dev"), node("a")).await;
        let text = refused.unwrap_err();
        assert!(text.contains(word), "{text}");
        assert!(noticed.is_err());
        let controller = issued(&authority, directory.path(), "controller.lvm-csi.dev");
        let (_, refused) = meet(&life("a.node.lvm-csi.dev"), &controller, node("a")).await;
        let text = refused.unwrap_err();
        assert!(text.contains(word), "{text}");
    }
    // A caller that trusts the authority but has no certificate.
    let nobody = issued(&authority, directory.path(), "controller.lvm-csi.dev");
    {
        let roots = Text::file(&nobody.files.as_ref().unwrap().ca).unwrap().authorities().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        nobody.loaded.lock().unwrap().as_mut().unwrap().configs.client = Arc::new(config);
    }
    let (refused, noticed) = meet(&agent, &nobody, node("a")).await;
    let text = refused.unwrap_err();
    assert!(text.contains("no certificates"), "{text}");
    assert!(noticed.is_err());
}

#[tokio::test]
async fn a_renewal_is_used_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, next) = (Authority::new().unwrap(), Authority::new().unwrap());
    let agent = issued(&authority, directory.path(), "a.node.lvm-csi.dev");
    let controller = issued(&authority, directory.path(), "controller.lvm-csi.dev");
    let content = |met: (Result<(), String>, Result<(), String>)| met.0.is_ok() && met.1.is_ok();
    assert!(content(meet(&agent, &controller, node("a")).await));
    // Half of a renewal: the key does not fit, so the last good credentials stay.
    let key = directory.path().join("a.node.lvm-csi.dev/key.pem");
    let good = std::fs::read(&key).unwrap();
    std::fs::copy(directory.path().join("controller.lvm-csi.dev/key.pem"), &key).unwrap();
    assert!(content(meet(&agent, &controller, node("a")).await));
    std::fs::remove_file(&key).unwrap();
    assert!(content(meet(&agent, &controller, node("a")).await));
    std::fs::write(&key, good).unwrap();
    assert!(content(meet(&agent, &controller, node("a")).await));
    // A new authority at one end only, and then at both.
    next.issue(&directory.path().join("a.node.lvm-csi.dev"), "a.node.lvm-csi.dev").unwrap();
    assert!(!content(meet(&agent, &controller, node("a")).await));
    next.issue(&directory.path().join("controller.lvm-csi.dev"), "controller.lvm-csi.dev").unwrap();
    assert!(content(meet(&agent, &controller, node("a")).await));
}

#[tokio::test]
async fn credentials_that_are_given_are_used_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let controller = issued(&authority, directory.path(), "controller.lvm-csi.dev");
    let agent = Credentials::awaited(DRIVER);
    let (refused, noticed) = meet(&agent, &controller, node("a")).await;
    assert!(refused.unwrap_err().contains("no certificate yet"));
    assert!(noticed.is_err());
    let made = authority.issue(&directory.path().join("a"), "a.node.lvm-csi.dev").unwrap();
    let read = |path| std::fs::read_to_string(path).unwrap();
    let identity = Identity { ca: read(&made.ca), cert: read(&made.cert), key: Arc::new(read(&made.key).into()) };
    agent.give(&identity).unwrap();
    assert_eq!(meet(&agent, &controller, node("a")).await, (Ok(()), Ok(())));
    // Unusable credentials change nothing, and their error shows no key.
    let broken = Identity { cert: identity.key.reveal_text().to_owned(), ..identity.clone() };
    let text = chain(&agent.give(&broken).unwrap_err());
    assert!(text.contains("the certificate does not hold"), "{text}");
    assert_eq!(meet(&agent, &controller, node("a")).await, (Ok(()), Ok(())));
}

#[test]
fn what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let made = Authority::new().unwrap().issue(directory.path(), "controller.lvm-csi.dev").unwrap();
    let refused = |files: Files| chain(&Credentials::load(files, DRIVER).map(drop).unwrap_err());
    let text = refused(Files { cert: "/none/cert.pem".into(), ..files(&made) });
    assert!(text.contains("/none/cert.pem"), "{text}");
    let text = refused(Files { key: made.cert.clone(), ..files(&made) });
    assert!(text.contains("cert.pem") && text.contains("private key"), "{text}");
    let text = refused(Files { ca: made.key.clone(), ..files(&made) });
    assert!(text.contains("key.pem") && text.contains("a certificate"), "{text}");
    assert!(agent_name(DRIVER, &NodeId::new("a..b").unwrap()).is_err());
}

#[test]
fn the_end_of_the_certificate_is_told_once_there_is_one() {
    let figure = |credentials: Credentials| {
        let mut registry = Registry::default();
        Arc::new(credentials).register_metrics(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix("certificate_expiry_timestamp_seconds "));
        value.map(|value| value.parse::<u64>().unwrap())
    };
    assert_eq!(figure(Credentials::awaited(DRIVER)), None);
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let ends = figure(issued(&authority, directory.path(), "a.node.lvm-csi.dev")).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(ends > now && ends < now + 100 * 365 * 24 * 3600, "{ends}");
}
