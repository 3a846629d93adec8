//! Two drivers with different names on one machine: each has its own state and, on a shared volume group, its own volumes.

use std::os::unix::fs::symlink;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, Csi, create, map, mount, refused};
use testkit::driver::{Driver, NAME, Start};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, delete_snapshot, text};
use testkit::machine::Machine;
use testkit::{lab, shim, tool, vg};
use tonic::Code;

use crate::rig::{DRIVER, LIMIT, MIB, Rig};

const OTHER: &str = "other.example";

/// A start with the directories of the rig's driver and another socket.
fn beside(rig: &Rig, arguments: &[&str]) -> Result<Start> {
    let socket = lab::fresh("beside")?.join("csi.sock");
    let start = rig.driver.start().clone().with(&["--endpoint", &format!("unix://{}", text(&socket))]);
    Ok(start.with(arguments))
}

#[test]
fn a_state_directory_belongs_to_one_driver() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 16)?;
    volume.up("pod")?;
    let before = Machine::look(&rig.scope)?;
    // A driver with another name, whether the first one runs or not.
    let refuses = |start: &Start, words: &[&str]| {
        let (status, log) = start.fails()?;
        let last = log.lines().last().unwrap_or_default().to_owned();
        ensure(!status.success() && words.iter().all(|word| last.contains(word)), || format!("{status}, not {words:?}: {last}"))
    };
    let renamed = beside(&rig, &["--driver-name", OTHER])?;
    let names = [&format!("driver {NAME}"), &format!("driver {OTHER}"), "--state-dir"].map(str::to_owned);
    let names = names.each_ref().map(String::as_str);
    refuses(&renamed, &names)?;
    // A second driver with the same name.
    let pid = format!("process {}", rig.driver.pid()?);
    refuses(&beside(&rig, &["--lock-wait-seconds", "0"])?, &["in use by driver", NAME, &pid, "state"])?;
    before.assert_unchanged(&rig.scope, "a second driver was refused")?;
    // Only the run directory is shared.
    let home = lab::fresh("second")?;
    symlink(rig.driver.start().home.join("run"), home.join("run")).map_err(Trouble::io("linking the run directory"))?;
    let shares = Start::on_vg(Path::new(DRIVER), &home, &rig.vg.name).with(&["--lock-wait-seconds", "0"]);
    refuses(&shares, &["in use by driver", &pid, "run"])?;
    // A driver that starts a little early waits.
    let mut next = rig.driver.start().spawn()?;
    rig.driver.stop()?;
    next.wait_ready()?;
    rig.driver = next;
    refuses(&renamed, &names)?;
    rig.driver.kill()?;
    refuses(&renamed, &names)?;
    rig.driver.restart()?;
    // The grant is unchanged.
    let volume = volume.through(rig.csi());
    let detach = csi::ControllerUnpublishVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    refused(rig.csi().controller_unpublish_volume(detach), &[Code::FailedPrecondition], "detaching while staged")?;
    volume.down("pod")?;
    rig.finish()
}

fn volumes(csi: &Csi) -> Result<Vec<String>> {
    let listed = csi.list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
    Ok(listed.entries.into_iter().filter_map(|entry| Some(entry.volume?.volume_id)).collect())
}

fn room(csi: &Csi) -> Result<i64> {
    let request = csi::GetCapacityRequest { parameters: map(&[("pool", "thin")]), ..Default::default() };
    Ok(csi.get_capacity(request).accepted("GetCapacity")?.available_capacity)
}

