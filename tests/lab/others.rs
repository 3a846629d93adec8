//! Others change the volume group with stock LVM between and during the driver's calls. The next answer shows what they did, their
//! LVs are left alone, and nothing they do to a volume takes data from its user.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use nix::fcntl::{Flock, FlockArg};
use testkit::client::{Accepted, Csi, block, create, map, mount, refused};
use testkit::error::{Result, Trouble, ensure};
use testkit::shim::{self, Fault};
use testkit::vg::lvm;
use testkit::{cleanup, lab, mounts, tool};
use tonic::{Code, Status};

use crate::rig::{LIMIT, MIB, Rig};

/// Deadline of a caller that does not wait.
const SHORT: Duration = Duration::from_millis(50);

fn ext4() -> csi::VolumeCapability {
    mount("ext4", Mode::SingleNodeWriter)
}

/// Makes an LV of somebody else, without a tag.
fn foreign(group: &str, name: &str, mib: u64) -> Result<()> {
    lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", &format!("{mib}m"), "-n", name, group]).map(drop)
}

fn capacity(csi: &Csi) -> Result<u64> {
    let request = csi::GetCapacityRequest { parameters: map(&[("pool", "linear")]), ..Default::default() };
    let answer = csi.get_capacity(request).accepted("GetCapacity")?;
    Ok(u64::try_from(answer.available_capacity).unwrap_or_default())
}

fn told_size(csi: &Csi, id: &str) -> std::result::Result<i64, Status> {
    let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
    Ok(csi.controller_get_volume(request)?.volume.unwrap_or_default().capacity_bytes)
}

fn listed(csi: &Csi) -> Result<Vec<String>> {
    let entries = csi.list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?.entries;
    Ok(entries.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id).collect())
}

fn delete(csi: &Csi, id: &str) -> std::result::Result<csi::DeleteVolumeResponse, Status> {
    csi.delete_volume(csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() })
}

fn write(path: &Path, content: &str) -> Result<()> {
    let written = fs::write(path, content).and_then(|()| File::open(path)?.sync_all());
    written.map_err(Trouble::io(format!("writing {}", path.display())))
}

fn read(path: &Path) -> Result<String> {
    tool::drop_caches()?;
    fs::read_to_string(path).map_err(Trouble::io(format!("reading {}", path.display())))
}

/// Waits until the held command runs.
fn held() -> Result<()> {
    tool::wait("lvm to be held", LIMIT, || Ok((!shim::armed()).then_some(())))
}

#[test]
fn what_stock_lvm_did_shows_in_the_next_answer() -> Result<()> {
    let disks = [lab::disk(0)?, lab::disk(1)?];
    let rig = Rig::make_on(&disks[..1], None, &[])?;
    let (csi, group) = (rig.csi(), rig.vg.name.as_str());
    let free = capacity(csi)?;
    foreign(group, "theirs", 100)?;
    assert_eq!(capacity(csi)?, free - 100 * MIB);
    // A volume is extended.
    let grown = rig.volume("linear", 64)?;
    lvm(&["lvextend", "-qq", "-y", "-L", "128m", &format!("{group}/{}", grown.lv())])?;
    assert_eq!(told_size(csi, &grown.id).accepted("ControllerGetVolume")?, 128 << 20);
    assert_eq!(capacity(csi)?, free - 228 * MIB);
    // A volume is removed while attached: it can still be detached, and nothing of it is left.
    let mut removed = rig.volume("linear", 64)?;
    removed.attach()?;
    lvm(&["lvremove", "-qq", "-y", &format!("{group}/{}", removed.lv())])?;
    assert_eq!(listed(csi)?, [grown.id.as_str()]);
    refused(told_size(csi, &removed.id), &[Code::NotFound], "a volume that is gone")?;
    removed.unstage()?;
    removed.detach()?;
    removed.delete()?;
    // A disk is added and removed.
    let before = capacity(csi)?;
    cleanup::release(&disks[1])?;
    let second = disks[1].to_string_lossy();
    lvm(&["vgextend", "-qq", "-y", group, &second])?;
    // udev knows which devices are PVs. Until it has processed the new one, the group seems to lack a PV.
    tool::settle()?;
    assert!(capacity(csi)? > before + (3 << 30), "{} after {before}", capacity(csi)?);
    lvm(&["vgreduce", "-qq", "-y", group, &second])?;
    assert_eq!(capacity(csi)?, before);
    // A disk is lost, and then removed from the group.
    lvm(&["vgextend", "-qq", "-y", group, &second])?;
    tool::settle()?;
    assert!(capacity(csi)? > before);
    tool::run("wipefs", &["-q", "-a", "-f", &*second])?;
    tool::settle()?;
    let request = create(&rig.name(), "linear", 16 * MIB, ext4());
    let message =
        rig.rejects(&[Code::Unavailable], "a creation while a disk is away", |csi| csi.create_volume(request.clone()))?;
    assert!(message.contains("PV"), "{message}");
    lvm(&["vgreduce", "-qq", "-y", "--removemissing", group])?;
    assert_eq!(capacity(csi)?, before);
    rig.request(request)?.delete()?;
    grown.delete()?;
    rig.vg.lv("theirs")?;
    lvm(&["lvremove", "-qq", "-y", &format!("{group}/theirs")])?;
    rig.finish()?;
    covers!(24, 32)
}

