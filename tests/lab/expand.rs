//! ControllerExpandVolume and NodeExpandVolume.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, mount, range};
use testkit::error::{Result, Trouble};
use testkit::flow::{Volume, text};
use testkit::shim::{self, Fault};
use testkit::signature::{device_size, remains, write_at};
use testkit::{tool, vg};
use tonic::Code;

use crate::rig::{LIMIT, MIB, Rig};

fn filesystem_size(volume: &Volume, pod: &str) -> Result<i64> {
    let usage = volume.stats(pod)?;
    Ok(usage.iter().find(|u| u.unit == csi::volume_usage::Unit::Bytes as i32).map_or(0, |u| u.total))
}

#[test]
fn a_mounted_volume_grows_online() -> Result<()> {
    let rig = Rig::thin()?;
    for (pool, filesystem, mib) in [("linear", "ext4", 64), ("thin", "ext4", 64), ("thin", "xfs", 320)] {
        let mut volume = rig.with(pool, mib, mount(filesystem, Mode::SingleNodeWriter))?;
        let target = volume.up("pod")?;
        fs::write(target.join("kept"), vec![7u8; 1 << 20]).map_err(Trouble::io("writing into the volume"))?;
        let before = filesystem_size(&volume, "pod")?;
        volume.expand(mib * 2 * MIB, "pod")?;
        assert_eq!(volume.size(), mib * 2 * MIB);
        assert_eq!(rig.vg.of_handle(&volume.id)?.size, volume.size());
        let after = filesystem_size(&volume, "pod")?;
        assert!(after > before * 3 / 2, "{pool} {filesystem}: {before} → {after}");
        assert_eq!(fs::read(target.join("kept")).unwrap_or_default(), vec![7u8; 1 << 20]);
        rig.unchanged("grown again", || volume.expand(mib * 2 * MIB, "pod"))?;
        volume.down("pod")?;
    }
    rig.finish()?;
    covers!(52, 54, 55)
}

#[test]
fn a_detached_volume_grows_and_its_filesystem_follows() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        let mut volume = rig.volume(pool, 64)?;
        volume.up("pod")?;
        let before = filesystem_size(&volume, "pod")?;
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.detach()?;
        let answer = rig.csi().controller_expand_volume(volume.expand_request(128 * MIB)).accepted("ControllerExpandVolume")?;
        assert!(answer.node_expansion_required);
        assert_eq!(answer.capacity_bytes, 128 << 20);
        volume.capacity = answer.capacity_bytes;
        volume.up("pod")?;
        // With the staging path alone, with the target alone, and without a range, it grows to the whole device.
        let whole = volume.node_expand_request("pod");
        let staging = csi::NodeExpandVolumeRequest { volume_path: text(&volume.staging()), ..whole.clone() };
        let target = csi::NodeExpandVolumeRequest { staging_target_path: String::new(), ..whole.clone() };
        let unlimited = csi::NodeExpandVolumeRequest { capacity_range: None, ..whole };
        for request in [staging, target, unlimited] {
            let answer = rig.csi().node_expand_volume(request).accepted("NodeExpandVolume")?;
            assert!(answer.capacity_bytes == 0 || answer.capacity_bytes == 128 << 20, "{}", answer.capacity_bytes);
        }
        let after = filesystem_size(&volume, "pod")?;
        assert!(after > before * 3 / 2, "{pool}: {before} → {after}");
        volume.down("pod")?;
    }
    rig.finish()?;
    covers!(54, 55, 56)
}

