//! `--attach-required false`: nobody attaches. The node takes the grant when it stages a volume and releases it afterwards.

use std::collections::BTreeSet;
use std::fs;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::controller_service_capability::Type;
use lvm_csi_proto::csi::controller_service_capability::rpc::Type as Rpc;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, block, mount, refused};
use testkit::error::{Result, Trouble};
use testkit::signature::Foreign;
use tonic::Code;

use crate::rig::{POOL_MIB, Rig};

const UNATTACHED: [&str; 2] = ["--attach-required", "false"];

fn offered(rig: &Rig) -> Result<BTreeSet<i32>> {
    let answer = rig.csi().controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {});
    let capabilities = answer.accepted("ControllerGetCapabilities")?.capabilities;
    Ok(capabilities.into_iter().filter_map(|one| one.r#type.map(|Type::Rpc(rpc)| rpc.r#type)).collect())
}

#[test]
fn attaching_is_not_offered() -> Result<()> {
    let rig = Rig::make(None, &UNATTACHED)?;
    let offered = offered(&rig)?;
    for rpc in [Rpc::PublishUnpublishVolume, Rpc::PublishReadonly, Rpc::ListVolumesPublishedNodes] {
        assert!(!offered.contains(&(rpc as i32)), "{rpc:?} is offered");
    }
    assert!(offered.contains(&(Rpc::ListVolumes as i32)) && offered.contains(&(Rpc::GetVolume as i32)), "{offered:?}");
    let volume = rig.volume("linear", 64)?;
    rig.rejects(&[Code::Unimplemented], "attaching", |csi| csi.controller_publish_volume(volume.attach_request()))?;
    let detach = csi::ControllerUnpublishVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    rig.rejects(&[Code::Unimplemented], "detaching", |csi| csi.controller_unpublish_volume(detach))?;
    volume.stage()?;
    let get = csi::ControllerGetVolumeRequest { volume_id: volume.id.clone() };
    let status = rig.csi().controller_get_volume(get).accepted("ControllerGetVolume")?.status;
    assert!(
        status.unwrap_or_default().published_node_ids.is_empty(),
        "published nodes are reported although that is not advertised"
    );
    volume.unstage()?;
    volume.delete()?;
    rig.finish()
}

#[test]
fn a_volume_lives_without_being_attached() -> Result<()> {
    let mut rig = Rig::make(Some(POOL_MIB), &UNATTACHED)?;
    for (pool, capability) in [("linear", mount("ext4", Mode::SingleNodeWriter)), ("thin", block(Mode::SingleNodeWriter))] {
        let volume = rig.with(pool, 64, capability)?;
        if pool == "linear" {
            volume.make_parent("pod")?;
            let publish = volume.publish_request("pod");
            rig.rejects(&[Code::FailedPrecondition], "publishing an unstaged volume", |csi| csi.node_publish_volume(publish))?;
        }
        volume.stage()?;
        rig.unchanged("staged again", || volume.stage())?;
        volume.publish("pod")?;
        rig.unchanged("published again", || volume.publish("pod").map(drop))?;
        let delete = || csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        rig.rejects(&[Code::FailedPrecondition], "deleting a staged volume", |csi| csi.delete_volume(delete()))?;
        rig.driver.kill()?;
        rig.driver.restart()?;
        let volume = volume.through(rig.csi());
        rig.unchanged("staged again after a restart", || volume.stage())?;
        rig.rejects(&[Code::FailedPrecondition], "deleting a staged volume", |csi| csi.delete_volume(delete()))?;
        volume.unpublish("pod")?;
        rig.rejects(&[Code::FailedPrecondition], "deleting a staged volume", |csi| csi.delete_volume(delete()))?;
        volume.unstage()?;
        rig.unchanged("unstaged again", || volume.unstage())?;
        volume.delete()?;
    }
    rig.finish()
}

/// Whether the ledger has any grant.
fn is_granted(rig: &Rig) -> Result<bool> {
    let path = rig.driver.start().state().join("attachments");
    let bytes = fs::read(&path).map_err(Trouble::io("reading the ledger"))?;
    Ok(bytes.iter().any(|byte| *byte != 0))
}

#[test]
fn a_failed_stage_leaves_no_right_behind() -> Result<()> {
    let rig = Rig::make(Some(POOL_MIB), &UNATTACHED)?;
    let volume = rig.volume("thin", 64)?;
    let name = rig.vg.of_handle(&volume.id)?.name;
    rig.vg.with_active(&name, |device| Foreign::Luks.write(device))?;
    volume.make_staging()?;
    // After a final error kubelet never unstages.
    refused(rig.csi().node_stage_volume(volume.stage_request()), &[Code::FailedPrecondition], "a device with a key slot")?;
    assert!(!is_granted(&rig)?, "the refused stage left a grant");
    volume.unstage()?;
    let staged = rig.volume("thin", 64)?;
    staged.stage()?;
    assert!(is_granted(&rig)?);
    let other = csi::NodeStageVolumeRequest {
        volume_capability: Some(mount("ext4", Mode::SingleNodeReaderOnly)),
        ..staged.stage_request()
    };
    rig.rejects(&[Code::AlreadyExists], "staging for readers a volume that is staged for a writer", |csi| {
        csi.node_stage_volume(other)
    })?;
    staged.unstage()?;
    assert!(!is_granted(&rig)?, "unstaging left a grant");
    volume.delete()?;
    staged.delete()?;
    rig.finish()
}