#[test]
fn stock_commands_in_the_middle_of_calls_lose_nothing() -> Result<()> {
    let rig = Rig::linear()?;
    let group = rig.vg.name.as_str();
    // A foreign LV is made, and later the volume's name is taken, while the driver's command is under way.
    let request = create(&rig.name(), "linear", 16 * MIB, ext4());
    let csi = rig.csi().clone();
    let meanwhile = |work: &dyn Fn() -> Result<()>, request: &csi::CreateVolumeRequest| {
        shim::arm(Fault::Hold)?;
        thread::scope(|scope| {
            let call = scope.spawn(|| csi.create_volume(request.clone()));
            let done = held().and_then(|()| work());
            shim::disarm()?;
            let answer = call.join().map_err(|_| Trouble::wrong("a caller panicked"))?;
            done.map(|()| answer)
        })
    };
    let answer = meanwhile(&|| foreign(group, "theirs", 8), &request)?.accepted("CreateVolume")?;
    let made = answer.volume.unwrap_or_default();
    rig.vg.of_handle(&made.volume_id)?;
    delete(rig.csi(), &made.volume_id).accepted("DeleteVolume")?;
    let taken = format!("{group}/{}", made.volume_id.rsplit('/').next().unwrap_or_default());
    let take = || foreign(group, taken.rsplit('/').next().unwrap_or_default(), 8);
    let answer = meanwhile(&take, &request)?;
    let message = refused(answer, &[Code::AlreadyExists], "a creation whose name was taken meanwhile")?;
    assert!(message.contains("lvrename"), "{message}");
    rig.unchanged("the LV that took the name was deleted", || delete(rig.csi(), &made.volume_id).accepted("DeleteVolume"))?;
    lvm(&["lvremove", "-qq", "-y", &taken])?;
    // The group is renamed during the call: the volume is made in the same group, whatever its name.
    let other = create(&rig.name(), "linear", 16 * MIB, ext4());
    let rename = || lvm(&["vgrename", "-qq", group, "othervg"]).map(drop);
    let answer = meanwhile(&rename, &other)?;
    if let Err(status) = &answer {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    lvm(&["vgrename", "-qq", "othervg", group])?;
    let volume = rig.request(other)?;
    let ours = rig.vg.lvs()?.into_iter().filter(|lv| lv.tags.iter().any(|tag| tag == "lvm-csi=1"));
    assert_eq!(ours.count(), 1);
    volume.delete()?;
    // Somebody's lvm works for a long time: the caller gives up and finds its volume later.
    let lock = File::create("/run/lock/lvm/V_labvg").map_err(Trouble::io("opening LVM's lock"))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| Trouble::errno("taking LVM's lock")(errno))?;
    let gone = rig.csi().deadline(SHORT).create_volume(request.clone());
    let code = gone.err().map(|status| status.code());
    assert!(matches!(code, Some(Code::DeadlineExceeded | Code::Cancelled | Code::Aborted)), "{code:?}");
    drop(lock);
    let volume = rig.until_ok("the volume", |_| rig.request(request.clone()))?;
    volume.delete()?;
    lvm(&["lvremove", "-qq", "-y", &format!("{group}/theirs")])?;
    rig.finish()
}

