//! The Identity service, the capabilities, and what the node reports about itself.

use std::collections::BTreeSet;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::controller_service_capability::rpc::Type as Controller;
use lvm_csi_proto::csi::node_service_capability::rpc::Type as Node;
use lvm_csi_proto::csi::plugin_capability::service::Type as Service;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, Csi, mount, refused};
use testkit::error::Result;
use tonic::Code;

use crate::rig::Rig;

fn controller(csi: &Csi) -> Result<BTreeSet<i32>> {
    let answer =
        csi.controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {}).accepted("ControllerGetCapabilities")?;
    Ok(answer
        .capabilities
        .into_iter()
        .filter_map(|capability| capability.r#type)
        .map(|csi::controller_service_capability::Type::Rpc(rpc)| rpc.r#type)
        .collect())
}

fn node(csi: &Csi) -> Result<BTreeSet<i32>> {
    let answer = csi.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).accepted("NodeGetCapabilities")?;
    Ok(answer
        .capabilities
        .into_iter()
        .filter_map(|capability| capability.r#type)
        .map(|csi::node_service_capability::Type::Rpc(rpc)| rpc.r#type)
        .collect())
}

#[test]
fn the_name_and_the_version_are_as_the_sidecars_need_them() -> Result<()> {
    let rig = Rig::linear()?;
    let info = rig.csi().get_plugin_info(csi::GetPluginInfoRequest {}).accepted("GetPluginInfo")?;
    assert_eq!(info.name, "lvm-csi.dev");
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphabetic());
    assert!(letter(info.name.chars().next()) && letter(info.name.chars().last()) && info.name.len() <= 63);
    assert!(!info.vendor_version.is_empty());
    let probe = rig.csi().probe(csi::ProbeRequest {}).accepted("Probe")?;
    assert_ne!(probe.ready, Some(false));
    assert!(rig.csi().serving().accepted("Check")?);
    rig.finish()?;
    covers!(15)
}

#[test]
fn the_advertised_capabilities_are_the_implemented_ones() -> Result<()> {
    let rig = Rig::thin()?;
    let answer = rig.csi().get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).accepted("GetPluginCapabilities")?;
    let services: BTreeSet<i32> = answer
        .capabilities
        .iter()
        .filter_map(|capability| match capability.r#type {
            Some(csi::plugin_capability::Type::Service(service)) => Some(service.r#type),
            _ => None,
        })
        .collect();
    assert_eq!(services, BTreeSet::from([Service::ControllerService as i32, Service::VolumeAccessibilityConstraints as i32]));

    let controller = controller(rig.csi())?;
    let must = [
        Controller::CreateDeleteVolume,
        Controller::PublishUnpublishVolume,
        Controller::ListVolumes,
        Controller::GetCapacity,
        Controller::CreateDeleteSnapshot,
        Controller::ListSnapshots,
        Controller::CloneVolume,
        Controller::ExpandVolume,
        Controller::ListVolumesPublishedNodes,
        Controller::GetVolume,
        Controller::SingleNodeMultiWriter,
        Controller::GetSnapshot,
    ];
    for capability in must {
        assert!(controller.contains(&(capability as i32)), "{capability:?} is not advertised");
    }
    for capability in [Controller::ModifyVolume, Controller::GetVolumeHealth, Controller::ListVolumeHealth] {
        assert!(!controller.contains(&(capability as i32)), "{capability:?} is advertised, but its calls are not implemented");
    }
    let expected = [Node::StageUnstageVolume, Node::GetVolumeStats, Node::ExpandVolume, Node::SingleNodeMultiWriter];
    assert_eq!(node(rig.csi())?, expected.map(|capability| capability as i32).into());
    rig.finish()?;
    covers!(16, 34, 70)
}

