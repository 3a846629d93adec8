//! NodeStageVolume and NodeUnstageVolume with filesystems.

use std::fs;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, block, create, mount, mount_with};
use testkit::error::{Result, Trouble};
use testkit::flow::{Volume, text};
use testkit::mounts::mount_at;
use testkit::tool;
use tonic::Code;

use crate::rig::{MIB, Rig};

fn tag(rig: &Rig, id: &str) -> Result<Vec<String>> {
    Ok(rig.vg.of_handle(id)?.tags.into_iter().filter(|tag| tag.starts_with("csi.fs=")).collect())
}

#[test]
fn the_first_stage_makes_the_filesystem_and_later_ones_keep_it() -> Result<()> {
    let rig = Rig::thin()?;
    for (pool, filesystem, mib) in [("linear", "ext4", 64), ("thin", "ext4", 64), ("thin", "xfs", 320)] {
        let mut volume = rig.with(pool, mib, mount(filesystem, Mode::SingleNodeWriter))?;
        assert_eq!(tag(&rig, &volume.id)?, [format!("csi.fs=formatting={filesystem}")]);
        assert!(!rig.vg.of_handle(&volume.id)?.active(), "a new volume has a device");
        volume.attach()?;
        volume.stage()?;
        assert_eq!(tag(&rig, &volume.id)?, [format!("csi.fs={filesystem}")]);
        let mounted = mount_at(&volume.staging())?.ok_or_else(|| Trouble::wrong("nothing is mounted"))?;
        assert_eq!(mounted.filesystem, filesystem);
        fs::write(volume.staging().join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
        for _ in 0..3 {
            rig.unchanged("staged again", || volume.stage())?;
        }
        volume.unstage()?;
        assert!(!rig.vg.of_handle(&volume.id)?.active(), "an unstaged volume has a device");
        rig.unchanged("unstaged again", || volume.unstage())?;
        volume.stage()?;
        let kept = fs::read_to_string(volume.staging().join("kept")).map_err(Trouble::io("reading from the volume"))?;
        assert_eq!(kept, "kept");
        volume.unstage()?;
        volume.detach()?;
        volume.delete()?;
    }
    rig.finish()?;
    covers!(4, 60, 66)
}

#[test]
fn a_staged_volume_is_not_staged_in_another_way() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.with("linear", 64, mount_with("ext4", Mode::SingleNodeWriter, &["noatime"]))?;
    volume.attach()?;
    volume.stage()?;
    let options = mount_at(&volume.staging())?.map(|mount| mount.options).unwrap_or_default();
    assert!(options.split(',').any(|option| option == "noatime"), "{options}");
    let with = |capability: csi::VolumeCapability| csi::NodeStageVolumeRequest {
        volume_capability: Some(capability),
        ..volume.stage_request()
    };
    for (what, capability) in [
        ("another filesystem", mount_with("xfs", Mode::SingleNodeWriter, &["noatime"])),
        ("other mount options", mount_with("ext4", Mode::SingleNodeWriter, &["nodev"])),
        ("block access", block(Mode::SingleNodeWriter)),
    ] {
        let codes = &[Code::AlreadyExists, Code::FailedPrecondition];
        rig.rejects(codes, &format!("staging with {what}"), |csi| csi.node_stage_volume(with(capability)))?;
    }
    volume.unstage()?;
    // A formatted volume keeps its filesystem.
    volume.make_staging()?;
    let codes = &[Code::FailedPrecondition, Code::InvalidArgument, Code::AlreadyExists];
    let other = with(mount("xfs", Mode::SingleNodeWriter));
    rig.rejects(codes, "another filesystem than the volume has", |csi| csi.node_stage_volume(other))?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(59, 60, 69)
}

#[test]
fn long_paths_and_two_staging_paths_of_one_volume_work() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    volume.attach()?;
    let long = rig.places.root.join("p".repeat(120)).join("q".repeat(120)).join("globalmount");
    let second = csi::NodeStageVolumeRequest { staging_target_path: text(&long), ..volume.stage_request() };
    fs::create_dir_all(&long).map_err(Trouble::io("making a long path"))?;
    volume.stage()?;
    rig.csi().node_stage_volume(second).accepted("NodeStageVolume")?;
    fs::write(long.join("seen"), "x").map_err(Trouble::io("writing into the volume"))?;
    assert!(volume.staging().join("seen").exists(), "two staging paths show two volumes");
    let target = volume.publish("pod")?;
    let unstage = |path: &Path| csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: text(path) };
    // One staging path goes. The other and the pod keep the volume.
    rig.csi().node_unstage_volume(unstage(&long)).accepted("NodeUnstageVolume")?;
    assert!(target.join("seen").exists() && volume.staging().join("seen").exists());
    assert!(mount_at(&long)?.is_none());
    fs::remove_dir_all(rig.places.root.join("p".repeat(120))).map_err(Trouble::io("removing the long path"))?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(9, 60, 67)
}