/// Runs volumes of several kinds through their whole life.
fn lives(rig: &Rig) -> Result<()> {
    for (pool, capability) in [("thin", ext4()), ("linear", block(Mode::SingleNodeWriter))] {
        let mut volume = rig.with(pool, 32, capability)?;
        volume.up("pod")?;
        volume.expand(48 * MIB, "pod")?;
        volume.down("pod")?;
    }
    Ok(())
}

#[test]
fn volumes_live_while_others_change_the_group_all_the_time() -> Result<()> {
    let rig = Rig::thin()?;
    let group = rig.vg.name.as_str();
    // One of their LVs is active but not mounted, and must stay so.
    foreign(group, "theirs", 8)?;
    lvm(&["lvchange", "-qq", "-ay", &format!("{group}/theirs")])?;
    tool::settle()?;
    write(&rig.vg.device("theirs"), "somebody's bytes")?;
    let stop = AtomicBool::new(false);
    let work = thread::scope(|scope| {
        let admin = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            let (full, other) = (format!("{group}/busy"), format!("{group}/busier"));
            while !stop.load(Ordering::SeqCst) {
                foreign(group, "busy", 8)?;
                lvm(&["lvchange", "-qq", "-y", "--addtag", "theirs", &full])?;
                lvm(&["lvextend", "-qq", "-y", "-L", "16m", &full])?;
                lvm(&["lvrename", "-qq", &full, &other])?;
                lvm(&["lvremove", "-qq", "-y", &other])?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let ours = lives(&rig);
        stop.store(true, Ordering::SeqCst);
        let rounds = admin.join().map_err(|_| Trouble::wrong("the administrator panicked"))??;
        ensure(rounds > 0, || "the administrator did nothing".to_owned())?;
        ours
    });
    work?;
    let theirs = rig.vg.lv("theirs")?;
    assert!(theirs.active() && theirs.tags.is_empty(), "{theirs:?}");
    let mut bytes = [0; 16];
    let device = rig.vg.device("theirs");
    tool::drop_caches()?;
    let read = File::open(&device).and_then(|mut device| device.read_exact(&mut bytes));
    read.map_err(Trouble::io(format!("reading {}", device.display())))?;
    assert_eq!(&bytes, b"somebody's bytes");
    lvm(&["lvremove", "-qq", "-y", &format!("{group}/theirs")])?;
    rig.finish()
}

#[test]
fn a_group_that_was_renamed_keeps_its_volumes_usable() -> Result<()> {
    let mut rig = Rig::thin()?;
    let mut start = rig.driver.start().clone();
    let copies = start.state().join("metadata");
    rig.driver.stop()?;
    start.copy_minutes = 1;
    rig.driver = start.start()?;
    // The driver remembers a group's name in the copies of its metadata.
    tool::wait("a copy of the metadata", LIMIT, || Ok(copies.join(&rig.vg.uuid).exists().then_some(())))?;
    let mut mounted = rig.volume("thin", 64)?;
    let target = mounted.up("pod")?;
    write(&target.join("kept"), "kept")?;
    let mut raw = rig.raw("linear", 16)?;
    raw.up("pod")?;
    lvm(&["vgrename", "-qq", &rig.vg.name, "othervg"])?;
    let request = create(&rig.name(), "thin", 16 * MIB, ext4());
    let refusal = |rig: &Rig| -> Result<()> {
        // Not through `rejects`, which compares all files: metadata copies are written at their own time.
        let answer = rig.csi().create_volume(request.clone());
        let message = refused(answer, &[Code::Unavailable], "a creation in a renamed group")?;
        assert!(message.contains("labvg") && message.contains("othervg") && message.contains("configuration"), "{message}");
        assert_eq!((capacity(rig.csi())?, listed(rig.csi())?.len()), (0, 2));
        Ok(())
    };
    refusal(&rig)?;
    mounted.stats("pod")?;
    mounted.expand(96 * MIB, "pod")?;
    raw.expand(32 * MIB, "pod")?;
    // A driver that starts now has never seen the group under this name.
    rig.driver.kill()?;
    rig.driver.restart()?;
    let (mut mounted, mut raw) = (mounted.through(rig.csi()), raw.through(rig.csi()));
    refusal(&rig)?;
    for volume in [&mounted, &raw] {
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.detach()?;
    }
    let target = mounted.up("pod")?;
    assert_eq!(read(&target.join("kept"))?, "kept");
    mounted.down("pod")?;
    raw.up("pod")?;
    raw.down("pod")?;
    lvm(&["vgrename", "-qq", "othervg", &rig.vg.name])?;
    rig.request(request)?.delete()?;
    rig.driver.stop()?;
    fs::remove_dir_all(&copies).map_err(Trouble::io("removing the copies of the metadata"))?;
    start.copy_minutes = 0;
    rig.driver = start.start()?;
    rig.finish()
}

#[test]
fn a_renamed_volume_is_let_go_and_neither_deleted_nor_taken_for_another() -> Result<()> {
    let rig = Rig::linear()?;
    let (csi, group) = (rig.csi(), rig.vg.name.as_str());
    let mut volume = rig.volume("linear", 64)?;
    let target = volume.up("pod")?;
    write(&target.join("kept"), "kept")?;
    let mut raw = rig.raw("linear", 16)?;
    raw.up("pod")?;
    for (volume, name) in [(&volume, "kept"), (&raw, "rawkept")] {
        lvm(&["lvrename", "-qq", group, volume.lv(), name])?;
        volume.unpublish("pod")?;
        volume.unstage()?;
        assert!(!rig.vg.lv(name)?.active());
        volume.detach()?;
        let says = |what: &str, answer: std::result::Result<(), Status>| -> Result<()> {
            let message = refused(answer, &[Code::FailedPrecondition], what)?;
            ensure(message.contains(&format!("lvrename {group} {name} {}", volume.lv())), || format!("{what}: {message}"))
        };
        rig.unchanged("calls about a renamed volume", || {
            says("a deletion", delete(csi, &volume.id).map(drop))?;
            says("an attachment", csi.controller_publish_volume(volume.attach_request()).map(drop))?;
            says("an expansion", csi.controller_expand_volume(volume.expand_request(256 * MIB)).map(drop))?;
            let again = create(&volume.name, "linear", 64 * MIB, volume.capability.clone());
            says("the same creation", csi.create_volume(again).map(drop))
        })?;
    }
    // Two volumes that swapped names are not mixed up.
    lvm(&["lvrename", "-qq", group, "rawkept", volume.lv()])?;
    lvm(&["lvrename", "-qq", group, "kept", raw.lv()])?;
    for volume in [&volume, &raw] {
        let request = volume.attach_request();
        rig.rejects(&[Code::FailedPrecondition], "another volume under the name", |csi| csi.controller_publish_volume(request))?;
    }
    lvm(&["lvrename", "-qq", group, volume.lv(), "rawkept"])?;
    lvm(&["lvrename", "-qq", group, raw.lv(), volume.lv()])?;
    lvm(&["lvrename", "-qq", group, "rawkept", raw.lv()])?;
    let target = volume.up("pod")?;
    assert_eq!(read(&target.join("kept"))?, "kept");
    volume.down("pod")?;
    raw.delete()?;
    rig.finish()
}

#[test]
fn a_volume_that_lost_its_tag_is_let_go_and_then_left_alone() -> Result<()> {
    let rig = Rig::linear()?;
    let group = rig.vg.name.as_str();
    for capability in [ext4(), block(Mode::SingleNodeWriter)] {
        let mut volume = rig.with("linear", 64, capability)?;
        volume.up("pod")?;
        let full = format!("{group}/{}", volume.lv());
        lvm(&["lvchange", "-qq", "-y", "--deltag", "lvm-csi=1", &full])?;
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.detach()?;
        let holders = tool::run("dmsetup", &["info", "-c", "--noheadings", "-o", "uuid"])?;
        assert!(!holders.contains("LVM-lvmcsi"), "{holders}");
        assert_eq!(mounts::mount_at(&volume.staging())?, None);
        // The LV belongs to somebody else now.
        assert!(rig.vg.lv(volume.lv())?.active());
        rig.unchanged("an LV that was taken from the driver was deleted", || volume.delete())?;
        refused(told_size(rig.csi(), &volume.id), &[Code::NotFound], "an LV without the tag")?;
        lvm(&["lvchange", "-qq", "-an", &full])?;
        lvm(&["lvchange", "-qq", "-y", "--addtag", "lvm-csi=1", &full])?;
        volume.up("pod")?;
        volume.down("pod")?;
    }
    rig.finish()
}

#[test]
fn an_older_state_of_the_group_is_seen_and_what_it_does_not_know_is_let_go() -> Result<()> {
    let rig = Rig::linear()?;
    let (csi, group) = (rig.csi(), rig.vg.name.as_str());
    let mut old = rig.volume("linear", 64)?;
    let target = old.up("pod")?;
    write(&target.join("kept"), "kept")?;
    let file = rig.places.root.with_file_name("older.vg").display().to_string();
    lvm(&["vgcfgbackup", "-qq", "-f", &file, group])?;
    let (mut mounted, mut raw, mut attached) = (rig.volume("linear", 64)?, rig.raw("linear", 16)?, rig.volume("linear", 16)?);
    mounted.up("pod")?;
    raw.up("pod")?;
    attached.attach()?;
    let seqno = rig.vg.seqno()?;
    lvm(&["vgcfgrestore", "-qq", "-y", "-f", &file, group])?;
    ensure(rig.vg.seqno()? < seqno, || "the sequence number did not go back".to_owned())?;
    assert_eq!(listed(csi)?, [old.id.as_str()]);
    for volume in [&mounted, &raw, &attached] {
        refused(told_size(csi, &volume.id), &[Code::NotFound], "a volume that is not in the older state")?;
    }
    // A volume in use stays attached.
    attached.detach()?;
    for volume in [&mounted, &raw] {
        rig.rejects(&[Code::FailedPrecondition], "detaching what is staged", |_| volume.detach().map_err(status))?;
    }
    for volume in [&mounted, &raw] {
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.detach()?;
        volume.delete()?;
    }
    let left = tool::run("dmsetup", &["info", "-c", "--noheadings", "-o", "name"])?;
    assert_eq!(left.lines().count(), 1, "{left}");
    // Their space is free, and a new volume on it is intact.
    let mut new = rig.volume("linear", 64)?;
    new.up("pod")?;
    new.down("pod")?;
    assert_eq!(read(&target.join("kept"))?, "kept");
    old.down("pod")?;
    // Volumes that the older state does not know may come back with a newer one. Until then the driver keeps the record of how they
    // were shown.
    let records = rig.driver.start().state().join("exposed");
    let left: Vec<_> = fs::read_dir(records).map_err(Trouble::io("listing the records"))?.flatten().collect();
    assert_eq!(left.len(), 2, "{left:?}");
    left.iter().try_for_each(|record| fs::remove_file(record.path())).map_err(Trouble::io("removing a record"))?;
    rig.finish()
}

/// Returns the status of a failed call.
fn status(trouble: Trouble) -> Status {
    match trouble {
        Trouble::Call { code, message, .. } => Status::new(code, message),
        other => Status::unknown(format!("{other:?}")),
    }
}

#[test]
fn nobody_takes_a_volume_from_under_a_pod() -> Result<()> {
    let rig = Rig::thin()?;
    let group = rig.vg.name.as_str();
    for (pool, capability) in [("thin", ext4()), ("linear", block(Mode::SingleNodeWriter))] {
        let mut volume = rig.with(pool, 32, capability)?;
        volume.attach()?;
        let full = format!("{group}/{}", volume.lv());
        // A deactivation before the stage does no harm.
        lvm(&["lvchange", "-qq", "-an", &full])?;
        volume.stage()?;
        volume.publish("pod")?;
        for command in
            [&["vgchange", "-qq", "-an", group][..], &["lvchange", "-qq", "-an", &full], &["lvremove", "-qq", "-y", "-ff", &full]]
        {
            ensure(lvm(command).is_err(), || format!("LVM obeyed {command:?}"))?;
        }
        tool::settle()?;
        assert!(rig.vg.lv(volume.lv())?.active());
        volume.expand(64 * MIB, "pod")?;
        volume.down("pod")?;
    }
    rig.finish()
}
