//! Snapshots, restores and clones.

use std::fs;
use std::path::Path;
use std::thread;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, block, create, from_snapshot, from_volume, mount, range};
use testkit::error::{Result, Trouble};
use testkit::flow::{Volume, delete_snapshot};
use testkit::signature::write_at;
use testkit::{lab, tool};
use tonic::Code;

use crate::old_bytes::Disk;
use crate::rig::{MIB, Rig};
use crate::sick::{METRICS, scrape};

fn ext4() -> csi::VolumeCapability {
    mount("ext4", Mode::SingleNodeWriter)
}

fn write(volume: &Volume, pod: &str, text: &str) -> Result<()> {
    fs::write(volume.target(pod).join("file"), text).map_err(Trouble::io("writing into the volume"))?;
    nix_sync();
    Ok(())
}

fn nix_sync() {
    // Dropping the caches writes everything out first. A failure shows up in later reads.
    let _ = tool::drop_caches();
}

fn read(volume: &Volume, pod: &str) -> Result<String> {
    fs::read_to_string(volume.target(pod).join("file")).map_err(Trouble::io("reading from the volume"))
}

fn from(
    rig: &Rig,
    source: Option<csi::VolumeContentSource>,
    mib: u64,
    capability: csi::VolumeCapability,
) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest { volume_content_source: source, ..create(&rig.name(), "thin", mib * MIB, capability) }
}

#[test]
fn a_snapshot_has_one_name_one_source_and_one_time() -> Result<()> {
    let rig = Rig::thin()?;
    let volume = rig.volume("thin", 64)?;
    let other = rig.volume("thin", 64)?;
    let first = volume.snapshot("snapshot-1")?;
    assert!(first.ready_to_use && first.size_bytes == 64 << 20 && first.source_volume_id == volume.id, "{first:?}");
    assert!(first.creation_time.is_some_and(|time| time.seconds > 1_700_000_000), "{first:?}");
    for _ in 0..3 {
        assert_eq!(rig.unchanged("the same snapshot again", || volume.snapshot("snapshot-1"))?, first);
    }
    let lv = rig.vg.of_handle(&first.snapshot_id)?;
    assert!(!lv.active() && lv.attr.as_bytes().get(1) == Some(&b'r'), "a snapshot is inactive and read-only: {}", lv.attr);
    let request = |source: &str, name: &str| csi::CreateSnapshotRequest {
        source_volume_id: source.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    };
    rig.rejects(&[Code::AlreadyExists], "another source", |csi| csi.create_snapshot(request(&other.id, "snapshot-1")))?;
    rig.rejects(&[Code::NotFound], "an unknown source", |csi| csi.create_snapshot(request("fake-vol-id", "snapshot-2")))?;
    rig.rejects(&[Code::InvalidArgument], "no name", |csi| csi.create_snapshot(request(&volume.id, "")))?;
    rig.rejects(&[Code::InvalidArgument], "no source", |csi| csi.create_snapshot(request("", "snapshot-2")))?;
    let mut unknown = request(&volume.id, "snapshot-2");
    unknown.parameters.insert("colour".to_owned(), "red".to_owned());
    rig.rejects(&[Code::InvalidArgument], "an unknown parameter", |csi| csi.create_snapshot(unknown))?;
    let long = "s".repeat(128);
    let second = volume.snapshot(&long)?;
    assert_ne!(second.snapshot_id, first.snapshot_id);
    delete_snapshot(rig.csi(), &first.snapshot_id)?;
    rig.unchanged("deleted again", || delete_snapshot(rig.csi(), &first.snapshot_id))?;
    rig.unchanged("an unknown one was deleted", || delete_snapshot(rig.csi(), "reallyfakesnapshotid"))?;
    delete_snapshot(rig.csi(), &second.snapshot_id)?;
    volume.delete()?;
    other.delete()?;
    rig.finish()?;
    covers!(42, 43, 44)
}

