//! Whether somebody may read what names volumes of others.

/// What becomes of a bearer token that somebody shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Its owner may.
    Allowed,
    /// It is known, and its owner may not.
    Forbidden,
    /// Nobody is known by it.
    Unknown,
    /// Who decides cannot be asked now.
    Undecided,
}
