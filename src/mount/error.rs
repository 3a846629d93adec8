//! Errors of mounting and unmounting.

use std::io;
use std::path::PathBuf;

/// Why a path cannot be mounted on or unmounted. Paths are as the caller gave them.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The driver never accepts this path, whatever is there.
    #[error("path {} {reason}", path.display())]
    BadPath { path: PathBuf, reason: &'static str },
    /// The parent directory is missing.
    #[error("path {}: its parent directory does not exist", path.display())]
    NoParent { path: PathBuf },
    /// Something of another kind is at the path.
    #[error("path {} is {found}, but must be {wanted}", path.display())]
    WrongKind { path: PathBuf, found: &'static str, wanted: &'static str },
    /// The path has data of its own, so it is not removed.
    #[error("path {} is {found}, not an empty mount point; it is not removed", path.display())]
    NotEmpty { path: PathBuf, found: &'static str },
    #[error("path {} is a live mount of {found}, not of {wanted}", path.display())]
    Occupied { path: PathBuf, found: String, wanted: String },
    /// The right source is mounted, but writable instead of read-only, or the other way round.
    #[error("path {} is already mounted {}", path.display(), if *read_only { "read-only" } else { "writable" })]
    ReadOnlyDiffers {
        path: PathBuf,
        /// Whether the live mount is read-only.
        read_only: bool,
    },
    /// A mount on a directory above covers the mount at this path, so it cannot be reached.
    #[error("path {}: a mount of {found} there is covered by a later mount on a directory above it", path.display())]
    Covered { path: PathBuf, found: String },
    /// The source is not what was expected.
    #[error("{} is {found}, not {wanted}; it is not mounted", path.display())]
    SourceDiffers { path: PathBuf, found: String, wanted: String },
    /// Unmounting succeeds but leaves as many mounts as before.
    #[error("path {}: unmounting succeeds, but as many mounts remain", path.display())]
    ComesBack { path: PathBuf },
    #[error("cannot read the mount table")]
    Table { source: io::Error },
    /// A call of the kernel failed.
    #[error("{what} {} failed", path.display())]
    Call {
        path: PathBuf,
        /// The failed operation, as a participle: `unmounting`.
        what: &'static str,
        source: io::Error,
    },
}

impl MountError {
    /// Whether the path can never be valid, so that no state of the machine would change the answer.
    pub fn is_bad_path(&self) -> bool {
        matches!(self, MountError::BadPath { .. })
    }

    /// Whether a live mount at the path contradicts the request.
    pub fn is_conflict(&self) -> bool {
        matches!(self, MountError::Occupied { .. } | MountError::ReadOnlyDiffers { .. })
    }
}
