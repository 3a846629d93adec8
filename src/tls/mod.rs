//! Mutual TLS between controller and agents. The DNS name in a certificate says who its holder is.
//!
//! | end | DNS name among the subject alternative names |
//! |---|---|
//! | the agent of node `n` | `n.node.<driver>` |
//! | a controller | `controller.<driver>` |
//!
//! Authorities in the `--tls-ca` file sign both. The file may hold several, so that an old and a new one overlap. The files are checked for
//! each new connection, so a renewal needs no restart. If they cannot be read, or the key does not fit, the last good credentials stay in
//! use. Credentials may also come from memory ([`Credentials::awaited`]) and be renewed by somebody else. Sessions are never resumed: each
//! connection presents a certificate that is valid when it begins.

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

use crate::types::{NodeId, Secret, chain, figure::gauge};

/// Time limit for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The only protocol between controller and agents (ALPN).
const HTTP2: &[u8] = b"h2";
/// The protocol of metrics collectors (ALPN).
const HTTP1: &[u8] = b"http/1.1";

/// The PEM files with the credentials of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The authorities that sign the other end's certificate.
    pub ca: PathBuf,
    /// The own certificate, with the intermediate certificates up to the authority.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The credentials of one end, in PEM. They stay in memory only.
#[derive(Clone)]
pub struct Identity {
    /// The authorities that sign the other end's certificate.
    pub ca: String,
    /// The own certificate.
    pub cert: String,
    pub key: Arc<Secret>,
}

/// Why there is no secure connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An input is not the expected PEM.
    #[error("{place} does not hold {what} in PEM")]
    Pem {
        /// The file, or the name of the given text.
        place: String,
        /// The expected content.
        what: &'static str,
        #[source]
        source: pem::Error,
    },
    /// Certificate and key cannot be used.
    #[error("cannot use {cert} with {key}")]
    Unusable {
        cert: String,
        key: String,
        #[source]
        source: rustls::Error,
    },
    /// One of the authorities cannot be used.
    #[error("cannot use an authority in {place}")]
    Authority {
        /// The file, or the name of the given text.
        place: String,
        #[source]
        source: rustls::Error,
    },
    /// The authorities together cannot be used.
    #[error("cannot use the authorities in {place}")]
    Authorities {
        /// The file, or the name of the given text.
        place: String,
        #[source]
        source: VerifierBuilderError,
    },
    /// No credentials were given yet.
    #[error("this process has no certificate yet; its log says what it waits for")]
    NotYet,
    /// A name that does not fit into a certificate.
    #[error("{0:?} cannot be a name in a certificate: a node's name must consist of DNS labels")]
    Name(String),
    #[error("the TLS handshake with {peer} failed")]
    Handshake {
        peer: String,
        #[source]
        source: io::Error,
    },
    /// The other end has a valid certificate with another name.
    #[error("{peer} has no certificate of {wanted}")]
    Stranger {
        peer: String,
        /// The required name.
        wanted: String,
        #[source]
        source: rustls::Error,
    },
}

/// The present credentials of one end: those in its files, or those given last.
pub struct Credentials {
    driver: String,
    files: Option<Files>,
    loaded: Mutex<Option<Loaded>>,
}

struct Loaded {
    /// The state of the files when they were read.
    stamp: Stamp,
    configs: Configs,
}

/// The TLS configurations.
#[derive(Clone)]
struct Configs {
    server: Arc<ServerConfig>,
    /// For clients that present no certificate.
    open: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// Expiry of the own certificate; `None` if it states none.
    until: Option<SystemTime>,
}

/// Changes whenever a file is written or replaced: inode, size, and time of the last change in seconds and nanoseconds.
type Stamp = [Option<(u64, u64, i64, i64)>; 3];

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// A PEM text and its origin.
struct Text {
    place: String,
    pem: Vec<u8>,
}

impl Text {
    fn file(path: &Path) -> Result<Self, TlsError> {
        Ok(Self { place: path.display().to_string(), pem: read(path)? })
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
}

/// A private key and its origin.
struct Key<'a> {
    place: String,
    pem: &'a Secret,
}

