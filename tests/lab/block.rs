//! Raw block volumes.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, mount};
use testkit::error::{Result, Trouble};
use testkit::flow::text;
use testkit::signature::{device_size, write_at};
use testkit::{tool, vg};
use tonic::Code;

use crate::rig::{MIB, Rig};

fn is_device(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|entry| entry.file_type().is_block_device())
}

#[test]
fn the_target_is_the_device_and_its_bytes_stay() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        let mut raw = rig.raw(pool, 64)?;
        let target = raw.up("pod-1")?;
        assert!(is_device(&target), "the target is not a block device");
        assert_eq!(device_size(&target)?, 64 * MIB);
        let name = rig.vg.of_handle(&raw.id)?;
        assert!(name.tags.iter().any(|tag| tag == "csi.fs=raw"), "{:?}", name.tags);
        write_at(&target, 12345, b"bytes of the pod")?;
        for _ in 0..3 {
            rig.unchanged("staged and published again", || raw.stage().and_then(|()| raw.publish("pod-1")))?;
        }
        let usage = raw.stats("pod-1")?;
        assert!(usage.iter().any(|u| u.total == 64 << 20), "{usage:?}");
        raw.unpublish("pod-1")?;
        raw.unstage()?;
        assert!(!rig.vg.of_handle(&raw.id)?.active());
        raw.stage()?;
        let target = raw.publish("pod-2")?;
        let bytes = tool::run("sh", &["-c", &format!("dd if={} bs=1 skip=12345 count=16 status=none", target.display())])?;
        assert_eq!(bytes, "bytes of the pod");
        // A raw volume is never formatted, whatever the request asks.
        raw.unpublish("pod-2")?;
        raw.unstage()?;
        raw.make_staging()?;
        let mut as_filesystem = raw.stage_request();
        as_filesystem.volume_capability = Some(mount("ext4", Mode::SingleNodeWriter));
        let codes = &[Code::FailedPrecondition, Code::InvalidArgument, Code::AlreadyExists];
        rig.rejects(codes, "a raw volume staged with a filesystem", |csi| csi.node_stage_volume(as_filesystem))?;
        raw.unstage()?;
        raw.detach()?;
        raw.delete()?;
    }
    rig.finish()?;
    covers!(21, 64)
}

#[test]
fn a_readonly_device_cannot_be_written() -> Result<()> {
    let rig = Rig::thin()?;
    let mut raw = rig.raw("thin", 32)?;
    raw.attach()?;
    raw.stage()?;
    raw.make_parent("pod")?;
    let mut request = raw.publish_request("pod");
    request.readonly = true;
    rig.csi().node_publish_volume(request).accepted("NodePublishVolume")?;
    // The kernel lets a read-only device be opened for writing. What counts is that no byte reaches it, by any route.
    let target = text(&raw.target("pod"));
    assert!(write_at(&raw.target("pod"), 0, b"written").is_err(), "a read-only device was written");
    for write in
        ["dd if=/dev/urandom oflag=direct bs=4096 count=1 status=none of=", "blkdiscard -f -z -l 4096 ", "mkfs.ext4 -q -F "]
    {
        let written = tool::run("sh", &["-c", &format!("{write}{target}")]);
        assert!(written.is_err(), "{write}: a read-only device was written");
    }
    tool::drop_caches()?;
    let nonzero = tool::run("sh", &["-c", &format!("tr -d '\\0' <{target} | wc -c")])?;
    assert_eq!(nonzero.trim(), "0", "bytes reached a read-only device");
    rig.rejects(&[Code::AlreadyExists], "the same target, writable", |csi| csi.node_publish_volume(raw.publish_request("pod")))?;
    raw.down("pod")?;
    rig.finish()?;
    covers!(63)
}

#[test]
fn a_published_device_is_pinned() -> Result<()> {
    let rig = Rig::linear()?;
    let mut raw = rig.raw("linear", 32)?;
    let target = raw.up("pod")?;
    write_at(&target, 0, b"mine")?;
    // Nobody has it open; it is only mounted. Without a holder, LVM would deactivate it under the pod.
    let full = format!("{}/{}", rig.vg.name, rig.vg.of_handle(&raw.id)?.name);
    assert!(vg::lvm(&["lvchange", "-qq", "-an", &full]).is_err(), "stock LVM could deactivate a published device");
    assert!(vg::lvm(&["lvremove", "-qq", "-f", &full]).is_err(), "stock LVM could remove a published device");
    rig.rejects(&[Code::FailedPrecondition], "deleting a published device", |csi| {
        csi.delete_volume(csi::DeleteVolumeRequest { volume_id: raw.id.clone(), ..Default::default() })
    })?;
    raw.down("pod")?;
    rig.finish()?;
    covers!(31)
}

#[test]
fn two_persistent_volumes_with_one_handle_have_two_paths() -> Result<()> {
    let rig = Rig::linear()?;
    let mut raw = rig.raw("linear", 32)?;
    raw.attach()?;
    let mut other = raw.clone();
    other.name = format!("{}-other", raw.name);
    raw.stage()?;
    other.stage()?;
    let first = raw.publish("pod-1")?;
    let second = other.publish("pod-2")?;
    write_at(&first, 0, b"one volume")?;
    let bytes = tool::run("sh", &["-c", &format!("head -c 10 {}", second.display())])?;
    assert_eq!(bytes, "one volume");
    raw.unpublish("pod-1")?;
    raw.unstage()?;
    assert!(is_device(&second) && device_size(&second)? == 32 * MIB, "the second path lost the device");
    other.unpublish("pod-2")?;
    other.unstage()?;
    raw.detach()?;
    raw.delete()?;
    rig.finish()?;
    covers!(67)
}

#[test]
fn unpublishing_removes_the_file_in_any_state() -> Result<()> {
    let rig = Rig::linear()?;
    let mut raw = rig.raw("linear", 32)?;
    raw.attach()?;
    raw.stage()?;
    raw.make_parent("pod")?;
    let target = raw.target("pod");
    let unpublish = || {
        let request = csi::NodeUnpublishVolumeRequest { volume_id: raw.id.clone(), target_path: text(&target) };
        rig.csi().node_unpublish_volume(request).accepted("NodeUnpublishVolume")
    };
    fs::write(&target, "").map_err(Trouble::io("making a file"))?;
    unpublish()?;
    assert!(!target.exists(), "a target file without a mount was not removed");
    raw.publish("pod")?;
    tool::run("mount", &["--bind", &text(&target), &text(&target)])?;
    unpublish()?;
    assert!(!target.exists(), "a target mounted twice was not removed");
    unpublish()?;
    raw.down("pod")?;
    rig.finish()?;
    covers!(65)
}
