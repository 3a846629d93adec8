//! How a volume group is, as the health service, the metrics and the log tell it.

use std::time::{Duration, SystemTime};

/// What a look at the disks of a group found. The texts say which disk and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// All of it is there.
    Complete,
    /// It is read, and not changed while a PV is away or cannot be read.
    Incomplete(String),
    /// All of it is there, and it is another machine's: it is read and not changed.
    Foreign(String),
    /// Its disks cannot be read, so nothing is known of it now.
    Unreadable(String),
    /// No disk of it is there, as ever since the driver knows of it.
    Absent(String),
    /// It was there once, and no disk of it is there now.
    Away(String),
}

impl GroupState {
    /// The state in one word, and why where it is not the good one.
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

/// Those who wait to change a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupQueue {
    /// How many there are, with the one that works.
    pub length: usize,
    /// What has been running for too long.
    pub wedge: Option<Wedge>,
}

/// A command of a group that has been running for too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wedge {
    /// When it began.
    pub since: SystemTime,
    /// The command, its process, and for how long.
    pub text: String,
    /// Its process, where it is one.
    pub pid: Option<u32>,
}

impl Wedge {
    /// What has been running for so many seconds.
    pub fn running_for(seconds: u64, pid: Option<u32>, text: String) -> Self {
        Self { since: SystemTime::now() - Duration::from_secs(seconds), text, pid }
    }
}
