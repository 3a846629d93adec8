//! Answers questions about the kernel's mount table.

use std::fmt;
use std::path::{Path, PathBuf};

use super::MountError;
use crate::host::{Kernel, MountEntry};

/// A snapshot of the mount table. Paths must be free of symlinks, as [`super::Target::real`] is.
#[derive(Clone, Debug, Default)]
pub struct Table(Vec<MountEntry>);

/// What a path shows: a part of a filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The filesystem's device number.
    pub major: u32,
    /// The filesystem's device number.
    pub minor: u32,
    /// The part of the filesystem; `/dm-3` for a device node of devtmpfs.
    pub root: PathBuf,
}

impl Identity {
    pub fn of(entry: &MountEntry) -> Self {
        Self { major: entry.major, minor: entry.minor, root: entry.root.clone() }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the filesystem on {}:{}", self.root.display(), self.major, self.minor)
    }
}

/// Describes an entry for an error text.
pub(super) fn describe(entry: &MountEntry) -> String {
    format!("{} ({}, {}:{}, {})", entry.source, entry.fstype, entry.major, entry.minor, entry.root.display())
}

impl Table {
    /// # Errors
    /// The kernel's error.
    pub fn read(kernel: &dyn Kernel) -> Result<Self, MountError> {
        kernel.mounts().map(Self).map_err(|source| MountError::Table { source })
    }

    /// The mount that is visible at exactly this path; the topmost of several stacked there.
    pub fn at(&self, path: &Path) -> Option<&MountEntry> {
        self.holder(path).filter(|entry| entry.target == path)
    }

    /// Every mount at exactly this path, including stacked ones and those that a mount on a directory above covers.
    pub fn all_at(&self, path: &Path) -> impl Iterator<Item = &MountEntry> {
        self.0.iter().filter(move |entry| entry.target == path)
    }

    /// The mounts of this filesystem anywhere, whatever part of it they show.
    pub fn of_device(&self, major: u32, minor: u32) -> impl Iterator<Item = &MountEntry> {
        self.0.iter().filter(move |entry| (entry.major, entry.minor) == (major, minor))
    }

    /// The bind mounts of the node `/dev/dm-<minor>`, even if the node was removed. The device may be gone, and its number
    /// reused: whoever opens the node there gets the device that has the number now.
    pub fn of_block_node(&self, minor: u32) -> impl Iterator<Item = &MountEntry> {
        let root = format!("/dm-{minor}");
        self.0.iter().filter(move |entry| {
            entry.fstype == "devtmpfs" && entry.root.to_str().map(|r| r.strip_suffix(DELETED).unwrap_or(r)) == Some(&root)
        })
    }

    pub fn under(&self, path: &Path) -> impl Iterator<Item = &MountEntry> {
        self.0.iter().filter(move |entry| entry.target.starts_with(path))
    }

    /// The mount that contains the path. Walks from the root as the kernel does, following the mounts on each directory.
    pub(super) fn holder(&self, path: &Path) -> Option<&MountEntry> {
        let mut steps: Vec<&Path> = path.ancestors().collect();
        steps.reverse();
        let mut now: Option<&MountEntry> = None;
        for step in steps {
            // Each round moves to a mount on top of the last one, so a valid table ends the loop; the bound ends it for any
            // other.
            for _ in 0..=self.0.len() {
                let next = self.0.iter().find(|entry| entry.target == step && self.sits_on(entry, now));
                let Some(next) = next else { break };
                now = Some(next);
            }
        }
        now
    }

    /// Whether a mount is on top of another; with `None`, whether it is the first that this process can see.
    fn sits_on(&self, entry: &MountEntry, on: Option<&MountEntry>) -> bool {
        match on {
            Some(on) => entry.parent == on.id && entry.id != on.id,
            None => entry.parent == entry.id || !self.0.iter().any(|other| other.id == entry.parent),
        }
    }

    /// Whether two paths are one place, ignoring mounts there: the same entry of the same directory. A mount on a directory that
    /// is bind-mounted with shared propagation, as kubelet's may be, is visible at two paths.
    pub fn is_same_place(&self, one: &Path, other: &Path) -> bool {
        let place = |path: &Path| Some((self.identity_of(path.parent()?)?, path.file_name()?.to_owned()));
        one == other || place(one).is_some_and(|one| place(other) == Some(one))
    }

    pub fn identity_of(&self, path: &Path) -> Option<Identity> {
        let holder = self.holder(path)?;
        let within = path.strip_prefix(&holder.target).ok()?;
        let root = if within.as_os_str().is_empty() { holder.root.clone() } else { holder.root.join(within) };
        Some(Identity { major: holder.major, minor: holder.minor, root })
    }
}

