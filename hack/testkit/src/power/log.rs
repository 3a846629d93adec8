//! Reads and replays what the device-mapper target log-writes has recorded.
//!
//! The kernel documents the target in Documentation/admin-guide/device-mapper/log-writes.rst and the format at the top of
//! drivers/md/dm-log-writes.c. All numbers are little-endian. The first sector of the log holds
//!
//! ```text
//!   u64 magic, u64 version, u64 number of entries, u32 size of a sector in bytes
//! ```
//!
//! The entries follow, each with one sector that holds
//!
//! ```text
//!   u64 sector, u64 number of sectors, u64 flags, u64 length of a mark's text, the text
//! ```
//!
//! and then the data; marks and discards have none. The target records a write only once a flush has made it durable, before that flush,
//! or when it completes if it was forced to the medium (FUA). So replaying any prefix of the log gives the worst disk that a power cut can
//! leave: without any write that no flush confirmed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Result, Trouble, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Bytes of an entry's sector before a mark's text.
const HEAD: usize = 32;
/// Bytes copied at once.
const PIECE: u64 = 1 << 20;

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A write, or a flush if the length is 0.
    Write {
        /// Offset in bytes on the recorded device.
        to: u64,
        /// In bytes.
        length: u64,
        /// Offset in bytes of the data in the log.
        from: u64,
        /// It was a flush or FUA: once it had completed, everything recorded so far was durable.
        durable: bool,
    },
    /// A discarded range. Its content is undefined, and the replay leaves it alone.
    Discard,
    /// The text of `dmsetup message DEVICE 0 mark TEXT`.
    Mark(String),
}

/// A log and the device that holds it.
pub struct Log {
    path: PathBuf,
    file: File,
    events: Vec<Event>,
}

impl Log {
    /// Reads all entries, without their data. The recording must have ended: only then is the number of entries final.
    ///
    /// # Errors
    /// The device cannot be read, or holds no log of this format.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Trouble::io(format!("opening the log on {}", path.display())))?;
        let mut log = Self { path: path.to_owned(), file, events: Vec::new() };
        let head = log.bytes(0, 512)?;
        let wrong = |what: &str| Trouble::wrong(format!("{} holds no readable log: {what}", path.display()));
        ensure(number(&head, 0) == MAGIC, || wrong("wrong magic number").to_string())?;
        ensure(number(&head, 8) == VERSION, || wrong("unknown version").to_string())?;
        let sector = number(&head, 24) & u64::from(u32::MAX);
        ensure((512..=65536).contains(&sector), || wrong("implausible sector size").to_string())?;
        let mut at = sector;
        for _ in 0..number(&head, 16) {
            let (event, next) = log.event(at, sector)?;
            log.events.push(event);
            at = next;
        }
        Ok(log)
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Repeats the writes of some entries on a device or file, and syncs.
    ///
    /// # Errors
    /// The log cannot be read, or the device cannot be written.
    pub fn replay(&self, events: &[Event], onto: &Path) -> Result<()> {
        let failed = || format!("replaying onto {}", onto.display());
        let target = fs::OpenOptions::new().write(true).open(onto).map_err(Trouble::io(failed()))?;
        for event in events {
            let Event::Write { to, length, from, .. } = event else { continue };
            let mut done = 0;
            while done < *length {
                let piece = PIECE.min(length - done);
                target.write_all_at(&self.bytes(from + done, piece)?, to + done).map_err(Trouble::io(failed()))?;
                done += piece;
            }
        }
        target.sync_all().map_err(Trouble::io(failed()))
    }

    /// The entry at an offset, and the offset of the next one.
    fn event(&self, at: u64, sector: u64) -> Result<(Event, u64)> {
        let head = self.bytes(at, sector)?;
        let flags = number(&head, 16);
        let (to, length) = (number(&head, 0).saturating_mul(sector), number(&head, 8).saturating_mul(sector));
        let from = at + sector;
        if flags & MARK != 0 {
            let end = usize::try_from(number(&head, 24)).ok().and_then(|length| HEAD.checked_add(length));
            let text = end.and_then(|end| head.get(HEAD..end)).unwrap_or_default();
            let text = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
            return Ok((Event::Mark(text), from));
        }
        if flags & DISCARD != 0 {
            return Ok((Event::Discard, from));
        }
        Ok((Event::Write { to, length, from, durable: flags & (FLUSH | FUA) != 0 }, from + length))
    }

    fn bytes(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let failed = || format!("reading {length} bytes at {at} of the log on {}", self.path.display());
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| Trouble::wrong(failed()))?];
        self.file.read_exact_at(&mut bytes, at).map_err(Trouble::io(failed()))?;
        Ok(bytes)
    }
}

/// The u64 at an offset of a sector.
fn number(sector: &[u8], at: usize) -> u64 {
    let bytes = sector.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(numbers: &[u64], text: &str) -> Vec<u8> {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.extend(text.as_bytes());
        bytes.resize(512, 0);
        bytes
    }

    /// A write, its flush, a mark, a discard, and a write with FUA.
    fn log() -> Vec<u8> {
        [
            sector(&[MAGIC, VERSION, 5, 512], ""),
            sector(&[2, 1, 0, 0], ""),
            vec![7; 512],
            sector(&[0, 0, FLUSH, 0], ""),
            sector(&[0, 0, MARK, 7], "done 12"),
            sector(&[0, 8, DISCARD, 0], ""),
            sector(&[1, 1, FUA, 0], ""),
            vec![9; 512],
        ]
        .concat()
    }

    #[test]
    fn every_kind_of_entry_is_read_and_replayed() {
        let path = std::env::temp_dir().join(format!("testkit-log-{}", std::process::id()));
        let disk = path.with_extension("disk");
        fs::write(&path, log()).unwrap();
        fs::write(&disk, [1; 2048]).unwrap();
        let log = Log::read(&path).unwrap();
        let write = |to, length, from, durable| Event::Write { to, length, from, durable };
        let expected = [
            write(1024, 512, 1024, false),
            write(0, 0, 2048, true),
            Event::Mark("done 12".to_owned()),
            Event::Discard,
            write(512, 512, 3584, true),
        ];
        assert_eq!(log.events(), expected);
        log.replay(&log.events()[..4], &disk).unwrap();
        let parts = |disk: &Path| fs::read(disk).unwrap().chunks(512).map(|part| part[0]).collect::<Vec<_>>();
        assert_eq!(parts(&disk), [1, 1, 7, 1]);
        log.replay(&log.events()[4..], &disk).unwrap();
        assert_eq!(parts(&disk), [1, 9, 7, 1]);
        fs::write(&path, vec![0; 1024]).unwrap();
        assert!(Log::read(&path).is_err());
        fs::remove_file(&path).unwrap();
        fs::remove_file(&disk).unwrap();
    }
}
