//! Running tools, and waiting for states.

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

/// How long a tool may take: one that hangs is to be a failed test and not a hanging one.
const LIMIT: Duration = Duration::from_secs(60);

/// Pause between two looks at a state that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// A command, to be given arguments and run with [`finish`], [`output`] or as a process of its own.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// Runs a tool to its end and gives what it wrote to standard output.
///
/// # Errors
/// The tool could not be started, took too long, or ended with another status than 0.
pub fn run<A: AsRef<OsStr>>(program: &str, args: &[A]) -> Result<String> {
    let mut command = command(program);
    command.args(args);
    finish(&mut command)
}

/// Runs a prepared command to its end, in the C locale and without standard input, and gives what it wrote to standard output.
///
/// # Errors
/// As [`run`].
pub fn finish(command: &mut Command) -> Result<String> {
    finish_within(LIMIT, command)
}

/// As [`finish`], with a limit of its own.
///
/// # Errors
/// As [`run`].
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

/// Runs a prepared command to its end, whatever status it ends with.
///
/// # Errors
/// The tool could not be started, or took too long.
pub fn output(command: &mut Command) -> Result<Output> {
    output_within(LIMIT, command)
}

/// As [`finish_within`], with a text as standard input.
///
/// # Errors
/// As [`run`].
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
        // A tool that does not read all of it says so by its status.
        thread::spawn(move || drop(stdin.write_all(text.as_bytes())));
    }
    let id = child.id();
    let (sender, receiver) = mpsc::channel();
    // A tool that waits for a device cannot even be killed; then this thread is left to wait for it.
    thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(limit) {
        Ok(output) => output.map_err(Trouble::io(failed())),
        Err(_) => {
            if let Ok(id) = i32::try_from(id) {
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
            Err(Trouble::Limit { what: format!("`{what}` to end"), waited: limit })
        }
    }
}

/// Both streams of a tool as one text.
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

/// Looks again and again until there is something to see.
///
/// # Errors
/// [`Trouble::Limit`] when the limit is over; an error of the look itself at once.
pub fn wait<T>(what: &str, limit: Duration, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_slowly(what, limit, PAUSE, look)
}

/// The same with another pause between two looks, for those that cost much.
///
/// # Errors
/// As [`wait`].
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

/// The SHA-256 of a file, read from its device and not from memory.
///
/// # Errors
/// The file cannot be read.
pub fn checksum(path: &Path) -> Result<String> {
    drop_caches()?;
    let text = run("sha256sum", &["--".as_ref(), path.as_os_str()])?;
    match text.split_whitespace().next() {
        Some(sum) => Ok(sum.to_owned()),
        None => Err(Trouble::wrong(format!("sha256sum said nothing about {}", path.display()))),
    }
}

/// Writes all caches out and empties them, so that the next read comes from the device.
///
/// # Errors
/// The kernel refuses.
pub fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(Trouble::io("writing /proc/sys/vm/drop_caches"))
}

/// Waits until udev has handled every event.
///
/// # Errors
/// It did not within 20 seconds.
pub fn settle() -> Result<()> {
    run("udevadm", &["settle", "--timeout=20"]).map(drop)
}
