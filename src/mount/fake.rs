//! For tests: a kernel with a working mount table, over real files in a scratch directory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::host::fake::Part;
use crate::host::{MountEntry, MountFlag, NewMount};

use super::table::Table;

/// A mount table that begins with a root filesystem (1:1) and devtmpfs (0:6) at `/dev`.
pub(crate) struct Mounts {
    entries: Mutex<Vec<MountEntry>>,
    /// Block device nodes.
    pub(super) nodes: BTreeMap<PathBuf, (u32, u32)>,
    /// Read-only remounts fail.
    pub(super) writable: bool,
    /// Unmounting reports success and leaves the mount.
    pub(super) sticky: bool,
}

pub(super) fn entry(
    id: u64,
    parent: u64,
    device: (u32, u32),
    root: &str,
    target: &Path,
    options: &str,
    fstype: &str,
) -> MountEntry {
    MountEntry {
        id,
        parent,
        major: device.0,
        minor: device.1,
        root: root.into(),
        target: target.into(),
        options: options.split(',').map(str::to_owned).collect(),
        fstype: fstype.to_owned(),
        source: "source".to_owned(),
        super_options: vec!["rw".to_owned()],
    }
}

impl Mounts {
    pub(crate) fn new() -> Self {
        let root = entry(20, 1, (1, 1), "/", Path::new("/"), "rw", "ext4");
        let dev = entry(21, 20, (0, 6), "/", Path::new("/dev"), "rw", "devtmpfs");
        let nodes = [("/dev/dm-3".into(), (253, 3)), ("/dev/dm-4".into(), (253, 4))].into();
        Self { entries: Mutex::new(vec![root, dev]), nodes, writable: false, sticky: false }
    }

    /// Adds a mount on top of what its target shows.
    pub(crate) fn push(&self, device: (u32, u32), root: &str, target: &Path, options: &str, fstype: &str) {
        let table = Table::read(self).unwrap();
        let parent = table.holder(target).unwrap().id;
        let mut entries = self.entries.lock().unwrap();
        let id = entries.iter().map(|entry| entry.id).max().unwrap() + 1;
        entries.push(entry(id, parent, device, root, target, options, fstype));
    }

    /// Edits the table directly.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Vec<MountEntry>) -> T) -> T {
        change(&mut self.entries.lock().unwrap())
    }

    /// The mounts at a path, as (device, root, options).
    pub(super) fn at(&self, target: &Path) -> Vec<((u32, u32), PathBuf, String)> {
        let entries = self.entries.lock().unwrap();
        let here = entries.iter().filter(|entry| entry.target == target);
        here.map(|entry| ((entry.major, entry.minor), entry.root.clone(), entry.options.join(","))).collect()
    }
}

impl Part for Mounts {
    fn mounts(&self) -> io::Result<Vec<MountEntry>> {
        Ok(self.entries.lock().unwrap().clone())
    }
    fn mount(&self, mount: &NewMount) -> io::Result<()> {
        match mount {
            NewMount::Filesystem { device, target, fstype, flags, .. } => {
                let numbers = *self.nodes.get(device).ok_or(io::ErrorKind::NotFound)?;
                let options = if flags.contains(&MountFlag::ReadOnly) { "ro" } else { "rw" };
                self.push(numbers, "/", target, options, fstype);
            }
            NewMount::Bind { source, target } => {
                let table = Table::read(self).unwrap();
                let identity = table.identity_of(source).ok_or(io::ErrorKind::NotFound)?;
                let shown = table.holder(source).unwrap();
                let options = shown.options.join(",");
                self.push((identity.major, identity.minor), identity.root.to_str().unwrap(), target, &options, &shown.fstype);
            }
        }
        Ok(())
    }
    fn remount_read_only(&self, target: &Path) -> io::Result<()> {
        if self.writable {
            return Err(io::ErrorKind::Other.into());
        }
        let id = Table::read(self).unwrap().at(target).map(|entry| entry.id).ok_or(io::ErrorKind::InvalidInput)?;
        let mut entries = self.entries.lock().unwrap();
        entries.iter_mut().find(|entry| entry.id == id).unwrap().options = vec!["ro".to_owned()];
        Ok(())
    }
    fn unmount(&self, target: &Path) -> io::Result<()> {
        let id = Table::read(self).unwrap().at(target).map(|entry| entry.id).ok_or(io::ErrorKind::InvalidInput)?;
        let mut entries = self.entries.lock().unwrap();
        if entries.iter().any(|entry| entry.parent == id) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        if !self.sticky {
            entries.retain(|entry| entry.id != id);
        }
        Ok(())
    }
    fn device_number(&self, path: &Path) -> io::Result<Option<(u32, u32)>> {
        Ok(self.nodes.get(path).copied())
    }
}
