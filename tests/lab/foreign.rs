//! Devices with data that the driver did not write: nothing there is ever formatted.

use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{mount, refused};
use testkit::error::Result;
use testkit::flow::{Volume, text};
use testkit::mounts::mount_at;
use testkit::signature::Foreign;
use testkit::tool;
use tonic::Code;

use crate::rig::Rig;

/// Fails unless staging is refused, leaves the device unchanged and leaves nothing behind.
fn refuses_to_stage(rig: &Rig, volume: &Volume, what: &str) -> Result<()> {
    let name = rig.vg.of_handle(&volume.id)?.name;
    let sum = || rig.vg.with_active(&name, tool_checksum);
    let (before, tags) = (sum()?, rig.vg.lv(&name)?.tags);
    volume.make_staging()?;
    let codes = &[Code::FailedPrecondition, Code::Internal];
    refused(rig.csi().node_stage_volume(volume.stage_request()), codes, what)?;
    assert_eq!(rig.vg.lv(&name)?.tags, tags, "{what}: the tags changed");
    assert!(!rig.vg.lv(&name)?.active(), "{what}: the refused stage left a device");
    assert!(mount_at(&volume.staging())?.is_none(), "{what}: the refused stage left a mount");
    assert_eq!(sum()?, before, "{what}: the device was written");
    volume.unstage()
}

fn tool_checksum(device: &std::path::Path) -> Result<String> {
    tool::checksum(device)
}

#[test]
fn a_device_with_a_foreign_signature_is_not_formatted() -> Result<()> {
    let rig = Rig::thin()?;
    for foreign in Foreign::ALL {
        // The volume is thin and blank, so anything found on it was put there by somebody else.
        let mut volume = rig.volume("thin", 64)?;
        volume.attach()?;
        let name = rig.vg.of_handle(&volume.id)?.name;
        rig.vg.with_active(&name, |device| foreign.write(device))?;
        refuses_to_stage(&rig, &volume, &format!("a device with {}", foreign.word()))?;
        volume.detach()?;
        volume.delete()?;
    }
    for (made, asked, mib) in [("ext4", "xfs", 320), ("xfs", "ext4", 320), ("ext4", "ext4", 64)] {
        let mut volume = rig.with("thin", mib, mount(asked, Mode::SingleNodeWriter))?;
        volume.attach()?;
        let name = rig.vg.of_handle(&volume.id)?.name;
        rig.vg.with_active(&name, |device| tool::run(&format!("mkfs.{made}"), &["-q", &text(device)]).map(drop))?;
        refuses_to_stage(&rig, &volume, &format!("a blank volume on which somebody made {made}"))?;
        volume.detach()?;
        volume.delete()?;
    }
    rig.finish()?;
    covers!(59)
}

#[test]
fn a_volume_that_lost_its_filesystem_is_not_formatted_again() -> Result<()> {
    let rig = Rig::thin()?;
    let mut volume = rig.volume("thin", 64)?;
    volume.attach()?;
    volume.stage()?;
    volume.unstage()?;
    let name = rig.vg.of_handle(&volume.id)?.name;
    rig.vg.with_active(&name, |device| tool::run("wipefs", &["-q", "-a", "-f", &text(device)]).map(drop))?;
    refuses_to_stage(&rig, &volume, "a volume whose filesystem is gone")?;
    rig.vg.with_active(&name, |device| Foreign::Luks.write(device))?;
    refuses_to_stage(&rig, &volume, "a volume whose filesystem became something else")?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(59)
}
