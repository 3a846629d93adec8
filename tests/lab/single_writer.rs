//! ReadWriteOncePod (SINGLE_NODE_SINGLE_WRITER) on a raw volume, and the group of a pod (`fsGroup`).

use std::fs;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::AccessType;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{block, mount};
use testkit::error::{Result, Trouble};
use testkit::flow::Volume;
use tonic::Code;

use crate::rig::Rig;

/// Removes what kubelet made for a pod that got no volume.
fn forget(volume: &Volume, pod: &str) -> Result<()> {
    let root = volume.target(pod).ancestors().nth(3).map(std::path::Path::to_owned).unwrap_or_default();
    fs::remove_dir_all(&root).map_err(Trouble::io(format!("removing {}", root.display())))
}

#[test]
fn a_raw_volume_of_one_pod_is_shown_to_no_second_one() -> Result<()> {
    let mut rig = Rig::thin()?;
    let mut volume = rig.with("thin", 16, block(Mode::SingleNodeSingleWriter))?;
    volume.up("pod-1")?;
    volume.make_parent("pod-2")?;
    let codes = &[Code::FailedPrecondition];
    let second = |volume: &Volume, readonly| csi::NodePublishVolumeRequest { readonly, ..volume.publish_request("pod-2") };
    for readonly in [false, true] {
        rig.rejects(codes, "a second pod", |csi| csi.node_publish_volume(second(&volume, readonly)))?;
    }
    // After a restart the driver finds that out from the mounts.
    rig.driver.kill()?;
    rig.driver.restart()?;
    let volume = volume.through(rig.csi());
    rig.rejects(codes, "a second pod", |csi| csi.node_publish_volume(second(&volume, false)))?;
    volume.unpublish("pod-1")?;
    volume.publish("pod-2")?;
    volume.make_parent("pod-1")?;
    rig.rejects(codes, "the first pod again", |csi| csi.node_publish_volume(volume.publish_request("pod-1")))?;
    forget(&volume, "pod-1")?;
    volume.down("pod-2")?;
    rig.finish()?;
    covers!(61)
}

/// kubelet changes the ownership of a volume's files (fsGroupPolicy File). A driver that advertised the capability would be asked
/// to do it.
#[test]
fn the_group_of_a_pod_is_left_to_kubelet() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 32)?;
    let mut capability = mount("ext4", Mode::SingleNodeWriter);
    if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
        "2000".clone_into(&mut mount.volume_mount_group);
    }
    volume.attach()?;
    volume.make_staging()?;
    let stage = csi::NodeStageVolumeRequest { volume_capability: Some(capability.clone()), ..volume.stage_request() };
    let message = rig.rejects(&[Code::FailedPrecondition], "a stage with a group", |csi| csi.node_stage_volume(stage))?;
    assert!(message.contains("volume_mount_group"), "{message}");
    let attach = csi::ControllerPublishVolumeRequest { volume_capability: Some(capability), ..volume.attach_request() };
    rig.rejects(&[Code::InvalidArgument], "an attachment with a group", |csi| csi.controller_publish_volume(attach))?;
    // What kubelet does to the files instead stays.
    volume.stage()?;
    let target = volume.publish("pod")?;
    std::os::unix::fs::chown(&target, None, Some(2000)).map_err(Trouble::io("giving the volume to a group"))?;
    volume.unpublish("pod")?;
    volume.unstage()?;
    volume.stage()?;
    let target = volume.publish("pod")?;
    let metadata = fs::metadata(&target).map_err(Trouble::io("looking at the volume"))?;
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&metadata), 2000);
    volume.down("pod")?;
    rig.finish()?;
    covers!(70)
}
