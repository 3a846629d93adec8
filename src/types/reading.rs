//! Whether the owner of a bearer token may read texts that name others' volumes.

/// The decision on a bearer token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Allowed,
    /// The token is valid, and its owner has no right to read.
    Forbidden,
    /// The token belongs to nobody.
    Unknown,
    /// The authority that decides cannot be reached now.
    Undecided,
}