impl Key<'_> {
    fn read(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let wrong = |source| TlsError::Pem { place: self.place.clone(), what: "a private key", source };
        PrivateKeyDer::from_pem_slice(self.pem.reveal()).map_err(wrong)
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
        // Taken before reading, so that the next check sees a change in between.
        let stamp = self.stamp();
        let pem = Secret::from(read(&self.key)?);
        let key = Key { place: self.key.display().to_string(), pem: &pem };
        let configs = Configs::new(&Text::file(&self.ca)?, &Text::file(&self.cert)?, &key)?;
        Ok(Loaded { stamp, configs })
    }
}

impl Identity {
    fn configs(&self) -> Result<Configs, TlsError> {
        let text = Text::given;
        let key = Key { place: "its key".to_owned(), pem: &self.key };
        Configs::new(&text("the authorities", &self.ca), &text("the certificate", &self.cert), &key)
    }
}

impl Configs {
    fn new(ca: &Text, cert: &Text, key: &Key<'_>) -> Result<Self, TlsError> {
        let unusable = |source| TlsError::Unusable { cert: cert.place.clone(), key: key.place.clone(), source };
        let (roots, chain, private) = (Arc::new(ca.authorities()?), cert.certificates()?, key.read()?);
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

/// The expiry of a certificate.
fn end(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = certificate.validity().not_after.timestamp().try_into().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The name in the certificate of a node's agent.
///
/// # Errors
/// [`TlsError::Name`] if the node's name does not fit into a certificate.
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
    /// Reads the credentials of one end of the driver with this CSI name.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn load(files: Files, driver: &str) -> Result<Self, TlsError> {
        let loaded = files.load()?;
        Ok(Self { driver: driver.to_owned(), files: Some(files), loaded: Mutex::new(Some(loaded)) })
    }

    /// Credentials to be given later with [`Credentials::give`], and again at each renewal. Until then every connection fails.
    pub fn awaited(driver: &str) -> Self {
        Self { driver: driver.to_owned(), files: None, loaded: Mutex::default() }
    }

    /// Sets the credentials for all new connections.
    ///
    /// # Errors
    /// They cannot be used. The previous ones stay in use.
    pub fn give(&self, identity: &Identity) -> Result<(), TlsError> {
        let configs = identity.configs()?;
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Loaded { stamp: Stamp::default(), configs });
        Ok(())
    }

    /// The CSI name of the driver.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The present configurations. Reads changed files; if those cannot be used, the last good credentials stay.
    fn now(&self) -> Result<Configs, TlsError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.as_mut().ok_or(TlsError::NotYet)?;
        if let Some(files) = &self.files {
            let stamp = files.stamp();
            if stamp != loaded.stamp {
                match files.load() {
                    Ok(new) => {
                        tracing::info!(cert = %files.cert.display(), "read a renewed certificate");
                        *loaded = new;
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "cannot use the new certificate; the previous one stays in use");
                        // Log once for each change.
                        loaded.stamp = stamp;
                    }
                }
            }
        }
        Ok(loaded.configs.clone())
    }

    /// Adds the expiry of the own certificate to the metrics.
    pub fn register_metrics(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(Validity(Arc::clone(self))));
    }

    /// Accepts a TLS connection from `peer` to an agent, and only a controller's.
    ///
    /// # Errors
    /// There is no certificate yet, the handshake failed, or the client's certificate is not a controller's.
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

    /// Accepts a TLS connection from `peer` for HTTP/1.1. The client need not present a certificate.
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

    /// Connects to the agent at an address (`host:port`), which must have the certificate of `node`.
    ///
    /// # Errors
    /// Nobody answers there, somebody else does, or there is no certificate yet.
    pub async fn connect(&self, address: &str, node: ServerName<'static>) -> io::Result<client::TlsStream<TcpStream>> {
        let stream = timely(TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        let client = self.now().map_err(io::Error::other)?.client;
        timely(TlsConnector::from(client).connect(node, stream)).await
    }
}

/// The metric for the expiry of the own certificate.
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
        let help = "Expiry of this process's certificate, in seconds since 1970; missing before the first";
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
