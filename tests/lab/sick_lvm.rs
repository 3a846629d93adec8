//! LVM and tools that hang or die. The group is wedged and says so, other groups work, and everything recovers without a restart.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use testkit::client::{Accepted, block, create, from_snapshot, mount, refused};
use testkit::error::{Result, Trouble};
use testkit::flow::delete_snapshot;
use testkit::shim::{self, Fault};
use testkit::sick::Sick;
use testkit::{lab, tool};
use tonic::Code;

use crate::rig::{LIMIT, MIB, POOL_MIB};
use crate::sick::{Ward, process, signal};

/// Resumes a stopped process when dropped.
struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        // The test checks what follows.
        let _ = signal(self.0, Signal::SIGCONT);
    }
}

/// Long enough for a call that is refused at once, too short for one that waits.
const SHORT: Duration = Duration::from_secs(2);

#[test]
fn an_lvm_that_hangs_wedges_its_group_until_it_goes_on() -> Result<()> {
    let ward = Ward::open(&[lab::disk(1)?], None)?;
    let old = ward.rig.volume("linear", 16)?;
    ward.becomes(true)?;
    let request = create(&ward.rig.name(), "linear", 32 * MIB, block(Mode::SingleNodeWriter));
    let csi = ward.rig.csi().clone();
    let sent = request.clone();
    shim::arm(Fault::Stop)?;
    thread::scope(|scope| -> Result<()> {
        let hung = scope.spawn(move || csi.create_volume(sent));
        let stopped = Stopped(process("lvm", &['T'])?);
        let checked = (|| {
            // A repeat joins and learns before its deadline what is running. A deletion would collide.
            let again = ward.rig.csi().deadline(SHORT).create_volume(request.clone());
            let message = refused(again, &[Code::Aborted], "the same creation")?;
            assert!(message.contains("CreateVolume has been running for") && message.contains("now at lvcreate "), "{message}");
            ward.becomes(false)?;
            let message = ward.refuses_creation("another creation")?;
            let pid = format!("(process {})", stopped.0);
            assert!(message.contains("lvcreate") && message.contains(&pid) && message.contains(" s and still is"), "{message}");
            // Calls that change nothing are answered.
            assert!(ward.listed()?.contains(&old.id));
            assert_eq!(ward.room()?, 0);
            let figures = [ward.figure("vg_wedged")?, ward.figure("vg_readable")?, ward.figure("vg_queue_length")?];
            assert_eq!(figures, [Some(1), Some(1), Some(1)]);
            assert!(ward.figure("vg_wedged_since_seconds")?.is_some_and(|since| since > 0));
            let health = ward.told()?;
            let pid = format!("process {} is T (stopped)", stopped.0);
            assert!(health.last().is_some_and(|line| line.contains("wedged") && line.contains(&pid)), "{health:#?}");
            assert!(health.last().is_some_and(|line| line.contains("kernel stack: ")), "{health:#?}");
            ward.others_go_on()
        })();
        drop(stopped);
        let answer = hung.join().map_err(|_| Trouble::wrong("the caller panicked"))?;
        checked?;
        answer.accepted("CreateVolume").map(drop)
    })?;
    ward.becomes(true)?;
    let made = ward.rig.request(request)?;
    assert_eq!(ward.figure("vg_wedged")?, Some(0));
    let health = ward.told()?;
    assert_eq!(health.iter().filter(|line| line.contains("wedged")).count(), 1, "{health:#?}");
    made.delete()?;
    old.delete()?;
    ward.close()
}

