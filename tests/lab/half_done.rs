//! No call returns OK for work it has not done, and none refuses forever what it could do: volumes that are still shown somewhere,
//! attached but unstaged volumes, and LVs that somebody changed with LVM's own tools.

use std::fs;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use lvm_csi_proto::csi::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use testkit::client::{Accepted, Csi, block, create, mount, refused};
use testkit::driver::Start;
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, delete_snapshot, text};
use testkit::signature::device_size;
use testkit::test_vg::TestVg;
use testkit::vg::lvm;
use testkit::{lab, tool};
use tonic::{Code, Status};

use crate::rig::{DRIVER, LIMIT, MIB, POOL_MIB, Rig};

const REFUSED: &[Code] = &[Code::FailedPrecondition];

fn unstage(csi: &Csi, volume: &Volume, path: &Path) -> std::result::Result<(), Status> {
    let request = csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: text(path) };
    csi.node_unstage_volume(request).map(drop)
}

fn detach(csi: &Csi, volume: &Volume) -> std::result::Result<(), Status> {
    let request = csi::ControllerUnpublishVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    csi.controller_unpublish_volume(request).map(drop)
}

fn delete(csi: &Csi, volume: &Volume) -> std::result::Result<(), Status> {
    csi.delete_volume(csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() }).map(drop)
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    tool::run("mount", &["--bind", &text(from), &text(to)]).map(drop)
}

/// Makes a file or an empty directory next to kubelet's, as a mount point for somebody else.
fn beside(rig: &Rig, name: &str, is_directory: bool) -> Result<std::path::PathBuf> {
    let path = rig.places.root.join(name);
    let made = if is_directory { fs::create_dir(&path) } else { fs::write(&path, "") };
    made.map_err(Trouble::io(format!("making {}", path.display())))?;
    Ok(path)
}

#[test]
fn what_is_shown_or_attached_is_neither_unstaged_nor_deleted() -> Result<()> {
    let rig = Rig::thin()?;
    // A subPath mount that outlives its pod.
    let mut mounted = rig.volume("thin", 64)?;
    let target = mounted.up("pod")?;
    fs::create_dir(target.join("sub")).map_err(Trouble::io("making a directory in the volume"))?;
    let left = beside(&rig, "subpath", true)?;
    bind(&target.join("sub"), &left)?;
    let shown_at = |what: &str, volume: &Volume, path: &Path| -> Result<()> {
        let message = rig.rejects(REFUSED, what, |csi| unstage(csi, volume, &volume.staging()))?;
        ensure(message.contains(&text(path)), || format!("{what}: {message}"))?;
        rig.rejects(REFUSED, "detaching it", |csi| detach(csi, volume)).map(drop)
    };
    shown_at("unstaging what a pod uses", &mounted, &target)?;
    mounted.unpublish("pod")?;
    shown_at("unstaging what a subPath mount shows", &mounted, &left)?;
    tool::run("umount", &[&left])?;
    mounted.unstage()?;
    fs::remove_dir(&left).map_err(Trouble::io("removing a directory"))?;

    // What kubelet keeps for a raw volume: a bind mount of the published file, with a loop device over it.
    let mut raw = rig.raw("linear", 16)?;
    raw.attach()?;
    raw.make_parent("pod")?;
    let not_staged = "publishing what was never staged";
    rig.rejects(REFUSED, not_staged, |csi| csi.node_publish_volume(raw.publish_request("pod")))?;
    raw.stage()?;
    let target = raw.publish("pod")?;
    let left = beside(&rig, "device", false)?;
    bind(&target, &left)?;
    let device = tool::run("losetup", &["--find", "--show", &text(&left)])?;
    raw.unpublish("pod")?;
    shown_at("unstaging what kubelet still holds", &raw, &left)?;
    tool::run("losetup", &["--detach", device.trim()])?;
    tool::run("umount", &[&left])?;
    fs::remove_file(&left).map_err(Trouble::io("removing a file"))?;

    // Two staging paths of one raw volume are independent. The last unstage deactivates it.
    let second = beside(&rig, "second", true)?;
    let twice = csi::NodeStageVolumeRequest { staging_target_path: text(&second), ..raw.stage_request() };
    rig.csi().node_stage_volume(twice).accepted("NodeStageVolume")?;
    raw.unstage()?;
    raw.make_parent("pod")?;
    refused(rig.csi().node_publish_volume(raw.publish_request("pod")), REFUSED, not_staged)?;
    let through = csi::NodePublishVolumeRequest { staging_target_path: text(&second), ..raw.publish_request("pod") };
    rig.csi().node_publish_volume(through).accepted("NodePublishVolume")?;
    raw.unpublish("pod")?;
    unstage(rig.csi(), &raw, &second).accepted("NodeUnstageVolume")?;
    fs::remove_dir(&second).map_err(Trouble::io("removing a directory"))?;
    assert!(!rig.vg.of_handle(&raw.id)?.active(), "the last unstage left the volume active");

    // An attached volume may be staged again at any moment, so only a detach permits the deletion.
    for volume in [&mounted, &raw] {
        let message = rig.rejects(REFUSED, "deleting an attached volume", |csi| delete(csi, volume))?;
        assert!(message.contains("ControllerUnpublishVolume"), "{message}");
        volume.stage()?;
        volume.unstage()?;
        volume.detach()?;
        volume.delete()?;
    }

    // A snapshot that somebody has open.
    let volume = rig.volume("thin", 16)?;
    let snapshot = volume.snapshot("cut")?.snapshot_id;
    let lv = rig.vg.of_handle(&snapshot)?.name;
    lvm(&["lvchange", "-qq", "-y", "-ay", "-K", &format!("labvg/{lv}")])?;
    tool::settle()?;
    let open = fs::File::open(rig.vg.device(&lv)).map_err(Trouble::io("opening the snapshot"))?;
    let remove = csi::DeleteSnapshotRequest { snapshot_id: snapshot.clone(), ..Default::default() };
    let message = refused(rig.csi().delete_snapshot(remove), REFUSED, "deleting a snapshot that is open")?;
    assert!(message.contains("open 1 times"), "{message}");
    drop(open);
    delete_snapshot(rig.csi(), &snapshot)?;
    volume.delete()?;
    rig.finish()
}

