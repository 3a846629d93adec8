//! Reads a filesystem's own superblock, past the page cache: its size, and whether it was ever mounted.
//!
//! Whether anything is on a device is up to the probe; here the caller expects a filesystem of a known kind.

use std::path::Path;

use super::uuid;
use super::{FsError, Kind};
use crate::host::Kernel;
use crate::types::Bytes;

/// The relevant fields of a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// In text form.
    pub uuid: String,
    /// The size of the filesystem on its device.
    pub size: Bytes,
    /// The smallest growth of the device that the filesystem can use.
    pub smallest_growth: Bytes,
    /// The filesystem needs a check before it is mounted.
    pub needs_check: bool,
    /// The unit in which ext4 counts its size.
    pub block: Bytes,
    /// The size of a filesystem that fills its device is a multiple of this.
    pub grain: Bytes,
    /// The part of a mounted XFS that statfs(2) does not count: its internal log.
    pub log: Bytes,
    marks: Marks,
}

/// Evidence of whether the filesystem was mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Marks {
    /// ext4 counts and dates its mounts in the superblock, which every writable mount writes first.
    Ext4 { mounted: bool },
    /// mkfs.xfs sets "in progress" until everything is written, and the kernel does not mount such a filesystem.
    XfsUnfinished,
    /// The first byte of the log, if it is on the device, and the UUID that its records must have.
    Xfs { log: Option<u64>, uuid: [u8; 16] },
}

impl Summary {
    /// The size, in blocks, of this filesystem when it fills a device of this size.
    pub fn blocks_on(&self, device: Bytes) -> u64 {
        device.0 / self.grain.0 * self.grain.0 / self.block.0
    }

    /// Whether a filesystem of this kind and `size` gains something by growing to `device`.
    pub fn gains_on(&self, device: Bytes, size: Bytes) -> bool {
        device.0.saturating_sub(size.0) >= self.smallest_growth.0
    }
}

/// The page size of supported kernels; larger ones are multiples of it.
const PAGE: u64 = 4096;
/// Bytes to read for a superblock; ext4's begins at 1024, that of XFS at 0.
const HEAD: usize = 4096;

/// Reads the superblock of a filesystem of this kind.
///
/// # Errors
/// The device cannot be read, or has no superblock of this kind.
pub fn summary(kernel: &dyn Kernel, device: &Path, kind: Kind) -> Result<Summary, FsError> {
    let head = read(kernel, device, 0, HEAD)?;
    let parsed = match kind {
        Kind::Ext4 => ext4(&head[1024..]),
        Kind::Xfs => xfs(&head),
    };
    parsed.map_err(|what| FsError::Superblock { device: device.to_owned(), kind, what })
}

/// Whether the filesystem of this kind was never mounted, so that making it again loses nothing. `false` also if that is unknown.
///
/// ext4 writes mount time and count before the first file can change. XFS leaves records in its log: at every mount that may
/// change something the kernel stamps the blocks in front of the log's head, and writes its next records directly behind the
/// record of mkfs. Records count only with the UUID of this filesystem, which belongs to this LV alone: a power cut during mkfs
/// may leave the log of an earlier volume in place.
///
/// # Errors
/// The device cannot be read, or has no superblock of this kind.
pub fn never_mounted(kernel: &dyn Kernel, device: &Path, kind: Kind) -> Result<bool, FsError> {
    match summary(kernel, device, kind)?.marks {
        Marks::Ext4 { mounted } => Ok(!mounted),
        Marks::XfsUnfinished => Ok(true),
        Marks::Xfs { log: None, .. } => Ok(false),
        Marks::Xfs { log: Some(start), uuid } => Ok(!has_records(&read(kernel, device, start, LOG_WINDOW)?, &uuid)),
    }
}

