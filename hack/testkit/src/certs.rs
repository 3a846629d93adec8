//! Certificates for the way between controller and agents, as an authority of our own signs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::error::{Result, Trouble};

/// How long a certificate is valid where nothing else is asked for.
pub const LIFE: Duration = Duration::from_secs(24 * 3600);

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Where one end has its credentials.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authority.
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

fn failed(error: &rcgen::Error) -> Trouble {
    Trouble::wrong(format!("making a certificate: {error}"))
}

impl Files {
    /// The files of a directory.
    pub fn of(directory: &Path) -> Self {
        Self { ca: directory.join("ca.pem"), cert: directory.join("cert.pem"), key: directory.join("key.pem") }
    }

    /// The flags of the driver that name them.
    pub fn flags(&self) -> Vec<std::ffi::OsString> {
        let pairs = [("--tls-ca", &self.ca), ("--tls-cert", &self.cert), ("--tls-key", &self.key)];
        pairs.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]).collect()
    }
}

/// The name of the agent of a node.
pub fn agent(driver: &str, node: &str) -> String {
    format!("{node}.node.{driver}")
}

/// The name of a controller.
pub fn controller(driver: &str) -> String {
    format!("controller.{driver}")
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "lvm-csi test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        CertifiedIssuer::self_signed(params, key).map(Self).map_err(|error| failed(&error))
    }

    /// Writes the credentials of one end into a directory, over what is there: first the key, as a renewal may.
    ///
    /// # Errors
    /// They cannot be made or written.
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

    /// The same, valid from a minute ago and for [`LIFE`].
    ///
    /// # Errors
    /// As [`Authority::write`].
    pub fn issue(&self, directory: &Path, name: &str) -> Result<Files> {
        let now = SystemTime::now();
        self.write(directory, name, now - Duration::from_secs(60), now + LIFE)
    }
}

/// A request for a certificate of that name, in PEM.
///
/// # Errors
/// It cannot be made.
pub fn request(name: &str) -> Result<String> {
    let key = KeyPair::generate().map_err(|error| failed(&error))?;
    let params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| failed(&error))?;
    params.serialize_request(&key).and_then(|request| request.pem()).map_err(|error| failed(&error))
}