#[test]
fn a_call_that_is_not_advertised_is_unimplemented() -> Result<()> {
    let rig = Rig::linear()?;
    let id = format!("{}/none", rig.vg.uuid);
    let codes = &[Code::Unimplemented];
    let volume = id.clone();
    rig.rejects(codes, "ControllerModifyVolume", |csi| {
        csi.controller_modify_volume(csi::ControllerModifyVolumeRequest { volume_id: volume, ..Default::default() })
    })?;
    rig.rejects(codes, "ControllerListVolumeHealth", |csi| csi.controller_list_volume_health(Default::default()))?;
    let volume = id.clone();
    rig.rejects(codes, "ControllerGetVolumeHealth", |csi| {
        csi.controller_get_volume_health(csi::ControllerGetVolumeHealthRequest { volume_id: volume, ..Default::default() })
    })?;
    let volume = id.clone();
    rig.rejects(codes, "NodeGetVolumeHealth", |csi| {
        csi.node_get_volume_health(csi::NodeGetVolumeHealthRequest { volume_id: volume, ..Default::default() })
    })?;
    rig.rejects(codes, "NodeGetStorageHealth", |csi| csi.node_get_storage_health(Default::default()))?;
    rig.rejects(codes, "GroupControllerGetCapabilities", |csi| csi.group_controller_get_capabilities(Default::default()))?;
    rig.rejects(codes, "CreateVolumeGroupSnapshot", |csi| csi.create_volume_group_snapshot(Default::default()))?;
    rig.rejects(codes, "GetMetadataAllocated", |csi| csi.get_metadata_allocated(Default::default()))?;
    rig.finish()?;
    covers!(2)
}

#[test]
fn the_node_tells_its_id_its_limit_and_a_constant_topology() -> Result<()> {
    let mut rig = Rig::make(None, &["--max-volumes-per-node", "2"])?;
    let ask = |rig: &Rig| rig.csi().node_get_info(csi::NodeGetInfoRequest {}).accepted("NodeGetInfo");
    let info = ask(&rig)?;
    assert_eq!(info.node_id, "node-a");
    assert_eq!(info.max_volumes_per_node, 2);
    let segments = info.accessible_topology.clone().unwrap_or_default().segments;
    assert_eq!(segments.get("topology.lvm-csi.dev/node").map(String::as_str), Some("node-a"));
    assert_eq!(ask(&rig)?, info);
    rig.driver.stop()?;
    rig.driver.restart()?;
    assert_eq!(ask(&rig)?, info);

    // The driver enforces the limit it reports.
    let mut volumes = Vec::new();
    for _ in 0..2 {
        let mut volume = rig.volume("linear", 64)?;
        volume.attach()?;
        volumes.push(volume);
    }
    let third = rig.volume("linear", 64)?;
    rig.rejects(&[Code::ResourceExhausted], "an attach beyond the limit", |csi| {
        csi.controller_publish_volume(third.attach_request())
    })?;
    for volume in &volumes {
        volume.detach()?;
        volume.delete()?;
    }
    third.delete()?;
    rig.finish()?;
    covers!(72)
}

#[test]
fn clients_that_call_the_socket_localhost_are_served() -> Result<()> {
    let rig = Rig::linear()?;
    for authority in ["localhost", "lvm-csi.dev"] {
        let csi = Csi::with_authority(&rig.driver.start().socket(), authority)?;
        csi.get_plugin_info(csi::GetPluginInfoRequest {}).accepted("GetPluginInfo")?;
    }
    rig.finish()?;
    covers!(12)
}

#[test]
fn a_large_message_is_judged_by_the_driver_and_not_by_the_transport() -> Result<()> {
    let rig = Rig::linear()?;
    let volume = rig.volume("linear", 16)?;
    let before = testkit::machine::Machine::look(&rig.scope)?;
    let request = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: volume.id.clone(),
        volume_capabilities: vec![mount("ext4", Mode::SingleNodeWriter)],
        parameters: [("pool".to_owned(), "x".repeat(5 << 20))].into(),
        ..Default::default()
    };
    refused(rig.csi().validate_volume_capabilities(request), &[Code::InvalidArgument], "a message of 5 MiB")?;
    before.assert_unchanged(&rig.scope, "a message of 5 MiB was refused")?;
    volume.delete()?;
    rig.finish()?;
    covers!(17)
}
