//! What an operation changed to reach its answer, for logs and metrics: the answer itself is the same whether it was repeated or not.

/// What an operation changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: the object was there as requested.
    Found,
    Made,
    Extended,
    Removed,
    /// Nothing: the object to remove was not there.
    Absent,
    /// An agent of an earlier version does not say.
    Unknown,
}

impl Change {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Made => "made",
            Self::Extended => "extended",
            Self::Removed => "removed",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        }
    }
}

/// The object that an operation ends with, and what it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<T> {
    pub object: T,
    pub change: Change,
}