#[test]
fn a_published_device_grows_online() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        let mut raw = rig.raw(pool, 32)?;
        let target = raw.up("pod")?;
        // A program in the pod keeps it open all the time.
        let held = fs::File::open(&target).map_err(Trouble::io("opening the device"))?;
        raw.expand(96 * MIB, "pod")?;
        assert_eq!(device_size(&target)?, 96 * MIB);
        drop(held);
        rig.unchanged("grown again", || raw.expand(96 * MIB, "pod"))?;
        raw.unpublish("pod")?;
        raw.unstage()?;
        raw.detach()?;
        let answer = rig.csi().controller_expand_volume(raw.expand_request(128 * MIB)).accepted("ControllerExpandVolume")?;
        assert!(answer.node_expansion_required, "kubelet must also learn of an offline expansion of a block volume");
        raw.capacity = answer.capacity_bytes;
        let target = raw.up("pod")?;
        rig.csi().node_expand_volume(raw.node_expand_request("pod")).accepted("NodeExpandVolume")?;
        assert_eq!(device_size(&target)?, 128 * MIB);
        assert_eq!(nonzero(&target)?, 0, "old bytes in a device that grew");
        raw.down("pod")?;
    }
    rig.finish()?;
    covers!(30, 54, 56)
}

/// Returns how many bytes of a device are not zero.
fn nonzero(device: &Path) -> Result<u64> {
    tool::drop_caches()?;
    let count = tool::run("sh", &["-c", &format!("tr -d '\\0' <{} | wc -c", device.display())])?;
    count.trim().parse().map_err(|_| Trouble::wrong(format!("wc said {count:?}")))
}

#[test]
fn an_expansion_that_died_shows_no_old_bytes() -> Result<()> {
    let mut rig = Rig::linear()?;
    // Put data on the disk where the next volume will grow.
    let mut old = rig.raw("linear", 96)?;
    let target = old.up("pod")?;
    write_at(&target, 0, &vec![0xa5; 96 << 20])?;
    old.down("pod")?;
    let mut raw = rig.raw("linear", 32)?;
    let first = raw.up("pod-1")?;
    shim::arm(Fault::Hold)?;
    let gone = rig.csi().deadline(Duration::from_millis(50)).controller_expand_volume(raw.expand_request(96 * MIB));
    assert!(gone.is_err());
    tool::wait("lvm to be held", LIMIT, || Ok((!shim::armed()).then_some(())))?;
    rig.driver.kill()?;
    shim::disarm()?;
    tool::wait("lvm to end", LIMIT, || Ok((rig.vg.of_handle(&raw.id)?.size == 96 * MIB).then_some(())))?;
    rig.driver.restart()?;
    let mut raw = raw.through(rig.csi());

    // The LV's device still has its old size. A refresh by somebody else loads extents that were never zeroed.
    rig.unchanged("staged and published again", || raw.stage().and_then(|()| raw.publish("pod-1")))?;
    let name = rig.vg.of_handle(&raw.id)?.name;
    vg::lvm(&["lvchange", "-qq", "--refresh", &format!("{}/{name}", rig.vg.name)])?;
    raw.capacity = 96 << 20;
    let early = raw.node_expand_request("pod-1");
    rig.rejects(&[Code::OutOfRange], "growing the holder before the new extents are zeroed", |csi| {
        csi.node_expand_volume(early)
    })?;
    let second = raw.publish("pod-2")?;
    for target in [&first, &second] {
        assert_eq!(nonzero(target)?, 0, "old bytes at {}", target.display());
    }
    raw.expand(96 * MIB, "pod-1")?;
    for target in [&first, &second] {
        assert_eq!((device_size(target)?, nonzero(target)?), (96 * MIB, 0), "{}", target.display());
    }
    raw.unpublish("pod-1")?;
    raw.down("pod-2")?;
    rig.finish()?;
    covers!(30)
}

