//! The authorities that sign the certificates of controller and agents, kept in a Secret.
//!
//! ```text
//!   new ── as old as a certificate lives ──▶ signs ── half of its life ──▶ a new one is added ── its end ──▶ removed
//!   (trusted from the beginning)                                          (both are trusted)
//! ```
//!
//! An authority signs only once it is older than every valid certificate. By then every holder of one has received it to trust.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as SecretObject;
use kube::Api;
use kube::api::PostParams;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};

use super::{Cluster, ClusterError};
use crate::types::Secret;

/// Validity of an authority.
const LIFE: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// Assumed maximum difference between the clocks of nodes.
const SKEW: Duration = Duration::from_secs(300);

/// What the controller issues certificates for.
#[derive(Clone, Debug)]
pub struct Issuing {
    /// The CSI name of the driver.
    pub driver: String,
    /// The Secret that holds the authorities. It must exist; it may be empty.
    pub secret: String,
    /// The ServiceAccount of the agents.
    pub account: String,
    /// Validity of a certificate.
    pub life: Duration,
}

/// The end of the connection that a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The caller: a controller.
    Caller,
    /// The called side: an agent.
    Called,
}

#[derive(Clone)]
struct Authority {
    cert: String,
    key: Arc<Secret>,
    from: SystemTime,
    until: SystemTime,
}

/// All authorities of a Secret, oldest first.
#[derive(Clone, Default)]
pub(super) struct Authorities(Vec<Authority>);

/// The validity of a PEM certificate: its start and end.
pub(super) fn validity(pem: &str) -> Option<(SystemTime, SystemTime)> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = block.parse_x509().ok()?;
    let validity = certificate.validity();
    let time = |time: x509_parser::time::ASN1Time| UNIX_EPOCH.checked_add(Duration::from_secs(time.timestamp().try_into().ok()?));
    Some((time(validity.not_before)?, time(validity.not_after)?))
}

impl Authority {
    fn new(driver: &str, now: SystemTime) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let (from, until) = (now - SKEW, now + LIFE);
        let mut params = CertificateParams::default();
        // A unique name, so that two authorities can be told apart.
        let born = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{driver} authority {born}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (from.into(), until.into());
        let cert = params.self_signed(&key)?.pem();
        Ok(Self { cert, key: Arc::new(key.serialize_pem().into()), from, until })
    }

    /// The name of its entries in the Secret.
    fn name(&self) -> String {
        self.from.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string()
    }
}

impl Authorities {
    fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, String> {
        let text = |name: &str| data.get(name).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        let mut all = Vec::new();
        for name in data.keys().filter_map(|name| name.strip_suffix(".crt")) {
            let (crt, key) = (format!("{name}.crt"), format!("{name}.key"));
            let cert = text(&crt).ok_or_else(|| format!("{crt} is not text"))?;
            let (from, until) = validity(&cert).ok_or_else(|| format!("{crt} is not a PEM certificate"))?;
            let key = text(&key).ok_or_else(|| format!("{key} is missing for {crt}"))?;
            let key = Arc::new(Secret::from(key));
            all.push(Authority { cert, key, from, until });
        }
        all.sort_by_key(|authority| authority.from);
        Ok(Self(all))
    }

    fn data(&self) -> BTreeMap<String, ByteString> {
        let entries = self.0.iter().flat_map(|one| {
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            [(format!("{}.crt", one.name()), bytes(&one.cert)), (format!("{}.key", one.name()), bytes(one.key.reveal_text()))]
        });
        entries.collect()
    }

    /// The authorities that are still valid, plus a new one if the newest is past half of its life; `None` if nothing changes.
    fn renewed(&self, driver: &str, now: SystemTime) -> Result<Option<Self>, rcgen::Error> {
        if self.0.last().is_some_and(|newest| now + LIFE / 2 < newest.until) {
            return Ok(None);
        }
        let mut all: Vec<Authority> = self.0.iter().filter(|one| one.until > now).cloned().collect();
        all.push(Authority::new(driver, now)?);
        Ok(Some(Self(all)))
    }

    /// The authority that signs certificates of a given life: the newest that is older than every certificate in force, or else the oldest.
    fn signer(&self, life: Duration, now: SystemTime) -> Option<&Authority> {
        let valid = || self.0.iter().filter(|one| one.until > now + life);
        valid().rev().find(|one| one.from + SKEW + life <= now).or_else(|| valid().next())
    }

    /// The authorities to trust, in PEM.
    pub(super) fn trusted(&self, now: SystemTime) -> String {
        self.0.iter().filter(|one| one.until > now).map(|one| one.cert.as_str()).collect()
    }

