//! Recovery from the driver's own copies of the metadata, step by step as in docs/recovery.md.

use std::fs;
use std::path::{Path, PathBuf};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{block, mount, refused};
use testkit::driver::Start;
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, text};
use testkit::signature::write_at;
use testkit::vg::lvm;
use testkit::{lab, tool};
use tonic::Code;

use crate::rig::{DRIVER, LIMIT, Rig};

/// Restarts the driver with metadata copies. Returns how it starts without them, and the directory of the copies.
fn keeping(rig: &mut Rig) -> Result<(Start, PathBuf)> {
    let without = rig.driver.start().clone();
    let dir = without.state().join("metadata").join(&rig.vg.uuid);
    rig.driver.stop()?;
    rig.driver = Start { copy_minutes: 60, ..without.clone() }.start()?;
    tool::wait("the first copy", LIMIT, || Ok((!copies(&dir).is_empty()).then_some(())))?;
    Ok((without, dir))
}

/// Returns the copies in a directory, oldest first.
fn copies(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries.map(|entry| text(&entry.path())).filter(|path| path.ends_with(".vg")).collect();
    found.sort();
    found
}

/// Waits for the copy of the current metadata and returns it.
fn newest(rig: &Rig, dir: &Path) -> Result<String> {
    let end = format!("-{}.vg", rig.vg.seqno()?);
    tool::wait("a copy of the last commit", LIMIT, || Ok(copies(dir).pop().filter(|path| path.ends_with(&end))))
}

/// Kills the driver and wipes the metadata areas of the disks. Returns the PVs with their UUIDs.
fn lose_metadata(rig: &mut Rig) -> Result<Vec<(String, String)>> {
    rig.driver.kill()?;
    let pvs = lvm(&["pvs", "--noheadings", "-o", "pv_name,pv_uuid"])?;
    lvm(&["vgchange", "-qq", "-an", &rig.vg.name])?;
    for disk in &rig.vg.disks {
        tool::run("dd", &["if=/dev/zero", &format!("of={}", disk.display()), "bs=1M", "count=4", "conv=fsync"])?;
        tool::run("udevadm", &["trigger", "--settle", "--name-match", &disk.to_string_lossy()])?;
    }
    ensure(!lvm(&["vgs"])?.contains(&rig.vg.name), || "the group still exists".to_owned())?;
    let pair = |line: &str| line.trim().split_once(' ').map(|(disk, uuid)| (disk.to_owned(), uuid.trim().to_owned()));
    Ok(pvs.lines().filter_map(pair).collect())
}

/// Follows the steps of docs/recovery.md. Returns the comments of the prepared text.
fn way_back(rig: &Rig, pvs: &[(String, String)], copy: &str) -> Result<String> {
    for (disk, uuid) in pvs {
        lvm(&["pvcreate", "-qq", "-y", "--uuid", uuid, "--restorefile", copy, disk])?;
    }
    if pvs.is_empty() {
        lvm(&["vgchange", "-qq", "-an", &rig.vg.name])?;
    }
    tool::settle()?;
    let prepared = Path::new(lab::ROOT).join("prepared.vg");
    let made = tool::run(DRIVER, &["prepare-metadata", copy])?;
    fs::write(&prepared, &made).map_err(Trouble::io("writing the prepared text"))?;
    let prepared = text(&prepared);
    lvm(&["vgcfgrestore", "--test", "-y", "--force", "-f", &prepared, &rig.vg.name])?;
    lvm(&["vgcfgrestore", "-qq", "-y", "--force", "-f", &prepared, &rig.vg.name])?;
    lvm(&["vgck", &rig.vg.name])?;
    Ok(made.lines().filter(|line| line.starts_with("# lvm-csi: ")).collect::<Vec<_>>().join("\n"))
}

