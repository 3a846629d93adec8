//! Old data on a disk is never shown to anybody. These tests fill the disk with a marker before they make a volume group on it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, block, create, from_snapshot, from_volume, refused};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, delete_snapshot};
use testkit::signature::{device_size, write_at};
use testkit::{lab, tool, vg};
use tonic::Code;

use crate::rig::{LIMIT, MIB, Rig};

/// Fills every sector of the disk. Tenants in these tests write none of its letters.
const MARKER: &[u8] = b"OLDBYTES";

/// Part of the lab's first disk, or a device with another dm table. It lies beneath the rig and outlives it.
pub(crate) struct Disk {
    name: &'static str,
}

impl Disk {
    /// Makes a disk with this dm table.
    pub(crate) fn of_table(name: &'static str, table: &str) -> Result<Self> {
        lab::require()?;
        let disk = Self { name };
        tool::run("dmsetup", &["create", name, "--table", table])?;
        tool::settle()?;
        Ok(disk)
    }

    /// Makes a disk of `mib` MiB filled with the marker. It begins after the label area of the lab's disk.
    pub(crate) fn marked(mib: u64) -> Result<Self> {
        let whole = lab::disk(0)?;
        let disk = Self::of_table("marked", &format!("0 {} linear {} 8192", mib << 11, whole.display()))?;
        let path = disk.path();
        let failed = || format!("filling {}", path.display());
        let mut device = OpenOptions::new().write(true).open(&path).map_err(Trouble::io(failed()))?;
        let piece = MARKER.repeat((1 << 20) / MARKER.len());
        for _ in 0..mib {
            device.write_all(&piece).map_err(Trouble::io(failed()))?;
        }
        device.sync_all().map_err(Trouble::io(failed()))?;
        Ok(disk)
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing is on it any more, or the test has failed and reported why.
        let _ = tool::run("dmsetup", &["remove", "--force", "--retry", self.name]);
    }
}

/// Writes a configuration file with a `zeroing` section. Returns the argument that names it.
pub(crate) fn zeroing(percent: u32, call_seconds: u32) -> Result<String> {
    let path = Path::new(lab::ROOT).join("zeroing.yaml");
    fs::create_dir_all(lab::ROOT).map_err(Trouble::io(format!("making {}", lab::ROOT)))?;
    let text = format!("zeroing:\n  percent: {percent}\n  callSeconds: {call_seconds}\n");
    fs::write(&path, text).map_err(Trouble::io(format!("writing {}", path.display())))?;
    Ok(format!("--config={}", path.display()))
}

/// Returns the offset up to which a volume is zeroed, according to its tag.
pub(crate) fn tagged(rig: &Rig, volume: &Volume) -> Result<u64> {
    let tags = rig.vg.of_handle(&volume.id)?.tags;
    Ok(tags.iter().find_map(|tag| tag.strip_prefix("csi.z=")?.parse().ok()).unwrap_or(0))
}

/// Returns how many bytes are neither zero nor the letter that tenants write here.
pub(crate) fn foreign_bytes(path: &Path) -> Result<u64> {
    tool::drop_caches()?;
    counted(&format!("tr -d '\\0Z' <{} | wc -c", path.display()))
}

/// Returns how many lines of a device contain the marker, with each zero byte as a line end.
fn marked_lines(path: &Path) -> Result<u64> {
    tool::drop_caches()?;
    counted(&format!("tr '\\0' '\\n' <{} | LC_ALL=C grep -acF OLDBYTES || true", path.display()))
}

fn counted(script: &str) -> Result<u64> {
    let count = tool::run("sh", &["-c", script])?;
    count.trim().parse().map_err(|_| Trouble::wrong(format!("`{script}` said {count:?}")))
}

fn clean(what: &str, path: &Path) -> Result<()> {
    let count = foreign_bytes(path)?;
    ensure(count == 0, || format!("{what} shows {count} old bytes"))
}

/// A program in a pod. It keeps a device open and reads beyond an offset, bypassing all caches, as soon as that is possible.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    /// How far it has read, in bytes.
    pub(crate) reached: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<u64>>,
}

impl Reader {
    /// Reads what lies beyond the device's current end.
    pub(crate) fn start(device: &Path) -> Result<Self> {
        Self::start_at(device, device_size(device)?)
    }

