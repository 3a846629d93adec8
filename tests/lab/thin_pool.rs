//! Thin pools without surprises: made as configured, extended before they are full, and without data loss when full.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::{self, JoinHandle};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, Csi, block, create, from_snapshot, from_volume, map, mount, range};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, delete_snapshot};
use testkit::vg::lvm;
use testkit::{cleanup, lab, shim, tool};
use tonic::Code;

use crate::rig::{LIMIT, MIB, Rig};

/// The thin pool of every test here, as LVM and as device-mapper name it.
const POOL: &str = "labvg/thinpool";
const DEVICE: &str = "labvg-thinpool-tpool";

/// Seconds after which the kernel fails writes that a full pool holds back. It is set below the limit of a test, so that the
/// machine can be cleaned up whatever goes wrong.
const GIVES_UP: &str = "/sys/module/dm_thin_pool/parameters/no_space_timeout";

/// A pool `thin` that is made in this size, with more configuration keys, and a pool `linear`.
fn rig(size: &str, more: &[&str]) -> Result<Rig> {
    let keys: String = more.iter().map(|key| format!("  {key}\n")).collect();
    let rig = Rig::configured(&format!(
        "pools:\n- name: thin\n  volumeGroup: labvg\n  layout: thin\n  createThinPool: {size}\n  overprovisionPercent: 4000\n  \
         thinPoolPollSeconds: 1\n{keys}- name: linear\n  volumeGroup: labvg\n  layout: linear\n"
    ))?;
    fs::write(GIVES_UP, "20").map_err(Trouble::io(format!("writing {GIVES_UP}")))?;
    Ok(rig)
}

/// Returns a field of the thin pool as LVM reports it.
fn field(name: &str) -> Result<String> {
    let text = lvm(&["lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", name, POOL])?;
    Ok(text.trim().to_owned())
}

fn number(name: &str) -> Result<u64> {
    let text = field(name)?;
    text.parse().map_err(|_| Trouble::wrong(format!("lvs gave {name} as {text:?}")))
}

/// Returns the kernel's status of the pool. Without `--noflush` this would wait for room.
fn status() -> Result<String> {
    tool::run("dmsetup", &["status", "--noflush", DEVICE])
}

fn wait_larger(what: &str, name: &str, than: u64) -> Result<u64> {
    tool::wait(what, LIMIT, || Ok(Some(number(name)?).filter(|now| *now > than)))
}

/// Takes the free space of the volume group except `but` MiB.
fn take_room(rig: &Rig, but: u64) -> Result<Volume> {
    let free = rig.vg.free()? - but * MIB;
    rig.request(create(&rig.name(), "linear", free, block(Mode::SingleNodeWriter)))
}

fn fill(device: &Path, from_mib: u64, mib: u64) -> Result<()> {
    let (target, seek, count) = (format!("of={}", device.display()), format!("seek={from_mib}"), format!("count={mib}"));
    tool::run("dd", &["if=/dev/urandom", &target, "bs=1M", &seek, &count, "oflag=direct", "status=none"]).map(drop)
}

#[test]
fn a_pool_is_made_as_configured_and_grows_before_it_is_full() -> Result<()> {
    let rig = rig("128Mi", &["thinPoolMetadata: 8Mi", "thinPoolChunk: 128Ki"])?;
    assert_eq!((number("chunk_size")?, number("lv_metadata_size")?, field("zero")?.as_str()), (128 << 10, 8 * MIB, "zero"));
    assert_eq!(rig.vg.lv("[lvol0_pmspare]")?.size, 8 * MIB);
    let mut volume = rig.raw("thin", 512)?;
    let target = volume.up("pod")?;
    let before = number("lv_size")?;
    assert_eq!(before, 128 * MIB);
    fill(&target, 0, 100)?;
    assert_eq!(number("lv_size")?, before);
    // Beyond 80 % it grows, though it is not full.
    fill(&target, 100, 8)?;
    let grown = wait_larger("the pool to be extended", "lv_size", before)?;
    assert!(grown >= before / 5 * 6 && field("lv_when_full")? == "queue", "{grown}");
    ensure(status()?.contains(" rw "), || format!("the pool does not take writes: {:?}", status()))?;
    volume.down("pod")?;
    rig.finish()
}