#[test]
fn a_pool_without_thin_has_no_snapshots_and_says_so() -> Result<()> {
    let rig = Rig::thin()?;
    let volume = rig.volume("linear", 32)?;
    let request = csi::CreateSnapshotRequest { source_volume_id: volume.id.clone(), name: "s".to_owned(), ..Default::default() };
    let codes = &[Code::InvalidArgument, Code::FailedPrecondition, Code::Unimplemented];
    rig.rejects(codes, "a snapshot of a linear volume", |csi| csi.create_snapshot(request))?;
    let source = from_volume(&volume.id);
    let request = csi::CreateVolumeRequest { volume_content_source: source, ..create(&rig.name(), "linear", 32 * MIB, ext4()) };
    rig.rejects(codes, "a clone of a linear volume", |csi| csi.create_volume(request))?;
    volume.delete()?;
    rig.finish()
}

/// At the default of 100 %, volumes and snapshots promise no more than the pool has, so a user can write the whole size of a
/// volume.
#[test]
fn snapshots_do_not_promise_more_than_the_pool_has() -> Result<()> {
    let disk = Disk::of_table("small", &format!("0 {} linear {} 8192", 200 << 11, lab::disk(1)?.display()))?;
    let rig = Rig::make_on(&[disk.path()], Some(160), &[])?;
    let (mut loud, mut quiet) = (rig.volume("thin", 76)?, rig.volume("thin", 64)?);
    let (target, other) = (loud.up("loud")?, quiet.up("quiet")?);
    let fill = |target: &Path, from: &str, mib: u32| {
        let file = target.join("file");
        let count = format!("count={mib}");
        tool::run("dd", &[&format!("if={from}"), &format!("of={}", file.display()), "bs=1M", &count, "conv=fsync,notrunc"])
            .map(drop)
    };
    let cut = |source: &Volume, name: &str| csi::CreateSnapshotRequest {
        source_volume_id: source.id.clone(),
        name: name.to_owned(),
        ..Default::default()
    };
    for round in 0..3 {
        fill(&target, "/dev/urandom", 56)?;
        let message = rig.rejects(&[Code::ResourceExhausted], "a snapshot", |csi| {
            csi.create_snapshot(cut(&loud, &format!("snapshot-{round}")))
        })?;
        assert!(message.contains("overprovisionPercent") && message.contains("100 %"), "{message}");
    }
    let message = rig
        .rejects(&[Code::ResourceExhausted], "a clone", |csi| csi.create_volume(from(&rig, from_volume(&loud.id), 76, ext4())))?;
    assert!(message.contains("overprovisionPercent"), "{message}");
    // The other tenant has used nothing of the promised space.
    fill(&other, "/dev/zero", 50)?;
    loud.down("loud")?;
    // A snapshot that fits is made, and counts until it is deleted.
    let snapshot = quiet.snapshot("fits")?;
    rig.rejects(&[Code::ResourceExhausted], "a second snapshot", |csi| csi.create_snapshot(cut(&quiet, "second")))?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    quiet.down("quiet")?;
    rig.finish()
}

