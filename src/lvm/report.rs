//! Parses what LVM says about a command: log rows as JSON on stdout, and lines on stderr.
//!
//! This is for people only. LVM exits with 5 for nearly every refusal and its messages change, so no decision depends on them:
//! the caller reads the metadata again.

use std::fmt;

use serde_json::Value;

use super::command::Command;

/// The limit for one command's messages, in bytes.
const MOST: usize = 2048;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub log: Vec<LogRow>,
}

/// One row of the command log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    pub kind: LogKind,
    /// The name of the object; may be empty.
    pub object: String,
    pub message: String,
    /// An errno, or -1, for a failure; else 0.
    pub errno: i64,
    /// The exit status, for [`LogKind::Status`].
    pub ret: i64,
}

/// The kind of a log row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// The reason for a failure.
    Error,
    Warning,
    /// A report of what was done.
    Print,
    /// The result for one object.
    Status,
    /// A kind that this driver does not know.
    Other,
}

/// How an `lvm` process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exit(i32),
    /// By a signal: its work may be half done, see [`super::leftover`].
    Signal(i32),
}

/// A command that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LvmError {
    /// The process ran but did not exit with 0.
    #[error("LVM failed to {command} ({ended}): {}", self.summary())]
    Failed {
        /// The command, as [`Command`] displays it.
        command: String,
        ended: Ended,
        /// LVM's messages, errors first.
        messages: Vec<String>,
    },
}

impl LvmError {
    /// LVM's messages on one line.
    pub fn summary(&self) -> String {
        let LvmError::Failed { messages, .. } = self;
        if messages.is_empty() { "it gave no reason".to_owned() } else { messages.join("; ") }
    }
}

impl Report {
    /// Reads the log rows from a command's stdout, in `json_std` or `json`, from one report or several. Ignores anything else,
    /// and takes the complete rows of a truncated report.
    pub fn parse(stdout: &[u8]) -> Report {
        let text = String::from_utf8_lossy(stdout);
        let mut report = Report::default();
        let mut rest = text.as_ref();
        while let Some(start) = object_start(rest) {
            rest = &rest[start..];
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let step = match values.next() {
                Some(Ok(value)) => {
                    report.take(&value);
                    values.byte_offset()
                }
                // Not JSON, or truncated: look for complete objects inside.
                _ => 1,
            };
            rest = &rest[step..];
        }
        report
    }

    /// The error messages. A command that succeeded may have some: about the group, or about LVM's configuration.
    pub fn errors(&self) -> impl Iterator<Item = &str> {
        self.log.iter().filter(|row| row.kind == LogKind::Error).map(|row| row.message.as_str())
    }

    fn take(&mut self, value: &Value) {
        if let Some(rows) = value.get("log").and_then(Value::as_array) {
            self.log.extend(rows.iter().filter_map(LogRow::read));
        } else {
            self.log.extend(LogRow::read(value));
        }
    }
}

/// The offset of the next object at the start of a line, where LVM writes all of them.
fn object_start(text: &str) -> Option<usize> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let blank = line.len() - line.trim_start().len();
        if line[blank..].starts_with('{') {
            return Some(at + blank);
        }
        at += line.len();
    }
    None
}

impl LogRow {
    fn read(value: &Value) -> Option<LogRow> {
        let text = |key| value.get(key).and_then(Value::as_str);
        // `json` quotes numbers, `json_std` does not.
        let number = |key| match value.get(key) {
            Some(Value::String(text)) => text.parse().unwrap_or(0),
            Some(other) => other.as_i64().unwrap_or(0),
            None => 0,
        };
        Some(LogRow {
            kind: match text("log_type")? {
                "error" => LogKind::Error,
                "warn" => LogKind::Warning,
                "print" => LogKind::Print,
                "status" => LogKind::Status,
                _ => LogKind::Other,
            },
            object: text("log_object_name").unwrap_or_default().to_owned(),
            message: text("log_message")?.trim().to_owned(),
            errno: number("log_errno"),
            ret: number("log_ret_code"),
        })
    }
}

/// Returns the report of a finished process, or why it failed.
///
/// # Errors
/// [`LvmError::Failed`] for anything but exit status 0.
pub fn check(command: &Command, ended: Ended, stdout: &[u8], stderr: &[u8]) -> Result<Report, LvmError> {
    let report = Report::parse(stdout);
    if ended == Ended::Exit(0) {
        return Ok(report);
    }
    Err(LvmError::Failed { command: command.to_string(), ended, messages: messages(&report, stderr) })
}

