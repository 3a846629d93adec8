//! Brings a path to show a filesystem, a directory or a device node, and to show nothing again.
//!
//! Each function looks first, acts only where something is missing, and so may be repeated after a crash between any two of
//! its steps.

use std::path::{Path, PathBuf};

use super::table::{Identity, Table, describe};
use super::{MountError, Target};
use crate::host::{Kernel, MountEntry, MountFlag, NewMount};

/// What was needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// It was mounted now.
    Mounted,
    /// It was there before.
    AlreadyThere,
}

/// A filesystem to be mounted.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The node of its block device.
    pub node: &'a Path,
    /// Device numbers that the node must have.
    pub major: u32,
    /// Device numbers that the node must have.
    pub minor: u32,
    /// Filesystem type.
    pub fstype: &'static str,
    /// Flags.
    pub flags: &'a [MountFlag],
    /// Options of the filesystem, comma-separated.
    pub data: &'a str,
}

/// What a bind mount is to show.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The filesystem with these device numbers, by way of a mount of all of it.
    Filesystem {
        /// Where it is mounted.
        mount_point: &'a Target,
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
    /// A block device node with these device numbers.
    Node {
        /// The kernel's own node, not a link to it.
        node: &'a Path,
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
}

/// What may be unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Whatever is there: the path itself is ours alone.
    Any,
    /// A filesystem with these device numbers.
    Filesystem {
        /// Device numbers.
        major: u32,
        /// Device numbers.
        minor: u32,
    },
    /// The node of the dm device with this minor, removed or not.
    BlockNode {
        /// Minor of the device.
        minor: u32,
    },
}

/// Makes sure that the filesystem on a block device is mounted at a directory, which is made where it is missing.
///
/// Of a live mount, device numbers, type and read-only are compared; finer options are for the caller to compare.
///
/// # Errors
/// Something else is mounted there, or the same otherwise; the device is not the one meant; the kernel's error.
pub fn ensure_mounted_filesystem(kernel: &dyn Kernel, wanted: &Wanted<'_>, target: &Target) -> Result<Did, MountError> {
    let identity = Identity { major: wanted.major, minor: wanted.minor, root: PathBuf::from("/") };
    let read_only = wanted.flags.contains(&MountFlag::ReadOnly);
    let table = Table::read(kernel)?;
    if let Some(there) = table.at(target.real()) {
        if there.fstype != wanted.fstype {
            return Err(occupied(target, there, &format!("{identity} ({})", wanted.fstype)));
        }
        return compare(target, there, &identity, read_only);
    }
    check_node(kernel, wanted.node, wanted.major, wanted.minor)?;
    target.prepare_directory()?;
    let mount = NewMount::Filesystem {
        device: wanted.node.to_owned(),
        target: target.real().to_owned(),
        fstype: wanted.fstype,
        flags: wanted.flags.to_vec(),
        data: wanted.data.to_owned(),
    };
    kernel.mount(&mount).map_err(|source| target.failed("mounting at", source))?;
    Ok(Did::Mounted)
}

/// Makes sure that a path shows the source, writable or, with a path of our own that nobody else looks at, read-only. The target
/// is made where it is missing, a directory for a filesystem and a file for a device node (CSI: the plugin makes the target, the
/// orchestrator what it lies in).
///
/// The kernel makes a bind mount as writable as its source is, and read-only in a second call. So that one is made at the path of
/// our own, and bound from there: the target never shows a writable mount, whenever the driver dies. What is left at that path then
/// is for [`clear`].
///
/// # Errors
/// Something else is mounted there, or the same with the other writability; the source is not what it should be; the
/// kernel's error.
pub fn ensure_bound(
    kernel: &dyn Kernel,
    source: &Source<'_>,
    target: &Target,
    read_only_by: Option<&Target>,
) -> Result<Did, MountError> {
    let table = Table::read(kernel)?;
    let (path, identity) = match *source {
        Source::Filesystem { mount_point, major, minor } => {
            let wanted = Identity { major, minor, root: PathBuf::from("/") };
            let found = table.at(mount_point.real());
            if found.is_none_or(|found| Identity::of(found) != wanted) {
                return Err(MountError::SourceDiffers {
                    path: mount_point.given().to_owned(),
                    found: found.map_or_else(|| "no mount".to_owned(), describe),
                    wanted: wanted.to_string(),
                });
            }
            (mount_point.real(), wanted)
        }
        Source::Node { node, major, minor } => {
            check_node(kernel, node, major, minor)?;
            let identity = table.identity_of(node).ok_or_else(|| MountError::SourceDiffers {
                path: node.to_owned(),
                found: "on no mount".to_owned(),
                wanted: "a device node".to_owned(),
            })?;
            (node, identity)
        }
    };
    if let Some(there) = table.at(target.real()) {
        return compare(target, there, &identity, read_only_by.is_some());
    }
    let bind = |from: &Path, to: &Target| {
        match source {
            Source::Filesystem { .. } => to.prepare_directory()?,
            Source::Node { .. } => to.prepare_file()?,
        };
        let mount = NewMount::Bind { source: from.to_owned(), target: to.real().to_owned() };
        kernel.mount(&mount).map_err(|source| to.failed("binding onto", source))
    };
    match read_only_by {
        None => bind(path, target)?,
        Some(own) => {
            clear(kernel, own)?;
            bind(path, own)?;
            kernel.remount_read_only(own.real()).map_err(|source| own.failed("making read-only", source))?;
            bind(own.real(), target)?;
            clear(kernel, own)?;
        }
    }
    Ok(Did::Mounted)
}

