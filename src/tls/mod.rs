//! Mutual TLS between the controller and the agents: who is who, by the names in their certificates.
//!
//! | end | DNS name among the subject alternative names |
//! |---|---|
//! | the agent of node `n` | `n.node.<driver>` |
//! | a controller | `controller.<driver>` |
//!
//! Both are signed by an authority of the `--tls-ca` file, which may hold several: an old and a new one overlap. The files are looked
//! at for each new connection, so a renewal needs no restart; one that cannot be read, or whose key does not fit, leaves in force what
//! was read before. Credentials may also come from memory ([`Credentials::awaited`]), where somebody else renews them. Sessions are never resumed: each connection shows a certificate that is valid when it begins.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::{Resumption, verify_server_name};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub use tokio_rustls::server::TlsStream as ServerStream;

use crate::types::{NodeId, chain, figure::gauge};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The only protocol spoken between controller and agents (ALPN).
const HTTP2: &[u8] = b"h2";
/// What collectors of metrics speak.
const HTTP1: &[u8] = b"http/1.1";

/// Where the credentials of one end are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The authorities that sign the other end's certificate.
    pub ca: PathBuf,
    /// The own certificate, with those between it and the authority.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The credentials of one end themselves, as PEM. They are in memory only; the key shows in no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The authorities that sign the other end's certificate.
    pub ca: String,
    /// The own certificate.
    pub cert: String,
    pub key: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Why there is no secure connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// What should be PEM is something else.
    #[error("{place} does not hold {what} in PEM")]
    Pem {
        /// The file, or what was given.
        place: String,
        /// What it should hold.
        what: &'static str,
        #[source]
        source: pem::Error,
    },
    /// Certificate and key cannot be used.
    #[error("{cert} with {key} cannot be used")]
    Unusable {
        cert: String,
        /// The key.
        key: String,
        #[source]
        source: rustls::Error,
    },
    /// One of the authorities cannot be used.
    #[error("{place} holds an authority that cannot be used")]
    Authority {
        /// The file, or what was given.
        place: String,
        #[source]
        source: rustls::Error,
    },
    /// The authorities together cannot be used.
    #[error("the authorities of {place} cannot be used")]
    Authorities {
        /// The file, or what was given.
        place: String,
        #[source]
        source: VerifierBuilderError,
    },
    /// Nothing was given yet.
    #[error("this end has no certificate yet; the log of its start says what it waits for")]
    NotYet,
    /// A name that no certificate can carry.
    #[error("{0:?} cannot be a name in a certificate: a node's name must consist of DNS labels")]
    Name(String),
    /// The handshake failed.
    #[error("the TLS handshake with {peer} failed")]
    Handshake {
        peer: String,
        #[source]
        source: io::Error,
    },
    /// The other end has a valid certificate and is somebody else.
    #[error("{peer} has no certificate of {wanted}")]
    Stranger {
        peer: String,
        /// Who may call.
        wanted: String,
        #[source]
        source: rustls::Error,
    },
}

/// The credentials of one end, as they are now: in its files, or as they were given last.
pub struct Credentials {
    driver: String,
    files: Option<Files>,
    loaded: Mutex<Option<Loaded>>,
}

struct Loaded {
    /// Of the files when they were read.
    stamp: Stamp,
    configs: Configs,
}

/// What TLS is made with.
#[derive(Clone)]
struct Configs {
    server: Arc<ServerConfig>,
    /// For those who show no certificate.
    open: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// When the own certificate ends; `None` where it does not say.
    until: Option<SystemTime>,
}

/// What of a file changes when it is written or replaced: inode, size, and time of the last change in nanoseconds.
type Stamp = [Option<(u64, u64, i64, i64)>; 3];

/// A text in PEM, and where it is from.
struct Text {
    place: String,
    pem: Vec<u8>,
}

impl Text {
    fn file(path: &Path) -> Result<Self, TlsError> {
        let pem = std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
        Ok(Self { place: path.display().to_string(), pem })
    }

    fn given(place: &str, pem: &str) -> Self {
        Self { place: place.to_owned(), pem: pem.as_bytes().to_vec() }
    }

    fn wrong(&self, what: &'static str) -> impl Fn(pem::Error) -> TlsError {
        let place = self.place.clone();
        move |source| TlsError::Pem { place: place.clone(), what, source }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let wrong = self.wrong("a certificate");
        let found: Vec<_> = CertificateDer::pem_slice_iter(&self.pem).collect::<Result<_, _>>().map_err(&wrong)?;
        if found.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(found) }
    }

    fn authorities(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|source| TlsError::Authority { place: self.place.clone(), source })?;
        }
        Ok(roots)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.pem).map_err(self.wrong("a private key"))
    }
}

impl Files {
    fn stamp(&self) -> Stamp {
        [&self.ca, &self.cert, &self.key].map(|path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        })
    }

    fn load(&self) -> Result<Loaded, TlsError> {
        // Before they are read: a change meanwhile is seen next time.
        let stamp = self.stamp();
        let configs = Configs::new(&Text::file(&self.ca)?, &Text::file(&self.cert)?, &Text::file(&self.key)?)?;
        Ok(Loaded { stamp, configs })
    }
}

impl Identity {
    fn configs(&self) -> Result<Configs, TlsError> {
        let text = Text::given;
        Configs::new(&text("the authorities", &self.ca), &text("the certificate", &self.cert), &text("its key", &self.key))
    }
}

