//! Health of a volume group, for the health service, the metrics and the log.

use std::time::{Duration, SystemTime};

/// State of a group's disks. The texts say which disk and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// All PVs are present.
    Complete,
    /// A PV is away or unreadable: the driver reads the group and does not change it.
    Incomplete(String),
    /// All PVs are present, and the group belongs to another machine: the driver reads it and does not change it.
    Foreign(String),
    /// Its disks cannot be read, so its present content is unknown.
    Unreadable(String),
    /// None of its disks is present, and the driver never saw one.
    Absent(String),
    /// It was present once, and none of its disks is present now.
    Away(String),
}

impl GroupState {
    /// The state in one word, and the reason unless it is complete.
    pub fn told(&self) -> (&'static str, &str) {
        match self {
            GroupState::Complete => ("complete", ""),
            GroupState::Incomplete(why) => ("incomplete", why),
            GroupState::Foreign(why) => ("foreign", why),
            GroupState::Unreadable(why) => ("unreadable", why),
            GroupState::Absent(why) | GroupState::Away(why) => ("absent", why),
        }
    }
}

/// The queue of changes of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupQueue {
    /// Number of changes, with the running one.
    pub length: usize,
    pub wedge: Option<Wedge>,
}

/// A command of a group that has been running for too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wedge {
    /// Start of the command.
    pub since: SystemTime,
    /// The command, its process, and how long it has been running.
    pub text: String,
    /// Its process, if it is one.
    pub pid: Option<u32>,
}

impl Wedge {
    pub fn running_for(seconds: u64, pid: Option<u32>, text: String) -> Self {
        Self { since: SystemTime::now() - Duration::from_secs(seconds), text, pid }
    }
}
