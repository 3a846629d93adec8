//! Makes a path show a filesystem, a directory or a device node, and makes it show nothing again.
//!
//! Each function checks first and acts only if something is missing, so it may be repeated after a crash between any two of its
//! steps.

use std::path::{Path, PathBuf};

use super::table::{Identity, Table, describe};
use super::{MountError, Target};
use crate::host::{Kernel, MountEntry, MountFlag, NewMount};

/// What a function did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// It mounted the source.
    Mounted,
    /// The mount already existed.
    AlreadyThere,
}

/// A filesystem to mount.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The node of its block device.
    pub node: &'a Path,
    /// The device number that the node must have.
    pub major: u32,
    /// The device number that the node must have.
    pub minor: u32,
    pub fstype: &'static str,
    pub flags: &'a [MountFlag],
    /// The filesystem's options, comma-separated.
    pub data: &'a str,
}

/// The source of a bind mount.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The filesystem with these device numbers, through a mount of all of it.
    Filesystem { mount_point: &'a Target, major: u32, minor: u32 },
    /// A block device node with these device numbers.
    Node {
        /// The kernel's own node, not a link to it.
        node: &'a Path,
        major: u32,
        minor: u32,
    },
}

/// The mounts that may be unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything: the path itself is ours alone.
    Any,
    /// A filesystem with these device numbers.
    Filesystem { major: u32, minor: u32 },
    /// The node of the dm device with this minor, even if it was removed.
    BlockNode { minor: u32 },
}

/// Mounts the filesystem on a block device at a directory, unless it is already mounted. Creates the directory if it is missing.
///
/// For a live mount it compares device numbers, type and read-only; the caller compares finer options.
///
/// # Errors
/// Something else is mounted there, or the same in another way; the device is not the expected one; the kernel's error.
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

/// Makes a path show the source: writable, or read-only if `read_only_by` gives a path of our own that nobody else uses. Creates
/// the target if it is missing, a directory for a filesystem and a file for a device node (CSI: the plugin creates the target,
/// the orchestrator its parent directory).
///
/// The kernel makes a bind mount as writable as its source, and read-only only in a second call. So that mount is made at our own
/// path, and bound from there: the target never shows a writable mount, even if the driver dies. [`clear`] removes what is then
/// left at our own path.
///
/// # Errors
/// Something else is mounted there, or the same with the other writability; the source is not the expected one; the kernel's
/// error.
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

/// Removes the mounts and the mount point at a path of our own.
///
/// # Errors
/// The kernel's error.
pub fn clear(kernel: &dyn Kernel, own: &Target) -> Result<(), MountError> {
    ensure_unmounted(kernel, own, Expect::Any)?;
    own.remove(kernel).map(drop)
}

/// Unmounts everything stacked at a path, if all of it is expected. Returns the number of mounts.
///
/// # Errors
/// A mount there is not expected; one is covered and cannot be reached; the kernel's error, `EBUSY` if it is in use.
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
        // Check all of them before unmounting the first, so that a refusal changes nothing.
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

/// Compares the mount at a path with the expected one.
fn compare(target: &Target, there: &MountEntry, wanted: &Identity, read_only: bool) -> Result<Did, MountError> {
    if Identity::of(there) != *wanted {
        return Err(occupied(target, there, &wanted.to_string()));
    }
    // The mount's flag, not the filesystem's, which the kernel also sets after an error.
    let is_read_only = there.options.iter().any(|option| option == "ro");
    if is_read_only != read_only {
        return Err(MountError::ReadOnlyDiffers { path: target.given().to_owned(), read_only: is_read_only });
    }
    Ok(Did::AlreadyThere)
}

fn occupied(target: &Target, found: &MountEntry, wanted: &str) -> MountError {
    MountError::Occupied { path: target.given().to_owned(), found: describe(found), wanted: wanted.to_owned() }
}

/// Checks that a path is the node of the block device with these numbers.
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
    fn a_read_only_target_is_never_writable() {
        let mut scene = scene();
        scene.mount(&[]).unwrap();
        // As if the driver had died before the second call.
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
