//! The driver is killed between and during calls, and the machine is restarted. The next call continues.

use std::fs;
use std::thread;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{block, create, mount};
use testkit::error::{Result, Trouble};
use testkit::flow::Volume;
use testkit::mounts::mount_at;
use testkit::mounts::unmount_all;
use testkit::shim::{self, Fault};
use testkit::tool;
use testkit::vg;

use crate::rig::{LIMIT, MIB, Rig};

/// Kills the driver, starts it again and returns the volume with a connection to the new one.
fn again(rig: &mut Rig, volume: &Volume) -> Result<Volume> {
    rig.driver.kill()?;
    rig.driver.restart()?;
    Ok(volume.through(rig.csi()))
}

fn life_with_kills(rig: &mut Rig, pool: &str, capability: csi::VolumeCapability) -> Result<()> {
    let request = create(&rig.name(), pool, 64 * MIB, capability);
    let volume = rig.request(request.clone())?;
    let mut volume = again(rig, &volume)?;
    assert_eq!(rig.unchanged("created again", || rig.request(request))?.id, volume.id);
    volume.attach()?;
    let context = volume.publish.clone();
    let mut volume = again(rig, &volume)?;
    volume.attach()?;
    assert_eq!(volume.publish, context, "the attachment's context changed with the driver");
    volume.stage()?;
    let volume = again(rig, &volume)?;
    rig.unchanged("staged again", || volume.stage())?;
    volume.publish("pod")?;
    let mut volume = again(rig, &volume)?;
    rig.unchanged("published again", || volume.publish("pod"))?;
    volume.expand(128 * MIB, "pod")?;
    let volume = again(rig, &volume)?;
    volume.stats("pod")?;
    volume.unpublish("pod")?;
    let volume = again(rig, &volume)?;
    volume.unpublish("pod")?;
    volume.unstage()?;
    let volume = again(rig, &volume)?;
    volume.unstage()?;
    volume.detach()?;
    let volume = again(rig, &volume)?;
    volume.detach()?;
    volume.delete()?;
    let volume = again(rig, &volume)?;
    rig.unchanged("deleted again", || volume.delete())
}

#[test]
fn a_mounted_volume_survives_a_kill_between_any_two_calls() -> Result<()> {
    let mut rig = Rig::linear()?;
    life_with_kills(&mut rig, "linear", mount("ext4", Mode::SingleNodeWriter))?;
    rig.finish()?;
    covers!(6)
}

#[test]
fn a_raw_volume_survives_a_kill_between_any_two_calls() -> Result<()> {
    let mut rig = Rig::thin()?;
    life_with_kills(&mut rig, "thin", block(Mode::SingleNodeWriter))?;
    rig.finish()?;
    covers!(6)
}

#[test]
fn a_pod_keeps_its_volume_while_the_driver_is_away() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let mut raw = rig.raw("linear", 16)?;
    let target = volume.up("pod")?;
    let device = raw.up("pod-2")?;
    rig.driver.kill()?;
    fs::write(target.join("meanwhile"), "x").map_err(Trouble::io("writing while the driver is away"))?;
    testkit::signature::write_at(&device, 0, b"meanwhile")?;
    rig.driver.restart()?;
    rig.driver.stop()?;
    assert!(target.join("meanwhile").exists());
    testkit::signature::write_at(&device, 0, b"and later")?;
    rig.driver.restart()?;
    volume.through(rig.csi()).down("pod")?;
    raw.through(rig.csi()).down("pod-2")?;
    rig.finish()?;
    covers!(73)
}

#[test]
fn a_command_that_outlives_the_driver_is_waited_for() -> Result<()> {
    let mut rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        let request = create(&rig.name(), pool, 64 * MIB, mount("ext4", Mode::SingleNodeWriter));
        shim::arm(Fault::Hold)?;
        let csi = rig.csi().clone();
        let sent = request.clone();
        let caller = thread::spawn(move || csi.create_volume(sent).is_ok());
        tool::wait("lvm to be held", LIMIT, || Ok((!shim::armed()).then_some(())))?;
        rig.driver.kill()?;
        caller.join().map_err(|_| Trouble::wrong("the caller panicked"))?;
        shim::disarm()?;
        rig.driver.restart()?;
        let volume = rig.until_ok("the volume after the restart", |_| rig.request(request.clone()))?;
        tool::wait("the surviving command to end", LIMIT, || {
            let text = tool::run("ps", &["-eo", "comm="])?;
            Ok((!text.lines().any(|name| name.trim() == "lvm" || name.trim() == "lvm-shim")).then_some(()))
        })?;
        let lvs: Vec<_> = rig.vg.lvs()?.into_iter().filter(|lv| lv.tags.iter().any(|tag| tag == "lvm-csi=1")).collect();
        assert_eq!(lvs.len(), 1, "{lvs:?}");
        volume.delete()?;
    }
    rig.finish()?;
    covers!(6)
}

#[test]
fn after_a_reboot_the_next_stage_brings_everything_back() -> Result<()> {
    let mut rig = Rig::thin()?;
    let mut volume = rig.volume("linear", 64)?;
    let mut raw = rig.raw("thin", 16)?;
    let target = volume.up("pod")?;
    raw.up("pod-2")?;
    fs::write(target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
    tool::drop_caches()?;
    // After a reboot there is no process, mount or device. Directories, ledger and metadata stay.
    rig.driver.kill()?;
    unmount_all(&rig.places.root)?;
    for name in [&volume, &raw].map(|volume| rig.vg.of_handle(&volume.id)) {
        let name = name?.name;
        remove_holders(&format!("{}-{}", rig.vg.name, name.replace('-', "--")))?;
        vg::lvm(&["lvchange", "-qq", "-an", &format!("{}/{name}", rig.vg.name)])?;
    }
    rig.driver.restart()?;
    let mut volume = volume.through(rig.csi());
    let mut raw = raw.through(rig.csi());
    let target = volume.up("pod")?;
    let device = raw.up("pod-2")?;
    assert_eq!(fs::read_to_string(target.join("kept")).unwrap_or_default(), "kept");
    assert!(mount_at(&device)?.is_some());
    volume.down("pod")?;
    raw.down("pod-2")?;
    rig.finish()?;
    covers!(74)
}

/// Removes the device-mapper devices that lie on another one.
fn remove_holders(below: &str) -> Result<()> {
    let number = tool::run("dmsetup", &["info", "-c", "--noheadings", "-o", "blkdevname", below])?;
    let holders = format!("/sys/block/{}/holders", number.trim());
    for entry in fs::read_dir(&holders).map_err(Trouble::io(format!("reading {holders}")))?.flatten() {
        let path = entry.path().join("dm/name");
        let name = fs::read_to_string(&path).map_err(Trouble::io(format!("reading {}", path.display())))?;
        tool::run("dmsetup", &["remove", "--retry", name.trim()])?;
    }
    Ok(())
}
