//! The driver's own start, and what happens only once: the requested thin pool is made, the ledger gets its space.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use testkit::driver::Start;
use testkit::error::{Result, Trouble, ensure};
use testkit::{lab, vg};

use crate::scene::{Call, Effect, Kind, Scene};
use crate::walk::points;

/// Prepares a start.
type Before = fn(&mut Scene, &Start) -> Result<()>;

/// Returns the machines that the group records.
fn machines(scene: &Scene) -> Result<Vec<String>> {
    let tags = vg::lvm(&["vgs", "--noheadings", "-o", "vg_tags", &scene.rig.vg.name])?;
    Ok(tags.trim().split(',').filter(|tag| tag.starts_with("csi.machine=")).map(str::to_owned).collect())
}

/// Removes the driver's state, every LV, and the group's machine tags.
fn pristine(scene: &mut Scene, start: &Start) -> Result<()> {
    if scene.rig.driver.pid().is_ok() {
        scene.rig.driver.stop()?;
    }
    vg::lvm(&["lvremove", "-qq", "-y", &scene.rig.vg.name])?;
    for tag in machines(scene)? {
        vg::lvm(&["vgchange", "-qq", "--deltag", &tag, &scene.rig.vg.name])?;
    }
    for directory in [start.state(), start.home.join("run")] {
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(Trouble::io(format!("removing {}", directory.display())))?;
        }
    }
    Ok(())
}

/// Leaves the pool, inactive, and the socket of a killed driver.
fn rebooted(scene: &mut Scene, start: &Start) -> Result<()> {
    if scene.rig.driver.pid().is_err() {
        scene.rig.driver = start.start()?;
    }
    scene.rig.driver.kill()?;
    vg::lvm(&["vgchange", "-qq", "-an", &scene.rig.vg.name]).map(drop)
}

#[test]
fn a_start_survives_every_crash() -> Result<()> {
    let mut scene = Scene::new(Kind::ALL[2])?;
    let start = scene.rig.driver.start().clone().with(&["--create-thin-pool", "64Mi"]);
    let ways: [(&str, Before); 2] = [("first start", pristine), ("start", rebooted)];
    for (name, prepare) in ways {
        prepare(&mut scene, &start)?;
        scene.forget()?;
        scene.rig.driver = start.start()?;
        let (effects, after) = (scene.effects()?, scene.quiet()?);
        ensure(effects.iter().any(|effect| effect.program), || format!("a {name} ran no program: {effects:?}"))?;
        for point in points(&effects) {
            prepare(&mut scene, &start)?;
            scene.arm(&point.arm)?;
            let (status, log) = start.fails()?;
            ensure(status.signal() == Some(9), || {
                format!("{name} should have died {}, but ended with {status}: {log}", point.text)
            })?;
            scene.died.set(scene.died.get() + 1);
            scene.rig.driver = start.start()?;
            // LVM makes the spare for a pool's metadata under this name and without tags. An lvm that dies meanwhile leaves it, and
            // an LV without the driver's tags is for a person to remove.
            if scene.rig.vg.lvs()?.iter().any(|lv| lv.name == "lvol0") {
                vg::lvm(&["lvremove", "-qq", "-y", &format!("{}/lvol0", scene.rig.vg.name)])?;
            }
            scene.expect(&after, &format!("{name} died {}", point.text))?;
            let machines = machines(&scene)?;
            ensure(machines.len() == 1, || format!("{name} died {}: the group records {machines:?}", point.text))?;
        }
        scene.tell(name, &effects);
    }
    lab::say(&format!("start: the driver died {} times and recovered each time", scene.died.get()));
    pristine(&mut scene, &start)?;
    scene.rig.driver = without_pool(&start).start()?;
    scene.finish()?;
    covers!(6)
}

fn without_pool(start: &Start) -> Start {
    let mut start = start.clone();
    start.arguments.truncate(2);
    start
}

/// The ledger grows only with the first attachment.
#[test]
fn the_first_attachment_survives_every_crash() -> Result<()> {
    let mut scene = Scene::new(Kind::ALL[2])?;
    scene.call(Call::Create)?;
    let ledger = scene.rig.driver.start().state().join("attachments");
    let empty = |scene: &mut Scene, ledger: &Path| {
        scene.rig.driver.stop()?;
        fs::remove_file(ledger).map_err(Trouble::io("removing the ledger"))?;
        scene.rig.driver.restart()
    };
    empty(&mut scene, &ledger)?;
    let first = scene.record(Call::Attach)?;
    let is_extended = |effect: &Effect| effect.name == "ledger.extend";
    ensure(first.effects.iter().any(is_extended), || format!("the ledger had its space already: {:?}", first.effects))?;
    for point in points(&first.effects) {
        empty(&mut scene, &ledger)?;
        scene.converge(Call::Attach, &point, Call::Attach, &first.after)?;
    }
    scene.tell("first Attach", &first.effects);
    scene.call(Call::Detach)?;
    scene.call(Call::Delete)?;
    scene.finish()?;
    covers!(6)
}
