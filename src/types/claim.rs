//! Claims that are to grow by themselves, as whoever knows them tells.

use std::collections::BTreeMap;

/// A claim that says something of its growth, and is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Which state of it this is: a change is made of this one or not at all.
    pub version: String,
    /// The name of its PersistentVolume.
    pub volume: String,
    /// Whether that is a raw block device.
    pub block: bool,
    /// The size that it asks for, as it stands there.
    pub request: String,
    /// The size that it has, as it stands there.
    pub capacity: String,
    /// What it says of its growth: words without what they have in common (`to` for `DRIVER/grow-to`), and their values. At least one.
    pub words: BTreeMap<String, String>,
}

/// What came of asking for more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It is asked for.
    Taken,
    /// The claim is another than it was, so nothing was asked.
    Changed,
    /// It is refused, in these words.
    Refused(String),
}

/// Which claim it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimName {
    pub namespace: String,
    pub name: String,
    /// Its UID: a later claim of the same name is another one.
    pub uid: String,
}
