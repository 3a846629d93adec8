//! Zeroing of raw volumes: over many calls, through the death of the driver, and with turns at the group for others.

use std::path::Path;
use std::thread;

use testkit::client::{Accepted, refused};
use testkit::error::{Result, ensure};
use testkit::flow::Volume;
use testkit::signature::device_size;
use testkit::{lab, sample, tool, vg};
use tonic::Code;

use crate::old_bytes::{Disk, Reader, foreign_bytes, tagged, zeroing};
use crate::rig::{LIMIT, MIB, Rig};

const GIB: u64 = 1 << 30;

/// Returns the steps that the driver has zeroed, in order: offset on the device and length, in bytes.
fn steps(rig: &Rig) -> Result<Vec<(u64, u64)>> {
    let text = rig.driver.log()?;
    let step = |line: &str| {
        let (_, subject) = line.split_once(" effect=\"zero\" subject=")?;
        let (_, place) = subject.split_once(" at ")?;
        let (offset, rest) = place.split_once(" for ")?;
        Some((offset.parse().ok()?, rest.split_whitespace().next()?.parse().ok()?))
    };
    Ok(text.lines().filter_map(step).collect())
}

/// Waits until the tag says that the volume is zeroed beyond `from`. Returns that offset.
fn wait_for_tag(rig: &Rig, volume: &Volume, from: u64) -> Result<u64> {
    tool::wait("the progress to be recorded", LIMIT, || Ok(Some(tagged(rig, volume)?).filter(|zeroed| *zeroed > from)))
}

/// Repeats a call as kubelet does until it returns OK. Each refusal must say how far zeroing is. Returns the number of calls.
fn converge(volume: &Volume, mut call: impl FnMut() -> std::result::Result<(), tonic::Status>) -> Result<u32> {
    let mut calls = 1;
    while let Err(status) = call() {
        let message = refused::<()>(Err(status), &[Code::Aborted], "zeroing that takes more than a call")?;
        ensure(message.contains(&format!("of {} (", volume.capacity)) && message.contains(" % of it are zeroed, "), || {
            format!("{message:?} does not say how far zeroing is")
        })?;
        calls += 1;
    }
    Ok(calls)
}

#[test]
fn a_driver_that_dies_while_a_volume_is_staged_goes_on_where_it_was() -> Result<()> {
    let disk = Disk::marked(320)?;
    let mut rig = Rig::make_on(&[disk.path()], None, &[&zeroing(10, 8)?])?;
    let mut volume = rig.raw("linear", 256)?;
    volume.attach()?;
    volume.make_staging()?;
    let staging = {
        let volume = volume.clone();
        thread::spawn(move || volume.stage())
    };
    wait_for_tag(&rig, &volume, 0)?;
    rig.driver.kill()?;
    ensure(staging.join().is_ok_and(|answer| answer.is_err()), || "a dead driver answered".to_owned())?;
    let recorded = tagged(&rig, &volume)?;
    ensure(recorded < 256 * MIB, || "zeroing was done before the driver died".to_owned())?;
    zeroing(100, 8)?;
    rig.driver.restart()?;
    rig.log_everything()?;
    let volume = volume.through(rig.csi());
    converge(&volume, || rig.csi().node_stage_volume(volume.stage_request()).map(drop))?;
    let steps = steps(&rig)?;
    let first = steps.first().map(|step| step.0);
    ensure(first == Some(recorded), || format!("{recorded} bytes were recorded, but zeroing went on from {first:?}"))?;
    let total: u64 = steps.iter().map(|step| step.1).sum();
    ensure(recorded + total == 256 * MIB, || format!("{total} bytes were zeroed after {recorded}"))?;
    let target = volume.publish("pod")?;
    ensure(foreign_bytes(&target)? == 0, || "old bytes are shown".to_owned())?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(6, 30)
}

