//! The kernel's table of mounts.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::error::{Result, Trouble};

/// The kernel's table without mount IDs, which the kernel reuses.
pub(crate) fn table() -> Result<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(Trouble::io("reading /proc/self/mountinfo"))?;
    let lines = text.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap_or(line));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// All mount points, oldest first.
///
/// # Errors
/// The table cannot be read.
pub fn mount_points() -> Result<Vec<PathBuf>> {
    Ok(mounts()?.into_iter().map(|mount| mount.point).collect())
}

/// One line of `/proc/self/mountinfo` (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    /// The directory of the filesystem that is mounted.
    pub root: PathBuf,
    /// Per-mount options, comma-separated.
    pub options: String,
    /// Type of the filesystem, such as `ext4`.
    pub filesystem: String,
    pub source: String,
    /// Per-filesystem options, comma-separated.
    pub super_options: String,
}

/// All mounts, oldest first.
///
/// # Errors
/// The table cannot be read.
pub fn mounts() -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for line in table()?.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        // The first field left is the device number.
        if let (Some(root), Some(point), Some(options)) = (left.get(1), left.get(2), left.get(3))
            && let [filesystem, source, super_options, ..] = right[..]
        {
            mounts.push(Mount {
                point: unescape(point),
                root: unescape(root),
                options: (*options).to_owned(),
                filesystem: filesystem.to_owned(),
                source: unescape(source).to_string_lossy().into_owned(),
                super_options: super_options.to_owned(),
            });
        }
    }
    Ok(mounts)
}

/// The topmost mount at a path.
///
/// # Errors
/// The table cannot be read.
pub fn mount_at(path: &Path) -> Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rev().find(|mount| mount.point == path))
}

/// The kernel writes blanks, tabs, newlines and backslashes as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let digits: Vec<u8> = bytes.by_ref().take(3).collect();
            let value = digits.iter().fold(0u8, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit.wrapping_sub(b'0')));
            out.push(value);
        } else {
            out.push(byte);
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Unmounts everything at and below a directory, newest first. Detaches lazily what is in use.
///
/// # Errors
/// The table cannot be read, or the kernel refuses.
pub fn unmount_all(below: &Path) -> Result<()> {
    for point in mount_points()?.iter().rev().filter(|point| point.starts_with(below)) {
        let gone = umount2(point, MntFlags::UMOUNT_NOFOLLOW)
            .or_else(|_| umount2(point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH));
        gone.map_err(Trouble::errno(format!("unmounting {}", point.display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_of_the_kernel_are_read() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
    }
}