    pub(crate) fn start_at(device: &Path, from: u64) -> Result<Self> {
        const PIECE: usize = 1 << 20;
        let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(device);
        let file = opened.map_err(Trouble::io(format!("opening {}", device.display())))?;
        let (stop, reached) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(from)));
        let (stopped, at) = (Arc::clone(&stop), Arc::clone(&reached));
        let thread = thread::spawn(move || {
            let mut memory = vec![0; PIECE + 4096];
            let skip = memory.as_ptr().align_offset(4096);
            let buffer = &mut memory[skip..skip + PIECE];
            let nothing = vec![0; PIECE];
            let (mut old, mut offset) = (0, from);
            while !stopped.load(Ordering::SeqCst) {
                let count = match file.read_at(buffer, offset) {
                    // The LV ends before its holder, because somebody cut it off.
                    Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => 0,
                    read => read?,
                };
                old += u64::from(buffer[..count] != nothing[..count]);
                offset = if count == 0 { from } else { offset + count as u64 };
                at.fetch_max(offset, Ordering::SeqCst);
            }
            Ok(old)
        });
        Ok(Self { stop, reached, thread })
    }

    /// Waits until it has read up to `size`. Fails if any byte was not zero.
    pub(crate) fn saw_nothing_up_to(self, size: u64) -> Result<()> {
        let reached = || Ok((self.reached.load(Ordering::SeqCst) >= size).then_some(()));
        let waited = tool::wait("the reader to see the whole device", LIMIT, reached);
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.join().map_err(|_| Trouble::wrong("the reader panicked"))?;
        let old = ended.map_err(Trouble::io("reading the device while it grows"))?;
        ensure(old == 0, || format!("a reader saw old bytes {old} times while the device grew"))?;
        waited
    }
}

/// Grows a published device while a program that has it open reads on.
fn grow_watched(volume: &mut Volume, target: &Path, mib: u64) -> Result<()> {
    let reader = Reader::start(target)?;
    volume.expand(mib * MIB, "pod")?;
    reader.saw_nothing_up_to(mib * MIB)?;
    ensure(device_size(target)? == mib * MIB, || "the device did not grow".to_owned())
}

/// Writes a little here and there, as a tenant would.
fn use_up(target: &Path, mib: u64) -> Result<()> {
    (0..mib).step_by(3).try_for_each(|at| write_at(target, at * MIB + 8192, &[b'Z'; 4096]))
}

fn restored(rig: &Rig, source: Option<csi::VolumeContentSource>, mib: u64) -> Result<Volume> {
    let request = create(&rig.name(), "thin", mib * MIB, block(Mode::SingleNodeWriter));
    rig.request(csi::CreateVolumeRequest { volume_content_source: source, ..request })
}

#[test]
fn no_device_of_any_layout_shows_old_bytes() -> Result<()> {
    let disk = Disk::marked(400)?;
    let rig = Rig::make_on(&[disk.path()], Some(300), &[])?;
    for pool in ["linear", "thin"] {
        let mut volume = rig.raw(pool, 24)?;
        let target = volume.up("pod")?;
        clean(&format!("a new volume in the pool {pool}"), &target)?;
        use_up(&target, 24)?;
        grow_watched(&mut volume, &target, 32)?;
        clean(&format!("a volume that grew online in the pool {pool}"), &target)?;
        use_up(&target, 32)?;
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.detach()?;
        let answer = rig.csi().controller_expand_volume(volume.expand_request(40 * MIB)).accepted("ControllerExpandVolume")?;
        volume.capacity = answer.capacity_bytes;
        let target = volume.up("pod")?;
        rig.csi().node_expand_volume(volume.node_expand_request("pod")).accepted("NodeExpandVolume")?;
        ensure(device_size(&target)? == 40 * MIB, || "the volume did not grow offline".to_owned())?;
        clean(&format!("a volume that grew offline in the pool {pool}"), &target)?;
        use_up(&target, 40)?;
        if pool == "thin" {
            let snapshot = volume.snapshot("cut")?;
            for (what, source, mib) in [
                ("a restore", from_snapshot(&snapshot.snapshot_id), 40),
                ("a larger restore", from_snapshot(&snapshot.snapshot_id), 56),
                ("a clone", from_volume(&volume.id), 40),
            ] {
                let mut copy = restored(&rig, source, mib)?;
                let shown = copy.up("pod")?;
                clean(what, &shown)?;
                use_up(&shown, mib)?;
                clean(&format!("{what} that was written to"), &shown)?;
                copy.down("pod")?;
            }
            delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
        }
        // The next volume gets its extents, with the data a tenant left on them.
        write_at(&target, 0, &MARKER.repeat((40 << 20) / MARKER.len()))?;
        volume.down("pod")?;
        let mut next = rig.raw(pool, 48)?;
        let target = next.up("pod")?;
        use_up(&target, 48)?;
        clean(&format!("a volume on the extents of another in the pool {pool}"), &target)?;
        next.down("pod")?;
    }
    rig.finish()?;
    covers!(30)
}