#[test]
fn unstaging_what_was_never_staged_is_ok() -> Result<()> {
    let rig = Rig::linear()?;
    let volume = rig.volume("linear", 64)?;
    let unstage =
        |id: &str| csi::NodeUnstageVolumeRequest { volume_id: id.to_owned(), staging_target_path: text(&volume.staging()) };
    rig.unchanged("unstaged", || rig.csi().node_unstage_volume(unstage(&volume.id)).accepted("NodeUnstageVolume"))?;
    rig.unchanged("unstaged", || rig.csi().node_unstage_volume(unstage("fake-vol-id")).accepted("NodeUnstageVolume"))?;
    volume.delete()?;
    rig.finish()?;
    covers!(66)
}

#[test]
fn a_stage_that_fails_for_good_is_undone() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    volume.attach()?;
    // Only the kernel knows that this value is invalid. It says so at the mount.
    let mut request = volume.stage_request();
    request.volume_capability = Some(mount_with("ext4", Mode::SingleNodeWriter, &["data=nonsense"]));
    volume.make_staging()?;
    let codes = &[Code::FailedPrecondition, Code::InvalidArgument, Code::AlreadyExists, Code::Internal];
    testkit::client::refused(rig.csi().node_stage_volume(request), codes, "a mount that the kernel refuses")?;
    assert!(!rig.vg.of_handle(&volume.id)?.active(), "the refused stage left a device");
    assert!(mount_at(&volume.staging())?.is_none(), "the refused stage left a mount");
    volume.stage()?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(22)
}

/// Takes the tag of a volume back to its state while mkfs runs.
fn begin_formatting(rig: &Rig, lv: &str, was: &str) -> Result<()> {
    let full = format!("{}/{lv}", rig.vg.name);
    let (old, new) = (format!("csi.fs={was}"), "csi.fs=formatting=ext4");
    testkit::vg::lvm(&["lvchange", "-qq", "--deltag", &old, "--addtag", new, &full]).map(drop)
}

#[test]
fn an_interrupted_mkfs_is_redone_and_a_finished_one_is_not() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let lv = rig.vg.of_handle(&volume.id)?.name;
    let zero = |device: &Path| {
        tool::run("dd", &["if=/dev/zero", &format!("of={}", text(device)), "bs=1M", "count=64", "status=none"]).map(drop)
    };
    volume.attach()?;

    // Power was lost before mkfs wrote anything.
    rig.vg.with_active(&lv, zero)?;
    volume.stage()?;
    assert_eq!(tag(&rig, &volume.id)?, ["csi.fs=ext4"]);
    volume.unstage()?;

    // The filesystem was mounted meanwhile, so it is not made again, whatever the tag says.
    begin_formatting(&rig, &lv, "ext4")?;
    refused_and_undone(&rig, &volume, "a filesystem that was mounted")?;

    // Power was lost after mkfs had ended: nobody has used this filesystem, and the node has no record of anybody using it.
    rig.driver.stop()?;
    let records = rig.driver.start().state().join("exposed");
    fs::remove_dir_all(&records).map_err(Trouble::io("removing the records of what was shown"))?;
    rig.driver.restart()?;
    let volume = volume.through(rig.csi());
    let uuid = rig.vg.with_active(&lv, |device| tool::run("blkid", &["-p", "-s", "UUID", "-o", "value", &text(device)]))?;
    let uuid = uuid.trim();
    rig.vg.with_active(&lv, |device| tool::run("mkfs.ext4", &["-q", "-F", "-U", uuid, &text(device)]).map(drop))?;
    volume.stage()?;
    assert_eq!(tag(&rig, &volume.id)?, ["csi.fs=ext4"]);
    volume.unstage()?;

    // A filesystem of somebody else stays under the same tag: by the record of use, and by the record that mkfs began.
    begin_formatting(&rig, &lv, "ext4")?;
    rig.vg.with_active(&lv, |device| tool::run("mkfs.ext4", &["-q", "-F", &text(device)]).map(drop))?;
    let refused = refused_and_undone(&rig, &volume, "a filesystem with another UUID")?;
    assert!(refused.contains("used it as ext4"), "{refused}");
    rig.driver.stop()?;
    let record = record_of(&records)?;
    let begun = record.to_string_lossy().replace(".ext4.", ".formatting=ext4.");
    fs::rename(&record, begun).map_err(Trouble::io("putting the record back to where mkfs begins"))?;
    rig.driver.restart()?;
    let volume = volume.through(rig.csi());
    let refused = refused_and_undone(&rig, &volume, "a filesystem with another UUID where mkfs began")?;
    assert!(refused.contains("began and did not finish"), "{refused}");
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(59)
}

