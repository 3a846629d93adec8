//! Reading, zeroing and flushing block devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::{major, minor};

use crate::types::Bytes;

/// The alignment for `O_DIRECT` in memory and on the device: no logical block in use is larger, and pages are that large.
const ALIGN: usize = 4096;
/// The longest read. Lengths come from disks, and a nonsensical one must not take all memory.
const LONGEST: usize = 1 << 30;

/// Opens for reading, past the page cache. Never opens for writing without need: udevd watches block devices and scans one again
/// whenever a writer closes it.
fn open_direct(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(device)
}

pub(super) fn read_at(device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a read of {length} bytes is refused")));
    }
    let align = ALIGN as u64;
    let begin = offset - offset % align;
    // At most one block before the wanted bytes.
    let skip = usize::try_from(offset - begin).map_err(io::Error::other)?;
    let wanted = skip + length;
    let span = wanted.next_multiple_of(ALIGN);
    let mut memory = vec![0u8; span + ALIGN];
    let shift = memory.as_ptr().align_offset(ALIGN);
    let buffer = memory.get_mut(shift..shift + span).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;

    let file = open_direct(device)?;
    let mut done = 0;
    while done < wanted {
        // Only the end of the device makes a read short: the device size need not be a multiple of the alignment.
        match file.read_at(&mut buffer[done..], begin + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // Moves within the same memory: a second allocation would cost as many page faults as the read itself.
    memory.copy_within(shift + skip..shift + wanted, 0);
    memory.truncate(length);
    Ok(memory)
}

pub(super) fn flush(device: &Path) -> io::Result<()> {
    // On a block device fsync also flushes the device's own cache, and a handle for reading is enough.
    File::open(device)?.sync_all()
}

/// The end of a block device is its size, the same as `BLKGETSIZE64`.
pub(super) fn size(device: &Path) -> io::Result<Bytes> {
    File::open(device)?.seek(SeekFrom::End(0)).map(Bytes)
}

pub(super) fn logical_block_size(device: &Path) -> io::Result<Bytes> {
    let (major, minor) = device_number(device)?.ok_or(io::ErrorKind::NotFound)?;
    let directory = Path::new("/sys/dev/block").join(format!("{major}:{minor}")).canonicalize()?;
    // A partition uses the queue of its disk.
    let whole = directory.parent().filter(|_| directory.join("partition").exists()).unwrap_or(&directory);
    let text = std::fs::read_to_string(whole.join("queue/logical_block_size"))?;
    text.trim().parse().map(Bytes).map_err(io::Error::other)
}

#[expect(clippy::disallowed_methods, reason = "called within an effect")]
pub(super) fn zero(device: &Path, offset: u64, length: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let length = i64::try_from(length).map_err(io::Error::other)?;
    let file = OpenOptions::new().write(true).open(device)?;
    if !file.metadata()?.file_type().is_block_device() {
        return Err(io::Error::other("is not a block device"));
    }
    // On a block device this does what BLKZEROOUT does: the device zeroes if it can, else zeroes are written. It never unmaps, and
    // it drops the page cache of the range.
    Ok(fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, length)?)
}

pub(super) fn device_number(path: &Path) -> io::Result<Option<(u32, u32)>> {
    let status = match path.metadata() {
        Ok(status) => status,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !status.file_type().is_block_device() {
        return Ok(None);
    }
    let number = |part: u64| u32::try_from(part).map_err(io::Error::other);
    Ok(Some((number(major(status.rdev()))?, number(minor(status.rdev()))?)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file on a real filesystem supports `O_DIRECT` like a device.
    fn file(length: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        file.as_file().sync_all().unwrap();
        (file, bytes)
    }

    #[test]
    fn any_range_is_read_exactly() {
        let (file, bytes) = file(20_480);
        for (offset, length) in [(0, 1), (0, 20_480), (1, 4096), (4095, 2), (5000, 10_000), (20_479, 1), (4096, 0)] {
            assert_eq!(read_at(file.path(), offset, length).unwrap(), bytes[usize::try_from(offset).unwrap()..][..length]);
        }
    }

    #[test]
    fn a_read_beyond_the_end_is_an_error() {
        let (file, _) = file(8192);
        assert_eq!(read_at(file.path(), 8000, 193).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_at(file.path(), 1 << 40, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_at(Path::new("/nonexistent"), 0, 1).unwrap_err().raw_os_error(), Some(2));
    }

    #[test]
    fn a_length_that_is_nonsense_is_refused() {
        let (file, _) = file(8192);
        assert_eq!(read_at(file.path(), 0, usize::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(read_at(file.path(), u64::MAX, 1).unwrap_err().raw_os_error(), Some(22));
    }

    #[test]
    fn only_block_devices_have_numbers_and_are_zeroed() {
        let (file, bytes) = file(8192);
        assert_eq!(device_number(file.path()).unwrap(), None);
        assert_eq!(device_number(Path::new("/dev/null")).unwrap(), None);
        assert_eq!(device_number(Path::new("/nonexistent")).unwrap(), None);
        logical_block_size(file.path()).unwrap_err();
        zero(file.path(), 0, 4096).unwrap_err();
        assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
        assert_eq!(size(file.path()).unwrap(), Bytes(8192));
    }
}