#[test]
fn no_file_of_a_mounted_volume_shows_old_bytes() -> Result<()> {
    let disk = Disk::marked(384)?;
    let rig = Rig::make_on(&[disk.path()], Some(160), &[])?;
    for pool in ["linear", "thin"] {
        let mut volume = rig.volume(pool, 96)?;
        let mount = volume.up("pod")?;
        let unwritten = |name: &str, mib: &str| -> Result<()> {
            let (allocated, hole) = (mount.join(format!("{name}-allocated")), mount.join(format!("{name}-hole")));
            tool::run("fallocate", &["-l".as_ref(), mib.as_ref(), allocated.as_os_str()])?;
            let file = File::create(&hole).map_err(Trouble::io("making a file with a hole"))?;
            file.write_all_at(b"Z", 8 << 20).map_err(Trouble::io("writing behind a hole"))?;
            [allocated, hole].iter().try_for_each(|path| clean(&path.display().to_string(), path))
        };
        unwritten("new", "24M")?;
        volume.expand(144 * MIB, "pod")?;
        unwritten("grown", "40M")?;
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.detach()?;
        // Its free space may contain old bytes, so it is shown as a raw device only where the pool zeroes.
        volume.capability = block(Mode::SingleNodeWriter);
        if pool == "linear" {
            rig.rejects(&[Code::FailedPrecondition], "a filesystem over old bytes as a device", |csi| {
                csi.controller_publish_volume(volume.attach_request())
            })?;
        } else {
            let target = volume.up("pod")?;
            ensure(marked_lines(&target)? == 0, || "a filesystem shown as a device shows old bytes".to_owned())?;
            volume.unpublish("pod")?;
            volume.unstage()?;
            volume.detach()?;
        }
        volume.delete()?;
    }
    rig.finish()?;
    covers!(30)
}

#[test]
fn what_an_administrator_adds_is_shown_once_it_is_zeroed() -> Result<()> {
    let disk = Disk::marked(256)?;
    let rig = Rig::make_on(&[disk.path()], None, &[])?;
    let mut volume = rig.raw("linear", 16)?;
    let target = volume.up("pod")?;
    let reader = Reader::start(&target)?;
    let lv = rig.vg.of_handle(&volume.id)?;
    vg::lvm(&["lvextend", "-qq", "-L", "64m", &format!("{}/{}", rig.vg.name, lv.name)])?;
    ensure(device_size(&rig.vg.device(&lv.name))? == 64 * MIB, || "lvextend did not grow the device".to_owned())?;
    ensure(foreign_bytes(&rig.vg.device(&lv.name))? > 0, || "the test needs old bytes in the new extents".to_owned())?;
    let mut early = volume.node_expand_request("pod");
    early.capacity_range = Some(csi::CapacityRange { required_bytes: 64 << 20, limit_bytes: 0 });
    rig.rejects(&[Code::OutOfRange], "growing the holder before the new extents are zeroed", |csi| {
        csi.node_expand_volume(early)
    })?;
    ensure(device_size(&target)? == 16 * MIB, || "the holder shows more than is zeroed".to_owned())?;
    volume.expand(64 * MIB, "pod")?;
    reader.saw_nothing_up_to(64 * MIB)?;
    clean("what an administrator extended", &target)?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(30)
}

#[test]
fn snapshots_of_an_administrator_leave_nothing_behind() -> Result<()> {
    let disk = Disk::marked(384)?;
    let rig = Rig::make_on(&[disk.path()], Some(64), &[])?;
    let mut volume = rig.raw("linear", 32)?;
    let target = volume.up("pod")?;
    let lv = rig.vg.of_handle(&volume.id)?.name;
    let full = |name: &str| format!("{}/{name}", rig.vg.name);
    // The COW area keeps the tenant's earlier bytes.
    write_at(&target, 0, &MARKER.repeat((32 << 20) / MARKER.len()))?;
    vg::lvm(&["lvcreate", "-qq", "-y", "-s", "-L", "48m", "-n", "cow", &full(&lv)])?;
    write_at(&target, 0, &[b'Z'; 32 << 20])?;
    vg::lvm(&["lvremove", "-qq", "-y", &full("cow")])?;
    clean("a volume whose snapshot went", &target)?;
    let mut next = rig.raw("linear", 64)?;
    let shown = next.up("pod")?;
    clean("a volume in the place of a COW area", &shown)?;
    next.down("pod")?;
    volume.unpublish("pod")?;
    volume.unstage()?;
    volume.detach()?;
    // A thin snapshot that has the volume as its external origin.
    vg::lvm(&["lvchange", "-qq", "-pr", &full(&lv)])?;
    vg::lvm(&["lvcreate", "-qq", "-y", "-s", "--thinpool", &full("pool"), "-n", "external", &full(&lv)])?;
    vg::lvm(&["lvremove", "-qq", "-y", &full("external")])?;
    vg::lvm(&["lvchange", "-qq", "-prw", &full(&lv)])?;
    let target = volume.up("pod")?;
    grow_watched(&mut volume, &target, 64)?;
    clean("a volume that was an external origin", &target)?;
    volume.down("pod")?;
    let mut thin = rig.raw("thin", 32)?;
    let target = thin.up("pod")?;
    use_up(&target, 32)?;
    clean("a thin volume after the snapshot of another", &target)?;
    thin.down("pod")?;
    rig.finish()?;
    covers!(30)
}