#[test]
fn a_driver_that_dies_while_a_volume_grows_leaves_nothing_to_see() -> Result<()> {
    let disk = Disk::marked(512)?;
    let mut rig = Rig::make_on(&[disk.path()], None, &[&zeroing(10, 8)?])?;
    let mut volume = rig.raw("linear", 16)?;
    let target = volume.up("pod")?;
    let reader = Reader::start(&target)?;
    let growing = {
        let (mut volume, csi) = (volume.clone(), rig.csi().clone());
        volume.capacity = 400 << 20;
        thread::spawn(move || csi.controller_expand_volume(volume.expand_request(400 * MIB)))
    };
    let recorded = wait_for_tag(&rig, &volume, 16 * MIB)?;
    // Its pod sees none of that yet. Others get their turn at the group and learn how far zeroing is.
    let other = rig.volume("linear", 16)?;
    let said = refused(
        rig.csi().controller_expand_volume(volume.expand_request(404 * MIB)),
        &[Code::Aborted],
        "another expansion meanwhile",
    )?;
    ensure(said.contains(" % of it are zeroed, "), || format!("{said:?} does not say how far zeroing is"))?;
    ensure(!growing.is_finished(), || "zeroing was done before anybody else had a turn".to_owned())?;
    other.delete()?;
    wait_for_tag(&rig, &volume, recorded)?;
    ensure(device_size(&target)? == 16 * MIB, || "the zeroed part is shown before NodeExpandVolume".to_owned())?;
    rig.driver.kill()?;
    ensure(growing.join().is_ok_and(|answer| answer.is_err()), || "a dead driver answered".to_owned())?;
    let recorded = tagged(&rig, &volume)?;
    ensure(recorded < 400 * MIB, || "zeroing was done before the driver died".to_owned())?;
    zeroing(100, 8)?;
    rig.driver.restart()?;
    rig.log_everything()?;
    let mut volume = volume.through(rig.csi());
    // A second pod sees the same device as the first, and does not wait for zeroing.
    let second = volume.publish("second")?;
    ensure(steps(&rig)?.is_empty(), || "a pod waited for the zeroing of a growth".to_owned())?;
    ensure(device_size(&second)? == 16 * MIB, || "the second pod sees another size".to_owned())?;
    volume.unpublish("second")?;
    // Somebody reloads the table.
    vg::lvm(&["lvchange", "-qq", "--refresh", &format!("{}/{}", rig.vg.name, rig.vg.of_handle(&volume.id)?.name)])?;
    ensure(device_size(&target)? == 16 * MIB, || "more is shown than was requested".to_owned())?;
    volume.capacity = 400 << 20;
    let request = volume.expand_request(400 * MIB);
    converge(&volume, || rig.csi().controller_expand_volume(request.clone()).map(drop))?;
    let total: u64 = steps(&rig)?.iter().map(|step| step.1).sum();
    ensure(recorded + total == 400 * MIB, || format!("{total} bytes were zeroed after {recorded}"))?;
    rig.csi().node_expand_volume(volume.node_expand_request("pod")).accepted("NodeExpandVolume")?;
    reader.saw_nothing_up_to(400 * MIB)?;
    ensure(foreign_bytes(&target)? == 0, || "old bytes are shown".to_owned())?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(6, 30)
}

