//! NodePublishVolume and NodeUnpublishVolume: which targets they accept, in which state.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, mount};
use testkit::error::{Result, Trouble};
use testkit::flow::{Volume, text};
use testkit::mounts::mount_at;
use testkit::tool;
use tonic::Code;

use crate::rig::Rig;

fn unpublish(volume: &Volume, target: &Path) -> csi::NodeUnpublishVolumeRequest {
    csi::NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: text(target) }
}

#[test]
fn the_table_of_second_publications_holds() -> Result<()> {
    let rig = Rig::linear()?;
    for (mode, second_target) in [
        (Mode::SingleNodeWriter, None),
        (Mode::SingleNodeMultiWriter, None),
        (Mode::SingleNodeSingleWriter, Some(Code::FailedPrecondition)),
    ] {
        let mut volume = rig.with("linear", 32, mount("ext4", mode))?;
        volume.up("pod-1")?;
        rig.unchanged("published again", || volume.publish("pod-1"))?;
        let mut readonly = volume.publish_request("pod-1");
        readonly.readonly = true;
        rig.rejects(&[Code::AlreadyExists], "the same target, read-only", |csi| csi.node_publish_volume(readonly))?;
        volume.make_parent("pod-2")?;
        match second_target {
            None => {
                volume.publish("pod-2")?;
                volume.unpublish("pod-2")?;
            }
            Some(code) => {
                rig.rejects(&[code], "a second target", |csi| csi.node_publish_volume(volume.publish_request("pod-2")))?;
                fs::remove_dir_all(volume.target("pod-2").ancestors().nth(3).unwrap_or(Path::new("/nowhere")))
                    .map_err(Trouble::io("removing the second pod's directory"))?;
            }
        }
        let mut other = volume.publish_request("pod-1");
        other.volume_capability = Some(mount("xfs", mode));
        let codes = &[Code::FailedPrecondition, Code::AlreadyExists];
        rig.rejects(codes, "another capability", |csi| csi.node_publish_volume(other))?;
        volume.down("pod-1")?;
    }
    rig.finish()?;
    covers!(61)
}

#[test]
fn without_a_staging_path_or_a_staged_volume_nothing_is_published() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 32)?;
    volume.attach()?;
    volume.make_parent("pod")?;
    let mut request = volume.publish_request("pod");
    request.staging_target_path.clear();
    rig.rejects(&[Code::FailedPrecondition], "no staging path", |csi| csi.node_publish_volume(request))?;
    let request = volume.publish_request("pod");
    rig.rejects(&[Code::FailedPrecondition], "a volume that is not staged", |csi| csi.node_publish_volume(request))?;
    volume.unpublish("pod")?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(62)
}

#[test]
fn a_readonly_publication_cannot_be_written() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 32)?;
    volume.attach()?;
    volume.stage()?;
    volume.make_parent("pod")?;
    let mut request = volume.publish_request("pod");
    request.readonly = true;
    for _ in 0..3 {
        rig.csi().node_publish_volume(request.clone()).accepted("NodePublishVolume")?;
    }
    let target = volume.target("pod");
    let options = mount_at(&target)?.map(|mount| mount.options).unwrap_or_default();
    assert!(options.split(',').any(|option| option == "ro"), "{options}");
    assert!(fs::write(target.join("file"), "x").is_err(), "a read-only target was written");
    fs::write(volume.staging().join("file"), "x").map_err(Trouble::io("writing at the staging path"))?;
    rig.rejects(&[Code::AlreadyExists], "the same target, writable", |csi| {
        csi.node_publish_volume(volume.publish_request("pod"))
    })?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(63)
}

#[test]
fn unpublishing_removes_whatever_is_left_of_a_target() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 32)?;
    volume.attach()?;
    volume.stage()?;
    fs::write(volume.staging().join("precious"), "x").map_err(Trouble::io("writing into the volume"))?;
    let target = volume.target("pod");
    let gone = |what: &str| -> Result<()> {
        rig.csi().node_unpublish_volume(unpublish(&volume, &target)).accepted("NodeUnpublishVolume")?;
        assert!(fs::symlink_metadata(&target).is_err(), "{what}: the target still exists");
        assert!(volume.staging().join("precious").exists(), "{what}: the volume's data is gone");
        Ok(())
    };
    volume.make_parent("pod")?;
    gone("missing")?;
    fs::create_dir(&target).map_err(Trouble::io("making a directory"))?;
    gone("an empty directory")?;
    fs::write(&target, "").map_err(Trouble::io("making a file"))?;
    gone("an empty file")?;
    volume.publish("pod")?;
    tool::run("mount", &["--bind", &text(&volume.staging()), &text(&target)])?;
    gone("mounted twice")?;
    volume.publish("pod")?;
    gone("published")?;
    gone("published no more")?;
    let unknown = csi::NodeUnpublishVolumeRequest { volume_id: "fake-vol-id".to_owned(), target_path: text(&target) };
    rig.unchanged("an unknown volume was unpublished", || {
        rig.csi().node_unpublish_volume(unknown).accepted("NodeUnpublishVolume")
    })?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(65, 66)
}