/// The kind of the filesystem with this UUID on a device, if it was mounted or may have been.
///
/// # Errors
/// The device cannot be read.
pub fn used(kernel: &dyn Kernel, device: &Path, uuid: &str) -> Result<Option<Kind>, FsError> {
    for kind in Kind::ALL {
        let there = match summary(kernel, device, kind) {
            Ok(summary) => summary.uuid == uuid,
            Err(FsError::Superblock { .. }) => false,
            Err(error) => return Err(error),
        };
        if there && !never_mounted(kernel, device, kind)? {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

fn read(kernel: &dyn Kernel, device: &Path, offset: u64, length: usize) -> Result<Vec<u8>, FsError> {
    let unreadable = |source| FsError::Unreadable { device: device.to_owned(), offset: Bytes(offset), source };
    let bytes = kernel.read_at(device, offset, length).map_err(unreadable)?;
    if bytes.len() == length { Ok(bytes) } else { Err(unreadable(std::io::ErrorKind::UnexpectedEof.into())) }
}

/// Parses a superblock of ext4, from its first byte.
fn ext4(block: &[u8]) -> Result<Summary, &'static str> {
    const VALID: u16 = 1;
    const ERRORS: u16 = 2;
    let fields = Fields { bytes: block, big_endian: false };
    if fields.u16(0x38)? != 0xef53 {
        return Err("the magic number of ext4 is missing");
    }
    let shift = fields.u32(0x18)?;
    if shift > 6 {
        return Err("its block size is impossible");
    }
    let block_size = 1024u64 << shift;
    let incompat = fields.u32(0x60)?;
    let wide = incompat & 0x80 != 0;
    let high = if wide { u64::from(fields.u32(0x150)?) << 32 } else { 0 };
    let blocks = high | u64::from(fields.u32(0x04)?);
    let size = blocks.checked_mul(block_size).ok_or("its size is impossible")?;

    // Kernel and mke2fs omit a last group that would hold little more than its own tables: two bitmaps, the inodes, 50 blocks,
    // and in some groups copies of superblock and descriptors.
    let per_group = u64::from(fields.u32(0x20)?);
    let inodes = u64::from(fields.u32(0x28)?) * u64::from(fields.u16(0x58)?);
    let grouped = blocks.saturating_sub(fields.u32(0x14)?.into());
    let least = if per_group > 0 && grouped.is_multiple_of(per_group) {
        let groups = grouped / per_group;
        // The field may hold a value that no ext4 has: no growth gains anything then.
        let descriptor_size = u64::from(if wide { fields.u16(0xfe)? } else { 32 });
        let descriptors = (groups + 1).saturating_mul(descriptor_size).div_ceil(block_size);
        let copies = if has_copies(groups) { descriptors.saturating_add(1 + u64::from(fields.u16(0xce)?)) } else { 0 };
        copies.saturating_add(2 + inodes.div_ceil(block_size) + 50)
    } else {
        1
    };

    // With bigalloc ext4 allocates clusters, and the page cache works in pages.
    let cluster_shift = if fields.u32(0x64)? & 0x200 != 0 { fields.u32(0x1c)? } else { 0 };
    if cluster_shift > 20 {
        return Err("its cluster size is impossible");
    }
    let grain = (1024u64 << cluster_shift).max(block_size).max(PAGE);

    let state = fields.u16(0x3a)?;
    let journal = fields.u32(0x5c)? & 4 != 0;
    let mounts = fields.u16(0x34)?;
    let mount_time = (fields.u32(0x2c)?, fields.u8(0x275)?);
    Ok(Summary {
        uuid: uuid::text(fields.array(0x68)?),
        size: Bytes(size),
        smallest_growth: Bytes(least.saturating_mul(block_size).max(grain)),
        block: Bytes(block_size),
        grain: Bytes(grain),
        log: Bytes(0),
        // Without a journal, "valid" is cleared while it is mounted. With one, the kernel replays the journal and only errors
        // matter.
        needs_check: state & ERRORS != 0 || (state & VALID == 0 && !journal),
        marks: Marks::Ext4 { mounted: mounts != 0 || mount_time != (0, 0) },
    })
}

/// Whether an ext4 group has copies of the superblock (`sparse_super`): the first two, and powers of 3, 5 and 7.
fn has_copies(group: u64) -> bool {
    let is_power = |base: u64| {
        std::iter::successors(Some(base), |power| power.checked_mul(base))
            .take_while(|power| *power <= group)
            .any(|power| power == group)
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}

/// Parses a superblock of XFS, from its first byte.
fn xfs(block: &[u8]) -> Result<Summary, &'static str> {
    /// The fewest blocks of an allocation group (`XFS_MIN_AG_BLOCKS`).
    const LEAST_GROUP: u64 = 64;
    let fields = big(block);
    if fields.array::<4>(0)? != *b"XFSB" {
        return Err("the magic number of XFS is missing");
    }
    let block_size = u64::from(fields.u32(4)?);
    if !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) {
        return Err("its block size is impossible");
    }
    let size = fields.u64(8)?.checked_mul(block_size).ok_or("its size is impossible")?;
    let uuid = fields.array(32)?;
    let unfinished = fields.u8(126)? != 0;
    let marks = if unfinished { Marks::XfsUnfinished } else { Marks::Xfs { log: log_start(fields, block_size, size)?, uuid } };
    Ok(Summary {
        uuid: uuid::text(uuid),
        size: Bytes(size),
        smallest_growth: Bytes(LEAST_GROUP * block_size),
        needs_check: false,
        block: Bytes(block_size),
        grain: Bytes(block_size),
        log: Bytes(if fields.u64(48)? == 0 { 0 } else { u64::from(fields.u32(96)?) * block_size }),
        marks,
    })
}

/// The first byte of an internal log; `None` for an external log, and for one that is too short or outside the filesystem.
fn log_start(fields: Fields<'_>, block_size: u64, size: u64) -> Result<Option<u64>, &'static str> {
    let start = fields.u64(48)?;
    let blocks_per_group = u64::from(fields.u32(84)?);
    let length = u64::from(fields.u32(96)?) * block_size;
    // A block number is the group's number and, in the low bits, the block within the group.
    let group_bits = u32::from(fields.u8(124)?);
    if start == 0 || group_bits >= 32 || length < LOG_WINDOW as u64 {
        return Ok(None);
    }
    let (group, within) = (start >> group_bits, start & ((1 << group_bits) - 1));
    let first = group.checked_mul(blocks_per_group).and_then(|b| b.checked_add(within)).and_then(|b| b.checked_mul(block_size));
    Ok(first.filter(|first| first.checked_add(length).is_some_and(|end| end <= size)))
}

/// How many bytes of the XFS log to read, from its beginning. mkfs's record ends within 260 KiB, and no record of the kernel is
/// longer, so any other record begins in here. No log is as short as this.
const LOG_WINDOW: usize = 1 << 20;

/// Whether an XFS log has records of the filesystem with this UUID besides the first one by mkfs.
fn has_records(log: &[u8], uuid: &[u8; 16]) -> bool {
    /// The log's unit.
    const BLOCK: usize = 512;
    log.chunks_exact(BLOCK).enumerate().any(|(at, block)| {
        let header = big(block);
        let is_record = header.u32(0) == Ok(0xfeed_babe) && header.array(304) == Ok(*uuid);
        // mkfs's record: the first cycle, position 0, one operation.
        let is_mkfs = at == 0 && header.u32(4) == Ok(1) && header.u64(16) == Ok(1 << 32) && header.u32(40) == Ok(1);
        is_record && !is_mkfs
    })
}

/// Reads fields at byte offsets.
#[derive(Clone, Copy)]
struct Fields<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Fields<'_> {
    fn array<const N: usize>(self, at: usize) -> Result<[u8; N], &'static str> {
        self.bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or("it is truncated")
    }

    fn u8(self, at: usize) -> Result<u8, &'static str> {
        self.array(at).map(|[byte]| byte)
    }

    fn u16(self, at: usize) -> Result<u16, &'static str> {
        self.array(at).map(if self.big_endian { u16::from_be_bytes } else { u16::from_le_bytes })
    }

    fn u32(self, at: usize) -> Result<u32, &'static str> {
        self.array(at).map(if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes })
    }

    fn u64(self, at: usize) -> Result<u64, &'static str> {
        self.array(at).map(if self.big_endian { u64::from_be_bytes } else { u64::from_le_bytes })
    }
}