#[test]
fn what_somebody_did_to_an_lv_is_told_and_undone_as_told() -> Result<()> {
    let rig = Rig::make_on(&[lab::disk(0)?, lab::disk(1)?], Some(POOL_MIB), &[])?;
    let full = |volume: &Volume| format!("labvg/{}", volume.lv());
    let attach = |csi: &Csi, volume: &Volume| csi.controller_publish_volume(volume.attach_request()).map(drop);

    // A raw volume in use that was converted to a mirror grows like any other, with both legs.
    let mut raw = rig.raw("linear", 16)?;
    let target = raw.up("pod")?;
    lvm(&["lvconvert", "-qq", "-y", "--type", "raid1", "-m1", &full(&raw)])?;
    raw.expand(32 * MIB, "pod")?;
    ensure(device_size(&target)? == 32 * MIB, || "the mirrored volume did not grow".to_owned())?;
    let in_sync = || Ok(lvm(&["lvs", "--noheadings", "-o", "copy_percent", &full(&raw)])?.contains("100.00").then_some(()));
    tool::wait("the mirror to be in sync", LIMIT, in_sync)?;
    lvm(&["lvconvert", "-qq", "-y", "-m0", &full(&raw)])?;
    raw.expand(48 * MIB, "pod")?;
    raw.down("pod")?;

    // A read-only LV.
    for (pool, capability) in [("thin", mount("ext4", Mode::SingleNodeWriter)), ("linear", block(Mode::SingleNodeWriter))] {
        let mut volume = rig.with(pool, 16, capability)?;
        volume.attach()?;
        volume.make_staging()?;
        lvm(&["lvchange", "-qq", "-p", "r", &full(&volume)])?;
        let message = rig.rejects(REFUSED, "staging a read-only LV", |csi| csi.node_stage_volume(volume.stage_request()))?;
        let command = format!("lvchange -p rw {}", full(&volume));
        assert!(message.contains(&command), "{message}");
        lvm(&["lvchange", "-qq", "-p", "rw", &full(&volume)])?;
        volume.up("pod")?;
        volume.down("pod")?;
    }

    // Invalid tags, and a copy that was cut off.
    let volume = rig.volume("thin", 16)?;
    lvm(&["lvchange", "-qq", "--deltag", "csi.fs=formatting=ext4", &full(&volume)])?;
    for (what, message) in [
        ("attaching", rig.rejects(REFUSED, "attaching a volume with damaged tags", |csi| attach(csi, &volume))?),
        ("growing", refused(rig.csi().controller_expand_volume(volume.expand_request(32 * MIB)), REFUSED, "growing it")?),
    ] {
        assert!(message.contains("csi.fs=") && message.contains("lvchange"), "{what}: {message}");
    }
    lvm(&["lvchange", "-qq", "--addtag", "csi.fs=formatting=ext4", &full(&volume)])?;
    let snapshot = volume.snapshot("cut")?.snapshot_id;
    let mut request = create(&rig.name(), "thin", 32 * MIB, mount("ext4", Mode::SingleNodeWriter));
    let content = Source::Snapshot(SnapshotSource { snapshot_id: snapshot.clone() });
    request.volume_content_source = Some(csi::VolumeContentSource { r#type: Some(content) });
    let copy = rig.request(request)?;
    lvm(&["lvreduce", "-qq", "-y", "-f", "--fs", "ignore", "-L", "16m", &full(&copy)])?;
    let message = rig.rejects(REFUSED, "attaching a copy that was cut off", |csi| attach(csi, &copy))?;
    let command = ["lvextend", "-L", "33554432b", &full(&copy)];
    assert!(message.contains(&command.join(" ")), "{message}");
    lvm(&command)?;
    attach(rig.csi(), &copy).accepted("ControllerPublishVolume")?;
    copy.detach()?;
    copy.delete()?;
    delete_snapshot(rig.csi(), &snapshot)?;

    // A group given to another host by LVM's own means.
    let mut volume = volume;
    volume.attach()?;
    volume.make_staging()?;
    lvm(&["vgchange", "-qq", "-an", "labvg"])?;
    lvm(&["vgchange", "-qq", "-y", "--systemid", "elsewhere", "labvg"])?;
    let staged = rig.csi().node_stage_volume(volume.stage_request());
    let message = refused(staged, &[Code::Unavailable], "staging in another host's group")?;
    tool::wait("the group to be reported as sick", LIMIT, || {
        Ok((!rig.csi().healthy("vg/labvg").accepted("Check")?).then_some(()))
    })?;
    // The command in the message brings the group back.
    let own = "global/system_id_source=\"lvmlocal\" local/system_id=\"elsewhere\"";
    assert!(message.contains(&format!("vgchange --yes --config '{own}' --systemid \"\" labvg")), "{message}");
    lvm(&["vgchange", "--yes", "--config", own, "--systemid", "", "labvg"])?;
    volume.stage()?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    lvm(&["lvchange", "-qq", "-ay", "labvg/pool"])?;
    rig.finish()
}

/// Starts a driver on the usual group, whose thin pool is not extended, and on one whose name contains a plus.
fn two_groups() -> Result<(Rig, TestVg)> {
    let mut other = None;
    let rig = Rig::start(&[lab::disk(0)?], None, |home, vg| {
        // The smallest pool metadata that LVM makes.
        let pool = ["-Zy", "-L", "512m", "--poolmetadatasize", "2m", "-c", "64k", "--thinpool", "pool"];
        let first = ["--type", "thin", "-V", "4m", "-n", "first", &vg.name];
        lvm(&[&["lvcreate", "-qq", "-y"], &pool[..], &first[..]].concat())?;
        lvm(&["lvremove", "-qq", "-y", "labvg/first"])?;
        let plus = TestVg::make("lab+vg", &[lab::disk(1)?])?;
        plus.thin_pool("pool", POOL_MIB)?;
        other = Some(plus);
        let text = "pools:\n- name: thin\n  volumeGroup: labvg\n  layout: thin\n  default: true\n  autoExtend: false\n\
                    - name: plus\n  volumeGroup: lab+vg\n  layout: thin\n- name: linear\n  volumeGroup: labvg\n  layout: linear\n";
        Start::on_config(Path::new(DRIVER), home, text)
    })?;
    let other = other.ok_or_else(|| Trouble::wrong("the driver was started without the other group"))?;
    Ok((rig, other))
}

#[test]
fn a_pool_that_cannot_give_says_so_with_one_code() -> Result<()> {
    let (rig, other) = two_groups()?;
    let ext4 = || mount("ext4", Mode::SingleNodeWriter);
    // A plus is valid in a group's name.
    let mut plus = rig.volume("plus", 16)?;
    plus.up("pod")?;
    plus.expand(32 * MIB, "pod")?;
    plus.down("pod")?;

    // Content stays in its pool.
    let mut volume = rig.volume("thin", 16)?;
    let snapshot = volume.snapshot("cut")?.snapshot_id;
    for content in [
        Source::Snapshot(SnapshotSource { snapshot_id: snapshot.clone() }),
        Source::Volume(VolumeSource { volume_id: volume.id.clone() }),
    ] {
        let mut request = create(&rig.name(), "plus", 16 * MIB, ext4());
        request.volume_content_source = Some(csi::VolumeContentSource { r#type: Some(content) });
        let message = rig.rejects(&[Code::InvalidArgument], "a copy into another group", |csi| csi.create_volume(request))?;
        assert!(message.contains("labvg/pool") && message.contains("pool plus (volume group lab+vg)"), "{message}");
    }

    // Without a configuration file and an endpoint the doctor asks no driver.
    let mut doctor = tool::command(DRIVER);
    doctor.args(["doctor", "--vg", "labvg", "--node-id", "node-a", "--state-dir", &text(&rig.driver.start().state())]);
    let said = tool::finish(doctor.env_remove("CSI_ENDPOINT"))?;
    assert!(said.contains("nothing is wrong") && said.contains("CSI_ENDPOINT"), "{said}");

    // Reach LVM's own threshold: each empty device takes one block of the pool's metadata.
    let pool = "labvg-pool-tpool";
    let used = || -> Result<(u64, u64)> {
        let status = tool::run("dmsetup", &["status", "--noflush", pool])?;
        let part = status.split_whitespace().nth(4).and_then(|part| part.split_once('/'));
        let numbers = part.and_then(|(used, all)| Some((used.parse().ok()?, all.parse().ok()?)));
        numbers.ok_or_else(|| Trouble::wrong(format!("the pool reports {status}")))
    };
    let (begin, all) = used()?;
    let wanted = all * 76 / 100 - begin;
    let script = format!("for n in $(seq {wanted}); do dmsetup message {pool} 0 \"create_thin $((n + 100000))\"; done");
    tool::run("sh", &["-ec", &script])?;
    let request = create(&rig.name(), "thin", 16 * MIB, ext4());
    let full = &[Code::ResourceExhausted];
    let message = rig.rejects(full, "a volume in a pool with full metadata", |csi| csi.create_volume(request))?;
    assert!(message.contains("node-a") && message.contains("poolmetadatasize"), "{message}");
    let id = volume.id.clone();
    let cut =
        |name: &str| csi::CreateSnapshotRequest { source_volume_id: id.clone(), name: name.to_owned(), ..Default::default() };
    rig.rejects(full, "a snapshot in it", |csi| csi.create_snapshot(cut("another")))?;

    // The pool fails when its disk fails.
    volume.attach()?;
    volume.make_staging()?;
    let table = tool::run("dmsetup", &["table", "labvg-pool_tmeta"])?;
    let sectors = table.split_whitespace().nth(1).unwrap_or_default();
    let put = |table: &str| {
        let load = tool::run("dmsetup", &["load", "labvg-pool_tmeta", "--table", table]);
        load.and_then(|_| tool::run("dmsetup", &["resume", "--nolockfs", "--noflush", "labvg-pool_tmeta"]))
    };
    put(&format!("0 {sectors} error"))?;
    let _ = tool::run("dmsetup", &["message", pool, "0", "create_thin 90000"]);
    let status = tool::run("dmsetup", &["status", "--noflush", pool])?;
    ensure(status.contains("Fail"), || format!("the pool did not fail: {status}"))?;
    let sick = &[Code::Unavailable];
    let grow = volume.expand_request(32 * MIB);
    let request = create(&rig.name(), "thin", 16 * MIB, ext4());
    for message in [
        refused(rig.csi().create_volume(request), sick, "a creation in a failed pool")?,
        refused(rig.csi().create_snapshot(cut("third")), sick, "a snapshot in it")?,
        refused(rig.csi().controller_expand_volume(grow), sick, "a growth in it")?,
        refused(rig.csi().node_stage_volume(volume.stage_request()), sick, "a stage of a volume in it")?,
    ] {
        assert!(message.contains("labvg/pool") && message.contains("lvconvert --repair"), "{message}");
    }
    // After the repair nothing in the pool is lost.
    put(&table)?;
    lvm(&["vgchange", "-qq", "-an", "labvg"])?;
    lvm(&["lvchange", "-qq", "-ay", "labvg/pool"])?;
    volume.stage()?;
    volume.unstage()?;
    volume.detach()?;
    delete_snapshot(rig.csi(), &snapshot)?;
    volume.delete()?;
    rig.finish()?;
    other.destroy()
}

/// A standalone driver in the host's namespace, with kubelet's directory bind-mounted and shared: each mount shows up at two paths.
#[test]
fn one_pod_is_one_pod_also_where_kubelets_directory_is_mounted_twice() -> Result<()> {
    let rig = Rig::thin()?;
    let twin = rig.places.root.with_file_name("kubelet-twin");
    fs::create_dir(&twin).map_err(Trouble::io("making a directory"))?;
    let root = &rig.places.root;
    bind(root, root)?;
    tool::run("mount", &["--make-shared", &text(root)])?;
    bind(root, &twin)?;
    for capability in [mount("ext4", Mode::SingleNodeSingleWriter), block(Mode::SingleNodeSingleWriter)] {
        let mut volume = rig.with("thin", 16, capability)?;
        volume.up("pod")?;
        assert!(twin.join("pods/pod/volumes").exists(), "the directory is not mounted twice");
        rig.unchanged("published again", || volume.publish("pod").map(drop))?;
        volume.make_parent("other")?;
        rig.rejects(REFUSED, "a second pod", |csi| csi.node_publish_volume(volume.publish_request("other")))?;
        fs::remove_dir_all(root.join("pods/other")).map_err(Trouble::io("removing what kubelet made for a pod"))?;
        volume.down("pod")?;
    }
    tool::run("umount", &[&twin])?;
    tool::run("umount", &[root])?;
    fs::remove_dir(&twin).map_err(Trouble::io("removing a directory"))?;
    rig.finish()
}
