//! What the driver checks after a tool or the kernel worked on a filesystem: whether the work was done, whether the filesystem
//! still accepts writes, which features it has, and which mount options are refused.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, mount, mount_with, refused};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, text};
use testkit::mounts::{mount_at, mount_points};
use testkit::shim::ReplacedTool;
use testkit::signature::write_at;
use testkit::{lab, tool};
use tonic::Code;

use crate::rig::{MIB, Rig};

/// A tool that reports success but does nothing.
const NOTHING: &str = "exit 0";

fn total(volume: &Volume, pod: &str) -> Result<u64> {
    let usage = volume.stats(pod)?;
    let bytes = usage.iter().find(|usage| usage.unit == csi::volume_usage::Unit::Bytes as i32);
    Ok(bytes.and_then(|usage| u64::try_from(usage.total).ok()).unwrap_or(0))
}

/// Fails unless staging is refused for this reason and leaves nothing behind.
fn refuses_to_stage(rig: &Rig, volume: &Volume, code: Code, reason: &str) -> Result<()> {
    volume.make_staging()?;
    let said = refused(rig.csi().node_stage_volume(volume.stage_request()), &[code], reason)?;
    ensure(said.contains(reason), || format!("{said:?} does not say {reason:?}"))?;
    ensure(!rig.vg.of_handle(&volume.id)?.active(), || "the refused stage left a device".to_owned())?;
    ensure(mount_at(&volume.staging())?.is_none(), || "the refused stage left a mount".to_owned())
}

fn expand_in_controller(rig: &Rig, volume: &mut Volume, mib: u64) -> Result<()> {
    let answer = rig.csi().controller_expand_volume(volume.expand_request(mib * MIB)).accepted("ControllerExpandVolume")?;
    volume.capacity = answer.capacity_bytes;
    Ok(())
}

#[test]
fn a_tool_that_only_says_that_it_worked_is_found_out_and_an_honest_run_heals() -> Result<()> {
    let rig = Rig::linear()?;
    for (filesystem, mkfs, mib) in [("ext4", "mkfs.ext4", 64), ("xfs", "mkfs.xfs", 320)] {
        let mut volume = rig.with("linear", mib, mount(filesystem, Mode::SingleNodeWriter))?;
        volume.attach()?;
        let liar = ReplacedTool::with(mkfs, NOTHING)?;
        refuses_to_stage(&rig, &volume, Code::Internal, "is said to have succeeded, but the magic number")?;
        drop(liar);
        volume.stage()?;
        volume.unstage()?;
        if filesystem == "ext4" {
            rig.vg.with_active(volume.lv(), |device| tool::run("tune2fs", &["-E", "force_fsck", &text(device)]).map(drop))?;
            let liar = ReplacedTool::with("e2fsck", NOTHING)?;
            refuses_to_stage(&rig, &volume, Code::FailedPrecondition, "its superblock still records errors")?;
            drop(liar);
            volume.stage()?;
        } else {
            volume.stage()?;
            let pod = volume.publish("pod")?;
            fs::write(pod.join("kept"), "kept").map_err(Trouble::io("writing"))?;
            let before = total(&volume, "pod")?;
            expand_in_controller(&rig, &mut volume, 400)?;
            let liar = ReplacedTool::with("xfs_growfs", NOTHING)?;
            let said = refused(rig.csi().node_expand_volume(volume.node_expand_request("pod")), &[Code::Internal], "a lie")?;
            ensure(said.contains("is said to have succeeded, but it has 335544320 (320MiB) of"), || said.clone())?;
            // A working filesystem is staged all the same, and grown as soon as possible.
            volume.unpublish("pod")?;
            volume.unstage()?;
            volume.stage()?;
            let pod = volume.publish("pod")?;
            ensure(fs::read_to_string(pod.join("kept")).is_ok_and(|kept| kept == "kept"), || {
                "the test's file is gone".to_owned()
            })?;
            ensure(total(&volume, "pod")? == before, || "the test needs a filesystem that has not grown".to_owned())?;
            drop(liar);
            volume.publish("pod-2")?;
            ensure(total(&volume, "pod-2")? >= before + 80 * MIB, || {
                "the next publication did not grow the filesystem".to_owned()
            })?;
            volume.expand(400 * MIB, "pod")?;
            volume.unpublish("pod-2")?;
            volume.unpublish("pod")?;
        }
        volume.unstage()?;
        volume.detach()?;
        volume.delete()?;
    }
    rig.finish()
}