#[test]
fn what_a_call_left_unfinished_goes_on_by_itself_and_gives_way_to_calls() -> Result<()> {
    let disk = Disk::marked(512)?;
    // Each call takes one slice.
    let mut rig = Rig::make_on(&[disk.path()], None, &[&zeroing(10, 0)?])?;
    let mut volume = rig.raw("linear", 16)?;
    volume.attach()?;
    rig.until_ok("the volume to be staged", |_| volume.stage())?;
    let target = volume.publish("pod")?;
    let grow = volume.expand_request(400 * MIB);
    refused(rig.csi().controller_expand_volume(grow.clone()), &[Code::Aborted], "an expansion that takes more than a call")?;
    let left = wait_for_tag(&rig, &volume, 16 * MIB)?;
    let went_on = wait_for_tag(&rig, &volume, left)?;
    // Another pod comes and goes meanwhile and notices nothing.
    volume.publish("second")?;
    volume.unpublish("second")?;
    ensure(went_on < 400 * MIB && device_size(&target)? == 16 * MIB, || {
        "zeroing was done before anybody could interfere".to_owned()
    })?;
    rig.driver.kill()?;
    let recorded = tagged(&rig, &volume)?;
    ensure(recorded < 400 * MIB, || "zeroing was done before the driver died".to_owned())?;
    zeroing(100, 8)?;
    rig.driver.restart()?;
    // Nobody repeats the call. The driver waits for a repeat for a while.
    tool::wait("zeroing to end without a call", 3 * LIMIT, || Ok((tagged(&rig, &volume)? == 400 * MIB).then_some(())))?;
    let mut volume = volume.through(rig.csi());
    let answer = rig.csi().controller_expand_volume(grow).accepted("ControllerExpandVolume")?;
    volume.capacity = answer.capacity_bytes;
    rig.csi().node_expand_volume(volume.node_expand_request("pod")).accepted("NodeExpandVolume")?;
    ensure(device_size(&target)? == 400 * MIB, || "the device did not grow".to_owned())?;
    ensure(foreign_bytes(&target)? == 0, || "old bytes are shown".to_owned())?;
    volume.down("pod")?;
    rig.finish()
}

/// Cuts the second half off a raw volume of 64 MiB by hand and lets another tenant write there.
fn cut_off(rig: &Rig, volume: &Volume) -> Result<()> {
    vg::lvm(&["lvreduce", "-qq", "-y", "-f", "--fs", "ignore", "-L", "32m", &format!("{}/{}", rig.vg.name, volume.lv())])?;
    let mut other = rig.raw("linear", 32)?;
    let (begin, next) = (rig.vg.begin(volume.lv())?, rig.vg.begin(other.lv())?);
    assert_eq!(next, begin + 32 * MIB, "the test needs the new volume on the extents that were cut off");
    let target = other.up("other")?;
    let written = format!("yes OLDBYTES | head -c {} | dd of={} bs=1M oflag=direct iflag=fullblock", 32 * MIB, target.display());
    tool::run("sh", &["-c", &format!("{written} status=none")])?;
    other.down("other")
}

#[test]
fn what_another_wrote_to_extents_that_were_cut_off_by_hand_is_not_shown() -> Result<()> {
    // So slow that a reader would see anything shown before it is zeroed.
    let rig = Rig::make_on(&[lab::disk(0)?], None, &[&zeroing(10, 8)?])?;
    for online in [false, true] {
        let mut volume = rig.raw("linear", 64)?;
        let target = volume.up("pod")?;
        let reader = online.then(|| Reader::start_at(&target, 32 * MIB)).transpose()?;
        if online {
            cut_off(&rig, &volume)?;
        } else {
            volume.unpublish("pod")?;
            volume.unstage()?;
            volume.detach()?;
            cut_off(&rig, &volume)?;
        }
        volume.capacity = 64 << 20;
        rig.csi().controller_expand_volume(volume.expand_request(64 * MIB)).accepted("ControllerExpandVolume")?;
        let shown = if online { target } else { volume.up("pod")? };
        rig.csi().node_expand_volume(volume.node_expand_request("pod")).accepted("NodeExpandVolume")?;
        if let Some(reader) = reader {
            reader.saw_nothing_up_to(64 * MIB)?;
        }
        let device = device_size(&shown)?;
        ensure(device == 64 * MIB, || format!("{device} bytes are shown"))?;
        let found = foreign_bytes(&shown)?;
        ensure(found == 0, || format!("{found} bytes of another tenant are shown (online: {online})"))?;
        assert_eq!(tagged(&rig, &volume)?, 64 * MIB);
        volume.down("pod")?;
    }
    rig.finish()
}