/// The messages of a failure: errors, then lines from stderr; if there are none, warnings and other output.
fn messages(report: &Report, stderr: &[u8]) -> Vec<String> {
    let of = |kind| report.log.iter().filter(move |row| row.kind == kind).map(|row| row.message.clone());
    let stderr = String::from_utf8_lossy(stderr);
    let lines = stderr.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty());
    let mut all: Vec<String> = report.errors().map(str::to_owned).chain(lines).collect();
    if all.is_empty() {
        all = of(LogKind::Warning).chain(of(LogKind::Print)).collect();
    }
    let mut kept: Vec<String> = Vec::new();
    let mut room = MOST;
    for mut message in all {
        if kept.contains(&message) {
            continue;
        }
        if message.len() > room {
            let end = message.char_indices().map(|(at, _)| at).take_while(|at| *at <= room).last();
            message.truncate(end.unwrap_or(0));
            message.push('…');
            kept.push(message);
            break;
        }
        room -= message.len();
        kept.push(message);
    }
    kept
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Exit(status) => write!(f, "exit status {status}"),
            Ended::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// For the fuzzer: an error text is short, whatever LVM said.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let command = Command::CreateLinear {
        vg: crate::types::VgName::new("vg").expect("a name"),
        lv: crate::types::LvName::new("lv").expect("a name"),
        extents: crate::types::Extents(1),
        tags: Vec::new(),
    };
    if let Err(error) = check(&command, Ended::Exit(5), data, data) {
        assert!(error.to_string().len() < 16 << 10, "{} bytes", error.to_string().len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LvName, VgName};

    const FAILED: &[u8] = include_bytes!("../../tests/fixtures/lvm/extend-nospace.json");
    const QUOTED: &[u8] = include_bytes!("../../tests/fixtures/lvm/exists-quoted.json");
    const TWO: &[u8] = include_bytes!("../../tests/fixtures/lvm/two-reports.json");

    fn activate() -> Command {
        Command::Activate { vg: VgName::new("vg").unwrap(), lvs: vec![LvName::new("v").unwrap()] }
    }

    #[test]
    fn both_kinds_of_json_are_read() {
        let report = Report::parse(FAILED);
        let kinds: Vec<_> = report.log.iter().map(|row| row.kind).collect();
        assert_eq!(kinds, [LogKind::Error, LogKind::Status, LogKind::Status]);
        assert_eq!(report.log[0].message, "Insufficient free space: 59992 extents needed, but only 986 available");
        assert_eq!((report.log[0].object.as_str(), report.log[0].errno, report.log[1].ret), ("v1", -1, 5));
        let report = Report::parse(QUOTED);
        assert_eq!(report.log[0].message, "Logical Volume \"v2\" already exists in volume group \"vg\"");
        assert_eq!((report.log[0].errno, report.log[1].ret), (-1, 5));
        assert_eq!(Report::parse(TWO).log.len(), 2);
    }

    #[test]
    fn noise_and_cut_off_reports_lose_no_whole_row() {
        let mut noisy = b"File descriptor 7 leaked { on lvm\n".to_vec();
        noisy.extend_from_slice(FAILED);
        noisy.extend_from_slice(b"\xff\xfe tail {\n");
        assert_eq!(Report::parse(&noisy), Report::parse(FAILED));
        for length in 0..FAILED.len() {
            let _ = Report::parse(&FAILED[..length]);
        }
        let second = FAILED.windows(14).position(|w| w == b"\"log_seq_num\":").unwrap() + 600;
        assert_eq!(Report::parse(&FAILED[..second]).log.len(), 1);
        for odd in [&b"{\"log\":1}"[..], b"{\"log\":[1,{},{\"log_type\":3}]}", b"{}", b"[{}]", b"null", &b"{\n".repeat(5000)] {
            assert_eq!(Report::parse(odd), Report::default());
        }
    }

    #[test]
    fn a_failure_gives_its_reason_once() {
        assert!(check(&activate(), Ended::Exit(0), TWO, b"  WARNING: something").is_ok());
        let complaint = check(&activate(), Ended::Exit(0), FAILED, b"").unwrap();
        assert_eq!(
            complaint.errors().collect::<Vec<_>>(),
            ["Insufficient free space: 59992 extents needed, but only 986 available"]
        );
        let error = check(&activate(), Ended::Exit(5), FAILED, b"").unwrap_err();
        assert_eq!(
            error.to_string(),
            "LVM failed to activate vg/v (exit status 5): Insufficient free space: 59992 extents needed, but only 986 available"
        );
        let error =
            check(&activate(), Ended::Exit(3), b"", b"lvchange: unrecognized option\n\n  Error during parsing.\n").unwrap_err();
        assert_eq!(error.summary(), "lvchange: unrecognized option; Error during parsing.");
        let error = check(&activate(), Ended::Signal(9), b"", b"").unwrap_err();
        assert_eq!(error.to_string(), "LVM failed to activate vg/v (killed by signal 9): it gave no reason");
    }

    #[test]
    fn messages_are_capped_at_a_character() {
        let error = check(&activate(), Ended::Exit(5), b"", "é".repeat(5000).as_bytes()).unwrap_err();
        assert!(error.summary().len() <= MOST + '…'.len_utf8());
        let many: Vec<u8> = (0..9999).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let LvmError::Failed { messages, .. } = check(&activate(), Ended::Exit(5), b"", &many).unwrap_err();
        assert!(messages.iter().map(String::len).sum::<usize>() <= MOST + '…'.len_utf8());
    }
}