/// With `bdev_allow_write_mounted=0` the kernel does not let resize2fs open a mounted device.
#[test]
fn ext4_grows_through_its_mount_and_without_resize2fs() -> Result<()> {
    let rig = Rig::linear()?;
    let ran = Path::new(lab::ROOT).join("resize2fs-ran");
    let script = format!("touch {}; echo Operation not permitted >&2; exit 1", ran.display());
    let replaced = ReplacedTool::with("resize2fs", &script)?;
    let mut volume = rig.with("linear", 64, mount_with("ext4", Mode::SingleNodeWriter, &["errors=continue"]))?;
    volume.up("pod")?;
    let cmdline = fs::read_to_string("/proc/cmdline").map_err(Trouble::io("reading the kernel's arguments"))?;
    if cmdline.contains("bdev_allow_write_mounted=0") {
        let opened = fs::File::options().write(true).open(rig.vg.device(volume.lv()));
        ensure(opened.is_err(), || "this kernel lets a mounted device be opened for writing".to_owned())?;
    }
    volume.expand(128 * MIB, "pod")?;
    let grown = total(&volume, "pod")?;
    ensure(grown > 100 * MIB, || format!("the filesystem has {grown} bytes of 128 MiB"))?;
    // Grow it by a stage, to a size that ends within a block group.
    volume.unpublish("pod")?;
    volume.unstage()?;
    expand_in_controller(&rig, &mut volume, 172)?;
    volume.stage()?;
    volume.publish("pod")?;
    ensure(total(&volume, "pod")? > grown + 30 * MIB, || "the stage did not grow the filesystem".to_owned())?;
    // The kernel does not grow a filesystem with recorded errors. NodeExpandVolume reports that, and the pod keeps the filesystem
    // until it is checked.
    fs::write(error_trigger(&rig, &volume)?, "1").map_err(Trouble::io("making an error"))?;
    expand_in_controller(&rig, &mut volume, 200)?;
    let said = refused(rig.csi().node_expand_volume(volume.node_expand_request("pod")), &[Code::Internal], "errors")?;
    ensure(said.contains("does not grow a filesystem that has errors recorded"), || said.clone())?;
    let pod = volume.publish("pod-2")?;
    fs::write(pod.join("kept"), "kept").map_err(Trouble::io("writing"))?;
    for name in ["pod", "pod-2"] {
        volume.unpublish(name)?;
    }
    volume.unstage()?;
    volume.stage()?;
    let pod = volume.publish("pod")?;
    ensure(fs::read_to_string(pod.join("kept")).is_ok_and(|kept| kept == "kept"), || "the test's file is gone".to_owned())?;
    ensure(total(&volume, "pod")? > grown + 60 * MIB, || "the filesystem did not grow after its check".to_owned())?;
    ensure(!ran.exists(), || "resize2fs was run".to_owned())?;
    drop(replaced);
    volume.down("pod")?;
    rig.finish()
}

/// Returns the sysfs file that makes the kernel record an error in a mounted ext4.
fn error_trigger(rig: &Rig, volume: &Volume) -> Result<String> {
    let device = rig.vg.device(volume.lv()).canonicalize().map_err(Trouble::io("following a link"))?;
    let name = device.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(format!("/sys/fs/ext4/{name}/trigger_fs_error"))
}

#[test]
fn a_filesystem_that_the_kernel_took_out_of_service_is_shown_to_no_further_pod() -> Result<()> {
    let rig = Rig::linear()?;
    for (filesystem, mib, trouble) in [("ext4", 64, "made it read-only"), ("xfs", 320, "shut it down")] {
        let mut volume = rig.with("linear", mib, mount(filesystem, Mode::SingleNodeWriter))?;
        let pod = volume.up("pod")?;
        fs::write(pod.join("kept"), "kept").map_err(Trouble::io("writing"))?;
        tool::run("sync", &["-f", &text(&pod)])?;
        expand_in_controller(&rig, &mut volume, mib + 64)?;
        match filesystem {
            "ext4" => fs::write(error_trigger(&rig, &volume)?, "1").map_err(Trouble::io("making an error"))?,
            _ => tool::run("xfs_io", &["-x", "-c", "shutdown", &text(&pod)]).map(drop)?,
        }
        volume.make_parent("pod-2")?;
        let (publish, expand) = (volume.publish_request("pod-2"), volume.node_expand_request("pod"));
        let stage = volume.stage_request();
        let codes = &[Code::FailedPrecondition];
        for said in [
            refused(rig.csi().node_publish_volume(publish), codes, "NodePublishVolume")?,
            refused(rig.csi().node_expand_volume(expand), codes, "NodeExpandVolume")?,
            refused(rig.csi().node_stage_volume(stage), codes, "NodeStageVolume")?,
        ] {
            let says = said.contains("takes no more writes") && said.contains(trouble) && said.contains("stop the pods");
            ensure(says, || format!("{filesystem}: {said}"))?;
        }
        let mounted = mount_points()?;
        ensure(mounted.contains(&pod), || "the pod lost its mount".to_owned())?;
        ensure(!mounted.contains(&volume.target("pod-2")), || "the refused publication left a mount".to_owned())?;
        ensure(filesystem == "ext4" || volume.stats("pod").is_err(), || {
            "a filesystem that is shut down reports usage".to_owned()
        })?;
        volume.unpublish("pod-2")?;
        // Once nobody uses it, the next stage repairs it.
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.stage()?;
        let pod = volume.publish("pod")?;
        ensure(fs::read_to_string(pod.join("kept")).is_ok_and(|kept| kept == "kept"), || "the test's file is gone".to_owned())?;
        fs::write(pod.join("new"), "new").map_err(Trouble::io("writing again"))?;
        volume.expand((mib + 64) * MIB, "pod")?;
        volume.down("pod")?;
    }
    rig.finish()
}

