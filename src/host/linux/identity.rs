//! Identifies devices and finds those beneath, without reading them: a hanging device delays nothing here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::super::kernel::DeviceIdentity;

/// Every block device of the kernel, by name and by number.
const BY_NAME: &str = "/sys/class/block";
const BY_NUMBER: &str = "/sys/dev/block";
/// A part of the paths where kubelet shows raw volumes.
pub const RAW_VOLUMES: &str = "/volumeDevices/";

pub(super) fn of(device: &Path) -> io::Result<DeviceIdentity> {
    identity(&directory(device)?)
}

pub(super) fn instance_of(device: &Path) -> io::Result<String> {
    let directory = directory(device)?;
    instance(&directory, whole(&directory).as_deref().unwrap_or(&directory))
}

pub(super) fn beneath(device: &Path) -> io::Result<Vec<String>> {
    let mut walk = Walk { numbers: Path::new(BY_NUMBER), seen: BTreeSet::new(), found: Vec::new() };
    walk.down(&directory(device)?);
    Ok(walk.found)
}

pub(super) fn is_raw_volume(device: &Path) -> io::Result<bool> {
    let number = fs::metadata(device)?.rdev();
    let shows = |directory: &Path| {
        let file = attribute(directory, "loop/backing_file").filter(|file| file.contains(RAW_VOLUMES))?;
        fs::metadata(file).ok().filter(|file| file.file_type().is_block_device() && file.rdev() == number)
    };
    Ok(fs::read_dir(BY_NAME)?.flatten().any(|entry| shows(&entry.path()).is_some()))
}

/// The sysfs directory of a device; sysfs writes a slash in a name as an exclamation mark.
fn directory(device: &Path) -> io::Result<PathBuf> {
    let name = device.strip_prefix("/dev").map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Path::new(BY_NAME).join(name.to_string_lossy().replace('/', "!")).canonicalize()
}

