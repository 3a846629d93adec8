//! `pvmove` next to the driver: volumes stay usable while their extents move, the driver asks for a repeat of what LVM refuses
//! meanwhile, and no old byte is shown.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;

use lvm_csi_proto::csi;
use testkit::client::{Accepted, create, refused};
use testkit::error::{Result, Trouble, ensure};
use testkit::shim;
use testkit::vg::lvm;
use testkit::{lab, tool};
use tonic::{Code, Status};

use crate::old_bytes::{tagged, zeroing};
use crate::rig::{LIMIT, MIB, Rig};

/// Makes a volume group on two disks, with a thin pool of `pool` MiB where given.
fn on_two_disks(pool: Option<u64>, arguments: &[&str]) -> Result<(Rig, [PathBuf; 2])> {
    // LVM loads the module on demand, if it can.
    tool::run("modprobe", &["dm-mirror"])?;
    let disks = [lab::disk(0)?, lab::disk(1)?];
    Ok((Rig::make_on(&disks, pool, arguments)?, disks))
}

/// A pvmove that has begun and never checks whether it is done.
struct Begun {
    process: Child,
}

impl Begun {
    /// Moves everything on a disk, or one LV only.
    fn from(disk: &Path, only: Option<&str>, rig: &Rig) -> Result<Self> {
        let mut command = tool::command(shim::REAL);
        command.arg0("lvm").args(["pvmove", "-qq", "--atomic", "-i", "+3600"]);
        command.args(only.map(|lv| ["-n", lv]).iter().flatten()).arg(disk);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Self { process: command.spawn().map_err(Trouble::io("starting pvmove"))? };
        tool::wait("pvmove to begin", LIMIT, || Ok(rig.vg.lvs()?.iter().any(|lv| lv.name.contains("pvmove")).then_some(())))?;
        Ok(begun)
    }

    /// Ends the process and has another pvmove finish the move.
    fn finish(mut self) -> Result<()> {
        self.end()?;
        lvm(&["pvmove", "-qq", "-i", "1"]).map(drop)
    }

    /// Aborts the move: everything stays where it was.
    fn abort(mut self) -> Result<()> {
        self.end()?;
        lvm(&["pvmove", "-qq", "--abort"]).map(drop)
    }

    fn end(&mut self) -> Result<()> {
        // It sleeps between two polls and holds no lock then.
        self.process.kill().and_then(|()| self.process.wait()).map(drop).map_err(Trouble::io("ending pvmove"))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // The test has failed already, or the process has ended.
        let _ = self.end();
    }
}

/// Fills the first free space of each disk with nonzero bytes.
fn fill(rig: &Rig, disks: &[PathBuf], mib: usize) -> Result<()> {
    for disk in disks {
        let size = format!("{mib}m");
        lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", &size, "-n", "former", &rig.vg.name, &disk.to_string_lossy()])?;
        rig.vg.with_active("former", |device| {
            let written = File::options().write(true).open(device).and_then(|mut file| {
                (0..mib).try_for_each(|_| file.write_all(&[0xa5; 1 << 20]))?;
                file.sync_all()
            });
            written.map_err(Trouble::io(format!("filling {}", device.display())))
        })?;
        lvm(&["lvremove", "-qq", "-y", &format!("{}/former", rig.vg.name)])?;
    }
    Ok(())
}

/// Writes a mark to the start of a block device.
fn mark(device: &Path) -> Result<()> {
    let written = File::options().write(true).open(device).and_then(|mut file| {
        file.write_all(b"a pod's bytes")?;
        file.sync_all()
    });
    written.map_err(Trouble::io(format!("writing to {}", device.display())))
}

/// Fails unless a block device has this size, begins with the mark and is zero after it.
fn assert_marked(device: &Path, size: u64) -> Result<()> {
    tool::drop_caches()?;
    let mut bytes = Vec::new();
    let read = File::open(device).and_then(|mut file| {
        let end = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        file.read_to_end(&mut bytes).map(|_| end)
    });
    let end = read.map_err(Trouble::io(format!("reading {}", device.display())))?;
    ensure(end == size, || format!("{} has {end} bytes instead of {size}", device.display()))?;
    ensure(bytes.starts_with(b"a pod's bytes"), || format!("{} lost a pod's bytes", device.display()))?;
    match bytes[16..].iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(at) => Err(Trouble::wrong(format!("{} shows an old byte at {}", device.display(), at + 16))),
    }
}

