//! Target paths from the orchestrator: checks them, and creates and removes mount points.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use super::MountError;
use super::table::{Table, describe};
use crate::host::{Kernel, files};

/// The longest path that the kernel accepts, in bytes: PATH_MAX less the closing NUL.
const LONGEST: usize = 4095;

/// A path that may be, or become, a mount point: absolute, without `..`, not a symlink at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    given: PathBuf,
    real: PathBuf,
}

impl Target {
    /// Checks a path. Symlinks above its last component are followed, since the orchestrator's directory may be one. The last
    /// component must not be one: the orchestrator did not name what it points to.
    ///
    /// # Errors
    /// [`MountError::BadPath`] for a path that is never accepted; the kernel's error if the parent directory cannot be read.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, MountError> {
        let given = path.into();
        let bad = |reason| Err(MountError::BadPath { path: given.clone(), reason });
        let bytes = given.as_os_str().as_bytes();
        if bytes.is_empty() {
            return bad("is empty");
        }
        if bytes.len() > LONGEST {
            return bad("is longer than 4095 bytes");
        }
        if bytes.contains(&0) {
            return bad("contains a NUL");
        }
        if !given.is_absolute() {
            return bad("is not absolute");
        }
        if given.components().any(|part| part == Component::ParentDir) {
            return bad("contains \"..\"");
        }
        let (Some(parent), Some(name)) = (given.parent(), given.file_name()) else { return bad("is the root") };
        let real = match fs::canonicalize(parent) {
            Ok(parent) => parent.join(name),
            // Nothing can be mounted there.
            Err(error) if is_absence(&error) => given.clone(),
            Err(source) => return Err(MountError::Call { path: given, what: "looking at the parent of", source }),
        };
        let target = Self { given, real };
        match target.kind() {
            Ok(Some(kind)) if kind.is_symlink() => Err(MountError::BadPath { path: target.given, reason: "is a symlink" }),
            // A broken filesystem mounted there gives an error, and must stay unmountable.
            _ => Ok(target),
        }
    }

    /// The path as the orchestrator gave it, for messages.
    pub fn given(&self) -> &Path {
        &self.given
    }

    /// The path without symlinks, as the mount table has it.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// Whether anything is there.
    ///
    /// # Errors
    /// The kernel's error, such as `EIO` from a mount with a broken filesystem.
    pub fn exists(&self) -> Result<bool, MountError> {
        self.kind().map(|kind| kind.is_some())
    }

    /// Creates this directory if it is missing, but none above it. Returns whether it was created.
    ///
    /// # Errors
    /// Something else is there, or the parent directory is missing.
    pub fn prepare_directory(&self) -> Result<bool, MountError> {
        match self.kind()? {
            Some(kind) if kind.is_dir() => Ok(false),
            Some(kind) => Err(self.wrong(kind, "a directory")),
            None => self.made(files::make_directory(&self.real, 0o750)),
        }
    }

    /// Creates this file if it is missing, to bind a device node onto it. A device node mounted there counts as the file. Returns
    /// whether it was created.
    ///
    /// # Errors
    /// Something else is there, or the parent directory is missing.
    pub fn prepare_file(&self) -> Result<bool, MountError> {
        match self.kind()? {
            Some(kind) if kind.is_file() || kind.is_block_device() => Ok(false),
            Some(kind) => Err(self.wrong(kind, "a file")),
            None => self.made(files::make_file(&self.real, 0o600)),
        }
    }

    /// Removes the mount point, an empty directory or an empty file. Returns whether something was removed; a missing one is no
    /// error.
    ///
    /// # Errors
    /// A mount or data are still there: nothing is ever removed through a mount, nor recursively.
    pub fn remove(&self, kernel: &dyn Kernel) -> Result<bool, MountError> {
        let table = Table::read(kernel)?;
        if let Some(mounted) = table.all_at(&self.real).next() {
            return Err(MountError::Occupied {
                path: self.given.clone(),
                found: describe(mounted),
                wanted: "nothing".to_owned(),
            });
        }
        let Some(kind) = self.kind()? else { return Ok(false) };
        let removed = if kind.is_dir() {
            files::remove_directory(&self.real)
        } else if kind.is_file() {
            match fs::symlink_metadata(&self.real) {
                Ok(file) if file.len() > 0 => return Err(self.not_empty("a file with contents")),
                _ => files::remove_file(&self.real),
            }
        } else {
            return Err(self.wrong(kind, "an empty directory or file"));
        };
        match removed {
            Ok(()) => Ok(true),
            Err(error) if is_absence(&error) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(self.not_empty("a directory with contents")),
            Err(source) => Err(self.failed("removing", source)),
        }
    }

    /// The type of what is there, without following a symlink.
    fn kind(&self) -> Result<Option<FileType>, MountError> {
        match fs::symlink_metadata(&self.real) {
            Ok(found) => Ok(Some(found.file_type())),
            Err(error) if is_absence(&error) => Ok(None),
            Err(source) => Err(self.failed("looking at", source)),
        }
    }

    fn made(&self, outcome: io::Result<()>) -> Result<bool, MountError> {
        match outcome {
            Ok(()) => Ok(true),
            Err(error) if is_absence(&error) => Err(MountError::NoParent { path: self.given.clone() }),
            Err(source) => Err(self.failed("making", source)),
        }
    }

    fn wrong(&self, kind: FileType, wanted: &'static str) -> MountError {
        let found = match kind {
            kind if kind.is_dir() => "a directory",
            kind if kind.is_file() => "a file",
            kind if kind.is_symlink() => "a symlink",
            kind if kind.is_block_device() => "a block device",
            _ => "neither a directory nor a file",
        };
        MountError::WrongKind { path: self.given.clone(), found, wanted }
    }

    fn not_empty(&self, found: &'static str) -> MountError {
        MountError::NotEmpty { path: self.given.clone(), found }
    }

    pub(super) fn failed(&self, what: &'static str, source: io::Error) -> MountError {
        MountError::Call { path: self.given.clone(), what, source }
    }
}

