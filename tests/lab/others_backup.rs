//! The way back from the driver's own copies of the metadata, step by step as README.md tells it.

use std::fs;
use std::path::{Path, PathBuf};

use lvm_csi_hack::error::{Result, Trouble, ensure};
use lvm_csi_hack::vg::lvm;
use lvm_csi_hack::{lab, tool};

use crate::rig::{LIMIT, Rig};

/// The newest copy in a directory, and how many there are.
fn newest(dir: &Path) -> Result<(PathBuf, usize)> {
    let entries = fs::read_dir(dir).map_err(Trouble::io(format!("listing {}", dir.display())))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort();
    let count = found.len();
    found.pop().map(|path| (path, count)).ok_or_else(|| Trouble::wrong(format!("no copy in {}", dir.display())))
}

#[test]
fn a_group_whose_metadata_are_lost_comes_back_from_the_copies() -> Result<()> {
    let disks = [lab::disk(0)?, lab::disk(1)?];
    let mut rig = Rig::make_on(&disks, Some(128), &[])?;
    let mut start = rig.driver.start().clone();
    let dir = start.state().join("metadata").join(&rig.vg.uuid);
    rig.driver.stop()?;
    start.copy_minutes = 60;
    rig.driver = start.start()?;
    tool::wait("the first copy", LIMIT, || Ok(newest(&dir).is_ok().then_some(())))?;
    let mut volumes = vec![rig.volume("linear", 32)?, rig.volume("thin", 32)?];
    for volume in &mut volumes {
        let target = volume.up("pod")?;
        fs::write(target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.detach()?;
    }
    // One at the start, one at the end: not one for each of the changes between.
    ensure(newest(&dir)?.1 == 1, || "there is more than the first copy".to_owned())?;
    rig.driver.stop()?;
    let (copy, count) = newest(&dir)?;
    assert_eq!(count, 2);
    let copy = copy.to_string_lossy().into_owned();
    // LVM itself takes it for one of its own, and finds in it what is on the disks.
    let group = rig.vg.name.clone();
    lvm(&["vgcfgrestore", "--test", "-y", "--force", "-f", &copy, &group])?;
    let pvs = lvm(&["pvs", "--noheadings", "-o", "pv_name,pv_uuid"])?;
    lvm(&["vgchange", "-qq", "-an", &group])?;
    for disk in &disks {
        tool::run("dd", &["if=/dev/zero", &format!("of={}", disk.display()), "bs=1M", "count=4", "conv=fsync"])?;
        tool::run("udevadm", &["trigger", "--settle", "--name-match", &disk.to_string_lossy()])?;
    }
    ensure(!lvm(&["vgs"])?.contains(&group), || "the group is still there".to_owned())?;
    // The way back.
    for line in pvs.lines() {
        let Some((disk, uuid)) = line.trim().split_once(' ') else { continue };
        lvm(&["pvcreate", "-qq", "-y", "--uuid", uuid.trim(), "--restorefile", &copy, disk])?;
    }
    lvm(&["vgcfgrestore", "-qq", "-y", "--force", "-f", &copy, &group])?;
    start.copy_minutes = 0;
    rig.driver = start.start()?;
    for volume in &volumes {
        let mut volume = volume.through(rig.csi());
        let target = volume.up("pod")?;
        assert_eq!(fs::read_to_string(target.join("kept")).unwrap_or_default(), "kept");
        volume.down("pod")?;
    }
    let metadata = start.state().join("metadata");
    fs::remove_dir_all(metadata).map_err(Trouble::io("removing the copies of the metadata"))?;
    rig.finish()
}
