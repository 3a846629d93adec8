//! Reads the kernel's own metadata of an inactive thin pool from its disks: its transaction and its devices. Layout:
//! `drivers/md/dm-thin-metadata.c` and `drivers/md/persistent-data/` of Linux.

use std::collections::BTreeMap;
use std::io;

/// The size of a metadata block, in bytes.
pub(super) const BLOCK: usize = 4096;
const MAGIC: u64 = 27_022_010;
/// XORed with the checksum of a superblock, and of a tree node.
const SUPERBLOCK_XOR: u32 = 160_774;
const NODE_XOR: u32 = 121_107;
/// No tree is that high: each node has many children.
const MOST_LEVELS: u32 = 16;
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// A thin device in its pool's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// The pool's transaction that made it. Number and transaction together are unique; numbers alone are reused.
    pub(super) transaction: u64,
    /// The number of blocks from its beginning to the last mapped one.
    pub(super) reach: u64,
}

/// The content of a pool's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ThinMetadata {
    /// The pool's current transaction.
    pub(super) transaction: u64,
    /// Sectors per data block.
    pub(super) block_sectors: u64,
    /// Devices by number.
    pub(super) devices: BTreeMap<u64, Device>,
}

/// Why the metadata cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ThinMetadataError {
    /// The disk gave an error.
    #[error("cannot read block {0}")]
    Io(u64, #[source] io::Error),
    /// The block is something else, or damaged.
    #[error("block {0} {1}")]
    Block(u64, &'static str),
}

/// Reads a block of the metadata by its number.
type Read<'a> = dyn Fn(u64) -> io::Result<Vec<u8>> + 'a;

impl ThinMetadata {
    /// Reads the metadata through `block`.
    ///
    /// # Errors
    /// A block cannot be read, or is not what it should be.
    pub(super) fn read(block: &Read<'_>) -> Result<Self, ThinMetadataError> {
        let bytes = whole(block, 0, SUPERBLOCK_XOR)?;
        if word(&bytes, 32) != MAGIC {
            return Err(ThinMetadataError::Block(0, "is not the superblock of a thin pool"));
        }
        let mut roots = BTreeMap::new();
        let mut details = BTreeMap::new();
        walk(block, word(&bytes, 320), MOST_LEVELS, &mut |key, value| {
            roots.insert(key, word(value, 0));
        })?;
        walk(block, word(&bytes, 328), MOST_LEVELS, &mut |key, value| {
            details.insert(key, word(value, 8));
        })?;
        let mut devices = BTreeMap::new();
        for (number, transaction) in details {
            let reach = roots.get(&number).map_or(Ok(0), |root| last(block, *root))?;
            devices.insert(number, Device { transaction, reach });
        }
        Ok(Self { transaction: word(&bytes, 48), block_sectors: half(&bytes, 336).into(), devices })
    }
}

/// A node of a tree.
struct Node {
    bytes: Vec<u8>,
    is_leaf: bool,
    count: usize,
    values: usize,
    value_size: usize,
}

impl Node {
    fn read(block: &Read<'_>, at: u64) -> Result<Self, ThinMetadataError> {
        let bytes = whole(block, at, NODE_XOR)?;
        let [count, most, value_size] = [16, 20, 24].map(|field| half(&bytes, field) as usize);
        let is_leaf = match half(&bytes, 4) {
            1 => false,
            2 => true,
            _ => return Err(ThinMetadataError::Block(at, "is not a tree node")),
        };
        let fits = most <= BLOCK / 8 && count <= most && value_size >= 8 && 32 + most * (8 + value_size) <= BLOCK;
        if !fits || (!is_leaf && value_size != 8) {
            return Err(ThinMetadataError::Block(at, "is a tree node of an impossible size"));
        }
        Ok(Self { bytes, is_leaf, count, values: 32 + most * 8, value_size })
    }

    fn key(&self, at: usize) -> u64 {
        word(&self.bytes, 32 + at * 8)
    }

    fn value(&self, at: usize) -> &[u8] {
        &self.bytes[self.values + at * self.value_size..][..self.value_size]
    }
}

/// Visits every key of a tree with its value.
fn walk(block: &Read<'_>, at: u64, levels: u32, take: &mut dyn FnMut(u64, &[u8])) -> Result<(), ThinMetadataError> {
    let node = Node::read(block, at)?;
    let levels = levels.checked_sub(1).ok_or(ThinMetadataError::Block(at, "is deeper than any tree"))?;
    for index in 0..node.count {
        match node.is_leaf {
            true if node.value_size < 24 && node.value_size != 8 => {
                return Err(ThinMetadataError::Block(at, "holds values of another kind"));
            }
            true => take(node.key(index), node.value(index)),
            false => walk(block, word(node.value(index), 0), levels, take)?,
        }
    }
    Ok(())
}

/// The last key of a tree plus one; 0 for an empty tree.
fn last(block: &Read<'_>, mut at: u64) -> Result<u64, ThinMetadataError> {
    for _ in 0..MOST_LEVELS {
        let node = Node::read(block, at)?;
        let Some(index) = node.count.checked_sub(1) else { return Ok(0) };
        if node.is_leaf {
            return Ok(node.key(index).saturating_add(1));
        }
        at = word(node.value(index), 0);
    }
    Err(ThinMetadataError::Block(at, "is deeper than any tree"))
}

/// Reads a block and verifies its checksum and its place.
fn whole(block: &Read<'_>, at: u64, xor: u32) -> Result<Vec<u8>, ThinMetadataError> {
    let bytes = block(at).map_err(|error| ThinMetadataError::Io(at, error))?;
    if bytes.len() != BLOCK {
        return Err(ThinMetadataError::Block(at, "is cut short"));
    }
    // The kernel's CRC has no final inversion.
    if !CRC.checksum(&bytes[4..]) ^ xor != half(&bytes, 0) {
        return Err(ThinMetadataError::Block(at, "is damaged: its checksum is wrong"));
    }
    // After the checksum and flags each block has its own number.
    if word(&bytes, 8) != at {
        return Err(ThinMetadataError::Block(at, "belongs elsewhere"));
    }
    Ok(bytes)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
        block[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn sealed(mut block: Vec<u8>, at: u64, xor: u32) -> Vec<u8> {
        put(&mut block, 8, &at.to_le_bytes());
        let sum = !CRC.checksum(&block[4..]) ^ xor;
        put(&mut block, 0, &sum.to_le_bytes());
        block
    }

    fn node(at: u64, leaf: bool, entries: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let size = entries.first().map_or(8, |(_, value)| value.len());
        let most = (BLOCK - 32) / (8 + size);
        put(&mut block, 4, &(if leaf { 2_u32 } else { 1 }).to_le_bytes());
        for (field, number) in [(16, entries.len()), (20, most), (24, size)] {
            put(&mut block, field, &u32::try_from(number).unwrap().to_le_bytes());
        }
        for (index, (key, value)) in entries.iter().enumerate() {
            put(&mut block, 32 + index * 8, &key.to_le_bytes());
            put(&mut block, 32 + most * 8 + index * size, value);
        }
        sealed(block, at, NODE_XOR)
    }

    /// Metadata of a pool at a transaction. Each device is its number, the transaction that made it, and its mapped blocks.
    pub(in crate::lvm) fn made(transaction: u64, devices: &[(u64, u64, u64)]) -> Vec<Vec<u8>> {
        let first = 4;
        let mut blocks = vec![Vec::new(); first];
        let number = |value: u64| value.to_le_bytes().to_vec();
        let mut roots = Vec::new();
        let mut details = Vec::new();
        for (device, made_by, reach) in devices {
            let at = blocks.len() as u64;
            roots.push((*device, number(at)));
            details.push((*device, [0, *made_by, 0].map(u64::to_le_bytes).concat()));
            let mapped: Vec<_> = (*reach > 0).then(|| (reach - 1, number(0))).into_iter().collect();
            blocks.push(node(at, true, &mapped));
        }
        blocks[1] = node(1, true, &roots);
        // Two levels.
        blocks[2] = node(2, false, &[(0, number(3))]);
        blocks[3] = node(3, true, &details);
        let mut superblock = vec![0; BLOCK];
        for (at, value) in [(32, MAGIC), (48, transaction), (320, 1), (328, 2)] {
            put(&mut superblock, at, &value.to_le_bytes());
        }
        put(&mut superblock, 336, &128_u32.to_le_bytes());
        blocks[0] = sealed(superblock, 0, SUPERBLOCK_XOR);
        blocks
    }

    fn read(blocks: &[Vec<u8>]) -> Result<ThinMetadata, ThinMetadataError> {
        let block = |at: u64| blocks.get(usize::try_from(at).unwrap()).cloned().ok_or(io::ErrorKind::UnexpectedEof.into());
        ThinMetadata::read(&block)
    }

    #[test]
    fn devices_have_the_transaction_that_made_them() {
        let metadata = read(&made(7, &[(1, 0, 100), (4, 6, 0)])).unwrap();
        assert_eq!((metadata.transaction, metadata.block_sectors), (7, 128));
        let devices: Vec<_> = metadata.devices.into_iter().collect();
        assert_eq!(devices, [(1, Device { transaction: 0, reach: 100 }), (4, Device { transaction: 6, reach: 0 })]);
        assert!(read(&made(1, &[])).unwrap().devices.is_empty());
    }

    #[test]
    fn what_is_damaged_or_something_else_is_an_error() {
        let good = made(7, &[(1, 0, 100)]);
        for block in 0..good.len() {
            for at in [4, 8, 16, 24, 32, 48, 320, 4095] {
                let mut bad = good.clone();
                bad[block][at] ^= 1;
                assert!(matches!(read(&bad), Err(ThinMetadataError::Block(..))), "{block} {at}");
            }
            let mut short = good.clone();
            short.truncate(block);
            assert!(matches!(read(&short), Err(ThinMetadataError::Io(..))));
        }
        let mut swapped = good.clone();
        swapped.swap(1, 4);
        assert!(matches!(read(&swapped), Err(ThinMetadataError::Block(_, "belongs elsewhere"))));
        // A tree with a cycle.
        let mut round = good;
        round[2] = node(2, false, &[(0, 2_u64.to_le_bytes().to_vec())]);
        assert!(matches!(read(&round), Err(ThinMetadataError::Block(2, _))));
    }
}
