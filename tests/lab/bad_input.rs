//! Requests that must be refused before any effect.

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{block, create, mount, mount_with, refused};
use testkit::error::Result;
use testkit::flow::Volume;
use tonic::Code;

use crate::rig::{MIB, Rig};

fn ext4() -> csi::VolumeCapability {
    mount("ext4", Mode::SingleNodeWriter)
}

/// Sends requests that each lack one field. Fails unless each is refused with the field's name.
fn lack_fields(rig: &Rig, volume: &Volume) -> Result<()> {
    let codes = &[Code::InvalidArgument];
    let name = |field: &str, message: String| assert!(message.contains(field), "{message:?} does not name {field}");
    let csi = rig.csi();

    let good = create(&rig.name(), "thin", 16 * MIB, ext4());
    let request = csi::CreateVolumeRequest { name: String::new(), ..good.clone() };
    name("name", refused(csi.create_volume(request), codes, "CreateVolume")?);
    let request = csi::CreateVolumeRequest { volume_capabilities: vec![], ..good };
    name("volume_capabilities", refused(csi.create_volume(request), codes, "CreateVolume")?);
    name("volume_id", refused(csi.delete_volume(Default::default()), codes, "DeleteVolume")?);
    name("volume_id", refused(csi.controller_publish_volume(Default::default()), codes, "ControllerPublishVolume")?);
    let request = csi::ControllerPublishVolumeRequest { node_id: String::new(), ..volume.attach_request() };
    name("node_id", refused(csi.controller_publish_volume(request), codes, "ControllerPublishVolume")?);
    let request = csi::ControllerPublishVolumeRequest { volume_capability: None, ..volume.attach_request() };
    name("volume_capability", refused(csi.controller_publish_volume(request), codes, "ControllerPublishVolume")?);
    name("volume_id", refused(csi.controller_unpublish_volume(Default::default()), codes, "ControllerUnpublishVolume")?);
    name("volume_id", refused(csi.validate_volume_capabilities(Default::default()), codes, "ValidateVolumeCapabilities")?);
    let request = csi::CreateSnapshotRequest { name: "s".to_owned(), ..Default::default() };
    name("source_volume_id", refused(csi.create_snapshot(request), codes, "CreateSnapshot")?);
    name("snapshot_id", refused(csi.delete_snapshot(Default::default()), codes, "DeleteSnapshot")?);
    name("volume_id", refused(csi.controller_expand_volume(Default::default()), codes, "ControllerExpandVolume")?);

    let stage = volume.stage_request();
    let request = csi::NodeStageVolumeRequest { volume_id: String::new(), ..stage.clone() };
    name("volume_id", refused(csi.node_stage_volume(request), codes, "NodeStageVolume")?);
    let request = csi::NodeStageVolumeRequest { staging_target_path: String::new(), ..stage.clone() };
    name("staging_target_path", refused(csi.node_stage_volume(request), codes, "NodeStageVolume")?);
    let request = csi::NodeStageVolumeRequest { volume_capability: None, ..stage };
    name("volume_capability", refused(csi.node_stage_volume(request), codes, "NodeStageVolume")?);
    name("volume_id", refused(csi.node_unstage_volume(Default::default()), codes, "NodeUnstageVolume")?);
    let request = csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    name("staging_target_path", refused(csi.node_unstage_volume(request), codes, "NodeUnstageVolume")?);

    let publish = volume.publish_request("pod");
    let request = csi::NodePublishVolumeRequest { volume_id: String::new(), ..publish.clone() };
    name("volume_id", refused(csi.node_publish_volume(request), codes, "NodePublishVolume")?);
    let request = csi::NodePublishVolumeRequest { target_path: String::new(), ..publish.clone() };
    name("target_path", refused(csi.node_publish_volume(request), codes, "NodePublishVolume")?);
    let request = csi::NodePublishVolumeRequest { volume_capability: None, ..publish };
    name("volume_capability", refused(csi.node_publish_volume(request), codes, "NodePublishVolume")?);
    name("volume_id", refused(csi.node_unpublish_volume(Default::default()), codes, "NodeUnpublishVolume")?);
    let request = csi::NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    name("target_path", refused(csi.node_unpublish_volume(request), codes, "NodeUnpublishVolume")?);
    name("volume_id", refused(csi.node_get_volume_stats(Default::default()), codes, "NodeGetVolumeStats")?);
    let request = csi::NodeGetVolumeStatsRequest { volume_id: volume.id.clone(), ..Default::default() };
    name("volume_path", refused(csi.node_get_volume_stats(request), codes, "NodeGetVolumeStats")?);
    name("volume_id", refused(csi.node_expand_volume(Default::default()), codes, "NodeExpandVolume")?);
    Ok(())
}

#[test]
fn every_missing_field_is_named() -> Result<()> {
    let rig = Rig::thin()?;
    let mut volume = rig.volume("thin", 16)?;
    volume.attach()?;
    volume.make_staging()?;
    // Compare the machine once for all of these requests: there are many.
    rig.unchanged("requests that lack a required field", || lack_fields(&rig, &volume))?;

    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(1, 7)
}