#[test]
fn a_volume_has_no_more_snapshots_than_its_pool_allows() -> Result<()> {
    let keys = "overprovisionPercent: 300\n  maxSnapshotsPerVolume: 2\n";
    let config = format!(
        "metricsAddress: {METRICS}\npools:\n- name: thin\n  volumeGroup: labvg\n  layout: thin\n  createThinPool: 64Mi\n  {keys}"
    );
    tool::run("ip", &["link", "set", "lo", "up"])?;
    let rig = Rig::configured(&config)?;
    let (one, other) = (rig.volume("thin", 16)?, rig.volume("thin", 16)?);
    let (used, limit) = ("lvm_csi_vg_metadata_used_bytes", "lvm_csi_vg_metadata_limit_bytes");
    let before = number(&scrape()?, used)?;
    // Names in the form of the snapshotter.
    let name = |number: u8| format!("snapshot-0f0e0d0c-0b0a-4000-8000-{number:012x}");
    let cuts = [one.snapshot(&name(1))?, one.snapshot(&name(2))?];
    let metrics = scrape()?;
    let each = number(&metrics, used)?.saturating_sub(before) / 2;
    assert!((2 * MIB..3 * MIB).contains(&number(&metrics, limit)?), "the test needs a metadata area of 4 MiB: {metrics}");
    // By default LVM makes a metadata area of 1 MiB minus the first 4 KiB. docs/install.md says how many snapshots fit into it,
    // and into 16 MiB.
    let fit = |area: u64| area / 2 * 3 / 4 / each.max(1);
    assert!((600..800).contains(&fit(MIB - 4096)) && (10_000..12_500).contains(&fit(16 * MIB)), "a snapshot takes {each} bytes");
    let third = csi::CreateSnapshotRequest { source_volume_id: one.id.clone(), name: name(3), ..Default::default() };
    let message = rig.rejects(&[Code::ResourceExhausted], "a third snapshot", |csi| csi.create_snapshot(third.clone()))?;
    for word in [one.lv(), "2 snapshots", "maxSnapshotsPerVolume"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(rig.unchanged("an existing snapshot", || one.snapshot(&name(1)))?, cuts[0]);
    let others = other.snapshot("others")?;
    delete_snapshot(rig.csi(), &cuts[1].snapshot_id)?;
    let third = rig.csi().create_snapshot(third).accepted("CreateSnapshot")?.snapshot.unwrap_or_default();
    for snapshot in [&cuts[0], &others, &third] {
        delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    }
    one.delete()?;
    other.delete()?;
    rig.finish()
}

fn number(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse().ok());
    line.ok_or_else(|| Trouble::wrong(format!("no {name} in\n{text}")))
}

#[test]
fn a_larger_restore_has_the_data_of_the_cut_and_a_larger_filesystem() -> Result<()> {
    // Without overprovisioning the pool must hold the source, its snapshot and the restore in full.
    let rig = Rig::make(Some(2048), &[])?;
    for (filesystem, mib) in [("ext4", 64), ("xfs", 320)] {
        let capability = mount(filesystem, Mode::SingleNodeWriter);
        let mut volume = rig.with("thin", mib, capability.clone())?;
        volume.up("pod")?;
        write(&volume, "pod", "before the cut")?;
        let snapshot = volume.snapshot("cut")?;
        write(&volume, "pod", "after the cut")?;
        let request = from(&rig, from_snapshot(&snapshot.snapshot_id), 2 * mib, capability);
        let answer = rig.csi().create_volume(request.clone()).accepted("CreateVolume")?.volume.unwrap_or_default();
        assert_eq!(answer.content_source, request.volume_content_source);
        let mut restored = rig.unchanged("restored again", || rig.request(request))?;
        assert_eq!(restored.size(), 2 * mib * MIB);
        // Volume and restore are mounted on one node at the same time.
        restored.up("pod-2")?;
        assert_eq!(read(&restored, "pod-2")?, "before the cut");
        assert_eq!(read(&volume, "pod")?, "after the cut");
        let usage = restored.stats("pod-2")?;
        let total = usage.iter().map(|u| u.total).max().unwrap_or_default();
        assert!(
            total > i64::try_from(2 * mib * MIB * 3 / 4).unwrap_or(i64::MAX),
            "{filesystem}: the filesystem did not grow: {usage:?}"
        );
        restored.down("pod-2")?;
        delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
        volume.down("pod")?;
    }
    rig.finish()?;
    covers!(26, 28, 68)
}

