//! Runs tools with a time limit, and polls for states.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Result, Trouble};

/// Time limit of a tool, so that a tool that hangs fails its test.
const LIMIT: Duration = Duration::from_secs(60);

/// Polling interval of [`wait`].
const PAUSE: Duration = Duration::from_millis(20);

/// A command without arguments yet.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// Runs a tool in the C locale, without standard input, and returns its standard output.
///
/// # Errors
/// The tool cannot be started, exceeds 60 seconds, or fails.
pub fn run<A: AsRef<OsStr>>(program: &str, args: &[A]) -> Result<String> {
    let mut command = command(program);
    command.args(args);
    finish(&mut command)
}

/// As [`run`], for a prepared command.
///
/// # Errors
/// Those of [`run`].
pub fn finish(command: &mut Command) -> Result<String> {
    finish_within(LIMIT, command)
}

/// As [`finish`], with another time limit.
///
/// # Errors
/// Those of [`run`].
pub fn finish_within(limit: Duration, command: &mut Command) -> Result<String> {
    let output = output_within(limit, command)?;
    judged(command, output)
}

fn judged(command: &Command, output: Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Trouble::Tool { command: describe(command), status: output.status.to_string(), output: said(&output) })
}

/// As [`finish`], but a failure status is no error.
///
/// # Errors
/// The tool cannot be started, or exceeds 60 seconds.
pub fn output(command: &mut Command) -> Result<Output> {
    output_within(LIMIT, command)
}

/// As [`finish_within`], with a text as standard input.
///
/// # Errors
/// Those of [`run`].
pub fn feed(limit: Duration, command: &mut Command, text: &str) -> Result<String> {
    let output = run_within(limit, command, Some(text))?;
    judged(command, output)
}

fn output_within(limit: Duration, command: &mut Command) -> Result<Output> {
    run_within(limit, command, None)
}

fn run_within(limit: Duration, command: &mut Command, input: Option<&str>) -> Result<Output> {
    let what = describe(command);
    let failed = || format!("running `{what}`");
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.env("LC_ALL", "C").stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Trouble::io(failed()))?;
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input.map(str::to_owned)) {
        // A write fails if the tool does not read everything; its status says whether that matters.
        thread::spawn(move || drop(stdin.write_all(text.as_bytes())));
    }
    let id = child.id();
    let (sender, receiver) = mpsc::channel();
    // A tool that hangs in a device cannot be killed. Then only this thread keeps waiting for it.
    thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(limit) {
        Ok(output) => output.map_err(Trouble::io(failed())),
        Err(_) => {
            if let Ok(id) = i32::try_from(id) {
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
            Err(Trouble::Limit { what: format!("`{what}` to finish"), waited: limit })
        }
    }
}

/// Both output streams of a tool as one text.
pub fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !stdout.trim().is_empty() {
        text.push_str(" | ");
        text.push_str(stdout.trim());
    }
    text
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Polls until `look` returns something. `what` names the state in the error.
///
/// # Errors
/// [`Trouble::Limit`] after the time limit; an error of `look` at once.
pub fn wait<T>(what: &str, limit: Duration, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_slowly(what, limit, PAUSE, look)
}

/// As [`wait`] with another polling interval, for polls that are expensive.
///
/// # Errors
/// Those of [`wait`].
pub fn wait_slowly<T>(what: &str, limit: Duration, pause: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            return Err(Trouble::Limit { what: what.to_owned(), waited: start.elapsed() });
        }
        thread::sleep(pause);
    }
}

/// The SHA-256 of a file or device, read past the page cache.
///
/// # Errors
/// The file cannot be read.
pub fn checksum(path: &Path) -> Result<String> {
    drop_caches()?;
    let text = run("sha256sum", &["--".as_ref(), path.as_os_str()])?;
    match text.split_whitespace().next() {
        Some(sum) => Ok(sum.to_owned()),
        None => Err(Trouble::wrong(format!("sha256sum printed nothing for {}", path.display()))),
    }
}

/// Syncs and drops the page cache, so that the next read comes from the device.
///
/// # Errors
/// The kernel refuses.
pub fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(Trouble::io("writing /proc/sys/vm/drop_caches"))
}

/// Waits until udevd has handled all events.
///
/// # Errors
/// It has not after 20 seconds.
pub fn settle() -> Result<()> {
    run("udevadm", &["settle", "--timeout=20"]).map(drop)
}