/// Takes away what is at a path of our own, mounts and mount point.
///
/// # Errors
/// The kernel's.
pub fn clear(kernel: &dyn Kernel, own: &Target) -> Result<(), MountError> {
    ensure_unmounted(kernel, own, Expect::Any)?;
    own.remove(kernel).map(drop)
}

/// Unmounts everything that is stacked at a path, as long as it is what is expected. Answers how many mounts that were.
///
/// # Errors
/// A mount there is another; one is covered, and cannot be reached; the kernel's error, `EBUSY` while it is in use.
pub fn ensure_unmounted(kernel: &dyn Kernel, target: &Target, expect: Expect) -> Result<usize, MountError> {
    let mut done = 0;
    let mut before = usize::MAX;
    loop {
        let table = Table::read(kernel)?;
        let Some(top) = table.at(target.real()) else {
            return match table.all_at(target.real()).next() {
                None => Ok(done),
                Some(covered) => Err(MountError::Covered { path: target.given().to_owned(), found: describe(covered) }),
            };
        };
        // Judged as a whole before the first is taken away, so that a refusal leaves all as it was.
        if let Some(other) = table.all_at(target.real()).find(|entry| !expect.matches(&table, entry)) {
            return Err(occupied(target, other, &expect.to_string()));
        }
        let count = table.all_at(target.real()).count();
        if count >= before {
            return Err(MountError::ComesBack { path: target.given().to_owned() });
        }
        before = count;
        kernel.unmount(&top.target).map_err(|source| target.failed("unmounting", source))?;
        done += 1;
    }
}

impl Expect {
    fn matches(self, table: &Table, entry: &MountEntry) -> bool {
        match self {
            Expect::Any => true,
            Expect::Filesystem { major, minor } => (entry.major, entry.minor) == (major, minor),
            Expect::BlockNode { minor } => table.of_block_node(minor).any(|node| node.id == entry.id),
        }
    }
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Expect::Any => f.write_str("anything"),
            Expect::Filesystem { major, minor } => write!(f, "the filesystem on {major}:{minor}"),
            Expect::BlockNode { minor } => write!(f, "the node of dm-{minor}"),
        }
    }
}

/// Compares what is mounted at a path with what should be.
fn compare(target: &Target, there: &MountEntry, wanted: &Identity, read_only: bool) -> Result<Did, MountError> {
    if Identity::of(there) != *wanted {
        return Err(occupied(target, there, &wanted.to_string()));
    }
    // The flag of the mount, not of the filesystem: that one the kernel sets too, after an error.
    let is_read_only = there.options.iter().any(|option| option == "ro");
    if is_read_only != read_only {
        return Err(MountError::ReadOnlyDiffers { path: target.given().to_owned(), read_only: is_read_only });
    }
    Ok(Did::AlreadyThere)
}

fn occupied(target: &Target, found: &MountEntry, wanted: &str) -> MountError {
    MountError::Occupied { path: target.given().to_owned(), found: describe(found), wanted: wanted.to_owned() }
}