#[test]
fn writers_wait_for_an_extension_that_comes_late_and_lose_nothing() -> Result<()> {
    let rig = rig("128Mi", &[])?;
    let mut volume = rig.raw("thin", 256)?;
    let target = volume.up("pod")?;
    let data = Path::new(lab::ROOT).join("data");
    tool::run("dd", &["if=/dev/urandom", &format!("of={}", data.display()), "bs=1M", "count=192", "status=none"])?;
    shim::arm(shim::Fault::Hold)?;
    let mut writer = tool::command("dd");
    writer.arg(format!("if={}", data.display())).arg(format!("of={}", target.display()));
    let mut writer = writer
        .args(["bs=1M", "oflag=direct", "conv=notrunc,fsync", "status=none"])
        .stdin(Stdio::null())
        .spawn()
        .map_err(Trouble::io("starting a writer"))?;
    tool::wait("the pool to be full", LIMIT, || Ok(status()?.contains(" out_of_data_space ").then_some(())))?;
    ensure(status()?.contains("queue_if_no_space"), || format!("a pool that can grow does not queue writes: {:?}", status()))?;
    assert!(writer.try_wait().map_err(Trouble::io("looking after the writer"))?.is_none());
    shim::disarm()?;
    let ended = tool::wait("the writer to end", LIMIT, || writer.try_wait().map_err(Trouble::io("looking after the writer")))?;
    assert!(ended.success(), "{ended}");
    tool::drop_caches()?;
    tool::run("cmp", &["-n", &(192 * MIB).to_string(), &data.display().to_string(), &target.display().to_string()])?;
    fs::remove_file(&data).map_err(Trouble::io("removing the data"))?;
    volume.down("pod")?;
    rig.finish()
}

/// One record of a writer: its number, repeated.
fn record(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(8192)
}

/// Appends durable records to a file until that fails. Returns how many were acknowledged, and the error.
fn write_until_it_fails(path: PathBuf) -> JoinHandle<(u64, String)> {
    thread::spawn(move || {
        let append = |number: u64| {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.write_all(&record(number))?;
            file.sync_all()
        };
        let mut acknowledged = 0;
        loop {
            match append(acknowledged) {
                Ok(()) => acknowledged += 1,
                Err(error) => return (acknowledged, format!("{:?}", error.raw_os_error().map(nix::errno::Errno::from_raw))),
            }
        }
    })
}

/// Fails unless a file begins with the acknowledged records.
fn verify(path: &Path, acknowledged: u64) -> Result<()> {
    let data = fs::read(path).map_err(Trouble::io(format!("reading {}", path.display())))?;
    for number in 0..acknowledged {
        let wanted = record(number);
        let at = usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(wanted.len());
        ensure(data.get(at..at + wanted.len()) == Some(&wanted[..]), || {
            format!("{}: record {number} of {acknowledged} that fsync acknowledged is lost", path.display())
        })?;
    }
    Ok(())
}

#[test]
fn a_full_pool_loses_no_acknowledged_byte_refuses_and_heals_by_vgextend() -> Result<()> {
    let mut rig = rig("128Mi", &[])?;
    let ext4 = || mount("ext4", Mode::SingleNodeWriter);
    let room = take_room(&rig, 0)?;
    let mut volumes = [rig.with("thin", 96, ext4())?, rig.with("thin", 96, ext4())?];
    let idle = rig.volume("thin", 32)?;
    let snapshot = idle.snapshot("early")?;
    let mut files = Vec::new();
    for volume in &mut volumes {
        files.push(volume.up("pod")?.join("records"));
    }
    let writers: Vec<_> = files.iter().cloned().map(write_until_it_fails).collect();
    tool::wait("every writer to fail on the full pool", LIMIT, || Ok(writers.iter().all(JoinHandle::is_finished).then_some(())))?;
    let ends: Vec<(u64, String)> = writers.into_iter().map(|writer| writer.join().unwrap_or_default()).collect();
    for (acknowledged, why) in &ends {
        let expected = ["ENOSPC", "EIO", "EROFS"].iter().any(|error| why.contains(error));
        ensure(*acknowledged > 100 && expected, || format!("a writer ended after {acknowledged} records with {why}"))?;
    }
    assert_eq!(field("lv_when_full")?, "error");
    refuses_everything_new(&rig, &idle, &snapshot.snapshot_id)?;

    // A person adds a disk to the group. Nobody restarts anything.
    let full = number("lv_size")?;
    let disk = lab::disk(1)?;
    cleanup::release(&disk)?;
    rig.vg.disks.push(disk.clone());
    lvm(&["vgextend", "-qq", "-y", "labvg", &disk.to_string_lossy()])?;
    wait_larger("the pool to be extended", "lv_size", full)?;
    tool::wait("the pool to queue writes again", LIMIT, || Ok((field("lv_when_full")? == "queue").then_some(())))?;
    ensure(status()?.contains(" rw "), || format!("the pool did not recover: {:?}", status()))?;
    for ((volume, file), (acknowledged, _)) in volumes.iter_mut().zip(&files).zip(&ends) {
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.stage()?;
        volume.publish("pod")?;
        verify(file, *acknowledged)?;
        let mut file = File::create(file).map_err(Trouble::io("writing again"))?;
        file.write_all(&record(0)).and_then(|()| file.sync_all()).map_err(Trouble::io("writing again"))?;
    }
    rig.volume("thin", 32)?.delete()?;
    for volume in volumes {
        volume.down("pod")?;
    }
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    idle.delete()?;
    room.delete()?;
    rig.finish()?;
    covers!(23, 42, 53)
}