#[test]
fn a_thin_pool_that_does_not_zero_is_refused() -> Result<()> {
    let disk = Disk::marked(384)?;
    let rig = Rig::make_on(&[disk.path()], Some(200), &[])?;
    let pool = format!("{}/pool", rig.vg.name);
    let mut raw = rig.raw("thin", 16)?;
    let mut mounted = rig.volume("thin", 32)?;
    let snapshot = raw.snapshot("cut")?;
    raw.attach()?;
    vg::lvm(&["lvchange", "-qq", "--zero", "n", &pool])?;
    let request = create(&rig.name(), "thin", 16 * MIB, block(Mode::SingleNodeWriter));
    let restore = csi::CreateVolumeRequest { volume_content_source: from_snapshot(&snapshot.snapshot_id), ..request.clone() };
    for request in [request.clone(), restore] {
        let said = rig.rejects(&[Code::FailedPrecondition], "a volume in a pool that does not zero", |csi| {
            csi.create_volume(request.clone())
        })?;
        assert!(said.contains(&format!("lvchange --zero y {pool}")), "{said}");
    }
    raw.make_staging()?;
    let staged = rig.csi().node_stage_volume(raw.stage_request());
    let said = refused(staged, &[Code::FailedPrecondition], "a raw volume of a pool that does not zero")?;
    assert!(said.contains(&format!("lvchange --zero y {pool}")), "{said}");
    ensure(!rig.vg.of_handle(&raw.id)?.active(), || "the failed stage left the volume active".to_owned())?;
    // A filesystem hides what it has not written.
    mounted.up("pod")?;
    mounted.down("pod")?;
    vg::lvm(&["lvchange", "-qq", "--zero", "y", &pool])?;
    let target = raw.up("pod")?;
    use_up(&target, 16)?;
    clean("a volume of a pool that zeroes again", &target)?;
    raw.down("pod")?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    rig.finish()?;
    covers!(30)
}

#[test]
fn nothing_is_zeroed_below_the_tag_within_a_large_extent() -> Result<()> {
    // The room for labels makes the rest a whole number of extents.
    let disk = Disk::of_table("large", &format!("0 {} linear {} 8192", 2054 << 11, lab::disk(0)?.display()))?;
    // Each call zeroes one step, which ends within an extent.
    let rig = Rig::make_on(&[disk.path()], None, &[&zeroing(100, 0)?])?;
    vg::lvm(&["vgchange", "-qq", "--physicalextentsize", "128m", &rig.vg.name])?;
    let mut volume = rig.raw("linear", 128)?;
    volume.attach()?;
    rig.until_ok("the volume to be staged", |_| volume.stage())?;
    let target = volume.publish("pod")?;
    let (begin, size) = (128 * MIB, 256 * MIB);
    let said = refused(
        rig.csi().controller_expand_volume(volume.expand_request(size)),
        &[Code::Aborted],
        "an expansion that takes more than a call",
    )?;
    let reached = tagged(&rig, &volume)?;
    assert!(begin < reached && reached < size, "{reached} bytes are zeroed");
    // Zeroing may have gone on since.
    let reports = |at: u64| said.contains(&format!("{} % of it are zeroed, {at} ", at * 100 / size));
    assert!((begin..=reached).step_by(1 << 20).any(reports), "{said} after {reached} bytes");
    // Somebody reloads the table, and the pod gets to see the zeroed part. Zeroing goes on meanwhile.
    vg::lvm(&["lvchange", "-qq", "--refresh", &format!("{}/{}", rig.vg.name, rig.vg.of_handle(&volume.id)?.name)])?;
    rig.csi().node_expand_volume(volume.node_expand_request("pod")).accepted("NodeExpandVolume")?;
    let shown = device_size(&target)?;
    assert!(reached <= shown && shown <= size, "{shown} bytes are shown after {reached} were zeroed");
    write_at(&target, 0, &vec![b'Z'; usize::try_from(shown).unwrap_or(0)])?;
    rig.until_ok("the expansion to end", |_| volume.expand(size, "pod"))?;
    tool::drop_caches()?;
    let kept = counted(&format!("tr -dc Z <{} | wc -c", target.display()))?;
    assert_eq!(kept, shown, "the driver zeroed bytes of a pod");
    clean("a volume of large extents", &target)?;
    volume.down("pod")?;
    rig.finish()?;
    covers!(30)
}
