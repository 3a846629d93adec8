//! Faults found by `walk`, each in a test of its own.

use std::fs;
use std::thread;
use std::time::Duration;

use lvm_csi_proto::csi;
use testkit::error::{Result, Trouble, ensure};
use testkit::shim::{self, Fault};
use testkit::{tool, vg};

use crate::rig::LIMIT;
use crate::scene::{Call, Kind, Scene};

/// How long a caller waits here for an answer that must not come.
const SHORT: Duration = Duration::from_secs(1);

#[test]
fn a_map_for_zeroing_does_not_outlive_the_next_start() -> Result<()> {
    let mut scene = Scene::new(Kind { thin: false, block: true })?;
    for call in [Call::Create, Call::Attach, Call::Stage, Call::Publish] {
        scene.call(call)?;
    }
    scene.die_at("zero", Call::Expand)?;
    let devices = tool::run("dmsetup", &["info", "-c", "--noheadings", "-o", "name"])?;
    ensure(!devices.contains("zero"), || format!("after the start these devices exist: {devices}"))?;
    for call in [Call::Unpublish, Call::Unstage, Call::Detach, Call::Delete] {
        scene.call(call)?;
    }
    scene.finish()
}

#[test]
fn nothing_is_answered_while_a_dead_drivers_lvm_is_at_work() -> Result<()> {
    let mut scene = Scene::new(Kind { thin: false, block: false })?;
    scene.call(Call::Create)?;
    let request = scene.wish();
    shim::arm(Fault::Hold)?;
    let csi = scene.rig.csi().clone();
    let delete = csi::DeleteVolumeRequest { volume_id: scene.id(), ..Default::default() };
    let caller = thread::spawn(move || csi.delete_volume(delete).is_ok());
    tool::wait("lvremove to be held", LIMIT, || Ok((!shim::armed()).then_some(())))?;
    scene.rig.driver.kill()?;
    caller.join().map_err(|_| Trouble::wrong("the caller panicked"))?;
    // The driver answers calls before it is ready.
    scene.rig.driver = scene.rig.driver.start().spawn()?;
    tool::wait("the driver to listen", LIMIT, || Ok(scene.rig.csi().probe(csi::ProbeRequest {}).is_ok().then_some(())))?;
    let answer = scene.rig.csi().deadline(SHORT).create_volume(request);
    ensure(answer.is_err(), || format!("the call reports the volume under removal as present: {answer:?}"))?;
    fs::remove_file(shim::HOLD).map_err(Trouble::io("releasing lvm"))?;
    scene.rig.driver.wait_ready()?;
    scene.until_ok(Call::Create)?;
    scene.rig.vg.of_handle(&scene.id())?;
    scene.call(Call::Delete)?;
    scene.finish()
}

#[test]
fn a_pool_that_a_dead_lvm_began_is_made() -> Result<()> {
    let mut scene = Scene::new(Kind { thin: false, block: false })?;
    let vg = scene.rig.vg.name.clone();
    let start = scene.rig.driver.start().clone();
    scene.rig.driver.stop()?;
    // The state that LVM has committed when it wipes the metadata of the new pool.
    let begun = ["--addtag", "lvm-csi=1", "--addtag", "csi.pool", "-n", "thinpool", &vg];
    vg::lvm(&[&["lvcreate", "-qq", "-y", "-L", "8m"], &begun[..]].concat())?;
    scene.rig.driver = start.clone().with(&["--create-thin-pool", "64Mi"]).start()?;
    let pool = scene.rig.vg.lv("thinpool")?;
    ensure(pool.attr.starts_with("twi-a"), || format!("not a thin pool: {pool:?}"))?;
    scene.rig.driver.stop()?;
    vg::lvm(&["lvremove", "-qq", "-y", &format!("{vg}/thinpool")])?;
    scene.rig.driver = start.start()?;
    scene.finish()
}