#[test]
fn a_target_that_is_something_else_is_left_alone() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 32)?;
    volume.attach()?;
    volume.stage()?;
    volume.make_parent("pod")?;
    let target = volume.target("pod");
    let publish = |path: &str| csi::NodePublishVolumeRequest { target_path: path.to_owned(), ..volume.publish_request("pod") };
    let codes = &[Code::InvalidArgument, Code::FailedPrecondition];
    for path in ["relative/path", "/", "/run/../run/x", "/run/a\0b"] {
        rig.rejects(codes, &format!("the target {path:?}"), |csi| csi.node_publish_volume(publish(path)))?;
    }

    let elsewhere = rig.places.root.join("elsewhere");
    fs::create_dir_all(&elsewhere).map_err(Trouble::io("making a directory"))?;
    fs::write(elsewhere.join("precious"), "x").map_err(Trouble::io("writing a file"))?;
    symlink(&elsewhere, &target).map_err(Trouble::io("making a symlink"))?;
    rig.rejects(codes, "a target that is a symlink", |csi| csi.node_publish_volume(publish(&text(&target))))?;
    fs::remove_file(&target).map_err(Trouble::io("removing the symlink"))?;

    fs::create_dir(&target).map_err(Trouble::io("making a directory"))?;
    tool::run("mount", &["-t", "tmpfs", "other", &text(&target)])?;
    fs::write(target.join("precious"), "x").map_err(Trouble::io("writing a file"))?;
    let codes = &[Code::AlreadyExists, Code::FailedPrecondition];
    rig.rejects(codes, "a target with another mount", |csi| csi.node_publish_volume(publish(&text(&target))))?;
    let codes = &[Code::FailedPrecondition, Code::Internal];
    rig.rejects(codes, "unpublishing a mount of something else", |csi| csi.node_unpublish_volume(unpublish(&volume, &target)))?;
    assert!(target.join("precious").exists(), "another's mount was touched");
    tool::run("umount", &[&text(&target)])?;

    fs::write(target.join("precious"), "x").map_err(Trouble::io("writing a file"))?;
    rig.rejects(codes, "unpublishing a directory with files", |csi| csi.node_unpublish_volume(unpublish(&volume, &target)))?;
    fs::remove_dir_all(&target).map_err(Trouble::io("removing the directory"))?;
    fs::remove_dir_all(&elsewhere).map_err(Trouble::io("removing the directory"))?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(66)
}

#[test]
fn a_staging_path_that_is_something_else_is_left_alone() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 32)?;
    volume.attach()?;
    volume.make_staging()?;
    let staging = volume.staging();
    let stage = |path: &str| csi::NodeStageVolumeRequest { staging_target_path: path.to_owned(), ..volume.stage_request() };
    let codes = &[Code::InvalidArgument, Code::FailedPrecondition];
    for path in ["relative/path", "/", "/run/../run/x"] {
        rig.rejects(codes, &format!("the staging path {path:?}"), |csi| csi.node_stage_volume(stage(path)))?;
    }
    let link = rig.places.root.join("link");
    symlink(&staging, &link).map_err(Trouble::io("making a symlink"))?;
    rig.rejects(codes, "a staging path that is a symlink", |csi| csi.node_stage_volume(stage(&text(&link))))?;
    fs::remove_file(&link).map_err(Trouble::io("removing the symlink"))?;
    tool::run("mount", &["-t", "tmpfs", "other", &text(&staging)])?;
    let codes = &[Code::AlreadyExists, Code::FailedPrecondition];
    rig.rejects(codes, "a staging path with another mount", |csi| csi.node_stage_volume(stage(&text(&staging))))?;
    tool::run("umount", &[&text(&staging)])?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()
}

#[test]
fn a_refused_publication_leaves_a_target_that_was_there() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 32)?;
    volume.attach()?;
    let request = volume.publish_request("pod");
    volume.make_parent("pod")?;
    let target = volume.target("pod");
    fs::create_dir(&target).map_err(Trouble::io("making the target"))?;
    rig.rejects(&[Code::FailedPrecondition], "a volume that is not staged", |csi| csi.node_publish_volume(request))?;
    assert!(target.is_dir());
    fs::remove_dir(&target).map_err(Trouble::io("removing the target"))?;
    volume.down("pod")?;
    rig.finish()
}
