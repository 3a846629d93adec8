//! Each LVM command of a call fails or dies once, before or after its work. The repeated call succeeds.

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, create, from_volume, mount};
use testkit::error::{Result, Trouble};
use testkit::flow::{delete_snapshot, text};
use testkit::shim::{self, Fault};
use testkit::tool;

use crate::rig::{MIB, Rig};

/// Arms a fault, repeats some work until it succeeds, and checks that the fault happened.
fn despite<T>(rig: &Rig, fault: Fault, what: &str, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    shim::arm(fault)?;
    let done = rig.until_ok(&format!("{what} despite {fault:?}"), |_| work());
    assert!(!shim::armed(), "{what}: no LVM command ran");
    shim::disarm()?;
    let done = done?;
    let suspended = tool::run("dmsetup", &["info", "-c", "--noheadings", "-o", "name,suspended"])?;
    assert!(!suspended.contains("Suspended"), "{what} despite {fault:?} left a suspended device: {suspended}");
    Ok(done)
}

#[test]
fn volumes_live_through_lvm_commands_that_fail_or_die() -> Result<()> {
    let rig = Rig::thin()?;
    for fault in Fault::BAD {
        for pool in ["linear", "thin"] {
            let request = create(&rig.name(), pool, 64 * MIB, mount("ext4", Mode::SingleNodeWriter));
            let mut volume = despite(&rig, fault, "CreateVolume", || rig.request(request.clone()))?;
            let ours: Vec<_> = rig.vg.lvs()?.into_iter().filter(|lv| lv.tags.iter().any(|tag| tag == "lvm-csi=1")).collect();
            assert_eq!(ours.len(), 1, "{ours:?}");
            volume.attach()?;
            volume.make_staging()?;
            despite(&rig, fault, "NodeStageVolume", || volume.stage())?;
            volume.publish("pod")?;
            let mut grown = volume.clone();
            despite(&rig, fault, "ControllerExpandVolume", || grown.expand(128 * MIB, "pod"))?;
            assert_eq!(rig.vg.of_handle(&volume.id)?.size, 128 * MIB);
            volume.unpublish("pod")?;
            let unstage =
                csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: text(&volume.staging()) };
            despite(&rig, fault, "NodeUnstageVolume", || {
                rig.csi().node_unstage_volume(unstage.clone()).accepted("NodeUnstageVolume")
            })?;
            volume.unstage()?;
            volume.detach()?;
            despite(&rig, fault, "DeleteVolume", || volume.delete())?;
        }
    }
    rig.finish()?;
    covers!(6, 24, 89)
}

#[test]
fn snapshots_live_through_lvm_commands_that_fail_or_die() -> Result<()> {
    let rig = Rig::thin()?;
    let mut volume = rig.volume("thin", 64)?;
    let target = volume.up("pod")?;
    std::fs::write(target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
    for fault in Fault::BAD {
        let name = format!("cut-{}", fault.word());
        let snapshot = despite(&rig, fault, "CreateSnapshot", || volume.snapshot(&name))?;
        let mut request = create(&rig.name(), "thin", 128 * MIB, mount("ext4", Mode::SingleNodeWriter));
        request.volume_content_source = from_volume(&volume.id);
        let mut clone = despite(&rig, fault, "a larger clone", || rig.request(request.clone()))?;
        let copy = clone.up("pod-2")?;
        assert_eq!(std::fs::read_to_string(copy.join("kept")).unwrap_or_default(), "kept");
        clone.down("pod-2")?;
        despite(&rig, fault, "DeleteSnapshot", || delete_snapshot(rig.csi(), &snapshot.snapshot_id))?;
        // The origin still accepts writes.
        std::fs::write(target.join("after"), name).map_err(Trouble::io("writing into the volume"))?;
        tool::drop_caches()?;
    }
    volume.down("pod")?;
    rig.finish()?;
    covers!(89)
}
