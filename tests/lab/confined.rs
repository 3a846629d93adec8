//! Inspects the children that parse tenants' data while they run.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread;

use testkit::client::Accepted;
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::text;
use testkit::shim::HeldTool;
use testkit::{lab, tool};

use crate::old_bytes::Disk;
use crate::rig::{DRIVER, LIMIT, Rig, turn};

/// Returns a field of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> Result<String> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).map_err(Trouble::io(format!("reading {file}")))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default())
}

fn expect(pid: u32, wanted: &[(&str, &str)]) -> Result<()> {
    for (name, value) in wanted {
        let is = status(pid, name)?;
        ensure(is == *value, || format!("{name} is {is:?}, not {value:?}"))?;
    }
    Ok(())
}

/// A user and group ID that nothing else uses, four times: real, effective, saved and filesystem ID.
const USER: &str = "1819700579 1819700579 1819700579 1819700579";
const NO_CAPABILITY: &str = "0000000000000000";

#[test]
fn the_child_that_looks_at_a_device_is_nobody_and_ends_when_it_takes_too_long() -> Result<()> {
    let _turn = turn()?;
    let disk = Disk::of_table("hanging", &format!("0 8192 linear {} 0", lab::disk(1)?.display()))?;
    // The last one to close a device waits for outstanding reads, even when killed. Keep it open here.
    let _open = fs::File::open(disk.path()).map_err(Trouble::io("opening the device"))?;
    tool::drop_caches()?;
    tool::run("dmsetup", &["suspend", "--noflush", "hanging"])?;
    let started = tool::command(DRIVER).args(["probe", "--seconds", "8", &text(&disk.path())]).spawn();
    let mut child = started.map_err(Trouble::io("starting the child"))?;
    let pid = child.id();
    let looked =
        tool::wait("the child to be confined", LIMIT, || Ok((status(pid, "Seccomp")? == "2").then_some(()))).and_then(|()| {
            expect(
                pid,
                &[
                    ("Uid", USER),
                    ("Gid", USER),
                    ("Groups", ""),
                    ("CapEff", NO_CAPABILITY),
                    ("CapPrm", NO_CAPABILITY),
                    ("CapInh", NO_CAPABILITY),
                    ("CapAmb", NO_CAPABILITY),
                    ("NoNewPrivs", "1"),
                ],
            )?;
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).map_err(Trouble::io("reading its limits"))?;
            for (name, value) in [
                ("Max cpu time", "8"),
                ("Max address space", "268435456"),
                ("Max file size", "1048576"),
                ("Max open files", "16"),
                ("Max core file size", "0"),
                ("Max processes", "0"),
            ] {
                let limit =
                    limits.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.split_whitespace().nth(1));
                ensure(limit == Some(value), || format!("{name} is {limit:?}, not {value}"))?;
            }
            Ok(())
        });
    let ended = tool::wait("the child to end", LIMIT, || child.try_wait().map_err(Trouble::io("waiting for the child")));
    tool::run("dmsetup", &["resume", "hanging"])?;
    let _ = child.kill();
    looked?;
    ensure(ended?.signal() == Some(nix::libc::SIGALRM), || "its timer (SIGALRM) did not end it".to_owned())
}

#[test]
fn a_check_has_no_capabilities_and_repairs_all_the_same() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    volume.attach()?;
    volume.stage()?;
    volume.unstage()?;
    rig.vg.with_active(volume.lv(), |device| tool::run("tune2fs", &["-E", "force_fsck", &text(device)]).map(drop))?;
    let held = HeldTool::next("e2fsck")?;
    volume.make_staging()?;
    let (csi, request) = (rig.csi().clone(), volume.stage_request());
    let caller = thread::spawn(move || csi.node_stage_volume(request).accepted("NodeStageVolume").map(drop));
    held.wait(LIMIT)?;
    let running = fs::read_dir("/proc").map_err(Trouble::io("reading /proc"))?.flatten();
    let is_check = |directory: &Path| fs::read_to_string(directory.join("comm")).is_ok_and(|name| name.trim() == "e2fsck");
    let found = running.map(|entry| entry.path()).find(|path| is_check(path));
    let pid = found.and_then(|path| path.file_name()?.to_str()?.parse().ok());
    let pid = pid.ok_or_else(|| Trouble::wrong("no e2fsck is running"))?;
    let looked = expect(
        pid,
        &[("CapEff", NO_CAPABILITY), ("CapPrm", NO_CAPABILITY), ("CapBnd", NO_CAPABILITY), ("NoNewPrivs", "1"), ("Seccomp", "2")],
    );
    drop(held);
    caller.join().map_err(|_| Trouble::wrong("the caller panicked"))??;
    looked?;
    volume.publish("pod")?;
    volume.down("pod")?;
    rig.finish()
}
