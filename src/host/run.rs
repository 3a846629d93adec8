//! Runs a program of the host to its end, even if the driver dies meanwhile.
//!
//! The program writes into two anonymous files in memory instead of pipes. So it can neither block on a slow reader nor die of
//! SIGPIPE when the driver dies first: an `lvm` that ends in the middle of its work may leave a device suspended. For the same
//! reason there is no timeout and no kill. The program has a process group of its own, which no Ctrl-C on a terminal and no signal
//! to the driver's group reaches. An `lvm` also has a cgroup of its own ([`super::apart`]).

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Guard;

/// `PATH` of the programs that the driver starts.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes kept of each stream by default.
const KEPT: usize = 1 << 20;
/// Most bytes that a program can write to one stream. Further writes fail (EPERM) and the program goes on. The bytes are memory of
/// the driver, and e2fsck can write one line for each of millions of errors.
const MOST: u64 = 16 << 20;
/// The standard input of a program, as a path for its arguments.
pub(super) const INPUT: &str = "/proc/self/fd/0";
/// Bytes of a program's output quoted in an error text.
const QUOTED: usize = 2048;

/// A program to run and all that it gets: stdin is `/dev/null`, the environment is `LC_ALL=C`, `TZ=UTC`, a fixed `PATH` and
/// [`Invocation::envs`]. It inherits nothing else from the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// Absolute path of the program; never searched for.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Further environment variables.
    pub envs: Vec<(String, String)>,
    /// Bytes to keep of each stream, from its beginning.
    pub keep: usize,
    /// Runs in a cgroup of its own, so that it outlives the driver however that ends.
    pub apart: bool,
}

impl Invocation {
    /// A program with arguments, no further environment, and 1 MiB kept of each stream.
    pub fn new<A: Into<OsString>>(program: impl Into<PathBuf>, args: impl IntoIterator<Item = A>) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            envs: Vec::new(),
            keep: KEPT,
            apart: false,
        }
    }
}

impl fmt::Display for Invocation {
    /// The command line for people; empty words and words with spaces are quoted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program.to_string_lossy())?;
        for arg in &self.args {
            f.write_str(" ")?;
            word(arg, f)?;
        }
        Ok(())
    }
}

fn word(arg: &OsStr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = arg.to_string_lossy();
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\'') {
        write!(f, "{text:?}")
    } else {
        f.write_str(&text)
    }
}