/// Whether an error means that nothing is at the path: it or a directory above is missing, or a parent is a file.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::fake::Mounts;
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(directory.path()).unwrap();
        (directory, path)
    }

    fn target(path: &Path) -> Target {
        Target::new(path).unwrap()
    }

    #[test]
    fn bad_paths_are_refused() {
        let (_kept, dir) = scratch();
        symlink("/etc", dir.join("link")).unwrap();
        symlink("/nowhere", dir.join("dangling")).unwrap();
        let long = format!("/{}", "a/".repeat(2048));
        let through_parent = format!("{}/a/../b", dir.display());
        for path in ["", "relative", "./x", "/", "/.", "/a\0b", &long, &through_parent] {
            let error = Target::new(path).unwrap_err();
            assert!(error.is_bad_path(), "{path:?}: {error}");
        }
        for name in ["link", "dangling", "link/", "link/."] {
            let error = Target::new(dir.join(name)).unwrap_err();
            assert!(matches!(error, MountError::BadPath { reason: "is a symlink", .. }), "{name}: {error}");
        }
    }

    #[test]
    fn a_symlink_above_the_target_is_followed() {
        let (_kept, dir) = scratch();
        fs::create_dir(dir.join("real")).unwrap();
        symlink("real", dir.join("link")).unwrap();
        let target = target(&dir.join("link/./volume"));
        assert_eq!(target.real(), dir.join("real/volume"));
        assert_eq!(target.given(), dir.join("link/./volume"));
    }

    #[test]
    fn only_the_target_itself_is_created_and_an_existing_one_is_kept() {
        let (_kept, dir) = scratch();
        let (directory, file) = (target(&dir.join("d")), target(&dir.join("f")));
        assert!(directory.prepare_directory().unwrap());
        assert!(!directory.prepare_directory().unwrap());
        assert!(file.prepare_file().unwrap());
        assert!(!file.prepare_file().unwrap());
        assert!(matches!(directory.prepare_file(), Err(MountError::WrongKind { found: "a directory", .. })));
        assert!(matches!(file.prepare_directory(), Err(MountError::WrongKind { found: "a file", .. })));
        let orphan = target(&dir.join("none/x"));
        assert!(!orphan.exists().unwrap());
        assert!(matches!(orphan.prepare_directory(), Err(MountError::NoParent { .. })));
        assert!(matches!(orphan.prepare_file(), Err(MountError::NoParent { .. })));
        assert!(!dir.join("none").exists());
        assert!(matches!(target(&dir.join("f/x")).prepare_file(), Err(MountError::NoParent { .. })));
    }

    #[test]
    fn a_long_path_is_accepted() {
        let (_kept, dir) = scratch();
        let deep = dir.join("p".repeat(200)).join("q".repeat(200));
        fs::create_dir_all(&deep).unwrap();
        assert!(target(&deep.join("r".repeat(200))).prepare_directory().unwrap());
    }

    #[test]
    fn only_what_is_empty_is_removed() {
        let (_kept, dir) = scratch();
        let kernel = Mounts::new();
        for name in ["d", "f"] {
            let target = target(&dir.join(name));
            assert!(!target.remove(&kernel).unwrap());
            if name == "d" { target.prepare_directory() } else { target.prepare_file() }.unwrap();
            assert!(target.remove(&kernel).unwrap());
            assert!(!target.exists().unwrap());
        }
        assert!(!target(&dir.join("none/x")).remove(&kernel).unwrap());
        fs::create_dir_all(dir.join("full/of")).unwrap();
        fs::write(dir.join("data"), "x").unwrap();
        for name in ["full", "data"] {
            assert!(matches!(target(&dir.join(name)).remove(&kernel), Err(MountError::NotEmpty { .. })));
            assert!(dir.join(name).exists());
        }
    }

    #[test]
    fn nothing_is_removed_under_a_mount() {
        let (_kept, dir) = scratch();
        let kernel = Mounts::new();
        let target = target(&dir.join("d"));
        target.prepare_directory().unwrap();
        kernel.push((253, 3), "/", target.real(), "rw", "ext4");
        assert!(matches!(target.remove(&kernel), Err(MountError::Occupied { .. })));
        assert!(target.exists().unwrap());
    }
}