/// A disk of slightly more than 1 TiB that keeps its first 64 MiB and forgets the rest: reads there return zeroes, and it takes no
/// memory. With a slow disk, a sixteenth of it is as fast as that disk, whose first GiB is overwritten again and again.
fn terabyte(slow: Option<&Path>) -> Result<Disk> {
    const SECTORS: u64 = GIB / 512;
    let kept = 64_u64 << 11;
    let mut table = format!("0 {kept} linear {} 8192\n", lab::disk(0)?.display());
    for gib in 0..1025 {
        let start = kept + gib * SECTORS;
        match slow {
            Some(slow) if gib % 16 == 8 => table += &format!("{start} {SECTORS} linear {} 0\n", slow.display()),
            _ => table += &format!("{start} {SECTORS} zero\n"),
        }
    }
    Disk::of_table("terabyte", &table)
}

/// Zeroes 1 TiB over several calls, each shorter than kubelet's two minutes, and through the death of the driver. Returns the
/// number of calls.
fn a_terabyte(disk: &Disk, percent: u32, call_seconds: u32) -> Result<u32> {
    let mut rig = Rig::make_on(&[disk.path()], None, &[&zeroing(percent, call_seconds)?])?;
    rig.log_everything()?;
    let mut volume = rig.raw("linear", 1 << 20)?;
    volume.attach()?;
    volume.make_staging()?;
    let staging = {
        let (volume, csi) = (volume.clone(), rig.csi().clone());
        thread::spawn(move || converge(&volume, || csi.node_stage_volume(volume.stage_request()).map(drop)))
    };
    let before = tool::wait("a tenth of it to be zeroed", 4 * LIMIT, || {
        Ok(Some(tagged(&rig, &volume)?).filter(|zeroed| *zeroed > 100 * GIB))
    })?;
    rig.driver.kill()?;
    ensure(staging.join().is_ok_and(|answer| answer.is_err()), || "a dead driver answered".to_owned())?;
    let recorded = tagged(&rig, &volume)?;
    ensure(before <= recorded && recorded < 1024 * GIB, || format!("{recorded} bytes are recorded"))?;
    let died_at = steps(&rig)?.len();
    rig.driver.restart()?;
    let volume = volume.through(rig.csi());
    let calls = converge(&volume, || rig.csi().node_stage_volume(volume.stage_request()).map(drop))?;
    ensure(tagged(&rig, &volume)? == 1024 * GIB, || "the volume is not fully zeroed".to_owned())?;
    // Each byte once after the death, starting at the recorded offset.
    let after = &steps(&rig)?[died_at..];
    let total: u64 = after.iter().map(|step| step.1).sum();
    let first = after.first().map(|step| step.0);
    ensure(first == Some(recorded) && recorded + total == 1024 * GIB, || {
        format!("{total} bytes were zeroed from {first:?} on, after {recorded}")
    })?;
    let target = volume.publish("pod")?;
    ensure(device_size(&target)? == 1024 * GIB, || "the volume is not fully shown".to_owned())?;
    volume.down("pod")?;
    rig.finish()?;
    Ok(calls)
}

#[test]
fn a_terabyte_is_zeroed_over_retries() -> Result<()> {
    let disk = terabyte(None)?;
    let calls = a_terabyte(&disk, 100, 2)?;
    ensure(calls > 1, || "one call was enough".to_owned())?;
    covers!(30, 76)
}

/// With the default time per call, and so small a share of the disk's time that it is slow on any machine.
#[test]
fn a_terabyte_on_a_slow_disk_is_zeroed_within_kubelets_deadline() -> Result<()> {
    if !sample::long() {
        return Ok(());
    }
    let disk = terabyte(Some(&lab::disk(1)?))?;
    let calls = a_terabyte(&disk, 15, 80)?;
    ensure(calls > 1, || "one call was enough".to_owned())?;
    // It covers no acceptance point: their table is for an ordinary run, which leaves this test out.
    Ok(())
}
