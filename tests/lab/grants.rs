//! Grants that nobody revokes: the controller gave their node up, and the node came back.

use std::fs;

use lvm_csi_proto::csi;
use testkit::client::{Accepted, refused};
use testkit::error::{Result, Trouble};
use testkit::mounts::mount_at;
use testkit::mounts::unmount_all;
use testkit::power::NextBoot;
use testkit::{lab, tool, vg};
use tonic::Code;

use crate::rig::{LIMIT, Rig};

/// Takes away what a power cut takes, and begins the next boot.
fn power_cut(rig: &mut Rig) -> Result<NextBoot> {
    rig.driver.kill()?;
    unmount_all(&rig.places.root)?;
    vg::lvm(&["vgchange", "-qq", "-an", &rig.vg.name])?;
    let boot = NextBoot::begin(&lab::fresh("boot")?)?;
    rig.driver.restart()?;
    Ok(boot)
}

fn read_only(volume: &testkit::flow::Volume) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest { readonly: true, ..volume.attach_request() }
}

#[test]
fn a_grant_under_a_former_name_of_the_node_gives_way_when_it_is_idle() -> Result<()> {
    let mut rig = Rig::linear()?;
    let (mut staged, mut given) = (rig.volume("linear", 64)?, rig.volume("linear", 16)?);
    staged.attach()?;
    staged.stage()?;
    given.attach()?;
    let mut start = rig.driver.start().clone();
    "node-b".clone_into(&mut start.node);
    rig.driver.stop()?;
    rig.driver = start.start()?;
    let (staged, given) = (staged.through(rig.csi()), given.through(rig.csi()));
    let to_b = |volume: &testkit::flow::Volume| csi::ControllerPublishVolumeRequest {
        node_id: "node-b".to_owned(),
        ..volume.attach_request()
    };
    // It was never staged. Nobody has the former name now, so nobody will stage it.
    rig.csi().controller_publish_volume(to_b(&given)).accepted("ControllerPublishVolume of one that was never staged")?;
    // A staged volume keeps its grant until it is unstaged, whatever the node is called.
    let message = rig
        .rejects(&[Code::FailedPrecondition], "attaching it while staged", |csi| csi.controller_publish_volume(to_b(&staged)))?;
    assert!(message.contains("node-a") && message.contains("former name"), "{message}");
    staged.unstage()?;
    rig.csi().controller_publish_volume(to_b(&staged)).accepted("ControllerPublishVolume of what was unstaged")?;
    for volume in [&staged, &given] {
        // Late detaches from the former name and from the present one.
        for node in ["node-a", "node-b"] {
            let request = csi::ControllerUnpublishVolumeRequest {
                volume_id: volume.id.clone(),
                node_id: node.to_owned(),
                ..Default::default()
            };
            rig.csi().controller_unpublish_volume(request).accepted("ControllerUnpublishVolume")?;
        }
        volume.delete()?;
    }
    rig.finish()
}

#[test]
fn a_grant_from_before_a_power_cut_gives_way_to_one_of_another_mode() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let mut unstaged = rig.volume("linear", 64)?;
    unstaged.attach()?;
    let target = volume.up("pod")?;
    fs::write(target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
    let codes = &[Code::AlreadyExists];
    rig.rejects(codes, "read-only, while staged", |csi| csi.controller_publish_volume(read_only(&volume)))?;
    rig.rejects(codes, "read-only, once given", |csi| csi.controller_publish_volume(read_only(&unstaged)))?;
    let old = volume.stage_request();

    let boot = power_cut(&mut rig)?;
    let mut volume = volume.through(rig.csi());
    let unstaged = unstaged.through(rig.csi());
    let answer = rig.csi().controller_publish_volume(read_only(&volume)).accepted("ControllerPublishVolume")?;
    assert_ne!(answer.publish_context, old.publish_context);
    let what = "the context of the grant that gave way";
    refused(rig.csi().node_stage_volume(old), &[Code::FailedPrecondition], what)?;
    volume.publish = answer.publish_context;
    volume.stage()?;
    let target = volume.publish("pod")?;
    let options = mount_at(&target)?.map(|mount| mount.options).unwrap_or_default();
    assert!(options.split(',').any(|option| option == "ro"), "published as {options}");
    assert_eq!(fs::read_to_string(target.join("kept")).unwrap_or_default(), "kept");

    // The grant is in use while the volume is staged, and idle again afterwards.
    let writable = volume.attach_request();
    rig.rejects(codes, "writable, while staged", |csi| csi.controller_publish_volume(writable))?;
    volume.unpublish("pod")?;
    volume.unstage()?;
    volume.attach()?;
    volume.detach()?;
    volume.delete()?;
    // A grant from before the power cut that was never staged does not block the deletion either.
    unstaged.delete()?;
    drop(boot);
    rig.finish()
}

#[test]
fn a_grant_does_not_outlive_its_volume_for_long() -> Result<()> {
    let rig = Rig::configured("housekeepingSeconds: 1\npools:\n- name: linear\n  volumeGroup: labvg\n  layout: linear\n")?;
    let mut volume = rig.volume("linear", 64)?;
    let mut other = rig.volume("linear", 64)?;
    volume.attach()?;
    other.attach()?;
    // Somebody removes it with LVM's own tool, and nobody ever detaches it.
    let name = rig.vg.of_handle(&volume.id)?.name;
    vg::lvm(&["lvremove", "-qq", "-y", &format!("{}/{name}", rig.vg.name)])?;
    let path = rig.driver.start().state().join("attachments");
    tool::wait("the grant to be dropped", LIMIT, || {
        let ledger = fs::read(&path).map_err(Trouble::io("reading the ledger"))?;
        let knows = |name: &str| ledger.windows(name.len()).any(|window| window == name.as_bytes());
        assert!(knows(&other.name), "the driver dropped the grant of a volume that exists");
        Ok((!knows(&name)).then_some(()))
    })?;
    other.detach()?;
    other.delete()?;
    rig.finish()
}
