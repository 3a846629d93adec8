//! Taking down what a test, failed or not, left on the machine. Whatever state that is in, it takes a limited time.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Result, Trouble, ensure};
use crate::mounts::unmount_all;
use crate::{lab, tool, vg};

/// How long one tool may take here: those that are run need milliseconds, unless a device hangs.
const TOOL: Duration = Duration::from_secs(10);
/// How long to wait for a state here.
const LIMIT: Duration = Duration::from_secs(10);
/// How long to try to remove devices gently. Then what is on them is taken from whoever still uses them.
const GENTLE: Duration = Duration::from_secs(3);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// What the dm UUIDs of LVM's devices begin with. Those of the driver's own devices do too, so that the host's LVM ignores what a guest
/// writes there.
const LVM: &str = "LVM-";
/// What the dm UUIDs of the driver's own devices begin with (`OWN_DM_PREFIX` in src/host/linux): LVM's prefix, and a group that does not
/// exist.
const DRIVER: &str = "LVM-lvmcsi";

/// Takes everything down: mounts, devices and volume groups. Costs two short looks where there is nothing.
///
/// # Errors
/// Something cannot be taken down.
pub fn everything() -> Result<()> {
    let disks = vg::lvm(&["pvs", "--noheadings", "-o", "pv_name"])?;
    let disks: Vec<&str> = disks.lines().map(str::trim).filter(|disk| disk.starts_with('/')).collect();
    let is_any = |device: &Device| device.uuid.starts_with(LVM);
    if disks.is_empty() && !devices()?.iter().any(is_any) {
        return Ok(());
    }
    close(is_any)?;
    disks.into_iter().try_for_each(wipe)
}

/// Frees a disk of everything LVM has on it, and of what stands on that.
///
/// # Errors
/// The kernel or LVM refused a step; what came before it is done.
pub fn release(disk: &Path) -> Result<()> {
    if !is_labelled(disk)? {
        return Ok(());
    }
    let path = disk.to_string_lossy();
    let vg = vg::lvm(&["pvs", "--noheadings", "-o", "vg_name", &path]).unwrap_or_default();
    let vg = vg.trim();
    if !vg.is_empty() && !vg.starts_with('[') {
        let prefix = format!("{}-", vg.replace('-', "--"));
        // The driver's own devices lie on those of LVM.
        close(|device| device.name.starts_with(&prefix) || device.uuid.starts_with(DRIVER))?;
    }
    wipe(&path)
}

/// Whether LVM's label is in one of the first four sectors of a disk.
fn is_labelled(disk: &Path) -> Result<bool> {
    let mut sectors = [0; 2048];
    let read = File::open(disk).and_then(|mut disk| disk.read_exact(&mut sectors));
    read.map_err(Trouble::io(format!("reading the beginning of {}", disk.display())))?;
    Ok(sectors.chunks(512).any(|sector| sector.starts_with(b"LABELONE")))
}

/// Takes the labels away; without them a disk is in no volume group.
fn wipe(disk: &str) -> Result<()> {
    tool::run("wipefs", &["-q", "-a", "-f", disk])?;
    tool::settle()
}

/// A device-mapper device.
struct Device {
    name: String,
    uuid: String,
}

fn devices() -> Result<Vec<Device>> {
    let text = dmsetup(&["info", "-c", "--noheadings", "--separator", " ", "-o", "name,uuid"])?;
    let pair =
        |line: &str| line.trim().split_once(' ').map(|(name, uuid)| Device { name: name.to_owned(), uuid: uuid.to_owned() });
    Ok(text.lines().filter_map(pair).collect())
}

fn dmsetup(args: &[&str]) -> Result<String> {
    tool::finish_within(TOOL, tool::command("dmsetup").args(args))
}

/// Unmounts everything that lies on some devices and removes these.
fn close(which: impl Fn(&Device) -> bool) -> Result<()> {
    let mine = || -> Result<Vec<Device>> { Ok(devices()?.into_iter().filter(&which).collect()) };
    let mut left = mine()?;
    // What waits for a suspended device can neither end nor be unmounted. A table that is not in force must not come into it.
    for device in &left {
        let _ = dmsetup(&["clear", &device.name]);
        let _ = dmsetup(&["resume", &device.name]);
    }
    // An lvm that outlived the driver would make anew what is removed here; one that hangs is told of by what follows.
    let _ = tool::wait("every lvm to end", LIMIT, || Ok((!lvm_runs()).then_some(())));
    unmount_all(Path::new(lab::ROOT))?;
    let begin = Instant::now();
    while !left.is_empty() {
        ensure(begin.elapsed() < LIMIT, || {
            let names: Vec<&str> = left.iter().map(|device| device.name.as_str()).collect();
            format!("these device-mapper devices cannot be removed: {names:?}")
        })?;
        // A device can be removed once nothing above it is left: those that cannot yet are for the next round.
        let mut removed = false;
        for device in &left {
            let force: &[&str] = if begin.elapsed() > GENTLE { &["--force"] } else { &[] };
            removed |= dmsetup(&[&["remove"], force, &[&device.name]].concat()).is_ok();
        }
        if !removed {
            thread::sleep(PAUSE);
        }
        left = mine()?;
    }
    Ok(())
}

fn lvm_runs() -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim() == "lvm.real"))
}