/// Fails unless a full pool refuses everything new and says how full it is and what helps.
fn refuses_everything_new(rig: &Rig, volume: &Volume, snapshot: &str) -> Result<()> {
    let new = |source: Option<csi::VolumeContentSource>| {
        let mut request = create(&rig.name(), "thin", 32 * MIB, volume.capability.clone());
        request.volume_content_source = source;
        move |csi: &Csi| csi.create_volume(request)
    };
    let cut = csi::CreateSnapshotRequest { source_volume_id: volume.id.clone(), name: "late".into(), ..Default::default() };
    let exhausted = &[Code::ResourceExhausted];
    let grow = volume.expand_request(64 * MIB);
    let messages = [
        rig.rejects(exhausted, "a new volume", new(None))?,
        rig.rejects(exhausted, "a restore", new(from_snapshot(snapshot)))?,
        rig.rejects(exhausted, "a clone", new(from_volume(&volume.id)))?,
        rig.rejects(exhausted, "a snapshot", |csi| csi.create_snapshot(cut))?,
        rig.rejects(exhausted, "an expansion", |csi| csi.controller_expand_volume(grow))?,
    ];
    for text in messages {
        ensure(text.contains(POOL) && text.contains("% full") && text.contains("vgextend"), || {
            format!("the message does not help: {text:?}")
        })?;
    }
    let request = csi::GetCapacityRequest { parameters: map(&[("pool", "thin")]), ..Default::default() };
    assert_eq!(rig.csi().get_capacity(request).accepted("GetCapacity")?.available_capacity, 0);
    Ok(())
}

#[test]
fn metadata_grow_before_they_are_full() -> Result<()> {
    const MAPPED: u64 = 256;
    const ROUNDS: u64 = 40;
    let rig = rig("512Mi", &["thinPoolMetadata: 4Mi", "thinPoolChunk: 64Ki"])?;
    let before = number("lv_metadata_size")?;
    let mut volume = rig.raw("thin", MAPPED)?;
    let target = volume.up("pod")?;
    fill(&target, 0, MAPPED)?;
    let mut snapshots = Vec::new();
    // A snapshot shares its mappings with the volume. Scattered writes give the volume its own.
    while number("lv_metadata_size")? == before {
        let round = snapshots.len() as u64;
        ensure(round < ROUNDS, || format!("metadata did not grow: {:?}", status()))?;
        // On a busy machine a round may pass the threshold at which LVM makes nothing new before the metadata grows. A sidecar
        // retries.
        let name = format!("round-{round}");
        let snapshot = rig.until_ok("a snapshot while the metadata grows", |_| volume.snapshot(&name))?;
        snapshots.push(snapshot.snapshot_id);
        let mut device = OpenOptions::new().write(true).open(&target).map_err(Trouble::io("opening the volume"))?;
        let block = record(round);
        for at in (0..MAPPED * MIB).step_by(2 << 20) {
            device.seek(SeekFrom::Start(at)).map_err(Trouble::io("seeking"))?;
            device.write_all(&block).map_err(Trouble::io("writing"))?;
        }
        device.sync_all().map_err(Trouble::io("writing"))?;
    }
    ensure(status()?.contains(" rw "), || format!("the pool does not take writes: {:?}", status()))?;
    assert!(number("lv_metadata_size")? > before && rig.vg.lv("[lvol0_pmspare]")?.size > before);
    for id in snapshots {
        delete_snapshot(rig.csi(), &id)?;
    }
    volume.down("pod")?;
    rig.finish()
}

