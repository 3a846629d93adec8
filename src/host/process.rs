//! Processes as the kernel describes them: where one of ours hangs, for the log, and whether one is ending.

use std::fmt;
use std::fs;
use std::io;

/// The bit of SIGKILL in a mask of signals of /proc/PID/status (proc(5)).
const SIGKILL: u64 = 1 << 8;

/// A process that no later one with its number is taken for. As text: its number and when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    /// In clock ticks since the boot.
    began: u64,
}

impl Process {
    /// This process.
    ///
    /// # Errors
    /// The kernel does not tell of it.
    pub fn this() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// The process with this number.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let (_, began) = stat(pid)?;
        Ok(Self { pid, began })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, began) = text.split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, began: began.parse().ok()? })
    }

    /// Whether it was killed, or has ended, and is still there: one of its threads waits for a disk, or nobody has waited for it. It
    /// runs no instruction any more. Of one that cannot be seen nothing is said.
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

/// The state of a process and when it began.
fn stat(pid: u32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before them may hold anything, spaces and parentheses too.
    let mut fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let state = fields.next().and_then(|state| state.chars().next());
    // proc(5): field 22; the state is field 3.
    let began = fields.nth(18).and_then(|ticks| ticks.parse().ok());
    state.zip(began).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What the kernel says of a process: its state, what it waits for, and its kernel stack, innermost call first. Each is left out
/// where the kernel does not tell it.
pub fn whereabouts(pid: u32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).map_or("gone", str::trim).to_owned();
    let wchan = read("wchan");
    let stack: Vec<String> = read("stack").lines().map(|line| line.trim_start_matches("[<0>]").trim().to_owned()).collect();
    let mut told = format!("process {pid} is {state}");
    if !wchan.is_empty() && wchan != "0" {
        told.push_str(&format!(", waiting in {wchan}"));
    }
    if !stack.is_empty() {
        told.push_str(&format!(", kernel stack: {}", stack.join(" < ")));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::{Process, whereabouts};

    #[test]
    fn a_process_is_described_and_one_that_is_gone_is_said_to_be() {
        let told = whereabouts(std::process::id());
        assert!(told.contains("R (running)") || told.contains("S (sleeping)"), "{told}");
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