/// The result of a program that has ended.
#[derive(Clone, Debug)]
pub struct Output {
    pub status: ExitStatus,
    /// Its stdout, cut at [`Invocation::keep`].
    pub stdout: Vec<u8>,
    /// Its stderr, cut at [`Invocation::keep`].
    pub stderr: Vec<u8>,
    /// Whether either stream was longer than [`Invocation::keep`].
    pub cut: bool,
    /// From its start to its end.
    pub took: Duration,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.status.success()
    }

    /// The signal that ended it, if any.
    pub fn died_by_signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The end of its output for an error text, on one line: of stderr, or of stdout when stderr is empty.
    pub fn last_words(&self) -> String {
        let heard = if self.stderr.iter().all(u8::is_ascii_whitespace) { &self.stdout } else { &self.stderr };
        let tail = &heard[heard.len().saturating_sub(QUOTED)..];
        String::from_utf8_lossy(tail).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Why there is no [`Output`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program did not start; nothing happened.
    #[error("cannot start {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    /// The program started, but its result is unknown; it may still be running.
    #[error("lost track of {}, which was started", program.display())]
    Wait { program: PathBuf, source: io::Error },
}

/// Runs a program to its end; blocks until then.
///
/// # Errors
/// The program could not be started or waited for. A program that fails still has an [`Output`].
pub fn run(invocation: &Invocation) -> Result<Output, RunError> {
    run_holding(invocation, None, |_| ())
}

/// Like [`run`], with a file as the program's standard input instead of `/dev/null`. A lock on that file lives as long as the
/// program, even if the driver dies. The program must not read from it. `started` gets the process id.
///
/// # Errors
/// As [`run`].
pub fn run_holding(invocation: &Invocation, held: Option<&File>, started: impl FnOnce(u32)) -> Result<Output, RunError> {
    let start = |source: io::Error| RunError::Start { program: invocation.program.clone(), source };
    let input = match held {
        Some(file) => Stdio::from(file.try_clone().map_err(start)?),
        None => Stdio::null(),
    };
    let errors = stream().map_err(start)?;
    run_with(invocation, input, errors, started)
}

/// Like [`run`], with the object that the program works on as its standard input, and the volume's guard as its standard error. The
/// program opens its input by [`INPUT`] instead of reading from it, so the object cannot be swapped for another meanwhile.
///
/// # Errors
/// As [`run`].
pub(super) fn run_guarded(invocation: &Invocation, on: File, guard: &Guard) -> Result<Output, RunError> {
    let lend = || {
        let end = guard.lend()?;
        Ok((end.try_clone()?, end))
    };
    let errors = lend().map_err(|source| RunError::Start { program: invocation.program.clone(), source })?;
    run_with(invocation, Stdio::from(on), errors, |_| ())
}

fn run_with(
    invocation: &Invocation,
    input: Stdio,
    (err, err_end): (File, File),
    started: impl FnOnce(u32),
) -> Result<Output, RunError> {
    let start = |source: io::Error| RunError::Start { program: invocation.program.clone(), source };
    let wait = |source: io::Error| RunError::Wait { program: invocation.program.clone(), source };
    let (out, out_end) = stream().map_err(start)?;
    let begin = Instant::now();
    #[expect(clippy::disallowed_methods, reason = "this is the one place where programs are started")]
    let mut child = Command::new(&invocation.program)
        .args(&invocation.args)
        .env_clear()
        .envs([("LC_ALL", "C"), ("TZ", "UTC"), ("PATH", SEARCH_PATH)])
        .envs(invocation.envs.iter().map(|(name, value)| (name, value)))
        .stdin(input)
        .stdout(out_end)
        .stderr(err_end)
        .process_group(0)
        .spawn()
        .map_err(start)?;
    if invocation.apart {
        super::apart::take(child.id());
    }
    started(child.id());
    super::crash::child(child.id());
    let status = child.wait().map_err(wait)?;
    let took = begin.elapsed();
    tracing::debug!(command = %invocation, pid = child.id(), ms = took.as_millis(), %status, "a program has ended");
    let (stdout, out_cut) = kept(out, invocation.keep).map_err(wait)?;
    let (stderr, err_cut) = kept(err, invocation.keep).map_err(wait)?;
    Ok(Output { status, stdout, stderr, cut: out_cut || err_cut, took })
}

/// An anonymous file in memory: one handle to read it later, one for the program. It gets its full size at once, as a hole, and
/// cannot grow. That limits the program without a signal that would kill it.
fn stream() -> io::Result<(File, File)> {
    let file = File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(MOST)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
    let end = file.try_clone()?;
    Ok((file, end))
}

/// The first `keep` bytes, and whether there were more. Both handles of an anonymous file share one position, which is where the
/// program ended.
fn kept(mut file: File, keep: usize) -> io::Result<(Vec<u8>, bool)> {
    if fcntl(&file, FcntlArg::F_GET_SEALS).is_ok_and(|seals| seals & SealFlag::F_SEAL_GROW.bits() != 0) {
        let written = file.stream_position()?;
        file.set_len(written)?;
    }
    file.rewind()?;
    let limit = u64::try_from(keep).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.by_ref().take(limit).read_to_end(&mut bytes)?;
    Ok((bytes, file.metadata()?.len() > limit))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn sh(script: &str) -> Invocation {
        Invocation::new("/bin/sh", ["-c", script])
    }

    #[test]
    fn both_streams_and_the_status_come_back() {
        let output = run(&sh("echo out; echo err >&2; exit 3")).unwrap();
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(output.status.code(), Some(3));
        assert!(!output.ok() && !output.cut);
        assert_eq!(output.last_words(), "err");
    }

    #[test]
    fn much_output_on_both_streams_neither_blocks_nor_is_kept() {
        let mut invocation = sh("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2");
        invocation.keep = 1000;
        let output = run(&invocation).unwrap();
        assert!(output.ok() && output.cut);
        assert_eq!((output.stdout.len(), output.stderr.len()), (1000, 1000));
    }

    #[test]
    fn a_program_that_never_stops_talking_takes_no_more_memory_and_goes_on() {
        let output =
            run(&sh("head -c 40000000 /dev/zero 2>/dev/null; head -c 40000000 /dev/zero 1>&2 2>/dev/null; exit 7")).unwrap();
        assert_eq!((output.status.code(), output.cut), (Some(7), true));
        let (mut file, mut end) = stream().unwrap();
        let written = std::iter::repeat_with(|| end.write_all(&[7; 1 << 20])).take_while(Result::is_ok).count();
        assert_eq!((written as u64) << 20, MOST);
        assert!(end.write_all(b"x").is_err_and(|error| error.raw_os_error() == Some(1)));
        assert_eq!(file.stream_position().unwrap(), MOST);
        let (bytes, cut) = kept(file, 3).unwrap();
        assert_eq!((bytes.as_slice(), cut), (&[7, 7, 7][..], true));
    }

    #[test]
    fn the_environment_is_ours_alone() {
        let mut invocation = Invocation::new("/usr/bin/env", ["-u", "_"]);
        invocation.envs.push(("LVM_SYSTEM_DIR".into(), "/x".into()));
        let output = run(&invocation).unwrap();
        let mut lines: Vec<_> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C", "LVM_SYSTEM_DIR=/x", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TZ=UTC"]);
    }

    #[test]
    fn stdin_is_empty_and_the_group_is_its_own() {
        let output = run(&sh("cat; ps -o pgid= -p $$ | tr -d ' '; echo $$")).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], lines[1], "{text}");
    }

    #[test]
    fn a_signal_is_told_apart() {
        let output = run(&sh("kill -9 $$")).unwrap();
        assert_eq!(output.died_by_signal(), Some(9));
        assert!(!output.ok());
    }

    #[test]
    fn a_grandchild_that_keeps_the_streams_open_is_not_waited_for() {
        let output = run(&sh("sleep 20 & echo here")).unwrap();
        assert!(output.took < Duration::from_secs(10));
        assert_eq!(output.stdout, b"here\n");
    }

    #[test]
    fn a_missing_program_is_an_error_with_its_path() {
        let error = run(&Invocation::new("/nonexistent/lvm", ["version"])).unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nonexistent/lvm");
    }

    #[test]
    fn a_command_line_shows_where_words_end() {
        let invocation = Invocation::new("/sbin/lvm", ["lvs", "", "a b", "c"]);
        assert_eq!(invocation.to_string(), "/sbin/lvm lvs \"\" \"a b\" c");
    }
}
