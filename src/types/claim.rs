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
