//! Changes of files and directories; each is an effect. Reads need no effect.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::effect;

/// The largest memory alignment that `O_DIRECT` requires.
const ALIGN: usize = 4096;

/// Makes a directory for root only, and its missing parents, and syncs their names to disk: a lost name would lose the files
/// beneath it.
///
/// # Errors
/// The kernel's error. The directory may exist, but not yet on disk.
pub fn make_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    effect("mkdir", &path.display(), || {
        let missing = path.ancestors().take_while(|above| !above.is_dir()).count();
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        path.ancestors().skip(1).take(missing).try_for_each(sync_directory)
    })
}

/// Makes one directory with this mode, less the umask.
///
/// # Errors
/// The kernel's error. For example, it exists already or its parent is missing.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    effect("mkdir", &path.display(), || DirBuilder::new().mode(mode).create(path))
}

/// Makes an empty file with this mode, less the umask.
///
/// # Errors
/// The kernel's error. For example, it exists already or its directory is missing.
pub fn make_file(path: &Path, mode: u32) -> io::Result<()> {
    effect("create", &path.display(), || OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map(drop))
}

/// Makes an empty file, of which only the name matters, and syncs the name to disk.
///
/// # Errors
/// The kernel's error. The name may exist, but not yet on disk.
pub fn make_name(path: &Path) -> io::Result<()> {
    effect("create", &path.display(), || {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        sync_directory(above(path))
    })
}

fn above(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Syncs the names in a directory to disk.
fn sync_directory(path: &Path) -> io::Result<()> {
    // A relative path of one part has an empty parent.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    sync(&File::open(path)?, path)
}

fn sync(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    tests::note("sync", path);
    #[cfg(not(test))]
    let _ = path;
    file.sync_all()
}

/// # Errors
/// The kernel's error.
pub fn set_permissions(path: &Path, mode: u32) -> io::Result<()> {
    effect("chmod", &path.display(), || fs::set_permissions(path, fs::Permissions::from_mode(mode)))
}

/// Removes an empty directory.
///
/// # Errors
/// The kernel's error.
pub fn remove_directory(path: &Path) -> io::Result<()> {
    effect("rmdir", &path.display(), || fs::remove_dir(path))
}

/// # Errors
/// The kernel's error.
pub fn remove_file(path: &Path) -> io::Result<()> {
    effect("unlink", &path.display(), || fs::remove_file(path))
}

/// Replaces the contents of a file for root only, and syncs it to disk.
///
/// # Errors
/// The kernel's error. A part may be written.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    effect("write", &path.display(), || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        sync(&file, path)
    })
}

/// Renames a file within its directory, replacing what has the new name, and syncs the directory.
///
/// # Errors
/// The kernel's error. The file may have the new name, but not yet on disk.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    effect("rename", &to.display(), || {
        #[cfg(test)]
        tests::note("rename", to);
        fs::rename(from, to)?;
        sync_directory(above(to))
    })
}

/// Opens a file for locking, and creates it if missing. Not an effect: an empty file means nothing by itself.
///
/// # Errors
/// The kernel's error.
pub fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Removes a file that served only as a lock. Not an effect, as above; a file that stays is used again.
pub(super) fn remove_lock(path: &Path) {
    let _ = fs::remove_file(path);
}

/// A file whose writes are on disk when they return. After a power cut each block is either old or new as a whole, as far as the
/// disk guarantees that.
#[derive(Debug)]
pub struct DurableFile(File);

impl DurableFile {
    /// Opens a file for root only. A new file is synced to disk, with the name of its directory, which may be new too.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = |flags: i32| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
        };
        let durable = nix::libc::O_DSYNC;
        effect("open", &path.display(), || {
            let is_new = !path.exists();
            let file = match open(durable | nix::libc::O_DIRECT) {
                // tmpfs and a few others refuse O_DIRECT; O_DSYNC alone is then as durable as they get.
                Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => open(durable),
                other => other,
            }?;
            for directory in path.ancestors().skip(1).take(2).filter(|_| is_new) {
                sync_directory(directory)?;
            }
            Ok(Self(file))
        })
    }

    /// Writes bytes in one call and as one effect. Offset and length are multiples of 4 KiB.
    ///
    /// # Errors
    /// The kernel's error. Some of the bytes may be written.
    pub fn write(&self, name: &'static str, subject: &dyn Display, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut memory = vec![0u8; bytes.len() + ALIGN];
        let shift = memory.as_ptr().align_offset(ALIGN);
        let aligned = memory.get_mut(shift..shift + bytes.len()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        aligned.copy_from_slice(bytes);
        effect(name, subject, || self.0.write_all_at(aligned, offset))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static ORDER: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    /// Notes the calls of this thread, with the file name.
    pub(super) fn note(what: &str, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ORDER.with_borrow_mut(|order| order.push(format!("{what} {name}")));
    }

    fn order(work: impl FnOnce() -> io::Result<()>) -> Vec<String> {
        ORDER.take();
        work().unwrap();
        ORDER.take()
    }

    #[test]
    fn a_file_is_on_the_disk_before_it_is_put_in_place_and_its_name_after() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("state");
        let above = home.path().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(order(|| make_directories(&dir.join("groups"))), ["sync state".to_owned(), format!("sync {above}")]);
        assert_eq!(order(|| make_directories(&dir.join("groups"))), [""; 0]);
        assert_eq!(order(|| make_directories(&dir.join("exposed"))), ["sync state"]);
        let (new, path) = (dir.join("pin.new"), dir.join("pin"));
        let put = || write(&new, b"text").and_then(|()| rename(&new, &path));
        assert_eq!(order(put), ["sync pin.new", "rename pin", "sync state"]);
        assert_eq!(order(|| make_name(&dir.join("exposed/volume"))), ["sync exposed"]);
        assert_eq!(order(|| DurableFile::open(&dir.join("ledger")).map(drop))[0], "sync state");
    }
}