/// Returns how often the driver's watcher has gone to sleep.
fn naps(rig: &Rig) -> Result<u64> {
    let tasks = format!("/proc/{}/task", rig.driver.pid()?);
    for task in fs::read_dir(&tasks).map_err(Trouble::io(format!("listing {tasks}")))?.flatten() {
        if fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "thin-pool") {
            let text = fs::read_to_string(task.path().join("status")).map_err(Trouble::io("reading the state of a thread"))?;
            let count = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok());
            return count.ok_or_else(|| Trouble::wrong("the watcher's status lacks voluntary_ctxt_switches"));
        }
    }
    Err(Trouble::wrong("the driver has no thread thin-pool"))
}

#[test]
fn room_is_kept_for_the_pool_and_watching_it_runs_no_lvm() -> Result<()> {
    let rig = rig("128Mi", &["thinPoolReserve: 1Gi"])?;
    let free = rig.vg.free()?;
    let request = || csi::GetCapacityRequest { parameters: map(&[("pool", "linear")]), ..Default::default() };
    let capacity = rig.csi().get_capacity(request()).accepted("GetCapacity")?.available_capacity;
    assert_eq!(u64::try_from(capacity).unwrap_or_default(), free - 1024 * MIB);
    let raw = |bytes: u64| create(&rig.name(), "linear", bytes, block(Mode::SingleNodeWriter));
    let text = rig
        .rejects(&[Code::ResourceExhausted], "more than the unreserved space", |csi| csi.create_volume(raw(free - 1020 * MIB)))?;
    assert!(text.contains("kept for its thin pools"), "{text}");
    let volume = rig.request(raw(free - 1024 * MIB))?;
    let grow =
        csi::ControllerExpandVolumeRequest { capacity_range: Some(range(free - 1020 * MIB, 0)), ..volume.expand_request(0) };
    rig.rejects(&[Code::OutOfRange], "growing into the reserved space", |csi| csi.controller_expand_volume(grow))?;
    assert_eq!(rig.csi().get_capacity(request()).accepted("GetCapacity")?.available_capacity, 0);

    let (ran, before) = (shim::count()?, naps(&rig)?);
    tool::wait("the watcher to look at the pool", LIMIT, || Ok((naps(&rig)? > before + 8).then_some(())))?;
    assert_eq!(shim::since(ran)?, []);

    // The pool may use the reserved space.
    let mut thin = rig.raw("thin", 256)?;
    let target = thin.up("pod")?;
    let size = number("lv_size")?;
    fill(&target, 0, 120)?;
    wait_larger("the pool to be extended", "lv_size", size)?;
    thin.down("pod")?;
    volume.delete()?;
    rig.finish()
}

#[test]
fn a_pool_that_its_owner_extends_is_left_alone() -> Result<()> {
    let rig = rig("128Mi", &["autoExtend: false", "thinPoolFullPercent: 90"])?;
    let mut volume = rig.raw("thin", 256)?;
    let target = volume.up("pod")?;
    fill(&target, 0, 120)?;
    let (ran, before) = (shim::count()?, naps(&rig)?);
    tool::wait("the watcher to look at the pool", LIMIT, || Ok((naps(&rig)? > before + 8).then_some(())))?;
    assert_eq!(shim::since(ran)?, []);
    let request = create(&rig.name(), "thin", 32 * MIB, block(Mode::SingleNodeWriter));
    rig.rejects(&[Code::ResourceExhausted], "a volume above 90 %", |csi| csi.create_volume(request))?;
    lvm(&["lvextend", "-qq", "-y", "-L", "256m", POOL])?;
    rig.volume("thin", 32)?.delete()?;
    volume.down("pod")?;
    rig.finish()
}