#[test]
fn volumes_that_are_being_moved_stay_usable() -> Result<()> {
    let (rig, disks) = on_two_disks(None, &[])?;
    let csi = rig.csi();
    let mut mounted = rig.volume("linear", 64)?;
    let target = mounted.up("pod")?;
    fs::write(target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
    let mut raw = rig.raw("linear", 16)?;
    let shown = raw.up("pod")?;
    mark(&shown)?;
    let mut idle = rig.volume("linear", 64)?;
    let begun = Begun::from(&disks[0], None, &rig)?;
    // What LVM refuses during the move must be repeated.
    for volume in [&mounted, &raw] {
        let answer = csi.controller_expand_volume(volume.expand_request(128 * MIB));
        let message = refused(answer, &[Code::Aborted], "an expansion")?;
        assert!(message.contains("pvmove"), "{message}");
    }
    let request = csi::DeleteVolumeRequest { volume_id: idle.id.clone(), ..Default::default() };
    let message = refused(csi.delete_volume(request), &[Code::Aborted], "a deletion")?;
    assert!(message.contains("pvmove"), "{message}");
    // Everything else works.
    assert_eq!(csi.list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?.entries.len(), 3);
    mounted.stats("pod")?;
    idle.up("pod")?;
    idle.unpublish("pod")?;
    idle.unstage()?;
    idle.detach()?;
    raw.unpublish("pod")?;
    raw.unstage()?;
    raw.stage()?;
    raw.publish("pod")?;
    assert_marked(&shown, 16 * MIB)?;
    let mut new = rig.volume("linear", 16)?;
    new.up("pod")?;
    new.down("pod")?;
    begun.finish()?;
    assert!(!rig.vg.lvs()?.iter().any(|lv| lv.name.contains("pvmove")));
    // The holder of the raw volume shows the LV, wherever it lies now.
    assert_marked(&shown, 16 * MIB)?;
    raw.expand(32 * MIB, "pod")?;
    assert_marked(&shown, 32 * MIB)?;
    mounted.expand(128 * MIB, "pod")?;
    tool::drop_caches()?;
    assert_eq!(fs::read_to_string(target.join("kept")).unwrap_or_default(), "kept");
    for volume in [&mounted, &raw] {
        volume.down("pod")?;
    }
    idle.delete()?;
    rig.finish()
}

#[test]
fn a_thin_pool_that_is_being_moved_serves_its_volumes_and_takes_no_more() -> Result<()> {
    let (rig, disks) = on_two_disks(Some(128), &[])?;
    let csi = rig.csi();
    let (mut used, idle) = (rig.volume("thin", 32)?, rig.volume("thin", 32)?);
    let begun = Begun::from(&disks[0], Some("pool_tdata"), &rig)?;
    let mark = shim::count()?;
    let says = |what: &str, answer: std::result::Result<(), Status>| -> Result<()> {
        let message = refused(answer, &[Code::Aborted], what)?;
        ensure(message.contains("pvmove"), || format!("{what}: {message}"))
    };
    says("a creation", csi.create_volume(create(&rig.name(), "thin", 16 * MIB, used.capability.clone())).map(drop))?;
    let cut = csi::CreateSnapshotRequest { source_volume_id: used.id.clone(), name: "cut".to_owned(), ..Default::default() };
    says("a snapshot", csi.create_snapshot(cut).map(drop))?;
    says("an expansion", csi.controller_expand_volume(used.expand_request(64 * MIB)).map(drop))?;
    let delete = csi::DeleteVolumeRequest { volume_id: idle.id.clone(), ..Default::default() };
    says("a deletion", csi.delete_volume(delete).map(drop))?;
    assert_eq!(shim::since(mark)?, []);
    let target = used.up("pod")?;
    fs::write(target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
    used.unpublish("pod")?;
    used.unstage()?;
    begun.abort()?;
    let target = used.up("pod")?;
    assert_eq!(fs::read_to_string(target.join("kept")).unwrap_or_default(), "kept");
    used.expand(64 * MIB, "pod")?;
    used.down("pod")?;
    idle.delete()?;
    rig.finish()
}

#[test]
fn an_expansion_shows_no_old_bytes_whatever_pvmove_does_meanwhile() -> Result<()> {
    const MORE: u64 = 256;
    // So slow that zeroing is still under way while the extents move.
    let (rig, disks) = on_two_disks(None, &[&zeroing(10, 8)?])?;
    fill(&rig, &disks, 272)?;
    let mut raw = rig.raw("linear", 16)?;
    let shown = raw.up("pod")?;
    mark(&shown)?;
    let (csi, request) = (rig.csi().clone(), raw.expand_request(MORE * MIB));
    thread::scope(|scope| -> Result<()> {
        let call = scope.spawn(|| csi.controller_expand_volume(request.clone()));
        tool::wait("some of the new extents to be zeroed", LIMIT, || Ok((tagged(&rig, &raw)? > 16 * MIB).then_some(())))?;
        let moved = lvm(&["pvmove", "-qq", "-i", "1", &disks[0].to_string_lossy(), &disks[1].to_string_lossy()]);
        let answer = call.join().map_err(|_| Trouble::wrong("a caller panicked"))?;
        if let Err(status) = answer {
            ensure(status.code() == Code::Aborted && status.message().contains("pvmove"), || format!("{status:?}"))?;
        }
        moved.map(drop)
    })?;
    rig.until_ok("the expansion", |csi| csi.controller_expand_volume(raw.expand_request(MORE * MIB)).accepted("expansion"))?;
    raw.expand(MORE * MIB, "pod")?;
    assert_marked(&shown, MORE * MIB)?;
    raw.down("pod")?;
    rig.finish()
}