/// Returns how often a process has waited for something, such as its disk, so far, or `None` once it is gone.
fn waits(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

#[test]
fn an_lvm_that_is_killed_at_any_moment_freezes_nobody() -> Result<()> {
    // On a slow disk every command lasts long enough to be killed at each of its moments.
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let ward = Ward::open(&[sick.path()], Some(POOL_MIB))?;
    let mut volume = ward.rig.volume("thin", 64)?;
    let target = volume.up("pod")?;
    let illness = sick.slow(Duration::from_millis(5))?;
    for moment in 0..4 {
        let name = format!("cut-{moment}");
        let csi = ward.rig.csi().clone();
        let request =
            csi::CreateSnapshotRequest { source_volume_id: volume.id.clone(), name: name.clone(), ..Default::default() };
        let answer = thread::scope(|scope| -> Result<_> {
            let cut = scope.spawn(move || csi.create_snapshot(request));
            let lvm = process("lvm.real", &['R', 'S', 'D'])?;
            tool::wait("the moment for lvm to die", LIMIT, || {
                Ok(waits(lvm).is_none_or(|waits| waits >= 8 * moment).then_some(()))
            })?;
            // It may have ended by now.
            let _ = signal(lvm, Signal::SIGKILL);
            cut.join().map_err(|_| Trouble::wrong("the caller panicked"))
        })?;
        // Whatever the answer, nothing stays suspended and the pod's writes reach the disk.
        let suspended = tool::run("dmsetup", &["info", "-c", "--noheadings", "-o", "name,suspended"])?;
        assert!(!suspended.contains("Suspended"), "killed at moment {moment}, {answer:?}: {suspended}");
        fs::write(target.join("after"), &name).map_err(Trouble::io("writing into the volume"))?;
        tool::drop_caches()?;
        let snapshot = ward.rig.until_ok("the snapshot", |_| volume.snapshot(&name))?;
        delete_snapshot(ward.rig.csi(), &snapshot.snapshot_id)?;
    }
    drop(illness);
    volume.down("pod")?;
    ward.close()
}

#[test]
fn a_thin_pool_whose_lvm_died_between_its_two_messages_goes_on() -> Result<()> {
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let ward = Ward::open(&[sick.path()], Some(POOL_MIB))?;
    let mut volume = ward.rig.volume("thin", 64)?;
    let target = volume.up("pod")?;
    fs::write(target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
    // The kernel acknowledges a message once it is on the disk. By then lvm must be dead.
    let illness = sick.slow(Duration::from_millis(60))?;
    let csi = ward.rig.csi().clone();
    let request =
        csi::CreateSnapshotRequest { source_volume_id: volume.id.clone(), name: "cut".to_owned(), ..Default::default() };
    thread::scope(|scope| -> Result<()> {
        let cut = scope.spawn(move || csi.create_snapshot(request));
        let lvm = process("lvm.real", &['R', 'S', 'D'])?;
        tool::wait("lvm to send its first message", LIMIT, || {
            let stack = fs::read_to_string(format!("/proc/{lvm}/stack")).map_err(Trouble::io("lvm ended by itself"))?;
            Ok(stack.contains("pool_message").then_some(()))
        })?;
        signal(lvm, Signal::SIGKILL)?;
        // The result does not matter: the repeat counts.
        let _ = cut.join();
        Ok(())
    })?;
    drop(illness);
    let snapshot = ward.rig.until_ok("the snapshot", |_| volume.snapshot("cut"))?;
    // A snapshot is cut by the time the call is answered.
    fs::write(target.join("after"), "after").map_err(Trouble::io("writing into the volume"))?;
    tool::drop_caches()?;
    let mut request = create(&ward.rig.name(), "thin", 64 * MIB, mount("ext4", Mode::SingleNodeWriter));
    request.volume_content_source = from_snapshot(&snapshot.snapshot_id);
    let mut copy = ward.rig.request(request)?;
    let restored = copy.up("pod-2")?;
    assert_eq!(fs::read_to_string(restored.join("kept")).map_err(Trouble::io("reading from the copy"))?, "kept");
    assert!(!restored.join("after").exists(), "the snapshot was cut after its call was answered");
    copy.down("pod-2")?;
    delete_snapshot(ward.rig.csi(), &snapshot.snapshot_id)?;
    volume.down("pod")?;
    ward.close()
}

/// Makes mkfs stop itself before it begins, until dropped.
struct StoppingMkfs;

impl StoppingMkfs {
    const MKFS: &str = "/usr/sbin/mkfs.ext4";
    const ASIDE: &str = "/usr/sbin/mkfs.ext4.aside";

    fn install() -> Result<Self> {
        fs::rename(Self::MKFS, Self::ASIDE).map_err(Trouble::io("moving mkfs aside"))?;
        let it = Self;
        let script = "#!/bin/sh\nkill -STOP $$\nexec /usr/sbin/mke2fs -t ext4 \"$@\"\n";
        fs::write(Self::MKFS, script).map_err(Trouble::io("writing a false mkfs"))?;
        fs::set_permissions(Self::MKFS, fs::Permissions::from_mode(0o755)).map_err(Trouble::io("making it executable"))?;
        Ok(it)
    }
}

impl Drop for StoppingMkfs {
    fn drop(&mut self) {
        let _ = fs::rename(Self::ASIDE, Self::MKFS);
    }
}

#[test]
fn a_mkfs_that_hangs_holds_its_volume_and_nothing_else() -> Result<()> {
    let ward = Ward::open(&[lab::disk(1)?], None)?;
    let mut volume = ward.rig.volume("linear", 64)?;
    volume.attach()?;
    volume.make_staging()?;
    let mkfs = StoppingMkfs::install()?;
    let csi = ward.rig.csi().clone();
    let request = volume.stage_request();
    thread::scope(|scope| -> Result<()> {
        let hung = scope.spawn(move || csi.node_stage_volume(request));
        let stopped = Stopped(process("mkfs.ext4", &['T'])?);
        drop(mkfs);
        let checked = (|| {
            let short = ward.rig.csi().deadline(SHORT);
            let again = refused(short.node_stage_volume(volume.stage_request()), &[Code::Aborted], "the same stage")?;
            let delete = csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
            let other = refused(short.delete_volume(delete), &[Code::Aborted], "a deletion meanwhile")?;
            for message in [again, other] {
                let says =
                    message.contains("NodeStageVolume has been running for") && message.contains("now at mkfs.ext4 a device");
                assert!(says, "{message}");
            }
            // LVM is not involved: other volumes of the group work.
            let mut other = ward.rig.volume("linear", 64)?;
            other.up("pod")?;
            other.down("pod")?;
            ward.others_go_on()
        })();
        drop(stopped);
        let answer = hung.join().map_err(|_| Trouble::wrong("the caller panicked"))?;
        checked?;
        answer.accepted("NodeStageVolume").map(drop)
    })?;
    ward.becomes(true)?;
    tool::wait("the staged volume", LIMIT, || Ok(testkit::mounts::mount_at(&volume.staging())?.map(drop)))?;
    volume.unstage()?;
    volume.detach()?;
    volume.delete()?;
    ward.close()
}
