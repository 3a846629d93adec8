//! Signatures of other storage software, written byte by byte, so that the tests need none of its tools.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Result, Trouble, ensure};
use crate::tool;

/// Content of a block device that the driver must not touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    Luks,
    /// A member of a Linux software RAID, metadata 1.2.
    Md,
    Gpt,
    Zfs,
    Swap,
}

impl Foreign {
    pub const ALL: [Foreign; 5] = [Foreign::Luks, Foreign::Md, Foreign::Gpt, Foreign::Zfs, Foreign::Swap];

    /// Writes the signature onto a device and checks that blkid(8) recognises it.
    ///
    /// # Errors
    /// The device cannot be written, or blkid does not recognise the signature: then the test would prove nothing.
    pub fn write(self, device: &Path) -> Result<()> {
        let size = device_size(device)?;
        for (offset, bytes) in self.pieces(size) {
            write_at(device, offset, &bytes)?;
        }
        let probe = tool::output(tool::command("blkid").arg("-p").arg(device)).map(|output| tool::said(&output))?;
        ensure(probe.contains(self.word()), || {
            format!("blkid does not recognise the signature of {self:?} that the test wrote; it printed {probe:?}")
        })
    }

    /// libblkid's name for it.
    pub fn word(self) -> &'static str {
        match self {
            Foreign::Luks => "crypto_LUKS",
            Foreign::Md => "linux_raid_member",
            Foreign::Gpt => "gpt",
            Foreign::Zfs => "zfs_member",
            Foreign::Swap => "swap",
        }
    }

    /// Offsets and bytes for a device of this size in bytes.
    fn pieces(self, size: u64) -> Vec<(u64, Vec<u8>)> {
        match self {
            Foreign::Luks => vec![(0, luks())],
            Foreign::Md => vec![(4096, md(8))],
            Foreign::Gpt => gpt(size),
            Foreign::Zfs => zfs(),
            Foreign::Swap => vec![(0, swap())],
        }
    }
}

/// Writes bytes at an offset of a device or file, and syncs.
///
/// # Errors
/// The device or file cannot be opened or written.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let failed = || format!("writing {} bytes at {offset} of {}", bytes.len(), path.display());
    let mut file = OpenOptions::new().write(true).open(path).map_err(Trouble::io(failed()))?;
    file.seek(SeekFrom::Start(offset)).map_err(Trouble::io(failed()))?;
    file.write_all(bytes).map_err(Trouble::io(failed()))?;
    file.sync_all().map_err(Trouble::io(failed()))
}

/// Size of a block device or file in bytes.
///
/// # Errors
/// The device or file cannot be opened.
pub fn device_size(path: &Path) -> Result<u64> {
    let failed = || format!("reading the size of {}", path.display());
    let mut file = OpenOptions::new().read(true).open(path).map_err(Trouble::io(failed()))?;
    file.seek(SeekFrom::End(0)).map_err(Trouble::io(failed()))
}

fn luks() -> Vec<u8> {
    let mut header = vec![0u8; 592];
    header[..6].copy_from_slice(b"LUKS\xba\xbe");
    header[6..8].copy_from_slice(&1u16.to_be_bytes());
    header[8..11].copy_from_slice(b"aes");
    header[168..204].copy_from_slice(b"8f1c9a52-3f0e-4f53-9d3a-5c2a1f0b7e11");
    header
}

/// The superblock of a RAID member with metadata 1, located at this sector.
fn md(sector: u64) -> Vec<u8> {
    let mut block = vec![0u8; 256];
    let mut put = |offset: usize, bytes: &[u8]| block[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &0xa92b_4efcu32.to_le_bytes()); // magic
    put(4, &1u32.to_le_bytes()); // major version
    put(16, b"a uuid of a set!");
    put(32, b"host:0");
    put(72, &1u32.to_le_bytes()); // RAID 1
    put(80, &2048u64.to_le_bytes()); // size
    put(92, &2u32.to_le_bytes()); // disks
    put(128, &2048u64.to_le_bytes()); // data offset
    put(136, &2048u64.to_le_bytes()); // data size
    put(144, &sector.to_le_bytes()); // where this block lies, in sectors
    // The checksum is the sum of all words, with its own field as 0.
    let sum: u64 = block.as_chunks::<4>().0.iter().map(|word| u64::from(u32::from_le_bytes(*word))).sum();
    let folded = (sum & 0xffff_ffff) + (sum >> 32);
    block[216..220].copy_from_slice(&folded.to_le_bytes()[..4]);
    block
}

