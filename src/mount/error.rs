//! Why a path cannot be mounted on, or unmounted.

use std::io;
use std::path::PathBuf;

/// Why a path cannot be mounted on, or unmounted. Paths are given as the caller named them.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The text is no path that this driver takes, whatever is there.
    #[error("path {} {reason}", path.display())]
    BadPath {
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The directory above it is missing.
    #[error("path {}: the directory it is to lie in does not exist", path.display())]
    NoParent { path: PathBuf },
    /// Something of another kind is at the path.
    #[error("path {} is {found}, where {wanted} is needed", path.display())]
    WrongKind {
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What should be there.
        wanted: &'static str,
    },
    /// The path holds data of its own, so it is not removed.
    #[error("path {} is {found}; it is not mounted on, and is left as it is", path.display())]
    NotEmpty {
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// Another mount is there.
    #[error("path {} is a live mount of {found}, not of {wanted}", path.display())]
    Occupied {
        path: PathBuf,
        /// What is mounted there.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// The right thing is mounted, but writable where it should be read-only, or the other way round.
    #[error("path {} is mounted {} already", path.display(), if *read_only { "read-only" } else { "writable" })]
    ReadOnlyDiffers {
        path: PathBuf,
        /// Whether the live mount is read-only.
        read_only: bool,
    },
    /// Another mount, on a directory above, covers a mount at this path, so that it cannot be reached.
    #[error("path {}: a mount of {found} there is covered by a later mount on a directory above it", path.display())]
    Covered {
        path: PathBuf,
        /// What is mounted there.
        found: String,
    },
    /// The thing to mount is not what it was taken for.
    #[error("{} is {found}, not {wanted}; it is not mounted", path.display())]
    SourceDiffers {
        /// The source.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// Unmounting succeeds and yet leaves as many mounts as before.
    #[error("path {}: mounts come back as they are unmounted", path.display())]
    ComesBack { path: PathBuf },
    /// The mount table cannot be read.
    #[error("reading the mount table failed")]
    Table { source: io::Error },
    /// A call failed.
    #[error("{what} {} failed", path.display())]
    Call {
        path: PathBuf,
        /// What was done to it.
        what: &'static str,
        source: io::Error,
    },
}

impl MountError {
    /// Whether the request names a path that can never be right, so that no state of the machine would change the answer.
    pub fn is_bad_path(&self) -> bool {
        matches!(self, MountError::BadPath { .. })
    }

    /// Whether a live mount at the path contradicts the request.
    pub fn is_conflict(&self) -> bool {
        matches!(self, MountError::Occupied { .. } | MountError::ReadOnlyDiffers { .. })
    }
}