#[test]
fn a_source_that_does_not_fit_is_refused() -> Result<()> {
    let rig = Rig::thin()?;
    let volume = rig.volume("thin", 64)?;
    let snapshot = volume.snapshot("cut")?;
    let request = |source, mib| from(&rig, source, mib, ext4());
    rig.rejects(&[Code::NotFound], "an unknown snapshot", |csi| {
        csi.create_volume(request(from_snapshot("non-existing-snapshot-id"), 64))
    })?;
    rig.rejects(&[Code::NotFound], "an unknown volume", |csi| csi.create_volume(request(from_volume("fake-vol-id"), 64)))?;
    let empty = Some(csi::VolumeContentSource { r#type: None });
    rig.rejects(&[Code::InvalidArgument], "a source without a type", |csi| csi.create_volume(request(empty, 64)))?;
    let codes = &[Code::NotFound, Code::InvalidArgument];
    rig.rejects(codes, "a volume as a snapshot", |csi| csi.create_volume(request(from_snapshot(&volume.id), 64)))?;
    rig.rejects(codes, "a snapshot as a volume", |csi| csi.create_volume(request(from_volume(&snapshot.snapshot_id), 64)))?;
    let limited = |source| {
        let mut request = request(source, 32);
        request.capacity_range = Some(range(32 * MIB, 32 * MIB));
        request
    };
    rig.rejects(&[Code::OutOfRange], "a size below the snapshot's", |csi| {
        csi.create_volume(limited(from_snapshot(&snapshot.snapshot_id)))
    })?;
    rig.rejects(&[Code::OutOfRange], "a size below the volume's", |csi| csi.create_volume(limited(from_volume(&volume.id))))?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    volume.delete()?;
    rig.finish()?;
    covers!(26)
}

#[test]
fn five_clones_of_a_mounted_volume_at_once() -> Result<()> {
    let rig = Rig::thin()?;
    let mut volume = rig.volume("thin", 64)?;
    volume.up("pod")?;
    write(&volume, "pod", "shared")?;
    let requests: Vec<_> = (0..5).map(|_| from(&rig, from_volume(&volume.id), 64, ext4())).collect();
    let clones: Vec<Result<Volume>> = thread::scope(|scope| {
        let (csi, places) = (rig.csi(), &rig.places);
        let running: Vec<_> = requests
            .iter()
            .map(|request| {
                scope.spawn(move || {
                    let busy = [Code::Aborted, Code::Unavailable];
                    tool::wait("a clone", crate::rig::LIMIT, || {
                        match Volume::create(csi, places, &request.name, request.clone()) {
                            Err(Trouble::Call { code, .. }) if busy.contains(&code) => Ok(None),
                            other => other.map(Some),
                        }
                    })
                })
            })
            .collect();
        running.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(Trouble::wrong("a caller panicked")))).collect()
    });
    for (number, clone) in clones.into_iter().enumerate() {
        let mut clone = clone?;
        let pod = format!("pod-{number}");
        clone.up(&pod)?;
        assert_eq!(read(&clone, &pod)?, "shared");
        write(&clone, &pod, "its own")?;
        clone.down(&pod)?;
    }
    assert_eq!(read(&volume, "pod")?, "shared");
    volume.down("pod")?;
    rig.finish()?;
    covers!(29)
}

#[test]
fn a_raw_volume_is_restored_byte_by_byte() -> Result<()> {
    let rig = Rig::thin()?;
    let mut raw = rig.raw("thin", 32)?;
    let target = raw.up("pod")?;
    write_at(&target, 8 << 20, b"before")?;
    let snapshot = raw.snapshot("cut")?;
    write_at(&target, 8 << 20, b"after!")?;
    let request = from(&rig, from_snapshot(&snapshot.snapshot_id), 64, block(Mode::SingleNodeWriter));
    let mut restored = rig.request(request)?;
    let copy = restored.up("pod-2")?;
    let bytes = tool::run("sh", &["-c", &format!("dd if={} bs=1M skip=8 count=1 status=none | head -c 6", copy.display())])?;
    assert_eq!(bytes, "before");
    let nonzero = tool::run("sh", &["-c", &format!("tail -c +33554433 {} | tr -d '\\0' | wc -c", copy.display())])?;
    assert_eq!(nonzero.trim(), "0", "old bytes beyond the snapshot's size");
    restored.down("pod-2")?;
    raw.down("pod")?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    rig.finish()
}