/// The suffix that the kernel adds to the root of a bind mount whose file was removed.
const DELETED: &str = "//deleted";

#[cfg(test)]
mod tests {
    use super::super::fake::{Mounts, entry};
    use super::*;

    fn table(mounts: &Mounts) -> Table {
        Table::read(mounts).unwrap()
    }

    #[test]
    fn the_topmost_of_stacked_mounts_is_visible() {
        let mounts = Mounts::new();
        let path = Path::new("/s");
        assert!(table(&mounts).at(path).is_none());
        mounts.push((253, 3), "/", path, "rw", "ext4");
        mounts.push((253, 4), "/", path, "rw", "xfs");
        assert_eq!(table(&mounts).at(path).unwrap().minor, 4);
        assert_eq!(table(&mounts).all_at(path).count(), 2);
        assert!(table(&mounts).at(Path::new("/s/below")).is_none());
        assert_eq!(table(&mounts).under(Path::new("/s")).count(), 2);
        assert_eq!(table(&mounts).under(Path::new("/")).count(), 4);
    }

    #[test]
    fn a_mount_above_covers_those_beneath() {
        let mounts = Mounts::new();
        mounts.push((253, 3), "/", Path::new("/a/b"), "rw", "ext4");
        mounts.push((0, 30), "/", Path::new("/a"), "rw", "tmpfs");
        assert!(table(&mounts).at(Path::new("/a/b")).is_none());
        assert_eq!(table(&mounts).all_at(Path::new("/a/b")).count(), 1);
        mounts.push((253, 4), "/", Path::new("/a/b"), "rw", "xfs");
        assert_eq!(table(&mounts).at(Path::new("/a/b")).unwrap().minor, 4);
        assert_eq!(table(&mounts).of_device(253, 3).count(), 1);
    }

    #[test]
    fn what_a_bind_would_show_is_the_part_of_the_filesystem() {
        let mounts = Mounts::new();
        mounts.push((253, 3), "/part", Path::new("/s"), "rw", "ext4");
        let shown = |path: &str| table(&mounts).identity_of(Path::new(path)).unwrap().to_string();
        assert_eq!(shown("/s"), "/part of the filesystem on 253:3");
        assert_eq!(shown("/s/x"), "/part/x of the filesystem on 253:3");
        assert_eq!(shown("/dev/dm-3"), "/dm-3 of the filesystem on 0:6");
    }

    #[test]
    fn a_directory_that_is_mounted_twice_is_one_place() {
        let mounts = Mounts::new();
        mounts.push((8, 1), "/var/lib/kubelet", Path::new("/data"), "rw", "ext4");
        mounts.push((8, 1), "/var/lib/kubelet", Path::new("/kubelet"), "rw", "ext4");
        mounts.push((253, 3), "/", Path::new("/kubelet/pods/a"), "rw", "ext4");
        mounts.push((253, 3), "/", Path::new("/data/pods/a"), "rw", "ext4");
        let same = |one: &str, other: &str| table(&mounts).is_same_place(Path::new(one), Path::new(other));
        assert!(same("/kubelet/pods/a", "/data/pods/a") && same("/nowhere/x", "/nowhere/x"));
        assert!(!same("/kubelet/pods/a", "/data/pods/b") && !same("/kubelet/pods/a", "/pods/a"));
    }

    #[test]
    fn bound_nodes_are_found_even_after_the_node_is_gone() {
        let mounts = Mounts::new();
        mounts.push((0, 6), "/dm-3", Path::new("/p1"), "rw", "devtmpfs");
        mounts.push((0, 6), "/dm-3//deleted", Path::new("/p2"), "rw", "devtmpfs");
        mounts.push((0, 6), "/dm-31", Path::new("/p3"), "rw", "devtmpfs");
        mounts.push((1, 1), "/dm-3", Path::new("/p4"), "rw", "ext4");
        let targets: Vec<_> = table(&mounts).of_block_node(3).map(|entry| entry.target.clone()).collect();
        assert_eq!(targets, [Path::new("/p1"), Path::new("/p2")]);
    }

    #[test]
    fn the_walk_of_a_circular_table_ends() {
        let at = Path::new("/");
        let circle = Table(vec![
            entry(1, 1, (1, 1), "/", at, "rw", "rootfs"),
            entry(2, 1, (1, 2), "/", at, "rw", "ext4"),
            entry(3, 4, (1, 3), "/", Path::new("/x"), "rw", "ext4"),
            entry(4, 3, (1, 4), "/", Path::new("/x"), "rw", "ext4"),
        ]);
        assert_eq!(circle.at(at).unwrap().id, 2);
        assert!(circle.at(Path::new("/x")).is_none());
        assert!(Table::default().at(at).is_none());
    }
}