/// Removes the copies and the records of volumes that could come back with them, so that the account of the machine matches.
fn remove_copies(start: &Start) -> Result<()> {
    remove_records(start)?;
    fs::remove_dir_all(start.state().join("metadata")).map_err(Trouble::io("removing the copies of the metadata"))
}

/// Removes the records of volumes that were shown. Returns how many there were.
fn remove_records(start: &Start) -> Result<usize> {
    let records = fs::read_dir(start.state().join("exposed")).map_err(Trouble::io("listing the records"))?;
    let records: Vec<_> = records.flatten().map(|record| record.path()).collect();
    records.iter().try_for_each(fs::remove_file).map_err(Trouble::io("removing a record"))?;
    Ok(records.len())
}

/// Publishes a volume, writes into it and detaches it.
fn used(volume: &mut Volume, kept: &str) -> Result<()> {
    let target = volume.up("pod")?;
    if target.is_dir() {
        fs::write(target.join("kept"), kept).map_err(Trouble::io("writing into the volume"))?;
    } else {
        write_at(&target, 4096, kept.as_bytes())?;
    }
    volume.unpublish("pod")?;
    volume.unstage()?;
    volume.detach()
}

/// Returns what was written into a published volume.
fn kept(target: &Path, length: usize) -> Result<String> {
    if target.is_dir() {
        return Ok(fs::read_to_string(target.join("kept")).unwrap_or_default());
    }
    tool::run("sh", &["-c", &format!("dd if={} bs=1 skip=4096 count={length} status=none | tr '\\0' '.'", target.display())])
}

#[test]
fn a_group_whose_metadata_are_lost_comes_back_from_the_copies() -> Result<()> {
    let disks = [lab::disk(0)?, lab::disk(1)?];
    let mut rig = Rig::make_on(&disks, Some(128), &[])?;
    let (start, dir) = keeping(&mut rig)?;
    let mut volumes = vec![rig.volume("linear", 32)?, rig.volume("thin", 32)?];
    for volume in &mut volumes {
        used(volume, "kept")?;
    }
    // There is a copy of the last commit, but not one for each commit of a burst.
    let copy = newest(&rig, &dir)?;
    let pvs = lose_metadata(&mut rig)?;
    let said = way_back(&rig, &pvs, &copy)?;
    assert_eq!(said, "", "the newest copy needs no correction");
    rig.driver = start.start()?;
    for volume in &volumes {
        let mut volume = volume.through(rig.csi());
        let target = volume.up("pod")?;
        assert_eq!(kept(&target, 4)?, "kept");
        volume.down("pod")?;
    }
    remove_copies(&start)?;
    rig.finish()
}

#[test]
fn older_metadata_do_not_wipe_a_filesystem() -> Result<()> {
    older_metadata("linear", 64, mount("ext4", Mode::SingleNodeWriter))?;
    older_metadata("thin", 320, mount("xfs", Mode::SingleNodeWriter))
}

#[test]
fn older_metadata_do_not_zero_a_raw_linear_volume() -> Result<()> {
    older_metadata("linear", 64, block(Mode::SingleNodeWriter))
}