impl Configs {
    fn new(ca: &Text, cert: &Text, key: &Text) -> Result<Self, TlsError> {
        let unusable = |source| TlsError::Unusable { cert: cert.place.clone(), key: key.place.clone(), source };
        let (roots, chain, private) = (Arc::new(ca.authorities()?), cert.certificates()?, key.key()?);
        let until = chain.first().and_then(end);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Authorities { place: ca.place.clone(), source })?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private.clone_key())
            .map_err(unusable)?;
        server.alpn_protocols = vec![HTTP2.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut open = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain.clone(), private.clone_key())
            .map_err(unusable)?;
        open.alpn_protocols = vec![HTTP1.to_vec()];
        open.session_storage = Arc::new(NoServerSessionStorage {});
        open.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private)
            .map_err(unusable)?;
        client.alpn_protocols = vec![HTTP2.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self { server: Arc::new(server), open: Arc::new(open), client: Arc::new(client), until })
    }
}

/// When a certificate ends.
fn end(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = certificate.validity().not_after.timestamp().try_into().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The name in the certificate of a node's agent.
///
/// # Errors
/// [`TlsError::Name`] for a node whose name no certificate can carry.
pub fn agent_name(driver: &str, node: &NodeId) -> Result<ServerName<'static>, TlsError> {
    name(format!("{node}.node.{driver}"))
}

/// The name in the certificate of a controller.
pub fn controller_name(driver: &str) -> String {
    format!("controller.{driver}")
}

fn name(text: String) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(text.clone()).map_err(|_| TlsError::Name(text))
}

impl Credentials {
    /// Reads the credentials of one end of a driver of this CSI name.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn load(files: Files, driver: &str) -> Result<Self, TlsError> {
        let loaded = files.load()?;
        Ok(Self { driver: driver.to_owned(), files: Some(files), loaded: Mutex::new(Some(loaded)) })
    }

    /// Credentials that are given later, and anew whenever they are renewed; until then nobody is connected to.
    pub fn awaited(driver: &str) -> Self {
        Self { driver: driver.to_owned(), files: None, loaded: Mutex::default() }
    }

    /// Gives them, for all connections from now on.
    ///
    /// # Errors
    /// They cannot be used; those before stay in force.
    pub fn give(&self, identity: &Identity) -> Result<(), TlsError> {
        let configs = identity.configs()?;
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Loaded { stamp: Stamp::default(), configs });
        Ok(())
    }

    /// The CSI name of the driver.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// What is in force now: for files what is in them, or what was before, where that cannot be used.
    fn now(&self) -> Result<Configs, TlsError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.as_mut().ok_or(TlsError::NotYet)?;
        if let Some(files) = &self.files {
            let stamp = files.stamp();
            if stamp != loaded.stamp {
                match files.load() {
                    Ok(new) => {
                        tracing::info!(cert = %files.cert.display(), "the certificate was renewed");
                        *loaded = new;
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "the new certificate is not used; the one before stays in force");
                        // Told once for each change.
                        loaded.stamp = stamp;
                    }
                }
            }
        }
        Ok(loaded.configs.clone())
    }

    /// Adds the end of the own certificate to the figures that are told.
    pub fn register_metrics(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(Validity(Arc::clone(self))));
    }

    /// Shakes hands with whoever has connected to an agent from `peer`, and takes a controller only.
    ///
    /// # Errors
    /// There is no valid certificate of a controller.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        peer: String,
    ) -> Result<server::TlsStream<S>, TlsError> {
        let failed = |source| TlsError::Handshake { peer: peer.clone(), source };
        let stream = timely(TlsAcceptor::from(self.now()?.server).accept(stream)).await.map_err(failed)?;
        let wanted = controller_name(&self.driver);
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let checked = name(wanted.clone()).and_then(|name| {
            let certificate = certificate.ok_or(rustls::Error::NoCertificatesPresented);
            certificate
                .and_then(ParsedCertificate::try_from)
                .and_then(|certificate| verify_server_name(&certificate, &name))
                .map_err(|source| TlsError::Stranger { peer, wanted, source })
        });
        checked.map(|()| stream)
    }

    /// Shakes hands with whoever has connected from `peer`, who need not show a certificate; HTTP/1.1 is spoken then.
    ///
    /// # Errors
    /// There is no certificate yet, or the handshake failed.
    pub async fn accept_anyone<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        peer: String,
    ) -> Result<server::TlsStream<S>, TlsError> {
        let failed = |source| TlsError::Handshake { peer, source };
        timely(TlsAcceptor::from(self.now()?.open).accept(stream)).await.map_err(failed)
    }

    /// Connects to the agent at an address (`host:port`), which must be that of the node.
    ///
    /// # Errors
    /// Nobody answers there, or somebody else.
    pub async fn connect(&self, address: &str, node: ServerName<'static>) -> io::Result<client::TlsStream<TcpStream>> {
        let stream = timely(TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        let client = self.now().map_err(io::Error::other)?.client;
        timely(TlsConnector::from(client).connect(node, stream)).await
    }
}

/// Tells how long the own certificate is valid.
struct Validity(Arc<Credentials>);

impl fmt::Debug for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Validity").finish_non_exhaustive()
    }
}

impl Collector for Validity {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let until = self.0.now().ok().and_then(|now| now.until);
        let seconds = until.map(|until| until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        let help = "When the certificate between controller and agents ends, in seconds since 1970; missing before the first";
        gauge(&mut encoder, "certificate_expiry_timestamp_seconds", help, seconds)
    }
}

async fn timely<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(HANDSHAKE, step).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer for {} s", HANDSHAKE.as_secs()))),
    }
}

#[cfg(test)]
mod tests;