/// Returns what the doctor reports for one driver.
fn doctor(start: &Start, driver: &str, vg: &str) -> Result<String> {
    let mut command = tool::command(DRIVER);
    command.args(["doctor", "--vg", vg, "--node-id", "node-a", "--driver-name", driver]);
    command.args(["--state-dir", &text(&start.state()), "--endpoint", &format!("unix://{}", text(&start.socket()))]);
    let output = tool::output(&mut command)?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

fn tags(rig: &Rig, lv: &str) -> Result<String> {
    vg::lvm(&["lvs", "--noheadings", "-o", "lv_tags", &format!("{}/{lv}", rig.vg.name)])
}

fn other(rig: &Rig) -> Result<Driver> {
    Start::on_vg(Path::new(DRIVER), &lab::fresh("other")?, &rig.vg.name).with(&["--driver-name", OTHER]).start()
}

#[test]
fn two_drivers_on_one_volume_group_have_their_own_volumes() -> Result<()> {
    let mut rig = Rig::thin()?;
    let mut other = other(&rig)?;
    let mut mine = rig.volume("thin", 64)?;
    let before = room(rig.csi())?;
    let name = rig.name();
    let request = || create(&name, "thin", 64 * MIB, mount("ext4", Mode::SingleNodeWriter));
    let mut theirs = Volume::create(other.csi(), &rig.places, &name, request())?;
    let cut = theirs.snapshot("snapshot-1")?.snapshot_id;
    ensure(tags(&rig, theirs.lv())?.contains(&format!("csi.d={OTHER}")), || "its LV does not carry its name".to_owned())?;
    // The other driver's volume counts where both use one pool, and nowhere else.
    ensure(room(rig.csi())? <= before - (64 << 20), || "the other driver's volume does not count".to_owned())?;
    assert_eq!((volumes(rig.csi())?, volumes(other.csi())?), (vec![mine.id.clone()], vec![theirs.id.clone()]));
    let listed = rig.csi().list_snapshots(csi::ListSnapshotsRequest::default()).accepted("ListSnapshots")?;
    ensure(listed.entries.is_empty(), || format!("the other driver's snapshots are listed: {listed:?}"))?;
    mine.up("pod")?;
    theirs.up("other-pod")?;

    let belongs = |message: &str| {
        let named = message.contains(&format!("belongs to driver {OTHER}")) && message.contains(theirs.lv());
        ensure(named, || format!("the message does not name the owner: {message}"))
    };
    belongs(&rig.rejects(&[Code::AlreadyExists], "a volume with a name that the other driver uses", |csi| {
        csi.create_volume(request())
    })?)?;
    let delete = csi::DeleteVolumeRequest { volume_id: theirs.id.clone(), ..Default::default() };
    belongs(&rig.rejects(&[Code::FailedPrecondition], "deleting the other driver's volume", |csi| csi.delete_volume(delete))?)?;
    let attach = theirs.attach_request();
    belongs(&rig.rejects(&[Code::FailedPrecondition], "attaching the other driver's volume", |csi| {
        csi.controller_publish_volume(attach)
    })?)?;
    let grow = theirs.expand_request(128 * MIB);
    belongs(&rig.rejects(&[Code::FailedPrecondition], "expanding the other driver's volume", |csi| {
        csi.controller_expand_volume(grow)
    })?)?;
    let delete = csi::DeleteSnapshotRequest { snapshot_id: cut.clone(), ..Default::default() };
    rig.rejects(&[Code::FailedPrecondition], "deleting the other driver's snapshot", |csi| csi.delete_snapshot(delete))?;
    for (driver, name) in [(&rig.driver, NAME), (&other, OTHER)] {
        let said = doctor(driver.start(), name, &rig.vg.name)?;
        ensure(said.starts_with("nothing is wrong: "), || format!("the doctor of {name} says {said}"))?;
    }
    // A restart leaves the other driver's volumes alone, too.
    rig.driver.kill()?;
    rig.driver.restart()?;
    let (mine, theirs) = (mine.through(rig.csi()), theirs);
    theirs.stats("other-pod")?;
    mine.stats("pod")?;
    delete_snapshot(other.csi(), &cut)?;
    theirs.down("other-pod")?;
    mine.down("pod")?;
    other.stop()?;
    rig.finish()
}

#[test]
fn volumes_of_earlier_versions_get_the_name_of_their_driver_once() -> Result<()> {
    let mut rig = Rig::thin()?;
    let all = [rig.volume("thin", 16)?, rig.volume("linear", 16)?];
    let lvs = all.each_ref().map(|volume| format!("{}/{}", rig.vg.name, volume.lv()));
    rig.driver.stop()?;
    let mut forget = vec!["lvchange", "-qq", "--deltag", "csi.d=lvm-csi.dev"];
    forget.extend(lvs.iter().map(String::as_str));
    vg::lvm(&forget)?;
    // A driver that is new here takes nothing, and says so.
    let mut new = other(&rig)?;
    assert_eq!(volumes(new.csi())?, Vec::<String>::new());
    let said = doctor(new.start(), OTHER, &rig.vg.name)?;
    ensure(said.contains("no driver's name is on it") && said.contains("--addtag csi.d="), || format!("the doctor says {said}"))?;
    let delete = csi::DeleteVolumeRequest { volume_id: all[0].id.clone(), ..Default::default() };
    let message = refused(
        new.csi().delete_volume(delete),
        &[Code::FailedPrecondition],
        "deleting a volume that may belong to another driver",
    )?;
    ensure(message.contains("--addtag csi.d=other.example"), || message.clone())?;
    new.stop()?;

    let mark = shim::count()?;
    rig.driver.restart()?;
    let named = |lv: &str| Ok(tags(&rig, lv)?.contains("csi.d=lvm-csi.dev"));
    for volume in &all {
        tool::wait("the volumes to get their driver's name", LIMIT, || Ok(named(volume.lv())?.then_some(())))?;
    }
    let tagged = |ran: &[shim::Execution]| ran.iter().filter(|one| format!("{one:?}").contains("csi.d=lvm-csi.dev")).count();
    let ran = shim::since(mark)?;
    ensure(tagged(&ran) == 1, || format!("one command must name all volumes: {ran:#?}"))?;
    rig.driver.stop()?;
    let mark = shim::count()?;
    rig.driver.restart()?;
    for volume in &all {
        volume.through(rig.csi()).delete()?;
    }
    let ran = shim::since(mark)?;
    ensure(tagged(&ran) == 0, || format!("the volumes had the name already: {ran:#?}"))?;
    rig.finish()
}
