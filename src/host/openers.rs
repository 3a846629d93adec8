//! Finds who has a block device open, for error texts: the kernel counts openers but does not name them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

use super::guard::Holders;
use super::kernel::MountEntry;
use super::linux::RAW_VOLUMES;
use super::mountinfo;

/// The openers visible from here: a container may not see the host's processes and their mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Openers(Vec<String>);

impl Openers {
    /// Looks at devices that lie on this one, at mounts in the namespaces of all processes, and at open files.
    pub fn of(node: &Path, number: (u32, u32)) -> Self {
        let mut found = Self::default();
        found.look(Path::new("/sys"), &mounts(), node, number, 0);
        // Others chose these names, which may contain control characters.
        found.0.iter_mut().for_each(|name| *name = name.replace(char::is_control, "?"));
        found
    }

    fn look(&mut self, sys: &Path, mounts: &[(MountEntry, String)], node: &Path, number: (u32, u32), depth: u32) {
        let directory = sys.join(format!("dev/block/{}:{}", number.0, number.1));
        for above in names_in(&directory.join("holders")) {
            self.above(sys, mounts, &above, depth);
        }
        for name in names_in(&sys.join("block")).into_iter().filter(|name| name.starts_with("loop")) {
            if loop_over(&sys.join("block").join(&name), number) {
                self.above(sys, mounts, &name, depth);
            }
        }
        for (entry, namespace) in mounts.iter().filter(|(entry, _)| is_on(entry, number)) {
            self.0.push(format!("the mount at {}{namespace}", entry.target.display()));
        }
        if swaps().any(|device| fs::metadata(device).is_ok_and(|file| is_device(&file, number))) {
            self.0.push("swap".to_owned());
        }
        let processes = Holders::of(node);
        if !processes.is_empty() {
            self.0.push(processes.to_string());
        }
    }

    /// Adds a device that lies on the wanted one, and its own openers.
    fn above(&mut self, sys: &Path, mounts: &[(MountEntry, String)], name: &str, depth: u32) {
        let directory = sys.join("class/block").join(name);
        let text = |file: &str| fs::read_to_string(directory.join(file)).ok().map(|text| text.trim().to_owned());
        let what = if directory.join("md").is_dir() { "RAID" } else { "device" };
        self.0.push(match text("dm/name").or_else(|| text("loop/backing_file").map(|file| format!("over {file}"))) {
            Some(more) => format!("{what} {name} ({more})"),
            None => format!("{what} {name}"),
        });
        let numbers = text("dev").and_then(|dev| dev.split_once(':').map(|(a, b)| (a.parse().ok(), b.parse().ok())));
        if let (Some((Some(major), Some(minor))), true) = (numbers, depth < 2) {
            self.look(sys, mounts, &Path::new("/dev").join(name), (major, minor), depth + 1);
        }
    }
}

impl fmt::Display for Openers {
    /// `, by RAID md127 and qemu (process 71)`; empty if no opener is visible.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ", by {}", self.0.join(" and ")) }
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_device(file: &fs::Metadata, number: (u32, u32)) -> bool {
    let id = file.rdev();
    file.file_type().is_block_device() && (major(id), minor(id)) == (u64::from(number.0), u64::from(number.1))
}

/// Whether a loop device lies on a device. Looks only at paths that may be device nodes, because a hanging filesystem would never
/// answer.
fn loop_over(directory: &Path, number: (u32, u32)) -> bool {
    let Ok(file) = fs::read_to_string(directory.join("loop/backing_file")) else { return false };
    let file = file.trim();
    (file.starts_with("/dev/") || file.contains(RAW_VOLUMES)) && fs::metadata(file).is_ok_and(|file| is_device(&file, number))
}

/// The mounts of all processes, once per namespace. For a foreign namespace, the text names a process in it.
fn mounts() -> Vec<(MountEntry, String)> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let (own, mut seen) = (namespace("self"), BTreeSet::new());
    let mut found = Vec::new();
    for process in std::iter::once("self".to_owned()).chain(names_in(Path::new("/proc"))) {
        let Some(namespace) = namespace(&process).filter(|namespace| seen.insert(namespace.clone())) else { continue };
        let table = fs::read(format!("/proc/{process}/mountinfo")).unwrap_or_default();
        let seen_by = if own.as_ref() == Some(&namespace) { String::new() } else { format!(" of process {process}") };
        found.extend(mountinfo::parse(&table).unwrap_or_default().into_iter().map(|entry| (entry, seen_by.clone())));
    }
    found
}

/// Whether a mount shows the filesystem on a device. A btrfs mount has a device number of its own.
fn is_on(entry: &MountEntry, number: (u32, u32)) -> bool {
    (entry.major, entry.minor) == number
        || entry.source.starts_with("/dev/") && fs::metadata(&entry.source).is_ok_and(|file| is_device(&file, number))
}

fn swaps() -> impl Iterator<Item = String> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let devices: Vec<String> =
        text.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
    devices.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_a_device_is_named_with_what_lies_on_that() {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("dev/block/65535:7/holders/md127/x", "");
        write("class/block/md127/md/x", "");
        write("class/block/md127/dev", "65535:8\n");
        write("dev/block/65535:8/holders/dm-9/x", "");
        write("class/block/dm-9/dm/name", "guest-data\n");
        write("class/block/dm-9/dev", "65535:9\n");
        write("dev/block/65535:9/holders/dm-10/x", "");
        let mut found = Openers::default();
        found.look(sys.path(), &[], Path::new("/no-such-device"), (65535, 7), 0);
        assert_eq!(found.to_string(), ", by RAID md127 and device dm-9 (guest-data) and device dm-10");
        assert_eq!(Openers::default().to_string(), "");
    }
}
