//! Tools that outlive their driver: nobody touches their volume while they work, and they touch no other.

use std::thread;
use std::time::Duration;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, mount};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, text};
use testkit::shim::HeldTool;
use testkit::signature::write_at;
use testkit::{tool, vg};

use crate::rig::{LIMIT, MIB, Rig};

/// How long a caller waits here for an answer that must not come.
const SHORT: Duration = Duration::from_secs(2);

/// Holds a tool during a call, kills the driver and starts the next one.
fn outlive(rig: &mut Rig, name: &'static str, call: impl FnOnce() -> bool + Send + 'static) -> Result<HeldTool> {
    let held = HeldTool::next(name)?;
    let caller = thread::spawn(call);
    held.wait(LIMIT)?;
    rig.driver.kill()?;
    let answered = caller.join().map_err(|_| Trouble::wrong("the caller panicked"))?;
    ensure(!answered, || format!("a call was answered while its {name} was at work"))?;
    rig.driver.restart()?;
    Ok(held)
}

/// Fails unless a call is refused because of a tool and its message names the tool.
fn held_up<T: std::fmt::Debug>(name: &str, what: &str, answer: std::result::Result<T, tonic::Status>) -> Result<()> {
    let status = answer.err().ok_or_else(|| Trouble::wrong(format!("{what} is OK while {name} is at work")))?;
    ensure(status.message().contains(&format!("{name} (process ")), || {
        format!("the message of {what} does not name {name}: {status:?}")
    })
}

fn unstage(volume: &Volume) -> csi::NodeUnstageVolumeRequest {
    csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: text(&volume.staging()) }
}

#[test]
fn a_mkfs_that_outlives_its_driver_formats_no_other_volume() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let raw = rig.raw("linear", 64)?;
    volume.attach()?;
    volume.make_staging()?;
    let (csi, request) = (rig.csi().clone(), volume.stage_request());
    let held = outlive(&mut rig, "mkfs.ext4", move || csi.node_stage_volume(request).is_ok())?;
    let mut volume = volume.through(rig.csi());
    let csi = rig.csi().deadline(SHORT);
    held_up("mkfs.ext4", "NodeUnstageVolume", csi.node_unstage_volume(unstage(&volume)))?;
    // Nor can anybody remove its device by hand.
    let lv = format!("{}/{}", rig.vg.name, volume.lv());
    for command in [["lvchange", "-qq", "-an", &lv], ["lvremove", "-qq", "-y", &lv]] {
        ensure(vg::lvm(&command).is_err(), || format!("{command:?} removed the device of a running mkfs"))?;
    }
    // Another volume does not wait, and keeps what is written to it.
    let mut raw = raw.through(rig.csi());
    let device = raw.up("pod")?;
    for piece in 0..32 {
        write_at(&device, piece * 2 * MIB, format!("piece {piece}").as_bytes())?;
    }
    let before = tool::checksum(&device)?;
    drop(held);
    rig.until_ok("NodeUnstageVolume", |csi| csi.node_unstage_volume(unstage(&volume)).accepted("NodeUnstageVolume"))?;
    tool::drop_caches()?;
    assert_eq!(tool::checksum(&device)?, before, "a mkfs wrote to another volume");
    volume.up("pod-2")?;
    volume.down("pod-2")?;
    raw.down("pod")?;
    rig.finish()?;
    covers!(6)
}

#[test]
fn an_xfs_growfs_that_outlives_its_driver_is_waited_for() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut volume = rig.with("linear", 320, mount("xfs", Mode::SingleNodeWriter))?;
    volume.up("pod")?;
    rig.csi().controller_expand_volume(volume.expand_request(400 * MIB)).accepted("ControllerExpandVolume")?;
    let (csi, request) = (rig.csi().clone(), volume.node_expand_request("pod"));
    let held = outlive(&mut rig, "xfs_growfs", move || csi.node_expand_volume(request).is_ok())?;
    let volume = volume.through(rig.csi());
    let csi = rig.csi().deadline(SHORT);
    // Taking the volume from its pod needs nothing from the device.
    volume.unpublish("pod")?;
    held_up("xfs_growfs", "NodeUnstageVolume", csi.node_unstage_volume(unstage(&volume)))?;
    drop(held);
    rig.until_ok("NodeUnstageVolume", |csi| csi.node_unstage_volume(unstage(&volume)).accepted("NodeUnstageVolume"))?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(6)
}