/// A ZFS label, as offsets from its start and bytes; a device has two at each end. It holds the list of names and values, which newer
/// versions of libblkid read, and 16 of its 128 uberblocks, which older versions count. Both ignore devices smaller than 64 MiB.
pub fn zfs() -> Vec<(u64, Vec<u8>)> {
    let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    let mut list = vec![1, 1, 0, 0]; // XDR, little-endian writer
    list.extend([0; 8]); // version and flags of the list
    for (name, value) in [("guid", 4711u64), ("state", 0), ("txg", 4)] {
        let padded = name.len().next_multiple_of(4);
        list.extend([word(12 + padded + 16), word(32), word(name.len())].as_flattened());
        list.extend(name.as_bytes());
        list.resize(list.len() + padded - name.len(), 0);
        list.extend([word(8), word(1)].as_flattened()); // one number of 64 bits
        list.extend(value.to_be_bytes());
    }
    list.extend([0; 8]);
    let uberblocks = (0..16u64).map(|slot| (128 * 1024 + slot * 1024, uberblock(slot + 1)));
    std::iter::once((16 * 1024, list)).chain(uberblocks).collect()
}

fn uberblock(txg: u64) -> Vec<u8> {
    let mut block = vec![0u8; 1024];
    for (index, word) in [0x00ba_b10c_u64, 5000, txg, 1, 1_700_000_000].into_iter().enumerate() {
        block[index * 8..index * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    block
}

/// Old signatures: libblkid's names for them, and offsets with bytes.
pub type Remains = (Vec<&'static str>, Vec<(u64, Vec<u8>)>);

/// What former tenants may leave at the end of a device of this size in bytes: two ZFS labels, superblocks of software RAIDs with metadata
/// 1.0 and 0.90, and DRBD's; or the backup of a partition table.
pub fn remains(size: u64) -> [Remains; 2] {
    const LABEL: u64 = 256 << 10;
    let mut members: Vec<(u64, Vec<u8>)> = Vec::new();
    for label in [size - 2 * LABEL, size - LABEL] {
        members.extend(zfs().into_iter().map(|(offset, bytes)| (label + offset, bytes)));
    }
    let version_1 = (size / 512 - 16) / 8 * 8;
    members.push((version_1 * 512, md(version_1)));
    let mut version_0 = vec![0u8; 4096];
    for (at, word) in [(0, 0xa92b_4efc_u32), (4, 0), (8, 90), (28, 1), (32, 65536), (36, 2), (40, 2)] {
        version_0[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    members.push((size / 65536 * 65536 - 65536, version_0));
    let mut drbd = vec![0u8; 4096];
    drbd[..8].copy_from_slice(&(size / 512 - 64).to_be_bytes());
    drbd[60..64].copy_from_slice(&0x8374_026b_u32.to_be_bytes());
    members.push((size - 4096, drbd));
    let table = gpt(size).into_iter().filter(|(offset, _)| *offset > LABEL).collect();
    [(vec!["zfs_member", "linux_raid_member"], members), (vec!["gpt"], table)]
}

fn swap() -> Vec<u8> {
    let mut page = vec![0u8; 4096];
    page[1024..1028].copy_from_slice(&1u32.to_le_bytes()); // version
    page[1028..1032].copy_from_slice(&255u32.to_le_bytes()); // last page
    page[1036..1052].copy_from_slice(b"uuid of the swap");
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    page
}

fn gpt(size: u64) -> Vec<(u64, Vec<u8>)> {
    const ENTRIES: usize = 128 * 128;
    let last = size / 512 - 1;
    let mut protective = vec![0u8; 512];
    protective[446 + 4] = 0xee;
    protective[446 + 8..446 + 12].copy_from_slice(&1u32.to_le_bytes());
    protective[446 + 12..446 + 16].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    protective[510..].copy_from_slice(&[0x55, 0xaa]);
    let entries = vec![0u8; ENTRIES];
    let header = |own: u64, other: u64, table: u64| {
        let mut header = vec![0u8; 512];
        let mut put = |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, b"EFI PART");
        put(8, &0x0001_0000u32.to_le_bytes());
        put(12, &92u32.to_le_bytes());
        put(24, &own.to_le_bytes());
        put(32, &other.to_le_bytes());
        put(40, &34u64.to_le_bytes());
        put(48, &(last - 33).to_le_bytes());
        put(56, b"guid of the disk");
        put(72, &table.to_le_bytes());
        put(80, &128u32.to_le_bytes());
        put(84, &128u32.to_le_bytes());
        put(88, &crc32(&entries).to_le_bytes());
        let sum = crc32(&header[..92]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header
    };
    vec![
        (0, protective),
        (512, header(1, last, 2)),
        (1024, entries.clone()),
        ((last - 32) * 512, entries.clone()),
        (last * 512, header(last, 1, last - 32)),
    ]
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_partition_table() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    /// On a file, so that the test needs no device.
    #[test]
    fn libblkid_recognises_every_signature() {
        for foreign in Foreign::ALL {
            let path = std::env::temp_dir().join(format!("testkit-{}-{foreign:?}", std::process::id()));
            std::fs::File::create(&path).and_then(|file| file.set_len(64 << 20)).expect("a temporary file can be made");
            let written = foreign.write(&path);
            std::fs::remove_file(&path).expect("the temporary file can be removed");
            written.expect("the signature is recognised");
        }
    }
}
