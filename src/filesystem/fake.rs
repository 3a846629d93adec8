//! For tests: a device in memory, and tools that record their calls.

use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::Duration;

use crate::host::fake::Part;
use crate::host::{FsStats, Output, Tool, ToolError, Tools, Use};
use crate::types::Bytes;

/// A kernel with one device of `size` bytes, with `pieces` (offset, bytes) and zeroes elsewhere.
#[derive(Clone, Default)]
pub(super) struct Memory {
    pub(super) pieces: Vec<(u64, Vec<u8>)>,
    pub(super) size: u64,
    /// Reads that touch this byte fail.
    pub(super) broken: Option<u64>,
    /// The size of the filesystem mounted from it, by its own figures, in bytes.
    pub(super) total: u64,
}

impl Part for Memory {
    fn read_at(&self, _: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let range = offset..offset + length as u64;
        if range.end > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.broken.is_some_and(|byte| range.contains(&byte)) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        let byte = |at: u64| {
            let piece = self.pieces.iter().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&at));
            piece.map_or(0, |(start, bytes)| bytes[usize::try_from(at - start).unwrap()])
        };
        Ok(range.map(byte).collect())
    }
    fn flush(&self, _: &Path) -> io::Result<()> {
        if self.broken.is_some() { Err(io::Error::from_raw_os_error(nix::libc::EIO)) } else { Ok(()) }
    }
    fn device_size(&self, _: &Path) -> io::Result<Bytes> {
        Ok(Bytes(self.size))
    }
    fn stats(&self, _: &Path) -> io::Result<FsStats> {
        if self.broken.is_some() {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        Ok(FsStats { total: Bytes(self.total), available: Bytes(0), used: Bytes(0), inodes: 0, inodes_free: 0 })
    }
}

/// Tools that only record their calls, and fail if `fail` is set.
#[derive(Default)]
pub(super) struct Noted {
    pub(super) asked: Mutex<Vec<Tool>>,
    pub(super) fail: bool,
}

impl Tools for Noted {
    fn run(&self, tool: &Tool, _: Use<'_>) -> Result<Output, ToolError> {
        self.asked.lock().unwrap().push(tool.clone());
        if self.fail {
            return Err(ToolError::Absent { program: tool.name(), package: "none" });
        }
        let (stdout, stderr) = (Vec::new(), Vec::new());
        Ok(Output { status: ExitStatus::default(), stdout, stderr, cut: false, took: Duration::ZERO })
    }
}