/// Goes back to a copy from before a volume's first stage, and then to the newest one.
fn older_metadata(pool: &str, mib: u64, capability: csi::VolumeCapability) -> Result<()> {
    let mut rig = if pool == "thin" { Rig::thin()? } else { Rig::linear()? };
    let is_mounted = matches!(capability.access_type, Some(csi::volume_capability::AccessType::Mount(_)));
    let volume = rig.with(pool, mib, capability)?;
    let (start, dir) = keeping(&mut rig)?;
    let mut volume = volume.through(rig.csi());
    used(&mut volume, "stays")?;
    let last = newest(&rig, &dir)?;
    let first = copies(&dir).swap_remove(0);
    ensure(first != last, || "the test needs an older copy".to_owned())?;
    let pvs = lose_metadata(&mut rig)?;
    way_back(&rig, &pvs, &first)?;
    let unused = if is_mounted {
        format!("csi.fs=formatting={}", if pool == "thin" { "xfs" } else { "ext4" })
    } else {
        "csi.fs=blank".to_owned()
    };
    ensure(rig.vg.of_handle(&volume.id)?.tags.contains(&unused), || "the copy was made after the first stage".to_owned())?;
    let refusal = |rig: &Rig| -> Result<String> {
        let mut volume = volume.through(rig.csi());
        volume.attach()?;
        volume.make_staging()?;
        let staged = rig.csi().node_stage_volume(volume.stage_request());
        let said = refused(staged, &[Code::FailedPrecondition], "staging with metadata older than the data")?;
        volume.detach()?;
        Ok(said)
    };
    rig.driver = start.start()?;
    let said = refusal(&rig)?;
    ensure(said.contains("older than its data") && said.contains("lvchange --deltag"), || format!("the message is {said}"))?;
    if is_mounted {
        // Without the record, the driver refuses because of the filesystem itself.
        rig.driver.stop()?;
        assert_eq!(remove_records(&start)?, 1);
        rig.driver = start.start()?;
        let said = refusal(&rig)?;
        ensure(said.contains("made for this very volume") && said.contains("which was mounted"), || {
            format!("the message is {said}")
        })?;
    }
    rig.driver.kill()?;
    way_back(&rig, &[], &last)?;
    rig.driver = start.start()?;
    let mut volume = volume.through(rig.csi());
    let target = volume.up("pod")?;
    let found = kept(&target, 5)?;
    ensure(found == "stays", || format!("the data is gone: {found:?}"))?;
    volume.down("pod")?;
    remove_copies(&start)?;
    rig.finish()
}

/// The copy is from before one thin volume was made and another was removed. The new volume has the removed one's device number in
/// the pool.
#[test]
fn the_way_back_works_when_a_thin_volume_was_made_since_the_newest_copy() -> Result<()> {
    let mut rig = Rig::thin()?;
    let mut first = rig.volume("thin", 64)?;
    used(&mut first, "kept")?;
    let mut removed = rig.volume("thin", 64)?;
    used(&mut removed, "removed")?;
    let (start, dir) = keeping(&mut rig)?;
    let copy = copies(&dir).swap_remove(0);
    removed.through(rig.csi()).delete()?;
    let mut secret = rig.volume("thin", 64)?;
    used(&mut secret, "secret of another tenant")?;
    let pvs = lose_metadata(&mut rig)?;
    let said = way_back(&rig, &pvs, &copy)?;
    for part in [format!("LV {} (device", removed.lv()), "another's now".to_owned(), "lost-pool-".to_owned()] {
        ensure(said.contains(&part), || format!("the comments lack {part:?}: {said}"))?;
    }
    rig.driver = start.start()?;
    let mut first = first.through(rig.csi());
    let target = first.up("pod")?;
    assert_eq!(kept(&target, 4)?, "kept");
    // The removed volume does not come back as the volume that has its number now.
    let gone = removed.through(rig.csi()).attach_request();
    refused(rig.csi().controller_publish_volume(gone), &[Code::NotFound], "attaching a volume that was removed")?;
    // The volume made since is kept for a person, and the pool makes new ones.
    let lost = rig.vg.lvs()?.into_iter().find(|lv| lv.name.starts_with("lost-pool-"));
    let lost = lost.ok_or_else(|| Trouble::wrong("the volume made since the copy is lost"))?.name;
    rig.vg.with_active(&lost, |device| {
        let found = tool::run("sh", &["-c", &format!("grep -ac 'secret of another tenant' {} || true", device.display())])?;
        ensure(found.trim() != "0", || "the data of the volume made since the copy is gone".to_owned())
    })?;
    rig.volume("thin", 64)?.delete()?;
    lvm(&["lvremove", "-qq", "-y", &format!("{}/{lost}", rig.vg.name)])?;
    first.down("pod")?;
    remove_copies(&start)?;
    rig.finish()
}