#[test]
fn nothing_shrinks_and_impossible_sizes_are_out_of_range() -> Result<()> {
    let rig = Rig::linear()?;
    let volume = rig.volume("linear", 64)?;
    let expand = |required: u64, limit: u64| csi::ControllerExpandVolumeRequest {
        capacity_range: Some(range(required, limit)),
        ..volume.expand_request(0)
    };
    let smaller = rig.unchanged("asked for less", || {
        rig.csi().controller_expand_volume(expand(32 * MIB, 0)).accepted("ControllerExpandVolume")
    })?;
    assert_eq!(smaller.capacity_bytes, 64 << 20);
    let codes = &[Code::OutOfRange];
    rig.rejects(codes, "more than the disk holds", |csi| csi.controller_expand_volume(expand(64 << 30, 0)))?;
    rig.rejects(codes, "more than any disk holds", |csi| csi.controller_expand_volume(expand(u64::MAX >> 1, 0)))?;
    rig.rejects(codes, "a limit below the size", |csi| csi.controller_expand_volume(expand(96 * MIB, 80 * MIB)))?;
    rig.rejects(codes, "a limit below its current size", |csi| csi.controller_expand_volume(expand(16 * MIB, 32 * MIB)))?;
    rig.rejects(codes, "a limit within the next extent", |csi| csi.controller_expand_volume(expand(65 * MIB, 65 * MIB)))?;
    let mut nothing = expand(0, 0);
    nothing.capacity_range = None;
    rig.rejects(&[Code::InvalidArgument], "no range", |csi| csi.controller_expand_volume(nothing))?;
    let mut nobody = expand(96 * MIB, 0);
    nobody.volume_id = "fake-vol-id".to_owned();
    rig.rejects(&[Code::NotFound], "an unknown volume", |csi| csi.controller_expand_volume(nobody))?;
    volume.delete()?;
    rig.finish()?;
    covers!(52, 53)
}

#[test]
fn the_node_expands_only_what_is_there() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let target = volume.up("pod")?;
    let request = |id: &str, path: &str| csi::NodeExpandVolumeRequest {
        volume_id: id.to_owned(),
        volume_path: path.to_owned(),
        staging_target_path: String::new(),
        ..volume.node_expand_request("pod")
    };
    rig.rejects(&[Code::InvalidArgument], "no volume", |csi| csi.node_expand_volume(request("", &text(&target))))?;
    rig.rejects(&[Code::InvalidArgument], "no path", |csi| csi.node_expand_volume(request(&volume.id, "")))?;
    rig.rejects(&[Code::NotFound], "an unknown volume", |csi| csi.node_expand_volume(request("fake-vol-id", &text(&target))))?;
    let codes = &[Code::NotFound, Code::InvalidArgument];
    rig.rejects(codes, "a relative path", |csi| csi.node_expand_volume(request(&volume.id, "some/path")))?;
    let mut more = volume.node_expand_request("pod");
    more.capacity_range = Some(range(96 * MIB, 0));
    rig.rejects(&[Code::OutOfRange], "more than the device has", |csi| csi.node_expand_volume(more))?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(55)
}

/// Former tenants had other data on their raw volumes. A filesystem volume grows over the ends of these.
#[test]
fn remains_of_others_in_added_extents_do_not_keep_a_filesystem_from_its_mount() -> Result<()> {
    let rig = Rig::linear()?;
    for (filesystem, mib, larger, round) in [("ext4", 64, 128, 0), ("xfs", 320, 400, 0), ("ext4", 64, 128, 1)] {
        let mut first = rig.raw("linear", larger)?;
        let begin = rig.vg.begin(first.lv())?;
        let target = first.up("guest")?;
        let [(words, left), (others, table)] = remains(device_size(&target)?);
        let (words, left) = if round == 0 { (words, left) } else { (others, table) };
        left.into_iter().try_for_each(|(offset, bytes)| write_at(&target, offset, &bytes))?;
        first.down("guest")?;
        let mut second = rig.with("linear", mib, mount(filesystem, Mode::SingleNodeWriter))?;
        assert_eq!(rig.vg.begin(second.lv())?, begin, "the test needs the second volume on the same extents");
        let pod = second.up("pod")?;
        fs::write(pod.join("kept"), "kept").map_err(Trouble::io("writing"))?;
        second.expand(larger * MIB, "pod")?;
        let signatures = tool::run("wipefs", &["-n", &text(&rig.vg.device(second.lv()))])?;
        for word in words.iter().chain([&filesystem]) {
            assert!(signatures.contains(word), "the test needs {word}, but wipefs reports\n{signatures}");
        }
        second.unpublish("pod")?;
        second.unstage()?;
        second.stage()?;
        let pod = second.publish("pod")?;
        assert_eq!(fs::read_to_string(pod.join("kept")).unwrap_or_default(), "kept");
        second.expand((larger + 16) * MIB, "pod")?;
        second.down("pod")?;
    }
    rig.finish()
}
