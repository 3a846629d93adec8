//! `lvm-csi list`, `who`, `pools` and `doctor`: a person inspects the machine, with the driver running and without it.

use testkit::error::{Result, ensure};
use testkit::flow::text;
use testkit::machine::Machine;
use testkit::{lab, tool, vg};

use crate::rig::{DRIVER, Rig};

/// Runs a person's command next to the driver, about its own group unless another is named. Returns whether it succeeded, and its
/// output.
pub(crate) fn person(rig: &Rig, arguments: &[&str]) -> Result<(bool, String)> {
    let start = rig.driver.start();
    let mut command = tool::command(DRIVER);
    command.args(arguments).args(["--node-id", "node-a", "--state-dir", &text(&start.state())]);
    if !arguments.contains(&"--vg") {
        command.args(["--vg", &rig.vg.name]);
    }
    if arguments[0] == "adopt" {
        command.args(["--run-dir", &text(&lab::fresh("adopt")?)]);
    } else {
        command.args(["--endpoint", &format!("unix://{}", text(&start.socket()))]);
    }
    let output = tool::output(&mut command)?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), said))
}

/// Like [`person`], for commands that change nothing on the machine.
pub(crate) fn asked(rig: &Rig, question: &[&str]) -> Result<(bool, String)> {
    let before = Machine::look(&rig.scope)?;
    let answer = person(rig, question)?;
    let mut changes = before.differences(&Machine::look(&rig.scope)?);
    // It asks LVM for its version.
    changes.retain(|change| !change.starts_with("lvm ran"));
    ensure(changes.is_empty(), || format!("{question:?} changed:\n  {}", changes.join("\n  ")))?;
    Ok(answer)
}

/// Fails unless one line of the output has these pieces in this order.
fn has_line(said: &str, pieces: &[&str]) -> Result<()> {
    let fits = |line: &str| {
        let mut rest = line;
        pieces.iter().all(|piece| match rest.split_once(piece) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    };
    ensure(said.lines().any(fits), || format!("no line with {pieces:?} in\n{said}"))
}

/// Fails unless the doctor reports a problem in a line with these pieces.
fn finds(rig: &Rig, pieces: &[&str]) -> Result<()> {
    let (well, said) = asked(rig, &["doctor"])?;
    ensure(!well, || format!("the doctor found nothing: {said}"))?;
    has_line(&said, pieces)
}

#[test]
fn a_person_sees_who_has_what_with_the_driver_and_without_it() -> Result<()> {
    let mut rig = Rig::thin()?;
    let (mut mounted, mut shown, idle) = (rig.volume("thin", 64)?, rig.raw("linear", 16)?, rig.volume("linear", 16)?);
    let (at, node) = (mounted.up("pod")?, shown.up("pod")?);
    for there in [true, false] {
        if !there {
            rig.driver.kill()?;
        }
        let (well, list) = asked(&rig, &["list"])?;
        ensure(well, || format!("list failed: {list}"))?;
        has_line(&list, &["labvg/", mounted.lv(), "volume", "thin", "0.1", "ext4", "staged", "node-a", "2"])?;
        has_line(&list, &["labvg/", shown.lv(), "volume", "linear", "raw", "staged", "node-a", "1"])?;
        has_line(&list, &["labvg/", idle.lv(), "volume", "linear", "free", "-", "0"])?;
        let (_, who) = asked(&rig, &["who", mounted.lv()])?;
        for pieces in [
            &["volume", "labvg/", &mounted.id][..],
            &["attached", "node-a since 20", "Z, rw,mount,", "staged"],
            &["device", "/dev/dm-", "open"],
            &["used at", &text(&mounted.staging())],
            &["used at", &text(&at)],
        ] {
            has_line(&who, pieces)?;
        }
        // A handle also names the volume.
        has_line(&asked(&rig, &["who", &shown.id])?.1, &["used at", &text(&node)])?;
        has_line(&asked(&rig, &["pools"])?.1, &["thin", "labvg", "1.0"])?;
        let (found, said) = asked(&rig, &["who", "nobody"])?;
        ensure(!found && said.contains("\"nobody\""), || format!("who of an unknown volume: {said}"))?;
        if there {
            let (well, said) = asked(&rig, &["doctor"])?;
            ensure(well && said.starts_with("nothing is wrong: 3 volumes"), || {
                format!("the doctor of a healthy machine: {said}")
            })?;
        } else {
            finds(&rig, &["driver: it does not answer at ", "see whether it runs"])?;
        }
    }
    rig.driver.restart()?;
    for volume in [&mounted, &shown] {
        volume.down("pod")?;
    }
    idle.delete()?;
    rig.finish()
}

#[test]
fn the_doctor_names_what_is_wrong_with_an_object() -> Result<()> {
    let mut rig = Rig::thin()?;
    let mut volume = rig.volume("thin", 64)?;
    volume.up("pod")?;
    let (name, other) = (volume.lv().to_owned(), rig.volume("linear", 16)?);
    let lv = other.lv().to_owned();

    vg::lvm(&["lvrename", "-qq", &rig.vg.name, &lv, "kept"])?;
    finds(&rig, &["LV labvg/kept: it was renamed", "lvrename it back"])?;
    vg::lvm(&["lvrename", "-qq", &rig.vg.name, "kept", &lv])?;

    let device = text(&rig.vg.device(&name));
    tool::run("dmsetup", &["suspend", "--nolockfs", "--noflush", &device])?;
    let found = finds(&rig, &[&format!("volume labvg/{name}: its device is suspended"), "dmsetup resume"]);
    tool::run("dmsetup", &["resume", &device])?;
    found?;

    other.through(rig.csi()).delete()?;
    let other = {
        let mut other = rig.volume("linear", 16)?;
        other.attach()?;
        other
    };
    let lv = other.lv().to_owned();
    rig.driver.kill()?;
    vg::lvm(&["lvremove", "-qq", "-y", &format!("{}/{lv}", rig.vg.name)])?;
    finds(&rig, &[&format!("volume {lv}: node node-a has it since 20"), "there is no such LV"])?;
    rig.driver.restart()?;
    // The driver looks at its groups every other second and has dropped the grant by then.
    rig.until_ok("a doctor that finds nothing", |_| {
        let (well, said) = asked(&rig, &["doctor"])?;
        ensure(well, || said)
    })?;
    volume.down("pod")?;
    rig.finish()
}
