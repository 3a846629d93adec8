//! Mutual TLS between the controller and the agents: who is who, by the names in their certificates.
//!
//! | end | DNS name among the subject alternative names |
//! |---|---|
//! | the agent of node `n` | `n.node.<driver>` |
//! | a controller | `controller.<driver>` |
//!
//! Both are signed by an authority of the `--tls-ca` file, which may hold several: an old and a new one overlap. The files are looked
//! at for each new connection, so a renewal needs no restart; one that cannot be read, or whose key does not fit, leaves in force what
//! was read before. Sessions are never resumed: each connection shows a certificate that is valid when it begins.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::rustls::client::{Resumption, verify_server_name};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::types::{NodeId, chain};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The only protocol spoken inside (ALPN).
const HTTP2: &[u8] = b"h2";

/// Where the credentials of one end are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The authorities that sign the other end's certificate.
    pub ca: PathBuf,
    /// The own certificate, with those between it and the authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why there is no secure connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} does not hold {what} in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The cause.
        #[source]
        source: pem::Error,
    },
    /// Certificate and key cannot be used.
    #[error("the certificate {cert} with the key {key} cannot be used")]
    Unusable {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// The authorities cannot be used.
    #[error("the authorities of {path} cannot be used")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: VerifierBuilderError,
    },
    /// A name that no certificate can carry.
    #[error("{0:?} cannot be a name in a certificate: a node's name must consist of DNS labels")]
    Name(String),
    /// The handshake failed.
    #[error("the TLS handshake with {peer} failed")]
    Handshake {
        /// The other end.
        peer: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The other end has a valid certificate and is somebody else.
    #[error("{peer} has no certificate of {wanted}")]
    Stranger {
        /// The other end.
        peer: String,
        /// Who may call.
        wanted: String,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
}

/// The credentials of one end, as they are in its files now.
pub struct Credentials {
    files: Files,
    driver: String,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamp: Stamp,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// What of a file changes when it is written or replaced: inode, size, and time of the last change in nanoseconds.
type Stamp = [Option<(u64, u64, i64, i64)>; 3];

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
        let roots = Arc::new(self.roots()?);
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| unreadable(&self.key, "a private key", error))?;
        let unusable = |source| TlsError::Unusable { cert: self.cert.clone(), key: self.key.clone(), source };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Authorities { path: self.ca.clone(), source })?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        server.alpn_protocols = vec![HTTP2.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![HTTP2.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Loaded { stamp, server: Arc::new(server), client: Arc::new(client) })
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|source| TlsError::Unusable {
                cert: self.ca.clone(),
                key: self.key.clone(),
                source,
            })?;
        }
        Ok(roots)
    }
}

fn unreadable(path: &std::path::Path, what: &'static str, error: pem::Error) -> TlsError {
    match error {
        pem::Error::Io(source) => TlsError::Read { path: path.to_owned(), source },
        source => TlsError::Pem { path: path.to_owned(), what, source },
    }
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |error| unreadable(path, "a certificate", error);
    let found: Vec<_> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<_, _>>().map_err(wrong)?;
    if found.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// The name in the certificate of a node's agent.
///
/// # Errors
/// [`TlsError::Name`] for a node whose name no certificate can carry.
pub fn agent_name(driver: &str, node: &NodeId) -> Result<ServerName<'static>, TlsError> {
    name(format!("{node}.node.{driver}"))
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
        let loaded = Mutex::new(files.load()?);
        Ok(Self { files, driver: driver.to_owned(), loaded })
    }

    /// The CSI name of the driver.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// What is in the files now; what was there before, where that cannot be used.
    fn now(&self) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if stamp != loaded.stamp {
            match self.files.load() {
                Ok(new) => {
                    tracing::info!(cert = %self.files.cert.display(), "the certificate was renewed");
                    *loaded = new;
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the new certificate is not used; the one before stays in force");
                    // Told once for each change.
                    loaded.stamp = stamp;
                }
            }
        }
        (Arc::clone(&loaded.server), Arc::clone(&loaded.client))
    }

    /// Shakes hands with whoever has connected to an agent, and takes a controller only.
    ///
    /// # Errors
    /// There is no valid certificate of a controller.
    pub async fn accept(&self, stream: TcpStream) -> Result<server::TlsStream<TcpStream>, TlsError> {
        let peer = stream.peer_addr().map_or_else(|_| "a peer that is gone".to_owned(), |address| address.to_string());
        let failed = |source| TlsError::Handshake { peer: peer.clone(), source };
        // An answer shall not wait for the next packet of the other end.
        stream.set_nodelay(true).map_err(failed)?;
        let (config, _) = self.now();
        let stream = timely(TlsAcceptor::from(config).accept(stream)).await.map_err(failed)?;
        let wanted = format!("controller.{}", self.driver);
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

    /// Connects to the agent at an address (`host:port`), which must be that of the node.
    ///
    /// # Errors
    /// Nobody answers there, or somebody else.
    pub async fn connect(&self, address: &str, node: ServerName<'static>) -> io::Result<client::TlsStream<TcpStream>> {
        let stream = timely(TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        let (_, config) = self.now();
        timely(TlsConnector::from(config).connect(node, stream)).await
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
