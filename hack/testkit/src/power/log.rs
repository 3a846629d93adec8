//! Reading what the device-mapper target log-writes has recorded, and replaying it.
//!
//! The kernel tells of the target in Documentation/admin-guide/device-mapper/log-writes.rst, and of the format in the first part of
//! drivers/md/dm-log-writes.c. All numbers are little-endian. The first sector of the log holds
//!
//! ```text
//!   u64 magic, u64 version, u64 number of entries, u32 size of a sector in bytes
//! ```
//!
//! Then comes entry after entry: one sector that holds
//!
//! ```text
//!   u64 sector, u64 number of sectors, u64 flags, u64 length of a mark's text, the text
//! ```
//!
//! and the data, which a mark and a discard have none of. The target keeps a write back until a flush has made it durable and then
//! records it before that flush; a write that was itself forced to the medium (FUA) is recorded when it has ended. So the disk as
//! any first part of the log makes it is what a power cut leaves at worst: nothing that no flush has confirmed.

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
/// The largest piece of data that is copied at once, in bytes.
const PIECE: u64 = 1 << 20;

/// What one entry stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes written; with a length of 0 a flush alone.
    Write {
        /// First byte on the recorded device.
        to: u64,
        /// How many bytes.
        length: u64,
        /// First byte of the data in the log.
        from: u64,
        /// Whether all that was recorded so far was durable when this had ended: it was a flush, or forced to the medium.
        durable: bool,
    },
    /// A range whose content may be anything from now on; it is left as it was.
    Discard,
    /// What `dmsetup message DEVICE 0 mark TEXT` has left.
    Mark(String),
}

/// A log, with the device it lies on.
pub struct Log {
    path: PathBuf,
    file: File,
    events: Vec<Event>,
}

impl Log {
    /// Reads all entries of a log, without their data. The recording must have ended: only then the number of entries is final.
    ///
    /// # Errors
    /// The device cannot be read, or holds no such log.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Trouble::io(format!("opening the log on {}", path.display())))?;
        let mut log = Self { path: path.to_owned(), file, events: Vec::new() };
        let head = log.bytes(0, 512)?;
        let wrong = |what: &str| Trouble::wrong(format!("{} holds no log that can be read: {what}", path.display()));
        ensure(number(&head, 0) == MAGIC, || wrong("the magic number is another one").to_string())?;
        ensure(number(&head, 8) == VERSION, || wrong("the version is another one").to_string())?;
        let sector = number(&head, 24) & u64::from(u32::MAX);
        ensure((512..=65536).contains(&sector), || wrong("the size of a sector makes no sense").to_string())?;
        let mut at = sector;
        for _ in 0..number(&head, 16) {
            let (event, next) = log.event(at, sector)?;
            log.events.push(event);
            at = next;
        }
        Ok(log)
    }

    /// The entries, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Does to a device or file what some entries say, and makes that durable.
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

    /// The entry that begins at a byte, and where the next one does.
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

/// The number of eight bytes at an offset of a sector.
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

    /// A write that waits for its flush, the flush, a mark, a discard, and a write that was forced to the medium.
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
