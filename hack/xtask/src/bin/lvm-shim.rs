//! Replaces `lvm` in the lab: logs each execution, then executes the real one. testkit::shim controls it.
//!
//! It is not a part of xtask, since it must start fast: a debug build of xtask has 27 MB and thirty times the relocations, which cost each
//! `lvm` in the lab about 9 ms.

use std::env;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use testkit::lab::complain;
use testkit::shim::{FAULT, Fault, HELD, HOLD, LOG, REAL, TOOLS, TRACE, WAITS, is_udev, real_tool};
use testkit::tool::{command, wait};

/// LVM's exit status of a failed command.
const FAILED: u8 = 5;

/// Commands that change nothing, and so never take a fault.
const READING: [&str; 8] = ["version", "lvs", "vgs", "pvs", "fullreport", "lvmconfig", "config", "pvscan"];

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("lvm"));
    let arguments: Vec<OsString> = arguments.collect();
    let own = Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if TOOLS.contains(&own) {
        return hold(own, &name, &arguments);
    }
    let parent = fs::read_to_string(format!("/proc/{}/comm", parent_id())).unwrap_or_default().trim().to_owned();
    let note = note(&parent, &arguments);
    if let Err(error) = note {
        complain(&format!("lvm-shim: cannot write {LOG}: {error}"));
        return ExitCode::from(FAILED);
    }

    let mut real = command(REAL);
    real.arg0(name).args(&arguments);
    match fault(&parent, &arguments) {
        None => {}
        Some(Fault::Hold) => {
            // Longer than any wait of a test.
            let released = || Ok((!Path::new(HOLD).exists()).then_some(()));
            if let Err(trouble) = wait("the test to release lvm", Duration::from_secs(300), released) {
                complain(&format!("lvm-shim: {trouble}"));
            }
        }
        Some(Fault::Refuse) => {
            complain("  lvm-shim: fails because a test asked for it");
            return ExitCode::from(FAILED);
        }
        Some(Fault::Stop) => {
            // Cannot fail: a process may always stop itself.
            let _ = raise(Signal::SIGSTOP);
        }
        Some(Fault::Die) => die(),
        Some(Fault::Trace) => real = traced(None, &arguments),
        Some(Fault::Kill(number)) => real = traced(Some(number), &arguments),
        Some(late @ (Fault::LateRefuse | Fault::LateDie)) => {
            if let Err(error) = real.status() {
                complain(&format!("lvm-shim: cannot run {REAL}: {error}"));
            }
            if late == Fault::LateDie {
                die();
            }
            return ExitCode::from(FAILED);
        }
    }
    let error = real.exec();
    complain(&format!("lvm-shim: cannot run {REAL}: {error}"));
    ExitCode::from(FAILED)
}

/// Waits while [`HELD`] exists, then executes the real tool.
fn hold(own: &str, name: &OsString, arguments: &[OsString]) -> ExitCode {
    let _ = fs::write(WAITS, "");
    // Longer than any wait of a test.
    let released =
        wait("the test to release the tool", Duration::from_secs(300), || Ok((!Path::new(HELD).exists()).then_some(())));
    if let Err(trouble) = released {
        complain(&format!("lvm-shim: {trouble}"));
    }
    let real = real_tool(own);
    // HeldTool::wait has restored it by now, unless no test called that.
    let path = if real.exists() { real } else { Path::new("/usr/sbin").join(own) };
    let error = command(&path).arg0(name).args(arguments).exec();
    complain(&format!("lvm-shim: cannot run {}: {error}", path.display()));
    ExitCode::from(FAILED)
}

/// The real lvm under strace, killed at its ioctl of this number, if one is given.
fn traced(kill: Option<usize>, arguments: &[OsString]) -> std::process::Command {
    // lvm takes its own name for a subcommand unless it is "lvm".
    let named = Path::new("/run/lvm-shim/lvm");
    let _ = fs::create_dir_all("/run/lvm-shim").and_then(|()| std::os::unix::fs::symlink(REAL, named));
    let mut strace = command("/usr/bin/strace");
    strace.args(["-qq", "-o", TRACE, "-e", "trace=ioctl"]);
    if let Some(number) = kill {
        strace.arg("-e").arg(format!("inject=ioctl:error=EINTR:signal=KILL:when={number}"));
    }
    strace.arg(named).args(arguments);
    strace
}

/// Appends to the log in one write, so that lines of concurrent executions do not mix.
fn note(parent: &str, arguments: &[OsString]) -> std::io::Result<()> {
    let words: Vec<String> = arguments.iter().map(|a| a.to_string_lossy().replace(['\n', '\t'], " ")).collect();
    let line = format!("{parent}\t{}\n", words.join(" "));
    OpenOptions::new().create(true).append(true).open(LOG)?.write_all(line.as_bytes())
}

/// Takes the pending fault, if this command changes something.
fn fault(parent: &str, arguments: &[OsString]) -> Option<Fault> {
    let reading = arguments.first().is_none_or(|verb| READING.iter().any(|known| verb == known));
    if reading || is_udev(parent) {
        return None;
    }
    let fault = Fault::parse(fs::read_to_string(FAULT).ok()?.trim())?;
    fs::remove_file(FAULT).ok()?;
    Some(fault)
}

fn die() {
    // Cannot fail. If it did, the real lvm would run and the test would notice.
    let _ = raise(Signal::SIGKILL);
}
