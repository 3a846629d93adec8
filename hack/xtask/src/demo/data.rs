//! What a pod does with its volume: write, read back, and keep writing while the volume grows.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use testkit::error::{Result, Trouble, ensure};
use testkit::tool;

const MIB: usize = 1 << 20;

/// Size in bytes of a record of the [`Writer`].
const RECORD: usize = 64 << 10;

/// Writes pseudorandom bytes from the start of a file or device, and syncs.
pub(crate) fn fill(path: &Path, mib: u64) -> Result<()> {
    let failed = || format!("writing {mib} MiB to {}", path.display());
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let mut file = opened.map_err(Trouble::io(failed()))?;
    let mut block = vec![0u8; MIB];
    for number in 0..mib {
        let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for word in block.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        file.write_all(&block).map_err(Trouble::io(failed()))?;
    }
    file.sync_all().map_err(Trouble::io(failed()))
}

/// Flips one bit of a file, and syncs.
pub(crate) fn flip(path: &Path, offset: u64) -> Result<()> {
    let failed = || format!("flipping a bit of {}", path.display());
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(Trouble::io(failed()))?;
    let mut byte = [0u8];
    file.seek(SeekFrom::Start(offset)).map_err(Trouble::io(failed()))?;
    file.read_exact(&mut byte).map_err(Trouble::io(failed()))?;
    file.seek(SeekFrom::Start(offset)).map_err(Trouble::io(failed()))?;
    file.write_all(&[byte[0] ^ 1]).map_err(Trouble::io(failed()))?;
    file.sync_all().map_err(Trouble::io(failed()))
}

/// Fails unless a device or file is all zeros between two offsets in bytes.
pub(crate) fn all_zero(path: &Path, from: u64, to: u64) -> Result<()> {
    let failed = || format!("reading {}", path.display());
    let mut file = File::open(path).map_err(Trouble::io(failed()))?;
    file.seek(SeekFrom::Start(from)).map_err(Trouble::io(failed()))?;
    let zeros = vec![0u8; MIB];
    let mut block = vec![0u8; MIB];
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at).unwrap_or(MIB).min(MIB);
        file.read_exact(&mut block[..length]).map_err(Trouble::io(failed()))?;
        ensure(block[..length] == zeros[..length], || {
            format!("{} is not zero near byte {at}: old bytes are visible", path.display())
        })?;
        at += length as u64;
    }
    Ok(())
}

/// Size in bytes of the filesystem at a path, as df(1) reports it.
pub(crate) fn filesystem_size(path: &Path) -> Result<u64> {
    let text = tool::run("df", &["--block-size=1".as_ref(), "--output=size".as_ref(), path.as_os_str()])?;
    let size = text.lines().nth(1).and_then(|line| line.trim().parse().ok());
    size.ok_or_else(|| Trouble::wrong(format!("df printed {text:?} for {}", path.display())))
}

/// A thread that appends records to a file and syncs each before the next.
pub(crate) struct Writer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Written>>,
}

/// What a [`Writer`] did.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    pub(crate) records: u64,
    /// The longest time of one record.
    pub(crate) longest: Duration,
}

impl Writer {
    pub(crate) fn start(path: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, file) = (stop.clone(), path.to_owned());
        let thread = std::thread::spawn(move || append(&file, &stopped));
        Self { path: path.to_owned(), stop, thread }
    }

    /// Stops after the current record.
    pub(crate) fn stop(self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join().map_err(|_| Trouble::wrong("the writer panicked"))?;
        ended.map_err(Trouble::io(format!("appending to {}", self.path.display())))
    }
}

fn append(path: &Path, stop: &AtomicBool) -> std::io::Result<Written> {
    let mut file = File::create(path)?;
    let mut written = Written { records: 0, longest: Duration::ZERO };
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        file.write_all(&record(written.records))?;
        file.sync_data()?;
        written.longest = written.longest.max(start.elapsed());
        written.records += 1;
    }
    Ok(written)
}

/// Fails unless the file holds exactly the written records.
pub(crate) fn verify(path: &Path, written: Written) -> Result<()> {
    tool::drop_caches()?;
    let failed = || format!("reading {}", path.display());
    let mut file = File::open(path).map_err(Trouble::io(failed()))?;
    let mut block = vec![0u8; RECORD];
    for number in 0..written.records {
        file.read_exact(&mut block).map_err(Trouble::io(failed()))?;
        ensure(block == record(number), || format!("record {number} of {} is not what was written", path.display()))?;
    }
    let rest = file.read(&mut block).map_err(Trouble::io(failed()))?;
    ensure(rest == 0, || format!("{} is longer than what was written", path.display()))
}

fn record(number: u64) -> Vec<u8> {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(RECORD / 8)
}