/// Reads words of a superblock at these offsets.
fn words<const N: usize>(device: &Path, offsets: [u64; N], word: fn([u8; 4]) -> u32) -> Result<[u32; N]> {
    let file = File::open(device).map_err(Trouble::io("opening a device"))?;
    let mut words = [0; N];
    for (at, offset) in offsets.into_iter().enumerate() {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, offset).map_err(Trouble::io("reading a superblock"))?;
        words[at] = word(bytes);
    }
    Ok(words)
}

/// The driver's filesystems must be mountable on Linux 5.10 and newer.
#[test]
fn filesystems_have_only_features_that_old_kernels_know() -> Result<()> {
    let rig = Rig::linear()?;
    for (filesystem, mib) in [("ext4", 64), ("xfs", 320)] {
        let mut volume = rig.with("linear", mib, mount(filesystem, Mode::SingleNodeWriter))?;
        volume.attach()?;
        volume.stage()?;
        volume.unstage()?;
        rig.vg.with_active(volume.lv(), |device| {
            if filesystem == "ext4" {
                // Compatible, incompatible and read-only-compatible features: those of e2fsprogs 1.43.
                let found = words(device, [1024 + 0x5c, 1024 + 0x60, 1024 + 0x64], u32::from_le_bytes)?;
                assert_eq!(found, [0x3c, 0x2c2, 0x46b], "{found:#x?}");
            } else {
                // finobt and reflink; ftype and sparse inodes: what mkfs.xfs set when Linux 5.10 came out.
                let found = words(device, [208, 212, 216, 220], u32::from_be_bytes)?;
                assert_eq!(found, [0, 0x5, 0x3, 0], "{found:#x?}");
            }
            Ok(())
        })?;
        volume.detach()?;
        volume.delete()?;
    }
    rig.finish()
}

#[test]
fn mount_options_that_the_kernel_refuses_are_named_and_a_filesystem_that_it_refuses_is_told_apart() -> Result<()> {
    let rig = Rig::linear()?;
    for (filesystem, mib) in [("ext4", 64), ("xfs", 320)] {
        let mut volume = rig.with("linear", mib, mount(filesystem, Mode::SingleNodeWriter))?;
        volume.attach()?;
        let label = "context=\"system_u:object_r:container_file_t:s0\"";
        let value = if filesystem == "ext4" { "journal_ioprio=9" } else { "logbufs=1" };
        for wrong in [label, value] {
            let mut asked = volume.clone();
            asked.capability = mount_with(filesystem, Mode::SingleNodeWriter, &["noatime", "discard", wrong]);
            refuses_to_stage(&rig, &asked, Code::InvalidArgument, &format!("mount_flags {wrong:?}: the kernel of this node"))?;
        }
        if filesystem == "ext4" {
            // Set a feature that nobody knows. The first block is put back afterwards, because e2fsprogs cannot open such a
            // filesystem.
            let mut block = vec![0; 4096];
            rig.vg.with_active(volume.lv(), |device| {
                let file = File::open(device).map_err(Trouble::io("opening a device"))?;
                file.read_exact_at(&mut block, 0).map_err(Trouble::io("reading a superblock"))?;
                tool::run("debugfs", &["-w", "-R", "feature FEATURE_I31", &text(device)]).map(drop)
            })?;
            let mut asked = volume.clone();
            asked.capability = mount_with(filesystem, Mode::SingleNodeWriter, &["discard"]);
            refuses_to_stage(&rig, &asked, Code::FailedPrecondition, "features that this kernel does not know")?;
            rig.vg.with_active(volume.lv(), |device| write_at(device, 0, &block))?;
        }
        volume.stage()?;
        volume.unstage()?;
        volume.detach()?;
        volume.delete()?;
    }
    rig.finish()
}