/// The contents of a sysfs file; `None` if empty.
pub(super) fn attribute(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The disk that a partition is on.
fn whole(directory: &Path) -> Option<PathBuf> {
    directory.join("partition").exists().then(|| directory.parent().map(Path::to_owned))?
}

fn instance(directory: &Path, disk: &Path) -> io::Result<String> {
    let number = fs::read_to_string(directory.join("dev"))?.trim().to_owned();
    // Kernels before 5.15 do not count disks, so only the number is left.
    Ok(match attribute(disk, "diskseq") {
        Some(count) => format!("{number} disk {count}"),
        None => number,
    })
}

fn identity(directory: &Path) -> io::Result<DeviceIdentity> {
    let whole = whole(directory);
    let disk = whole.as_deref().unwrap_or(directory);
    let instance = instance(directory, disk)?;
    let part = whole.as_ref().and_then(|_| attribute(directory, "partition")).map_or_else(String::new, |n| format!(" part {n}"));
    let mut names = names_of(disk);
    // The same disk with and without multipath: a name that all paths share is also a name of the device over them.
    let mut slaves =
        fs::read_dir(disk.join("slaves")).into_iter().flatten().flatten().filter_map(|slave| slave.path().canonicalize().ok());
    if let Some(first) = slaves.next() {
        let rest: Vec<Vec<String>> = slaves.map(|slave| names_of(&slave)).collect();
        let shared = names_of(&first)
            .into_iter()
            .filter(|name| name.starts_with("wwid:") && rest.iter().all(|other| other.contains(name)));
        names.extend(shared);
    }
    let names = names.into_iter().map(|name| format!("{name}{part}")).collect();
    Ok(DeviceIdentity { names, instance })
}

/// The names of a whole device from the hardware or the layer beneath.
fn names_of(disk: &Path) -> Vec<String> {
    // NVMe and virtio keep their names in the directory of the disk, SCSI and MMC in its `device`. All namespaces of an NVMe
    // controller share its serial number.
    let namespace = attribute(disk, "nsid").map_or_else(String::new, |id| format!(" namespace {id}"));
    let kinds = [
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("md", "md/uuid"),
        ("serial", "serial"),
        ("serial", "device/serial"),
        ("cid", "device/cid"),
        ("loop", "loop/backing_file"),
    ];
    let mut names: Vec<String> = Vec::new();
    for (kind, path) in kinds {
        let Some(name) = attribute(disk, path) else { continue };
        let name = format!("{kind}:{}", name.split_whitespace().collect::<Vec<_>>().join(" "));
        let name = if kind == "serial" { name + &namespace } else { name };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    // A dm device made by hand has only a name. The UUID of a LUKS device ends with its name, which crypttab may change.
    let dm = attribute(disk, "dm/uuid").map(|uuid| match uuid.starts_with("CRYPT-") {
        true => format!("dm:{}", uuid.splitn(4, '-').take(3).collect::<Vec<_>>().join("-")),
        false => format!("dm:{uuid}"),
    });
    names.extend(dm.or_else(|| attribute(disk, "dm/name").map(|name| format!("dm-name:{name}"))));
    names
}

/// A walk from a device down to those beneath it.
struct Walk<'a> {
    numbers: &'a Path,
    seen: BTreeSet<PathBuf>,
    found: Vec<String>,
}

impl Walk<'_> {
    fn down(&mut self, directory: &Path) {
        let Ok(directory) = directory.canonicalize() else { return };
        if !self.seen.insert(directory.clone()) {
            return;
        }
        self.found.extend(attribute(&directory, "dm/uuid"));
        if let Some(whole) = whole(&directory) {
            self.down(&whole);
        }
        for beneath in fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten() {
            self.down(&beneath.path());
        }
        if let Some(file) = attribute(&directory, "loop/backing_file")
            && let Ok(status) = fs::metadata(&file)
        {
            // A device node leads to that device, any other file to the device of its filesystem.
            let number = if status.file_type().is_block_device() { status.rdev() } else { status.dev() };
            self.down(&self.numbers.join(format!("{}:{}", major(number), minor(number))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn names_come_from_the_disk_and_a_partition_adds_its_number() {
        let root = sysfs(&[
            ("nvme0n1/dev", "259:0\n"),
            ("nvme0n1/diskseq", "7\n"),
            ("nvme0n1/wwid", "eui.0025\n"),
            ("nvme0n1/device/serial", "S4  X \n"),
            ("nvme0n1/nvme0n1p2/dev", "259:2\n"),
            ("nvme0n1/nvme0n1p2/partition", "2\n"),
            ("loop0/dev", "7:0\n"),
            ("dm-3/dev", "253:3\n"),
            ("dm-3/dm/uuid", "mpath-36\n"),
        ]);
        let named = |path: &str| identity(&root.path().join(path)).unwrap();
        assert_eq!(
            named("nvme0n1"),
            DeviceIdentity { names: vec!["wwid:eui.0025".into(), "serial:S4 X".into()], instance: "259:0 disk 7".into() }
        );
        let part = named("nvme0n1/nvme0n1p2");
        assert_eq!(
            part,
            DeviceIdentity {
                names: vec!["wwid:eui.0025 part 2".into(), "serial:S4 X part 2".into()],
                instance: "259:2 disk 7".into()
            }
        );
        assert_eq!(named("loop0"), DeviceIdentity { names: vec![], instance: "7:0".into() });
        assert_eq!(named("dm-3").names, ["dm:mpath-36"]);
        // Two namespaces of one controller, a path and the device over it, and layers with names only.
        let root = sysfs(&[
            ("nvme0n1/dev", "259:0\n"),
            ("nvme0n1/nsid", "1\n"),
            ("nvme0n1/device/serial", "S4\n"),
            ("sda/dev", "8:0\n"),
            ("sda/device/wwid", "naa.6\n"),
            ("dm-3/dev", "253:3\n"),
            ("dm-3/dm/uuid", "mpath-36\n"),
            ("dm-4/dev", "253:4\n"),
            ("dm-4/dm/uuid", "CRYPT-LUKS2-aa-somename\n"),
            ("dm-5/dev", "253:5\n"),
            ("dm-5/dm/uuid", "\n"),
            ("dm-5/dm/name", "own\n"),
            ("loop0/dev", "7:0\n"),
            ("loop0/loop/backing_file", "/x\n"),
        ]);
        fs::create_dir_all(root.path().join("dm-3/slaves")).unwrap();
        std::os::unix::fs::symlink(root.path().join("sda"), root.path().join("dm-3/slaves/sda")).unwrap();
        let names = |path: &str| identity(&root.path().join(path)).unwrap().names;
        assert_eq!(names("nvme0n1"), ["serial:S4 namespace 1"]);
        assert_eq!(
            (names("sda"), names("dm-3")),
            (vec!["wwid:naa.6".to_owned()], vec!["dm:mpath-36".to_owned(), "wwid:naa.6".to_owned()])
        );
        assert_eq!(names("dm-4"), ["dm:CRYPT-LUKS2-aa"]);
        assert_eq!(names("dm-5"), ["dm-name:own"]);
        assert_eq!(names("loop0"), ["loop:/x"]);
        assert!(identity(&root.path().join("none")).is_err());
    }

    #[test]
    fn what_lies_beneath_is_found_through_tables_partitions_and_loop_devices() {
        let root = sysfs(&[
            ("block/dm-1/dm/uuid", "LVM-group-volume\n"),
            ("block/dm-2/dm/uuid", "CRYPT-x\n"),
            ("block/dm-2/p1/partition", "1\n"),
            ("block/loop0/dev", "7:0\n"),
        ]);
        let block = |name: &str| root.path().join("block").join(name);
        fs::create_dir_all(block("dm-2/slaves")).unwrap();
        std::os::unix::fs::symlink(block("dm-1"), block("dm-2/slaves/dm-1")).unwrap();
        // A cycle ends too, although sysfs never has one.
        fs::create_dir_all(block("dm-1/slaves")).unwrap();
        std::os::unix::fs::symlink(block("dm-2"), block("dm-1/slaves/dm-2")).unwrap();
        // A loop device over a file whose filesystem lies on the partition.
        let file = root.path().join("image");
        fs::write(&file, "").unwrap();
        fs::create_dir_all(block("loop0/loop")).unwrap();
        fs::write(block("loop0/loop/backing_file"), file.display().to_string()).unwrap();
        let numbers = root.path().join("numbers");
        fs::create_dir(&numbers).unwrap();
        let dev = fs::metadata(&file).unwrap().dev();
        std::os::unix::fs::symlink(block("dm-2/p1"), numbers.join(format!("{}:{}", major(dev), minor(dev)))).unwrap();
        let mut walk = Walk { numbers: &numbers, seen: BTreeSet::new(), found: Vec::new() };
        walk.down(&block("loop0"));
        walk.found.sort();
        assert_eq!(walk.found, ["CRYPT-x", "LVM-group-volume"]);
    }
}
