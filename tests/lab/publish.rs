//! ControllerPublishVolume and ControllerUnpublishVolume.

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, mount};
use testkit::error::Result;
use tonic::Code;

use crate::rig::Rig;

fn published(rig: &Rig, id: &str) -> Result<Vec<String>> {
    let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
    let answer = rig.csi().controller_get_volume(request).accepted("ControllerGetVolume")?;
    Ok(answer.status.unwrap_or_default().published_node_ids)
}

#[test]
fn an_attachment_has_one_context_for_as_long_as_it_lives() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    assert!(published(&rig, &volume.id)?.is_empty());
    volume.attach()?;
    let context = volume.publish.clone();
    assert!(!context.is_empty());
    assert_eq!(published(&rig, &volume.id)?, ["node-a"]);
    for _ in 0..3 {
        rig.unchanged("attached again", || volume.attach())?;
        assert_eq!(volume.publish, context);
    }
    // Neither growth nor a restart changes it.
    rig.csi().controller_expand_volume(volume.expand_request(96 << 20)).accepted("ControllerExpandVolume")?;
    rig.driver.kill()?;
    rig.driver.restart()?;
    let mut volume = volume.through(rig.csi());
    volume.attach()?;
    assert_eq!(volume.publish, context);
    volume.detach()?;
    assert!(published(&rig, &volume.id)?.is_empty());
    rig.unchanged("detached again", || volume.detach())?;
    // The next attachment is a new one with its own context.
    volume.attach()?;
    assert_ne!(volume.publish, context);
    volume.detach()?;
    volume.delete()?;
    rig.finish()
}

#[test]
fn what_does_not_fit_the_attachment_is_refused() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let request = |change: fn(&mut csi::ControllerPublishVolumeRequest)| {
        let mut request = volume.attach_request();
        change(&mut request);
        request
    };
    let unknown_node = request(|r| "node-z".clone_into(&mut r.node_id));
    let unknown_volume = request(|r| "fake-vol-id".clone_into(&mut r.volume_id));
    let no_capability = request(|r| r.volume_capability = None);
    let no_node = request(|r| r.node_id.clear());
    let no_volume = request(|r| r.volume_id.clear());
    let many = request(|r| r.volume_capability = Some(mount("ext4", Mode::MultiNodeMultiWriter)));
    let other_mode = request(|r| r.volume_capability = Some(mount("ext4", Mode::SingleNodeReaderOnly)));
    let readonly = request(|r| r.readonly = true);
    rig.rejects(&[Code::NotFound], "an unknown node", |csi| csi.controller_publish_volume(unknown_node))?;
    rig.rejects(&[Code::NotFound], "an unknown volume", |csi| csi.controller_publish_volume(unknown_volume))?;
    rig.rejects(&[Code::InvalidArgument], "no capability", |csi| csi.controller_publish_volume(no_capability))?;
    rig.rejects(&[Code::InvalidArgument], "no node", |csi| csi.controller_publish_volume(no_node))?;
    rig.rejects(&[Code::InvalidArgument], "no volume", |csi| csi.controller_publish_volume(no_volume))?;
    let codes = &[Code::InvalidArgument, Code::FailedPrecondition];
    rig.rejects(codes, "an access mode that is not offered", |csi| csi.controller_publish_volume(many))?;
    volume.attach()?;
    rig.rejects(&[Code::AlreadyExists], "another access mode", |csi| csi.controller_publish_volume(other_mode))?;
    rig.rejects(&[Code::AlreadyExists], "read-only", |csi| csi.controller_publish_volume(readonly))?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(1, 22)
}

#[test]
fn detaching_what_is_not_attached_is_ok() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let detach = |id: &str, node: &str| {
        let request =
            csi::ControllerUnpublishVolumeRequest { volume_id: id.to_owned(), node_id: node.to_owned(), ..Default::default() };
        rig.unchanged("detached what was not attached", || {
            rig.csi().controller_unpublish_volume(request).accepted("ControllerUnpublishVolume")
        })
    };
    detach("fake-vol-id", "node-a")?;
    detach(&volume.id, "node-a")?;
    detach(&volume.id, "node-z")?;
    detach(&volume.id, "")?;
    let nothing = csi::ControllerUnpublishVolumeRequest::default();
    rig.rejects(&[Code::InvalidArgument], "no volume", |csi| csi.controller_unpublish_volume(nothing))?;
    // An empty node ID means every node.
    volume.attach()?;
    let all = csi::ControllerUnpublishVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    rig.csi().controller_unpublish_volume(all).accepted("ControllerUnpublishVolume")?;
    assert!(published(&rig, &volume.id)?.is_empty());
    volume.delete()?;
    rig.finish()
}

/// Regression: a read-only publication did not check its attachment and activated the volume before it was refused.
#[test]
fn a_read_only_publication_under_a_stale_context_does_nothing() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.raw("linear", 64)?;
    volume.attach()?;
    let mut old = volume.publish_request("a");
    old.readonly = true;
    volume.detach()?;
    volume.attach()?;
    volume.make_staging()?;
    volume.make_parent("a")?;
    let what = "reading under an earlier attachment";
    rig.rejects(&[Code::FailedPrecondition], what, |csi| csi.node_publish_volume(old))?;
    volume.unpublish("a")?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()
}

#[test]
fn a_staged_volume_is_not_detached_and_a_stale_context_does_not_stage() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    volume.make_staging()?;
    rig.rejects(&[Code::InvalidArgument], "staging without a context", |csi| csi.node_stage_volume(volume.stage_request()))?;
    volume.attach()?;
    let old = volume.stage_request();
    volume.stage()?;
    let request = csi::ControllerUnpublishVolumeRequest {
        volume_id: volume.id.clone(),
        node_id: "node-a".to_owned(),
        ..Default::default()
    };
    let codes = &[Code::FailedPrecondition, Code::Aborted];
    rig.rejects(codes, "detaching a staged volume", |csi| csi.controller_unpublish_volume(request))?;
    volume.unstage()?;
    volume.detach()?;
    volume.make_staging()?;
    let codes = &[Code::FailedPrecondition];
    rig.rejects(codes, "staging without an attachment", |csi| csi.node_stage_volume(old.clone()))?;
    volume.attach()?;
    rig.rejects(codes, "the context of an earlier attachment", |csi| csi.node_stage_volume(old))?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()
}