/// Makes sure that a path is the node of the block device with these numbers.
fn check_node(kernel: &dyn Kernel, node: &Path, major: u32, minor: u32) -> Result<(), MountError> {
    let found =
        kernel.device_number(node).map_err(|source| MountError::Call { path: node.to_owned(), what: "looking at", source })?;
    if found == Some((major, minor)) {
        return Ok(());
    }
    Err(MountError::SourceDiffers {
        path: node.to_owned(),
        found: found.map_or_else(|| "no block device".to_owned(), |(major, minor)| format!("block device {major}:{minor}")),
        wanted: format!("block device {major}:{minor}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fake::Mounts;
    use super::*;

    struct Scene {
        kernel: Mounts,
        stage: Target,
        publish: Target,
        own: Target,
        _kept: tempfile::TempDir,
    }

    fn scene() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let target = |name| Target::new(directory.path().join(name)).unwrap();
        Scene { kernel: Mounts::new(), stage: target("stage"), publish: target("publish"), own: target("own"), _kept: directory }
    }

    const NODE: &str = "/dev/dm-3";

    fn wanted(flags: &[MountFlag]) -> Wanted<'_> {
        Wanted { node: Path::new(NODE), major: 253, minor: 3, fstype: "ext4", flags, data: "" }
    }

    fn node() -> Source<'static> {
        Source::Node { node: Path::new(NODE), major: 253, minor: 3 }
    }

    impl Scene {
        fn mount(&self, flags: &[MountFlag]) -> Result<Did, MountError> {
            ensure_mounted_filesystem(&self.kernel, &wanted(flags), &self.stage)
        }

        fn bind(&self, read_only: bool) -> Result<Did, MountError> {
            let source = Source::Filesystem { mount_point: &self.stage, major: 253, minor: 3 };
            ensure_bound(&self.kernel, &source, &self.publish, read_only.then_some(&self.own))
        }

        fn bind_node(&self, read_only: bool) -> Result<Did, MountError> {
            ensure_bound(&self.kernel, &node(), &self.publish, read_only.then_some(&self.own))
        }

        fn unmount(&self, expect: Expect) -> Result<usize, MountError> {
            ensure_unmounted(&self.kernel, &self.stage, expect)
        }
    }

    #[test]
    fn a_filesystem_is_mounted_once() {
        let scene = scene();
        assert_eq!(scene.mount(&[]).unwrap(), Did::Mounted);
        assert_eq!(scene.mount(&[]).unwrap(), Did::AlreadyThere);
        assert_eq!(scene.kernel.at(scene.stage.real()), [((253, 3), "/".into(), "rw".to_owned())]);
        assert!(matches!(scene.mount(&[MountFlag::ReadOnly]), Err(MountError::ReadOnlyDiffers { read_only: false, .. })));
    }

    #[test]
    fn a_live_mount_of_something_else_is_left_alone() {
        for (device, root, fstype) in [((253, 4), "/", "ext4"), ((253, 3), "/part", "ext4"), ((253, 3), "/", "xfs")] {
            let scene = scene();
            scene.kernel.push(device, root, scene.stage.real(), "rw", fstype);
            let error = scene.mount(&[]).unwrap_err();
            assert!(error.is_conflict(), "{error}");
            assert_eq!(scene.kernel.at(scene.stage.real()).len(), 1);
        }
    }

    #[test]
    fn a_node_that_is_another_device_is_not_mounted() {
        let mut scene = scene();
        scene.kernel.nodes.insert(NODE.into(), (253, 9));
        for result in [scene.mount(&[]), scene.bind_node(false)] {
            assert!(matches!(result, Err(MountError::SourceDiffers { .. })), "{result:?}");
        }
        scene.kernel.nodes.clear();
        assert!(matches!(scene.mount(&[]), Err(MountError::SourceDiffers { .. })));
        assert!(!scene.stage.exists().unwrap() && !scene.publish.exists().unwrap());
    }

    #[test]
    fn a_staged_filesystem_is_bound_once_and_read_only_stays_read_only() {
        let scene = scene();
        assert!(matches!(scene.bind(false), Err(MountError::SourceDiffers { .. })), "not staged");
        scene.mount(&[]).unwrap();
        assert_eq!(scene.bind(true).unwrap(), Did::Mounted);
        assert_eq!(scene.bind(true).unwrap(), Did::AlreadyThere);
        assert!(matches!(scene.bind(false), Err(MountError::ReadOnlyDiffers { read_only: true, .. })));
        assert_eq!(scene.kernel.at(scene.publish.real()), [((253, 3), "/".into(), "ro".to_owned())]);
    }

    #[test]
    fn a_target_that_is_to_be_read_only_is_never_writable() {
        let mut scene = scene();
        scene.mount(&[]).unwrap();
        // As a driver that dies before the second call leaves it.
        scene.kernel.writable = true;
        scene.bind(true).unwrap_err();
        assert!(scene.kernel.at(scene.publish.real()).is_empty());
        assert_eq!(scene.kernel.at(scene.own.real()).len(), 1);
        scene.kernel.writable = false;
        assert_eq!(scene.bind(true).unwrap(), Did::Mounted);
        assert_eq!(scene.kernel.at(scene.publish.real()), [((253, 3), "/".into(), "ro".to_owned())]);
        assert!(scene.kernel.at(scene.own.real()).is_empty() && !scene.own.exists().unwrap());
    }

    #[test]
    fn another_filesystem_at_the_staging_path_is_not_published() {
        let scene = scene();
        scene.kernel.push((253, 4), "/", scene.stage.real(), "rw", "ext4");
        assert!(matches!(scene.bind(false), Err(MountError::SourceDiffers { .. })));
        assert!(!scene.publish.exists().unwrap());
    }

    #[test]
    fn a_device_node_is_bound_onto_a_file() {
        let scene = scene();
        assert_eq!(scene.bind_node(false).unwrap(), Did::Mounted);
        assert_eq!(scene.bind_node(false).unwrap(), Did::AlreadyThere);
        assert!(scene.publish.real().is_file());
        assert_eq!(scene.kernel.at(scene.publish.real()), [((0, 6), "/dm-3".into(), "rw".to_owned())]);
        let other = Source::Node { node: Path::new("/dev/dm-4"), major: 253, minor: 4 };
        assert!(ensure_bound(&scene.kernel, &other, &scene.publish, None).unwrap_err().is_conflict());
    }

    #[test]
    fn a_bound_node_that_was_removed_is_not_the_new_device_of_that_number() {
        let scene = scene();
        scene.kernel.push((0, 6), "/dm-3//deleted", scene.publish.real(), "rw", "devtmpfs");
        assert!(scene.bind_node(false).unwrap_err().is_conflict());
        let expect = Expect::BlockNode { minor: 3 };
        assert_eq!(ensure_unmounted(&scene.kernel, &scene.publish, expect).unwrap(), 1);
    }

    #[test]
    fn all_stacked_mounts_are_unmounted_if_all_are_expected() {
        let scene = scene();
        let ours = Expect::Filesystem { major: 253, minor: 3 };
        assert_eq!(scene.unmount(ours).unwrap(), 0, "also where nothing is");
        scene.mount(&[]).unwrap();
        scene.kernel.push((253, 4), "/", scene.stage.real(), "rw", "ext4");
        scene.kernel.push((253, 3), "/", scene.stage.real(), "rw", "ext4");
        assert!(scene.unmount(ours).unwrap_err().is_conflict());
        assert_eq!(scene.kernel.at(scene.stage.real()).len(), 3, "refused as a whole");
        assert_eq!(scene.unmount(Expect::Any).unwrap(), 3);
        assert_eq!(scene.unmount(Expect::Any).unwrap(), 0);
    }

    #[test]
    fn a_mount_that_stays_or_is_covered_is_an_error() {
        let mut scene = scene();
        scene.mount(&[]).unwrap();
        let above = scene.stage.real().parent().unwrap().to_owned();
        scene.kernel.push((0, 30), "/", &above, "rw", "tmpfs");
        assert!(matches!(scene.unmount(Expect::Any), Err(MountError::Covered { .. })));
        scene.kernel.unmount(&above).unwrap();
        scene.kernel.sticky = true;
        assert!(matches!(scene.unmount(Expect::Any), Err(MountError::ComesBack { .. })));
        scene.kernel.sticky = false;
        scene.kernel.push((253, 4), "/", &scene.stage.real().join("within"), "rw", "ext4");
        assert!(matches!(scene.unmount(Expect::Any), Err(MountError::Call { .. })), "in use");
    }
}
