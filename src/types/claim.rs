//! Claims that grow by themselves, as the cluster reports them.

use std::collections::BTreeMap;

/// A bound claim with annotations for its growth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Version of the object: a change applies to this version or not at all.
    pub version: String,
    /// The name of its PersistentVolume.
    pub volume: String,
    /// Whether that is a raw block device.
    pub block: bool,
    /// The requested size, as the claim spells it.
    pub request: String,
    /// The present size, as the claim spells it.
    pub capacity: String,
    /// Annotations for its growth, without their common prefix (`to` for `DRIVER/grow-to`), and their values. At least one.
    pub words: BTreeMap<String, String>,
}

/// The result of a request for a larger size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The claim requests the larger size now.
    Taken,
    /// The claim was changed meanwhile, so nothing was requested.
    Changed,
    /// The API server refused it, for this reason.
    Refused(String),
}

/// Identifies a claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimName {
    pub namespace: String,
    pub name: String,
    /// Its UID; a later claim with the same name has another one.
    pub uid: String,
}

/// The claim's namespace, from the provisioner (`--extra-create-metadata`).
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// The claim's name, likewise.
const NAME: &str = "csi.storage.k8s.io/pvc/name";
/// The provisioner names a volume by this prefix and the UID of its claim.
const NAME_PREFIX: &str = "pvc-";

impl ClaimName {
    /// The claim of a new volume with this CSI name, if the provisioner passes it among the parameters; its UID is empty if the name does
    /// not contain it.
    pub fn of_volume(name: &str, parameters: &BTreeMap<String, String>) -> Option<Self> {
        let claim = |key| parameters.get(key).cloned();
        let uid = name.strip_prefix(NAME_PREFIX).unwrap_or_default().to_owned();
        Some(Self { namespace: claim(NAMESPACE)?, name: claim(NAME)?, uid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_known_by_both_of_its_keys() {
        let of = |keys: &[&str]| {
            let parameters = keys.iter().map(|key| ((*key).to_owned(), "x".to_owned())).collect();
            ClaimName::of_volume("pvc-1234", &parameters)
        };
        assert_eq!(of(&[NAMESPACE, NAME]), Some(ClaimName { namespace: "x".into(), name: "x".into(), uid: "1234".into() }));
        assert_eq!(of(&[NAME]), None);
    }
}