#[test]
fn a_snapshot_outlives_its_source() -> Result<()> {
    let rig = Rig::thin()?;
    let mut volume = rig.volume("thin", 64)?;
    volume.up("pod")?;
    write(&volume, "pod", "kept")?;
    let snapshot = volume.snapshot("cut")?;
    volume.down("pod")?;
    let request = csi::GetSnapshotRequest { snapshot_id: snapshot.snapshot_id.clone(), ..Default::default() };
    let again = rig.csi().get_snapshot(request).accepted("GetSnapshot")?.snapshot.unwrap_or_default();
    assert_eq!(again, snapshot);
    let mut restored = rig.request(from(&rig, from_snapshot(&snapshot.snapshot_id), 64, ext4()))?;
    // The restored volume outlives the snapshot.
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    restored.up("pod")?;
    assert_eq!(read(&restored, "pod")?, "kept");
    restored.down("pod")?;
    rig.finish()?;
    covers!(45)
}

#[test]
fn a_restore_follows_its_source_whatever_is_preferred() -> Result<()> {
    let rig = Rig::thin()?;
    let volume = rig.volume("thin", 32)?;
    let snapshot = volume.snapshot("cut")?;
    let node = |name: &str| csi::Topology { segments: testkit::client::map(&[("topology.lvm-csi.dev/node", name)]) };
    let mut request = from(&rig, from_snapshot(&snapshot.snapshot_id), 32, ext4());
    request.accessibility_requirements = Some(csi::TopologyRequirement {
        requisite: vec![node("node-b"), node("node-a")],
        preferred: vec![node("node-b"), node("node-a")],
    });
    let answer = rig.csi().create_volume(request).accepted("CreateVolume")?.volume.unwrap_or_default();
    assert_eq!(answer.accessible_topology, [node("node-a")]);
    let request = csi::DeleteVolumeRequest { volume_id: answer.volume_id, ..Default::default() };
    rig.csi().delete_volume(request).accepted("DeleteVolume")?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    volume.delete()?;
    rig.finish()?;
    covers!(27)
}

#[test]
fn a_full_pool_takes_no_new_snapshots() -> Result<()> {
    let rig = Rig::make(Some(64), &[])?;
    let mut volume = rig.raw("thin", 48)?;
    let target = volume.up("pod")?;
    tool::run(
        "dd",
        &["if=/dev/urandom", &format!("of={}", target.display()), "bs=1M", "count=48", "oflag=direct", "status=none"],
    )?;
    let mut other = rig.raw("thin", 16)?;
    let target = other.up("pod-2")?;
    tool::run(
        "dd",
        &["if=/dev/urandom", &format!("of={}", target.display()), "bs=1M", "count=15", "oflag=direct", "status=none"],
    )?;
    let request = csi::CreateSnapshotRequest { source_volume_id: volume.id.clone(), name: "s".to_owned(), ..Default::default() };
    // The pool may have been extended meanwhile from the group's free space. Then the snapshot is made.
    match rig.csi().create_snapshot(request) {
        Ok(answer) => delete_snapshot(rig.csi(), &answer.snapshot.unwrap_or_default().snapshot_id)?,
        Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
    }
    volume.down("pod")?;
    other.down("pod-2")?;
    rig.finish()?;
    covers!(42)
}

#[test]
fn a_restored_filesystem_may_be_used_and_grown_as_a_block_device() -> Result<()> {
    let rig = Rig::thin()?;
    let mut volume = rig.with("thin", 64, ext4())?;
    volume.up("pod")?;
    write(&volume, "pod", "to be looked at")?;
    let snapshot = volume.snapshot("cut")?;
    let mut restored = rig.request(from(&rig, from_snapshot(&snapshot.snapshot_id), 64, block(Mode::SingleNodeWriter)))?;
    let target = restored.up("pod-2")?;
    restored.expand(96 * MIB, "pod-2")?;
    let size = tool::run("blockdev", &["--getsize64", &target.display().to_string()])?;
    assert_eq!(size.trim(), (96 * MIB).to_string());
    restored.down("pod-2")?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    volume.down("pod")?;
    rig.finish()
}
