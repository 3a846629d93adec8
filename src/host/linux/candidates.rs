//! Finds block devices that may carry an LVM label. Opens none: a dead device would hang the caller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::identity::attribute;
use super::{FORMER_DM_PREFIX, LVM_DM_PREFIX};

/// One directory (or link to one) for each block device of the kernel.
const BLOCK_DEVICES: &str = "/sys/class/block";
/// Where udevd listens and keeps its data. One of them is missing if udevd does not run, or if a container does not see it.
const UDEVD: [&str; 2] = ["/run/udev/control", "/run/udev/data"];

pub(super) fn pv_candidates() -> io::Result<Vec<PathBuf>> {
    let mut found = if UDEVD.iter().all(|path| Path::new(path).exists()) {
        candidates(Path::new(BLOCK_DEVICES), is_lvm_member)?
    } else {
        candidates(Path::new(BLOCK_DEVICES), |_| true)?
    };
    found.sort();
    Ok(found)
}

/// Whether udevd found an LVM label when the device appeared.
fn is_lvm_member(directory: &Path) -> bool {
    let device = udev::Device::from_syspath(directory);
    device.is_ok_and(|device| device.property_value("ID_FS_TYPE").is_some_and(|kind| kind == "LVM2_member"))
}

/// The devices of a sysfs directory that may be PVs. `is_member` is called last: libudev makes dozens of system calls per device,
/// and a node may have hundreds of volumes.
fn candidates(class: &Path, is_member: impl Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(class)? {
        let entry = entry?;
        if may_be_pv(&entry.path()) && is_member(&entry.path()) {
            // The kernel writes a slash in a device name as an exclamation mark here.
            found.push(Path::new("/dev").join(entry.file_name().to_string_lossy().replace('!', "/")));
        }
    }
    Ok(found)
}

/// Whether the device of this sysfs directory (or link to one) holds data of its own for LVM. A device that vanishes meanwhile does
/// not. This check runs for every device after each commit, so what rules out most devices comes first.
fn may_be_pv(directory: &Path) -> bool {
    let attribute = |name: &str| attribute(directory, name);
    // An unbound loop device has no size either, but may briefly keep its old one.
    let has_size = || attribute("size").is_some_and(|size| size != "0");
    let bound = || !directory.join("loop").is_dir() || attribute("loop/backing_file").is_some();
    // A path of a multipath NVMe device, which also has no node.
    let hidden = || attribute("hidden").is_some_and(|hidden| hidden == "1");
    // The contents of a volume belong to its user and are never a volume group of the driver.
    let volume =
        || attribute("dm/uuid").is_some_and(|uuid| uuid.starts_with(LVM_DM_PREFIX) || uuid.starts_with(FORMER_DM_PREFIX));
    // The legs of a multipath or RAID device, whole or partitioned, show the label of the device that they make up.
    let leg = || {
        let whole = || directory.canonicalize().ok().and_then(|real| real.parent().map(Path::to_owned));
        is_leg(directory) || (directory.join("partition").exists() && whole().is_some_and(|whole| is_leg(&whole)))
    };
    has_size() && bound() && !hidden() && !volume() && !leg()
}

/// Whether a multipath or RAID device lies on this one.
fn is_leg(directory: &Path) -> bool {
    let Ok(holders) = fs::read_dir(directory.join("holders")) else { return false };
    holders.filter_map(Result::ok).any(|holder| {
        let over = holder.path();
        let multipath = fs::read_to_string(over.join("dm/uuid")).is_ok_and(|uuid| uuid.starts_with("mpath-"));
        multipath || over.join("md").is_dir()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs made of files. `path` is relative to its root; a path that ends in a slash is a directory.
    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            if path.to_string_lossy().ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }
        root
    }

    fn names(root: &tempfile::TempDir) -> Vec<String> {
        let mut found: Vec<_> =
            candidates(root.path(), |_| true).unwrap().into_iter().map(|path| path.to_string_lossy().into_owned()).collect();
        found.sort();
        found
    }

    #[test]
    fn disks_and_partitions_with_a_size_are_candidates() {
        let root = sysfs(&[
            ("sda/size", "2048\n"),
            ("sdb/size", "0\n"),
            ("cciss!c0d0/size", "99\n"),
            ("nvme0c0n1/size", "99\n"),
            ("nvme0c0n1/hidden", "1\n"),
            ("nvme0n1/size", "99\n"),
            ("nvme0n1/hidden", "0\n"),
        ]);
        assert_eq!(names(&root), ["/dev/cciss/c0d0", "/dev/nvme0n1", "/dev/sda"]);
    }

    #[test]
    fn volumes_are_not_and_other_dm_devices_are() {
        let root = sysfs(&[
            ("dm-0/size", "9\n"),
            ("dm-0/dm/uuid", "LVM-abc\n"),
            ("dm-1/size", "9\n"),
            ("dm-1/dm/uuid", "LVMCSI-abc\n"),
            ("dm-2/size", "9\n"),
            ("dm-2/dm/uuid", "CRYPT-LUKS2-abc\n"),
        ]);
        assert_eq!(names(&root), ["/dev/dm-2"]);
    }

    #[test]
    fn legs_of_multipath_and_raid_are_not() {
        let root = sysfs(&[
            ("sda/size", "9\n"),
            ("sda/holders/dm-5/dm/uuid", "mpath-3600\n"),
            ("sda/sda1/size", "9\n"),
            ("sda/sda1/partition", "1\n"),
            ("sdb/size", "9\n"),
            ("sdb/holders/md0/md/", ""),
            ("sdc/size", "9\n"),
            ("sdc/holders/dm-7/dm/uuid", "LVM-abc\n"),
            ("md0/size", "9\n"),
            ("md0/md/", ""),
            ("dm-5/size", "9\n"),
            ("dm-5/dm/uuid", "mpath-3600\n"),
        ]);
        std::os::unix::fs::symlink("sda/sda1", root.path().join("sda1")).unwrap();
        assert_eq!(names(&root), ["/dev/dm-5", "/dev/md0", "/dev/sdc"]);
    }

    #[test]
    fn a_loop_device_needs_a_file_behind_it() {
        let root =
            sysfs(&[("loop0/size", "9\n"), ("loop0/loop/backing_file", "/x\n"), ("loop1/size", "9\n"), ("loop1/loop/", "")]);
        assert_eq!(names(&root), ["/dev/loop0"]);
    }
}
