//! Makes every call three times in a row: it returns the same answer, and nothing changes after the first.

use std::fmt::Debug;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, Csi, block, create, from_snapshot, mount};
use testkit::error::Result;
use testkit::flow::text;
use tonic::Status;

use crate::rig::{MIB, Rig};

/// Calls three times and returns the first answer.
fn thrice<T: PartialEq + Debug>(
    rig: &Rig,
    name: &'static str,
    call: impl Fn(&Csi) -> std::result::Result<T, Status>,
) -> Result<T> {
    let first = call(rig.csi()).accepted(name)?;
    for _ in 0..2 {
        let again = rig.unchanged(&format!("{name} again"), || call(rig.csi()).accepted(name))?;
        assert_eq!(again, first, "{name}");
    }
    Ok(first)
}

fn whole_life(rig: &Rig, pool: &str, capability: &csi::VolumeCapability) -> Result<()> {
    let request = create(&rig.name(), pool, 64 * MIB, capability.clone());
    thrice(rig, "CreateVolume", |csi| csi.create_volume(request.clone()))?;
    let mut volume = rig.request(request)?;
    let attach = volume.attach_request();
    thrice(rig, "ControllerPublishVolume", |csi| csi.controller_publish_volume(attach.clone()))?;
    volume.attach()?;
    volume.make_staging()?;
    thrice(rig, "NodeStageVolume", |csi| csi.node_stage_volume(volume.stage_request()))?;
    volume.make_parent("pod")?;
    thrice(rig, "NodePublishVolume", |csi| csi.node_publish_volume(volume.publish_request("pod")))?;
    let grown = thrice(rig, "ControllerExpandVolume", |csi| csi.controller_expand_volume(volume.expand_request(128 * MIB)))?;
    volume.capacity = grown.capacity_bytes;
    thrice(rig, "NodeExpandVolume", |csi| csi.node_expand_volume(volume.node_expand_request("pod")))?;
    if pool == "thin" {
        let request =
            csi::CreateSnapshotRequest { source_volume_id: volume.id.clone(), name: "cut".to_owned(), ..Default::default() };
        let snapshot = thrice(rig, "CreateSnapshot", |csi| csi.create_snapshot(request.clone()))?.snapshot.unwrap_or_default();
        let mut restore = create(&rig.name(), pool, 128 * MIB, capability.clone());
        restore.volume_content_source = from_snapshot(&snapshot.snapshot_id);
        let restored = thrice(rig, "CreateVolume", |csi| csi.create_volume(restore.clone()))?.volume.unwrap_or_default();
        let delete = csi::DeleteVolumeRequest { volume_id: restored.volume_id, ..Default::default() };
        thrice(rig, "DeleteVolume", |csi| csi.delete_volume(delete.clone()))?;
        let delete = csi::DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
        thrice(rig, "DeleteSnapshot", |csi| csi.delete_snapshot(delete.clone()))?;
    }
    let unpublish = csi::NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: text(&volume.target("pod")) };
    thrice(rig, "NodeUnpublishVolume", |csi| csi.node_unpublish_volume(unpublish.clone()))?;
    let unstage = csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: text(&volume.staging()) };
    thrice(rig, "NodeUnstageVolume", |csi| csi.node_unstage_volume(unstage.clone()))?;
    let detach = csi::ControllerUnpublishVolumeRequest {
        volume_id: volume.id.clone(),
        node_id: "node-a".to_owned(),
        ..Default::default()
    };
    thrice(rig, "ControllerUnpublishVolume", |csi| csi.controller_unpublish_volume(detach.clone()))?;
    let delete = csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    thrice(rig, "DeleteVolume", |csi| csi.delete_volume(delete.clone()))?;
    // The orchestrator cleans this up itself.
    volume.unpublish("pod")?;
    volume.unstage()
}

#[test]
fn every_call_of_a_mounted_volume_can_be_repeated() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        whole_life(&rig, pool, &mount("ext4", Mode::SingleNodeWriter))?;
    }
    rig.finish()?;
    covers!(4)
}

#[test]
fn every_call_of_a_raw_volume_can_be_repeated() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        whole_life(&rig, pool, &block(Mode::SingleNodeWriter))?;
    }
    rig.finish()?;
    covers!(4)
}