/// The one file in the directory of records.
fn record_of(records: &Path) -> Result<std::path::PathBuf> {
    let mut files = fs::read_dir(records).map_err(Trouble::io("listing the records"))?;
    let file = files.next().ok_or_else(|| Trouble::wrong("there is no record"))?.map_err(Trouble::io("reading a record"))?;
    Ok(file.path())
}

/// Fails unless staging is refused with a final error and leaves nothing behind. Returns the error.
fn refused_and_undone(rig: &Rig, volume: &Volume, what: &str) -> Result<String> {
    volume.make_staging()?;
    let before = tag(rig, &volume.id)?;
    let answer = rig.csi().node_stage_volume(volume.stage_request());
    let said = testkit::client::refused(answer, &[Code::FailedPrecondition, Code::Internal], what)?;
    assert_eq!(tag(rig, &volume.id)?, before);
    assert!(!rig.vg.of_handle(&volume.id)?.active(), "the refused stage left a device");
    volume.unstage()?;
    Ok(said)
}

#[test]
fn usage_is_told_for_the_path_and_nothing_else() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let target = volume.up("pod")?;
    let usage = volume.stats("pod")?;
    let bytes = usage.iter().find(|u| u.unit == csi::volume_usage::Unit::Bytes as i32).cloned().unwrap_or_default();
    assert!(bytes.total > 0 && bytes.used > 0 && bytes.available > 0, "{usage:?}");
    let inodes = usage.iter().find(|u| u.unit == csi::volume_usage::Unit::Inodes as i32).cloned().unwrap_or_default();
    assert!(inodes.total > 0, "{usage:?}");
    let ask = |id: &str, path: &str| csi::NodeGetVolumeStatsRequest {
        volume_id: id.to_owned(),
        volume_path: path.to_owned(),
        ..Default::default()
    };
    for (what, request) in [
        ("a relative path", ask(&volume.id, "some/path")),
        ("a path that does not show the volume", ask(&volume.id, "/")),
        ("a path that is not there", ask(&volume.id, "/nowhere")),
        ("an unknown volume", ask("fake-vol-id", &text(&target))),
    ] {
        rig.rejects(&[Code::NotFound], what, |csi| csi.node_get_volume_stats(request))?;
    }
    // A device that does not answer does not delay the call.
    let dm = format!("{}-{}", rig.vg.name, rig.vg.of_handle(&volume.id)?.name.replace('-', "--"));
    tool::run("dmsetup", &["suspend", "--nolockfs", "--noflush", &dm])?;
    let quick = rig.csi().deadline(std::time::Duration::from_secs(20));
    let answer = quick.node_get_volume_stats(ask(&volume.id, &text(&target)));
    tool::run("dmsetup", &["resume", &dm])?;
    if let Err(status) = answer {
        assert_ne!(status.code(), Code::DeadlineExceeded, "the call hung: {status:?}");
        assert_ne!(status.code(), Code::Cancelled, "the call hung: {status:?}");
    }
    volume.down("pod")?;
    rig.finish()?;
    covers!(71)
}

#[test]
fn the_default_filesystem_is_made_where_none_is_named() -> Result<()> {
    let rig = Rig::linear()?;
    let name = rig.name();
    let mut volume = rig.request(create(&name, "linear", 64 * MIB, mount("", Mode::SingleNodeWriter)))?;
    volume.attach()?;
    volume.stage()?;
    assert_eq!(mount_at(&volume.staging())?.map(|mount| mount.filesystem).as_deref(), Some("ext4"));
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()
}
