//! Stands in the place of the lab's `lvm`: notes each execution, then becomes the real one.
//!
//! A program of its own and no part of xtask: a debug build of xtask has 27 MB and thirty times the relocations, with which each `lvm` in
//! the lab took about 9 ms more.

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

/// LVM's status of a failed command.
const FAILED: u8 = 5;

/// Commands that only look; faults are for the others.
const LOOKING: [&str; 8] = ["version", "lvs", "vgs", "pvs", "fullreport", "lvmconfig", "config", "pvscan"];

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
            // Longer than any test waits for anything.
            let released = || Ok((!Path::new(HOLD).exists()).then_some(()));
            if let Err(trouble) = wait("the test to let lvm go on", Duration::from_secs(300), released) {
                complain(&format!("lvm-shim: {trouble}"));
            }
        }
        Some(Fault::Refuse) => {
            complain("  lvm-shim: told to refuse");
            return ExitCode::from(FAILED);
        }
        Some(Fault::Stop) => {
            // SIGSTOP to ourselves cannot be refused.
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

/// Waits while it is told to, then becomes the real tool.
fn hold(own: &str, name: &OsString, arguments: &[OsString]) -> ExitCode {
    let _ = fs::write(WAITS, "");
    // Longer than any test waits for anything.
    let released = wait("the test to let it go on", Duration::from_secs(300), || Ok((!Path::new(HELD).exists()).then_some(())));
    if let Err(trouble) = released {
        complain(&format!("lvm-shim: {trouble}"));
    }
    let real = real_tool(own);
    // It is back in its place by now, unless nobody waited for this to begin.
    let path = if real.exists() { real } else { Path::new("/usr/sbin").join(own) };
    let error = command(&path).arg0(name).args(arguments).exec();
    complain(&format!("lvm-shim: cannot run {}: {error}", path.display()));
    ExitCode::from(FAILED)
}

/// The real lvm under strace, killed instead of its ioctl of this number.
fn traced(kill: Option<usize>, arguments: &[OsString]) -> std::process::Command {
    // By another name it would take itself for one of its commands.
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

/// One line in one write, so that executions at the same time do not mix.
fn note(parent: &str, arguments: &[OsString]) -> std::io::Result<()> {
    let words: Vec<String> = arguments.iter().map(|a| a.to_string_lossy().replace(['\n', '\t'], " ")).collect();
    let line = format!("{parent}\t{}\n", words.join(" "));
    OpenOptions::new().create(true).append(true).open(LOG)?.write_all(line.as_bytes())
}

/// The fault that waits for a command like this one; it is taken away, so that it happens once.
fn fault(parent: &str, arguments: &[OsString]) -> Option<Fault> {
    let looking = arguments.first().is_none_or(|verb| LOOKING.iter().any(|known| verb == known));
    if looking || is_udev(parent) {
        return None;
    }
    let fault = Fault::parse(fs::read_to_string(FAULT).ok()?.trim())?;
    fs::remove_file(FAULT).ok()?;
    Some(fault)
}

fn die() {
    // SIGKILL to ourselves cannot be refused; were it, the real lvm would run, and the test would say so.
    let _ = raise(Signal::SIGKILL);
}
