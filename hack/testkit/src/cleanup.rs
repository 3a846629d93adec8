//! Removes what a test left on the machine, whether it passed or failed. Each step has a time limit, since devices may hang.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Result, Trouble, ensure};
use crate::mounts::unmount_all;
use crate::{lab, tool, vg};

/// Time limit of one tool. The tools used here take milliseconds unless a device hangs.
const TOOL: Duration = Duration::from_secs(10);
/// Time limit of each wait for a state.
const LIMIT: Duration = Duration::from_secs(10);
/// How long to try `dmsetup remove` before `--force`, which replaces the table beneath whoever still has the device open.
const GENTLE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
/// Prefix of the dm UUIDs of LVM's devices. The driver's own devices have it too: the host's LVM then ignores what a guest writes there.
const LVM: &str = "LVM-";
/// Prefix of the dm UUIDs of the driver's own devices (`OWN_DM_PREFIX` in src/host/linux): LVM's, then a group that does not exist.
const DRIVER: &str = "LVM-lvmcsi";

/// Removes all mounts below [`lab::ROOT`], all devices of LVM and of the driver, and all volume groups. Runs only `pvs` and `dmsetup info`
/// when there is nothing to remove.
///
/// # Errors
/// Something cannot be removed in time.
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

/// Removes everything that LVM has on a disk, and what uses it.
///
/// # Errors
/// The kernel or LVM refused a step. The steps before it are done.
pub fn release(disk: &Path) -> Result<()> {
    if !is_labelled(disk)? {
        return Ok(());
    }
    let path = disk.to_string_lossy();
    let vg = vg::lvm(&["pvs", "--noheadings", "-o", "vg_name", &path]).unwrap_or_default();
    let vg = vg.trim();
    if !vg.is_empty() && !vg.starts_with('[') {
        let prefix = format!("{}-", vg.replace('-', "--"));
        // The driver stacks its own devices on LVM's.
        close(|device| device.name.starts_with(&prefix) || device.uuid.starts_with(DRIVER))?;
    }
    wipe(&path)
}

/// LVM writes its label into one of the first four sectors of a disk.
fn is_labelled(disk: &Path) -> Result<bool> {
    let mut sectors = [0; 2048];
    let read = File::open(disk).and_then(|mut disk| disk.read_exact(&mut sectors));
    read.map_err(Trouble::io(format!("reading the first sectors of {}", disk.display())))?;
    Ok(sectors.chunks(512).any(|sector| sector.starts_with(b"LABELONE")))
}

/// Wipes LVM's label, without which a disk is in no volume group.
fn wipe(disk: &str) -> Result<()> {
    tool::run("wipefs", &["-q", "-a", "-f", disk])?;
    tool::settle()
}

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

/// Unmounts everything below [`lab::ROOT`] and removes the device-mapper devices that a predicate selects.
fn close(which: impl Fn(&Device) -> bool) -> Result<()> {
    let mine = || -> Result<Vec<Device>> { Ok(devices()?.into_iter().filter(&which).collect()) };
    let mut left = mine()?;
    // A process that waits for a suspended device cannot be killed, nor its mount removed, so resume them all. Resuming would activate
    // a loaded but inactive table, so clear those first.
    for device in &left {
        let _ = dmsetup(&["clear", &device.name]);
        let _ = dmsetup(&["resume", &device.name]);
    }
    // An lvm that outlived the driver would recreate what is removed here. If one hangs, the steps below fail and say so.
    let _ = tool::wait("every lvm to end", LIMIT, || Ok((!lvm_runs()).then_some(())));
    unmount_all(Path::new(lab::ROOT))?;
    let begin = Instant::now();
    while !left.is_empty() {
        ensure(begin.elapsed() < LIMIT, || {
            let names: Vec<&str> = left.iter().map(|device| device.name.as_str()).collect();
            format!("these device-mapper devices cannot be removed: {names:?}")
        })?;
        // A device can be removed once nothing is stacked on it. The next round takes those that are still in use.
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