/// XFS is big-endian on every machine.
fn big(bytes: &[u8]) -> Fields<'_> {
    Fields { bytes, big_endian: true }
}

/// For the fuzzer: parses the bytes as superblocks and as a log.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = ext4(data);
    let _ = xfs(data);
    has_records(data, &[0; 16]);
}

#[cfg(test)]
mod tests {
    use super::super::fake::Memory;
    use super::*;

    const UUID: &str = "11111111-2222-8333-8444-555555555555";
    const UUID_BYTES: [u8; 16] = [0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x83, 0x33, 0x84, 0x44, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55];
    const DEVICE: &str = "/dev/dm-3";

    fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
        block[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The superblock that mkfs.ext4 writes on 64 MiB with blocks of 4 KiB, with these changes.
    fn ext4_device(changes: &[(usize, &[u8])]) -> Memory {
        let mut block = vec![0; 1024];
        put(&mut block, 0x04, &16384u32.to_le_bytes());
        put(&mut block, 0x18, &2u32.to_le_bytes());
        put(&mut block, 0x20, &32768u32.to_le_bytes());
        put(&mut block, 0x28, &16384u32.to_le_bytes());
        put(&mut block, 0x38, &0xef53u16.to_le_bytes());
        put(&mut block, 0x3a, &1u16.to_le_bytes());
        put(&mut block, 0x58, &256u16.to_le_bytes());
        put(&mut block, 0x5c, &0x3cu32.to_le_bytes());
        put(&mut block, 0x60, &0x2c2u32.to_le_bytes());
        put(&mut block, 0x68, &UUID_BYTES);
        for (at, bytes) in changes {
            put(&mut block, *at, bytes);
        }
        Memory { pieces: vec![(1024, block)], size: 64 << 20, ..Memory::default() }
    }

    /// The start of the log of the filesystem below: block 10 of group 2, with 1024 blocks per group.
    const LOG: u64 = (2 * 1024 + 10) * 4096;

    /// The superblock and log that mkfs.xfs writes, but smaller, with these changes to either.
    fn xfs_device(changes: &[(usize, &[u8])], log_changes: &[(usize, &[u8])]) -> Memory {
        let mut block = vec![0; 512];
        put(&mut block, 0, b"XFSB");
        put(&mut block, 4, &4096u32.to_be_bytes());
        put(&mut block, 8, &4096u64.to_be_bytes());
        put(&mut block, 32, &UUID_BYTES);
        put(&mut block, 48, &(2u64 << 10 | 10).to_be_bytes());
        put(&mut block, 84, &1024u32.to_be_bytes());
        put(&mut block, 96, &256u32.to_be_bytes());
        put(&mut block, 124, &[10]);
        for (at, bytes) in changes {
            put(&mut block, *at, bytes);
        }
        let mut log = vec![0; 128 << 10];
        put(&mut log, 0, &0xfeed_babe_u32.to_be_bytes());
        put(&mut log, 4, &1u32.to_be_bytes());
        put(&mut log, 8, &2u32.to_be_bytes());
        put(&mut log, 12, &512u32.to_be_bytes());
        put(&mut log, 16, &(1u64 << 32).to_be_bytes());
        put(&mut log, 40, &1u32.to_be_bytes());
        put(&mut log, 304, &UUID_BYTES);
        for (at, bytes) in log_changes {
            put(&mut log, *at, bytes);
        }
        Memory { pieces: vec![(0, block), (LOG, log)], size: 16 << 20, ..Memory::default() }
    }

    fn never(memory: &Memory, kind: Kind) -> bool {
        never_mounted(memory, Path::new(DEVICE), kind).unwrap()
    }

    fn summary_of(memory: &Memory, kind: Kind) -> Result<Summary, FsError> {
        summary(memory, Path::new(DEVICE), kind)
    }

    #[test]
    fn ext4_has_its_size_its_uuid_and_whether_it_was_mounted() {
        let fresh = ext4_device(&[]);
        let summary = summary_of(&fresh, Kind::Ext4).unwrap();
        assert_eq!((summary.uuid.as_str(), summary.size, summary.needs_check), (UUID, Bytes(64 << 20), false));
        assert!(never(&fresh, Kind::Ext4));
        let marks: [(usize, &[u8]); 3] = [(0x34, &[1]), (0x2c, &[1]), (0x275, &[1])];
        for mark in marks {
            assert!(!never(&ext4_device(&[mark]), Kind::Ext4), "{mark:?}");
        }
        assert_eq!(summary.blocks_on(Bytes((128 << 20) + 4095)), 32768);
        let bigalloc = summary_of(&ext4_device(&[(0x64, &0x200u32.to_le_bytes()), (0x1c, &[6])]), Kind::Ext4).unwrap();
        assert_eq!((bigalloc.blocks_on(Bytes((128 << 20) + 65535)), bigalloc.smallest_growth), (32768, Bytes(65536)));
        let small = summary_of(&ext4_device(&[(0x18, &[0]), (0x04, &65536u32.to_le_bytes())]), Kind::Ext4).unwrap();
        assert_eq!(small.blocks_on(Bytes((64 << 20) + 5000)), 65536 + 4);
        let large = ext4_device(&[(0x150, &[1])]);
        assert_eq!(summary_of(&large, Kind::Ext4).unwrap().size, Bytes((1 << 44) + (64 << 20)));
    }

    #[test]
    fn ext4_asks_for_a_check_after_errors_and_not_after_a_crash() {
        let needs = |changes: &[(usize, &[u8])]| summary_of(&ext4_device(changes), Kind::Ext4).unwrap().needs_check;
        assert!(!needs(&[(0x60, &0x2c6u32.to_le_bytes())]), "a journal to replay");
        assert!(needs(&[(0x3a, &[3])]), "errors recorded");
        assert!(!needs(&[(0x3a, &[0])]), "mounted, with a journal");
        assert!(needs(&[(0x3a, &[0]), (0x5c, &[0])]), "not cleanly unmounted, without a journal");
    }

    #[test]
    fn impossible_numbers_of_ext4_never_allow_growth() {
        // Groups of one block, each with a descriptor of 65535 bytes; a group that is a power of 3 has copies.
        for (blocks, least) in [(1u64 << 49, 0), (3u64.pow(31), 1 << 63)] {
            let bytes = blocks.to_le_bytes();
            let changes = [(0x04, &bytes[..4]), (0x150, &bytes[4..]), (0x18, &[0; 4]), (0x20, &[1, 0, 0, 0]), (0xfe, &[0xff; 2])];
            let summary = summary_of(&ext4_device(&changes), Kind::Ext4).unwrap();
            assert!(summary.smallest_growth >= Bytes(least), "{blocks}: {summary:?}");
        }
    }

    #[test]
    fn a_last_group_too_small_for_ext4_is_no_growth() {
        // Ends inside a group: every block counts.
        assert_eq!(summary_of(&ext4_device(&[]), Kind::Ext4).unwrap().smallest_growth, Bytes(4096));
        // Ends with a group of 1024 blocks of inodes.
        let full = ext4_device(&[(4, &32768u32.to_le_bytes())]);
        assert_eq!(summary_of(&full, Kind::Ext4).unwrap().smallest_growth, Bytes((2 + 1024 + 50 + 1) * 4096));
        let reserved: (usize, &[u8]) = (0xce, &[127, 0]);
        for (groups, copies) in [(1, 1 + 1 + 127), (2, 0), (4, 0), (9, 1 + 1 + 127), (24, 0), (49, 1 + 1 + 127)] {
            let full = ext4_device(&[(4, &u32::to_le_bytes(32768 * groups)), (0xfe, &[64, 0]), reserved]);
            let least = summary_of(&full, Kind::Ext4).unwrap().smallest_growth;
            assert_eq!(least, Bytes((2 + 1024 + 50 + copies) * 4096), "{groups} groups");
        }
    }

    #[test]
    fn the_log_of_xfs_shows_whether_it_was_mounted() {
        let fresh = xfs_device(&[], &[]);
        let summary = summary_of(&fresh, Kind::Xfs).unwrap();
        assert_eq!((summary.uuid.as_str(), summary.size, summary.needs_check), (UUID, Bytes(16 << 20), false));
        assert!(never(&fresh, Kind::Xfs));
        let other: (usize, &[u8]) = (304, &[9; 16]);
        let power_cut_left: [&[(usize, &[u8])]; 4] = [
            // The record did not reach the disk; an earlier volume's log is there, or anything.
            &[(0, b"OLDBYTES")],
            &[other, (4, &7u32.to_be_bytes())],
            &[(1024, &0xfeed_babe_u32.to_be_bytes()), (1024 + 304, &[9; 16])],
            &[(1024, &[0xff; 512])],
        ];
        for left in power_cut_left {
            assert!(never(&xfs_device(&[], left), Kind::Xfs), "{left:?}");
        }
        let stamp = 0xfeed_babe_u32.to_be_bytes();
        let mounted: [&[(usize, &[u8])]; 6] = [
            &[(1024, &stamp), (1024 + 304, &UUID_BYTES)],
            &[(126 << 10, &stamp), ((126 << 10) + 304, &UUID_BYTES)],
            // The log wrapped around, or a repair cleared it.
            &[(4, &2u32.to_be_bytes())],
            &[(4, &0u32.to_be_bytes())],
            &[(16, &(1u64 << 32 | 2).to_be_bytes())],
            &[(40, &2u32.to_be_bytes())],
        ];
        for marks in mounted {
            assert!(!never(&xfs_device(&[], marks), Kind::Xfs), "{marks:?}");
        }
    }

    #[test]
    fn our_own_filesystem_counts_once_it_was_mounted() {
        let used = |memory: &Memory, uuid| super::used(memory, Path::new(DEVICE), uuid).unwrap();
        let mounted = [(ext4_device(&[(0x34, &[1])]), Kind::Ext4), (xfs_device(&[], &[(40, &2u32.to_be_bytes())]), Kind::Xfs)];
        for (memory, kind) in mounted {
            assert_eq!(used(&memory, UUID), Some(kind));
            assert_eq!(used(&memory, "21111111-2222-8333-8444-555555555555"), None);
        }
        for fresh in [ext4_device(&[]), xfs_device(&[], &[]), Memory { pieces: Vec::new(), size: 64 << 20, ..Memory::default() }]
        {
            assert_eq!(used(&fresh, UUID), None);
        }
        let broken = Memory { broken: Some(1100), ..ext4_device(&[]) };
        assert!(super::used(&broken, Path::new(DEVICE), UUID).is_err());
    }

    #[test]
    fn an_unfinished_xfs_was_never_mounted_whatever_is_in_its_log_area() {
        assert!(never(&xfs_device(&[(126, &[1])], &[(0, &[0; 512])]), Kind::Xfs));
    }

    #[test]
    fn a_log_that_cannot_be_found_proves_nothing() {
        let places: [(usize, &[u8]); 5] = [
            (48, &0u64.to_be_bytes()),
            (48, &u64::MAX.to_be_bytes()),
            (96, &u32::MAX.to_be_bytes()),
            (96, &255u32.to_be_bytes()),
            (124, &[200]),
        ];
        for place in places {
            assert!(!never(&xfs_device(&[place], &[]), Kind::Xfs), "{place:?}");
        }
    }

    #[test]
    fn an_invalid_or_unreadable_superblock_is_an_error() {
        let blank = Memory { pieces: Vec::new(), size: 64 << 20, ..Memory::default() };
        for kind in Kind::ALL {
            assert!(matches!(summary_of(&blank, kind), Err(FsError::Superblock { .. })));
            let broken = Memory { broken: Some(1100), ..ext4_device(&[]) };
            assert!(matches!(summary_of(&broken, kind), Err(FsError::Unreadable { .. })));
            let tiny = Memory { size: 2048, ..ext4_device(&[]) };
            assert!(matches!(summary_of(&tiny, kind), Err(FsError::Unreadable { .. })));
        }
        let impossible: [(usize, &[u8]); 2] = [(0x18, &[40]), (0x150, &[255; 4])];
        for change in impossible {
            assert!(matches!(summary_of(&ext4_device(&[change]), Kind::Ext4), Err(FsError::Superblock { .. })), "{change:?}");
        }
        assert!(summary_of(&xfs_device(&[(4, &[0; 4])], &[]), Kind::Xfs).is_err());
        let broken_log = Memory { broken: Some(LOG + 2000), ..xfs_device(&[], &[]) };
        assert!(matches!(never_mounted(&broken_log, Path::new(DEVICE), Kind::Xfs), Err(FsError::Unreadable { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(0u8.., 0..700), at in 0usize..600) {
            let _ = ext4(&bytes);
            let _ = xfs(&bytes);
            let mut head = vec![0; 512];
            put(&mut head, 0, b"XFSB");
            let tail = &bytes[..bytes.len().min(512 - at.min(508) - 4)];
            put(&mut head, at.min(508) + 4, tail);
            put(&mut head, 4, &4096u32.to_be_bytes());
            let _ = xfs(&head);
            let _ = has_records(&bytes, &UUID_BYTES);
        }
    }
}
