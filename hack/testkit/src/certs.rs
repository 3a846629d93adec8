//! Certificates for the connections between controller and agents, signed by a test authority.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::error::{Result, Trouble};

/// How long a certificate from [`Authority::issue`] is valid.
pub const LIFE: Duration = Duration::from_secs(24 * 3600);

/// A self-signed certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Paths of the credentials of a controller or an agent, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authority's certificate.
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

fn failed(error: &rcgen::Error) -> Trouble {
    Trouble::wrong(format!("making a certificate: {error}"))
}

impl Files {
    /// The paths that [`Authority::write`] uses in a directory.
    pub fn of(directory: &Path) -> Self {
        Self { ca: directory.join("ca.pem"), cert: directory.join("cert.pem"), key: directory.join("key.pem") }
    }

    /// The driver's `--tls-*` flags for these files.
    pub fn flags(&self) -> Vec<std::ffi::OsString> {
        let pairs = [("--tls-ca", &self.ca), ("--tls-cert", &self.cert), ("--tls-key", &self.key)];
        pairs.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]).collect()
    }
}

/// The DNS name in the certificate of a node's agent.
pub fn agent(driver: &str, node: &str) -> String {
    format!("{node}.node.{driver}")
}

/// The DNS name in a controller's certificate.
pub fn controller(driver: &str) -> String {
    format!("controller.{driver}")
}

impl Authority {
    /// Generates a key and signs its own certificate.
    ///
    /// # Errors
    /// rcgen fails.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "lvm-csi test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        CertifiedIssuer::self_signed(params, key).map(Self).map_err(|error| failed(&error))
    }

    /// Writes new credentials with this DNS name into a directory. It replaces existing ones file by file, the key before the
    /// certificate: a reader may see the new key with the old certificate, as in any renewal.
    ///
    /// # Errors
    /// rcgen fails, or a file cannot be written.
    pub fn write(&self, directory: &Path, name: &str, from: SystemTime, until: SystemTime) -> Result<Files> {
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| failed(&error))?;
        params.not_before = from.into();
        params.not_after = until.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).map_err(|error| failed(&error))?;
        let files = Files::of(directory);
        fs::create_dir_all(directory).map_err(Trouble::io(format!("making {}", directory.display())))?;
        for (path, text) in [(&files.ca, self.0.pem()), (&files.key, key.serialize_pem()), (&files.cert, certificate.pem())] {
            let new = path.with_extension("new");
            fs::write(&new, text).map_err(Trouble::io(format!("writing {}", new.display())))?;
            fs::rename(&new, path).map_err(Trouble::io(format!("renaming {}", new.display())))?;
        }
        Ok(files)
    }

    /// As [`Authority::write`], valid from one minute ago until [`LIFE`] from now.
    ///
    /// # Errors
    /// As [`Authority::write`].
    pub fn issue(&self, directory: &Path, name: &str) -> Result<Files> {
        let now = SystemTime::now();
        self.write(directory, name, now - Duration::from_secs(60), now + LIFE)
    }
}

/// A certificate signing request for a DNS name, in PEM.
///
/// # Errors
/// rcgen fails.
pub fn request(name: &str) -> Result<String> {
    let key = KeyPair::generate().map_err(|error| failed(&error))?;
    let params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| failed(&error))?;
    params.serialize_request(&key).and_then(|request| request.pem()).map_err(|error| failed(&error))
}
