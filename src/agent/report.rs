//! What a person sees who looks at one machine, without its driver and without a cluster.

use std::path::PathBuf;

use crate::attach::{Damage, Grant, Phase};
use crate::host::{DmDevice, Udev};
use crate::types::{Bytes, GroupState, VgName};

use super::PoolFigures;

/// A machine at a look. What of it the driver alone knows, such as a command that hangs, is not in it.
#[derive(Debug)]
pub struct NodeReport {
    /// How udevd answers, where that was asked.
    pub udev: Udev,
    /// The groups of the configuration.
    pub groups: Vec<(VgName, GroupState)>,
    /// Devices that look like one of these groups and are not used as one, and what they show.
    pub strangers: Vec<(VgName, PathBuf, String)>,
    /// What a person should know of a group before it refuses something: its name, what it is, and what to do.
    pub remarks: Vec<(VgName, String, &'static str)>,
    /// Its pools by name, and the groups they lie in; the error says why one is not on offer.
    pub pools: Vec<(String, VgName, Result<PoolFigures, String>)>,
    /// The volumes and snapshots in the groups that can be read.
    pub objects: Vec<VolumeReport>,
    /// LVs that carry the driver's tags and are none of these: name with group, what is wrong, and what to do.
    pub odd: Vec<(String, String, &'static str)>,
    /// Grants in groups that can be read, of volumes that are not there.
    pub stray: Vec<Grant>,
    /// Grants in groups that cannot be read, or are not there.
    pub beyond: Vec<Grant>,
    /// What is damaged in the ledger.
    pub damage: Vec<Damage>,
}

/// What an LV is to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A volume that a controller made.
    Volume,
    /// An inline volume of one pod.
    Inline,
    /// A snapshot.
    Snapshot,
}

impl Kind {
    /// The kind in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Inline => "inline",
            Self::Snapshot => "snapshot",
        }
    }
}

/// A volume or snapshot, and who has it.
#[derive(Clone, Debug)]
pub struct VolumeReport {
    /// What it is.
    pub kind: Kind,
    /// The name of its group.
    pub vg: VgName,
    pub lv: String,
    pub handle: String,
    /// The pool of the configuration that it lies in, if any.
    pub pool: Option<String>,
    pub size: Bytes,
    /// What it holds: a filesystem, raw data, nothing yet.
    pub holds: String,
    /// The grant in force.
    pub grant: Option<Grant>,
    /// Where it is in the life of a grant.
    pub phase: Phase,
    /// Its device, while it is active.
    pub device: Option<DmDevice>,
    /// Where it is mounted or shown as a block device.
    pub places: Vec<PathBuf>,
}