#[test]
fn an_id_of_any_shape_is_unknown_and_never_invalid() -> Result<()> {
    let rig = Rig::thin()?;
    let uuid = rig.vg.uuid.clone();
    let mut volume = rig.volume("linear", 16)?;
    volume.attach()?;
    let shapes = [
        "fake-vol-id".to_owned(),
        "/".to_owned(),
        "a/b/c".to_owned(),
        "../../../etc/passwd".to_owned(),
        "-y".to_owned(),
        "@tag".to_owned(),
        "größe".to_owned(),
        uuid.clone(),
        format!("{uuid}/"),
        format!("{uuid}/-y"),
        format!("{uuid}/../x"),
        format!("{uuid}/{}", "x".repeat(80)),
        format!("{}/pvc-1", "x".repeat(38)),
    ];
    volume.make_staging()?;
    volume.make_parent("pod")?;
    for id in shapes {
        // Compare the machine once for all of these requests: there are many.
        rig.unchanged(&format!("calls with the id {id:?}"), || {
            let csi = rig.csi();
            let unknown = |call: &str, answer| refused(answer, &[Code::NotFound], &format!("{call} of {id:?}")).map(drop);
            let request = csi::ControllerPublishVolumeRequest { volume_id: id.clone(), ..volume.attach_request() };
            unknown("ControllerPublishVolume", csi.controller_publish_volume(request).map(drop))?;
            let request = csi::NodeStageVolumeRequest { volume_id: id.clone(), ..volume.stage_request() };
            unknown("NodeStageVolume", csi.node_stage_volume(request).map(drop))?;
            let request = csi::NodePublishVolumeRequest { volume_id: id.clone(), ..volume.publish_request("pod") };
            unknown("NodePublishVolume", csi.node_publish_volume(request).map(drop))?;
            let request = csi::ControllerExpandVolumeRequest { volume_id: id.clone(), ..volume.expand_request(64 * MIB) };
            unknown("ControllerExpandVolume", csi.controller_expand_volume(request).map(drop))?;
            let request = csi::CreateSnapshotRequest { source_volume_id: id.clone(), name: "s".to_owned(), ..Default::default() };
            unknown("CreateSnapshot", csi.create_snapshot(request).map(drop))
        })?;
    }
    volume.unpublish("pod")?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(1)
}

#[test]
fn what_is_too_long_is_refused() -> Result<()> {
    let rig = Rig::linear()?;
    let good = create(&rig.name(), "linear", 16 * MIB, ext4());
    let mut parameters = good.clone();
    parameters.parameters.insert("colour".to_owned(), "x".repeat(5000));
    rig.rejects(&[Code::InvalidArgument], "parameters beyond 4 KiB", |csi| csi.create_volume(parameters))?;
    let flag = "x".repeat(5000);
    let mut flags = good;
    flags.volume_capabilities = vec![mount_with("ext4", Mode::SingleNodeWriter, &[&flag])];
    rig.rejects(&[Code::InvalidArgument], "mount options beyond 4 KiB", |csi| csi.create_volume(flags))?;
    let codes = &[Code::NotFound, Code::InvalidArgument];
    let request = csi::ControllerGetVolumeRequest { volume_id: "x".repeat(200) };
    rig.rejects(codes, "an id beyond 128 bytes", |csi| csi.controller_get_volume(request))?;
    let mut volume = rig.volume("linear", 16)?;
    volume.attach()?;
    let mut request = volume.stage_request();
    request.staging_target_path = format!("/{}", "x/".repeat(3000));
    rig.rejects(&[Code::InvalidArgument, Code::FailedPrecondition], "a path beyond PATH_MAX", |csi| {
        csi.node_stage_volume(request)
    })?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(9)
}

#[test]
fn secrets_and_tokens_are_written_nowhere() -> Result<()> {
    const SECRET: &str = "c0rrect-h0rse-battery";
    let rig = Rig::linear()?;
    let secrets = || testkit::client::map(&[("passphrase", SECRET)]);
    let mut request = create(&rig.name(), "linear", 16 * MIB, ext4());
    request.secrets = secrets();
    let mut volume = rig.request(request.clone())?;
    request.parameters.insert("colour".to_owned(), "red".to_owned());
    let mut messages = vec![rig.rejects(&[Code::InvalidArgument], "an unknown parameter", |csi| csi.create_volume(request))?];
    volume.attach()?;
    volume.make_staging()?;
    let mut stage = volume.stage_request();
    stage.secrets = secrets();
    stage.volume_capability = Some(block(Mode::Unknown));
    let codes = &[Code::InvalidArgument, Code::FailedPrecondition];
    messages.push(rig.rejects(codes, "an unknown access mode", |csi| csi.node_stage_volume(stage))?);
    volume.context.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), format!("{{\"\":{{\"token\":\"{SECRET}\"}}}}"));
    volume.stage()?;
    volume.publish("pod")?;
    volume.down("pod")?;
    let log = rig.driver.log()?;
    assert!(!log.contains(SECRET), "the log contains a secret");
    assert!(!messages.iter().any(|message| message.contains(SECRET)), "{messages:?}");
    let ran = testkit::shim::executions()?;
    assert!(!ran.iter().any(|one| one.arguments.contains(SECRET)), "an argument of lvm contains a secret");
    rig.finish()?;
    covers!(7, 8)
}