    /// Issues a PEM certificate for a key under a single name.
    pub(super) fn issue(
        &self,
        name: &str,
        end: End,
        key: &impl PublicKeyData,
        life: Duration,
        now: SystemTime,
    ) -> Result<String, ClusterError> {
        let wrong = ClusterError::certificate;
        let none = || ClusterError::Unusable {
            what: "the authorities".to_owned(),
            reason: "none of them stays valid for as long as a certificate".to_owned(),
        };
        let authority = self.signer(life, now).ok_or_else(none)?;
        let issuer =
            KeyPair::from_pem(authority.key.reveal_text()).and_then(|key| Issuer::from_ca_cert_pem(&authority.cert, key));
        let issuer = issuer.map_err(wrong("reading an authority"))?;
        let mut params = CertificateParams::new([name.to_owned()]).map_err(wrong("naming a certificate"))?;
        params.distinguished_name = DistinguishedName::new();
        (params.not_before, params.not_after) = ((now - SKEW).into(), (now + life).into());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match end {
            End::Caller => ExtendedKeyUsagePurpose::ClientAuth,
            End::Called => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &issuer).map_err(wrong("signing a certificate"))?.pem())
    }
}

impl Cluster {
    /// Reads the authorities from the Secret and adds a new one when it is due.
    pub(super) async fn authorities(&self, issuing: &Issuing) -> Result<Authorities, ClusterError> {
        let api: Api<SecretObject> = Api::namespaced(self.client.clone(), &self.namespace);
        let name = &issuing.secret;
        let what = || format!("secret {}/{name}", self.namespace);
        let mut secret = api.get(name).await.map_err(ClusterError::api(format!("reading {}", what())))?;
        let found = Authorities::read(secret.data.get_or_insert_default());
        let found = found.map_err(|reason| ClusterError::Unusable { what: what(), reason })?;
        let now = SystemTime::now();
        let Some(renewed) = found.renewed(&issuing.driver, now).map_err(ClusterError::certificate("making an authority"))? else {
            return Ok(found);
        };
        secret.data = Some(renewed.data());
        // Fails with a conflict if another controller was faster: the object carries the version that was read.
        api.replace(name, &PostParams::default(), &secret).await.map_err(ClusterError::api(format!("writing {}", what())))?;
        tracing::info!(secret = name, "made a new authority for the certificates of controller and agents");
        Ok(renewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn an_authority_signs_when_all_trust_it_and_goes_when_it_ends() {
        let birth = SystemTime::now();
        let renewed = |before: &Authorities, at| before.renewed("d", at).unwrap();
        let first = renewed(&Authorities::default(), birth).unwrap();
        assert_eq!(first.0.len(), 1);
        // The first one signs at once: nobody has a certificate of another.
        assert_eq!(first.signer(DAY, birth).unwrap().cert, first.0[0].cert);
        assert!(renewed(&first, birth + LIFE / 3).is_none());
        let half = birth + LIFE / 2 + DAY;
        let both = renewed(&first, half).unwrap();
        assert_eq!(both.0.len(), 2);
        assert_eq!(both.trusted(half).matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(both.signer(DAY, half + DAY / 2).unwrap().cert, first.0[0].cert);
        assert_eq!(both.signer(DAY, half + DAY).unwrap().cert, both.0[1].cert);
        let end = birth + LIFE + DAY;
        assert_eq!(both.trusted(end).matches("BEGIN CERTIFICATE").count(), 1);
        let third = renewed(&both, half + LIFE / 2 + DAY).unwrap();
        assert_eq!(third.0.iter().map(|one| &one.cert).collect::<Vec<_>>()[0], &both.0[1].cert);
        assert_eq!(third.0.len(), 2);
    }

    #[test]
    fn a_secret_gives_back_what_was_put_in() {
        let one = Authorities::default().renewed("d", SystemTime::now()).unwrap().unwrap();
        let read = Authorities::read(&one.data()).unwrap();
        assert_eq!((&read.0[0].cert, read.0[0].key.reveal_text()), (&one.0[0].cert, one.0[0].key.reveal_text()));
        // X.509 has a resolution of seconds.
        assert!(one.0[0].from.duration_since(read.0[0].from).unwrap() < Duration::from_secs(1));
        let mut data = one.data();
        let key = data.keys().find(|key| key.ends_with(".key")).cloned().unwrap();
        let lost = data.remove(&key).unwrap();
        assert!(Authorities::read(&data).err().unwrap().contains(&key));
        data.insert(key.replace(".key", ".crt"), lost);
        assert!(Authorities::read(&data).err().unwrap().contains("not a PEM certificate"));
        assert!(Authorities::read(&BTreeMap::new()).unwrap().0.is_empty());
    }
}
