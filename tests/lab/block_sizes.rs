//! A volume group whose disks have logical blocks of 512 and 4096 bytes.

use std::fs;
use std::path::PathBuf;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, block, mount};
use testkit::error::{Result, Trouble};
use testkit::flow::{Volume, text};
use testkit::{lab, tool, vg};
use tonic::Code;

use crate::import::{import, volume};
use crate::old_bytes::Disk;
use crate::rig::{MIB, Rig};
use crate::survey::asked;

/// A disk with logical blocks of 4096 bytes, on part of the lab's second disk.
struct Large {
    path: PathBuf,
}

impl Large {
    fn make() -> Result<Self> {
        lab::require()?;
        let whole = text(&lab::disk(1)?);
        let size = (256 * MIB).to_string();
        // The offset keeps LVM labels on this device away from the label area of the lab's disk.
        let piece = ["--offset", "4194304", "--sizelimit", &size];
        let path = tool::run("losetup", &[&["--find", "--show", "--sector-size", "4096"], &piece[..], &[&whole]].concat())?;
        tool::settle()?;
        Ok(Self { path: path.trim().into() })
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        // Nothing is on it any more, or the test has failed and reported why.
        let _ = tool::run("wipefs", &["-qaf", &text(&self.path)]);
        let _ = tool::run("losetup", &["--detach", &text(&self.path)]);
    }
}

/// Adds the disk to the group. LVM needs an explicit setting for mixed block sizes.
fn add(rig: &mut Rig, large: &Large) -> Result<()> {
    let path = text(&large.path);
    vg::lvm(&["vgextend", "-qq", "-y", "--config", "devices/allow_mixed_block_sizes=1", &rig.vg.name, &path])?;
    rig.vg.disks.push(large.path.clone());
    tool::settle()?;
    // The driver pins the new disk when it first reads it.
    rig.csi().get_capacity(csi::GetCapacityRequest::default()).accepted("GetCapacity").map(drop)
}

/// Returns the block size of the filesystem that a pod sees, in bytes.
fn block_size(volume: &Volume, pod: &str) -> Result<String> {
    Ok(tool::run("stat", &["--file-system", "--format=%S", &text(&volume.target(pod))])?.trim().to_owned())
}

#[test]
fn nothing_in_use_grows_onto_a_disk_with_larger_blocks() -> Result<()> {
    let small = Disk::of_table("small", &format!("0 {} linear {} 8192", 120 << 11, lab::disk(0)?.display()))?;
    let large = Large::make()?;
    let mut rig = Rig::make_on(&[small.path()], None, &[])?;
    // Small devices used to get ext4 blocks of 1 KiB.
    vg::lvm(&["lvcreate", "-qq", "-y", "-Wn", "-L", "32m", "-n", "old", &rig.vg.name])?;
    tool::run("mkfs.ext4", &["-q", "-b", "1024", &text(&rig.vg.device("old"))])?;
    let (fine, said) = import(&rig, "old", &["--apply"])?;
    assert!(fine, "{said}");
    let mut old = volume(&rig, &said, mount("ext4", Mode::SingleNodeWriter))?;
    let mut new = rig.volume("linear", 16)?;
    let mut raw = rig.raw("linear", 16)?;
    for volume in [&mut old, &mut new, &mut raw] {
        volume.up("pod")?;
    }
    assert_eq!((block_size(&old, "pod")?.as_str(), block_size(&new, "pod")?.as_str()), ("1024", "4096"));
    for volume in [&old, &new] {
        fs::write(volume.target("pod").join("kept"), vec![7u8; 4 << 20]).map_err(Trouble::io("writing into a volume"))?;
    }
    // LVM could still grow the LV on the first disk, but the driver does not ask it to choose.
    add(&mut rig, &large)?;
    for volume in [&old, &new, &raw] {
        let message =
            rig.rejects(&[Code::OutOfRange], "growth", |csi| csi.controller_expand_volume(volume.expand_request(64 * MIB)))?;
        for word in ["4096", "512", "pvchange --allocatable n"] {
            assert!(message.contains(word), "{message}");
        }
    }
    let (well, said) = asked(&rig, &["doctor"])?;
    assert!(!well && said.contains("group labvg: its disks have logical blocks of 512 to 4096 bytes"), "{said}");

    // A new volume has the block size of all its disks from the beginning.
    let mut across = rig.volume("linear", 200)?;
    across.up("pod")?;
    across.down("pod")?;
    // With the large disk closed to allocation, the volume grows on the others.
    vg::lvm(&["pvchange", "-qq", "--allocatable", "n", &text(&large.path)])?;
    old.expand(48 * MIB, "pod")?;
    tool::drop_caches()?;
    for volume in [&old, &new] {
        assert_eq!(fs::read(volume.target("pod").join("kept")).unwrap_or_default(), vec![7u8; 4 << 20]);
    }
    // Nobody has used this volume yet.
    vg::lvm(&["pvchange", "-qq", "--allocatable", "y", &text(&large.path)])?;
    let idle = rig.with("linear", 16, block(Mode::SingleNodeWriter))?;
    rig.csi().controller_expand_volume(idle.expand_request(64 * MIB)).accepted("ControllerExpandVolume")?;
    idle.delete()?;
    for volume in [old, new, raw] {
        volume.down("pod")?;
    }
    rig.finish()
}
