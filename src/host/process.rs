//! Processes as the kernel describes them: where a program of the driver hangs, for the log, and whether a process is ending.

use std::fmt;
use std::fs;
use std::io;

/// The bit of SIGKILL in a mask of signals of /proc/PID/status (proc(5)).
const SIGKILL: u64 = 1 << 8;

/// A process, text apart from a later one with the same number. As text: its number and its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    /// Start time, in clock ticks since boot.
    began: u64,
}

impl Process {
    /// # Errors
    /// /proc has no readable entry for it.
    pub fn this() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let (_, began) = stat(pid)?;
        Ok(Self { pid, began })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Parses what `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, began) = text.split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, began: began.parse().ok()? })
    }

    /// Whether the process was killed or has ended, but still exists: one of its threads waits for a disk, or nobody has waited for
    /// it. It runs no further instruction. `false` for a process that cannot be seen.
    pub fn is_ending(&self) -> bool {
        let Ok((state, began)) = stat(self.pid) else { return false };
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let pending = |line: &str| {
            let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        };
        let killed = status.lines().filter_map(pending).any(|mask| mask & SIGKILL != 0);
        began == self.began && (killed || matches!(state, 'Z' | 'X' | 'x'))
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.began)
    }
}

/// The state and the start time of a process.
fn stat(pid: u32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before them may contain anything, including spaces and parentheses.
    let mut fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let state = fields.next().and_then(|state| state.chars().next());
    // proc(5): field 22; the state is field 3.
    let began = fields.nth(18).and_then(|ticks| ticks.parse().ok());
    state.zip(began).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// State, wait channel and kernel stack of a process, innermost call first. Parts that the kernel does not reveal are left out.
pub fn whereabouts(pid: u32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).map_or("gone", str::trim).to_owned();
    let wchan = read("wchan");
    let stack: Vec<String> = read("stack").lines().map(|line| line.trim_start_matches("[<0>]").trim().to_owned()).collect();
    let mut text = format!("process {pid} is {state}");
    if !wchan.is_empty() && wchan != "0" {
        text.push_str(&format!(", waiting in {wchan}"));
    }
    if !stack.is_empty() {
        text.push_str(&format!(", kernel stack: {}", stack.join(" < ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Process, whereabouts};

    #[test]
    fn a_process_is_described_and_one_that_is_gone_is_said_to_be() {
        let text = whereabouts(std::process::id());
        assert!(text.contains("R (running)") || text.contains("S (sleeping)"), "{text}");
        assert_eq!(whereabouts(u32::MAX), format!("process {} is gone", u32::MAX));
    }

    #[test]
    fn a_process_is_known_again_and_lives() {
        let this = Process::this().unwrap();
        assert_eq!(Process::parse(&this.to_string()), Some(this));
        assert!(!this.is_ending() && !Process { began: 0, ..this }.is_ending());
        assert!(Process::of(u32::MAX).is_err() && Process::parse("7").is_none());
    }
}
