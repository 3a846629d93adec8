//! Format of a grant and an acknowledgement in a block of the ledger.
//!
//! A block has 4096 bytes: `magic(8) | length(4, LE) | text | zeros …`. Each line of the text is one `key=value`. A block whose first
//! sector is zeros is free; any other block without a valid record is damaged.
//!
//! The first sector (512 bytes) holds the whole record and ends with its CRC-32C. No disk writes less than a sector, so a power cut
//! during a write leaves the old record or the new one, whichever of the eight sectors reached the disk. Earlier versions wrote one
//! CRC-32C of the whole block at its end. This version still writes it, for a rollback, and reads it only if the first sector has no
//! valid checksum of its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{LvName, LvUuid, NodeId, VgUuid};

use super::grant::{Ack, AckState, Grant, Mode, PathSum};

/// Bytes in one block: the largest sector that a disk may have.
pub(super) const BLOCK: usize = 4096;

/// Bytes that every disk writes as a whole.
const SECTOR: usize = 512;
/// Offset of the first sector's checksum.
const SUM: usize = SECTOR - 4;
/// Offset of the text.
const TEXT: usize = 12;
const MAGIC: &[u8; 8] = b"LVMCSI\x00\x01";
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// The content of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Never used, or freed.
    Free,
    /// A grant, and the boot in which the controller's side gave it ([`State::given_in`](super::grant::State)).
    Grant(Grant, Option<String>),
    /// An acknowledgement for the volume, written by its holder.
    Ack(LvUuid, Ack),
}

pub(super) fn encode(block: &Block) -> [u8; BLOCK] {
    let text = match block {
        Block::Free => return [0; BLOCK],
        Block::Grant(grant, boot) => {
            let name = grant.name.as_ref().map(|name| format!("name={name}\n")).unwrap_or_default();
            let boot = boot.as_ref().map(|boot| format!("boot={boot}\n")).unwrap_or_default();
            format!(
                "kind=grant\nvg={}\nlv={}\n{name}epoch={}\nmode={}\nholder={}\n{boot}",
                grant.vg,
                grant.lv,
                grant.epoch,
                grant.mode.to_text(),
                grant.holder
            )
        }
        Block::Ack(lv, ack) => {
            let state = if ack.state == AckState::Staged { "staged" } else { "released" };
            let at: Vec<String> = ack.at.iter().map(|PathSum(sum)| format!("{sum:016x}")).collect();
            let at = if at.is_empty() { String::new() } else { format!("at={}\n", at.join(",")) };
            format!("kind=ack\nlv={lv}\nepoch={}\nboot={}\nstate={state}\n{at}", ack.epoch, ack.boot)
        }
    };
    let mut out = [0; BLOCK];
    // Every value is a checked id, a number, or a boot id cut to 64 bytes when read. A test checks that the longest ones fit.
    let text = &text.as_bytes()[..text.len().min(SUM - TEXT)];
    out[..8].copy_from_slice(MAGIC);
    out[8..TEXT].copy_from_slice(&u32::try_from(text.len()).unwrap_or_default().to_le_bytes());
    out[TEXT..TEXT + text.len()].copy_from_slice(text);
    seal(&mut out);
    out
}

/// Writes the checksums.
fn seal(block: &mut [u8; BLOCK]) {
    for end in [SUM, BLOCK - 4] {
        let sum = CRC.checksum(&block[..end]);
        block[end..end + 4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Whether the checksum at `end` is that of the bytes before.
fn is_sealed(block: &[u8], end: usize) -> bool {
    CRC.checksum(&block[..end]).to_le_bytes() == block[end..end + 4]
}

/// Reads a block; the error says why it is damaged.
pub(super) fn decode(bytes: &[u8]) -> Result<Block, &'static str> {
    if bytes.len() != BLOCK {
        return Err("it is cut short");
    }
    if bytes[..SECTOR] == [0; SECTOR] {
        return Ok(Block::Free);
    }
    if !bytes.starts_with(MAGIC) {
        return Err("it does not begin as a ledger block does");
    }
    if !is_sealed(bytes, SUM) && !is_sealed(bytes, BLOCK - 4) {
        return Err("its checksum is wrong");
    }
    let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
    let text = bytes.get(TEXT..SUM).and_then(|rest| rest.get(..length)).ok_or("its length is absurd")?;
    let text = std::str::from_utf8(text).map_err(|_| "its text is not UTF-8")?;
    let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    parse(&fields).ok_or("a field is missing or cannot be read")
}

fn parse(fields: &BTreeMap<&str, &str>) -> Option<Block> {
    let get = |key: &str| fields.get(key).copied();
    let lv = LvUuid::new(get("lv")?)?;
    let epoch = get("epoch")?.parse().ok()?;
    match get("kind")? {
        "grant" => {
            let grant = Grant {
                vg: VgUuid::new(get("vg")?)?,
                lv,
                name: get("name").map(LvName::new).transpose().ok()?,
                epoch,
                mode: Mode::parse(get("mode")?)?,
                holder: NodeId::new(get("holder")?)?,
            };
            Some(Block::Grant(grant, get("boot").map(str::to_owned)))
        }
        "ack" => {
            let state = match get("state")? {
                "staged" => AckState::Staged,
                "released" => AckState::Released,
                _ => return None,
            };
            let at = get("at").map_or_else(|| Some(BTreeSet::new()), sums)?;
            Some(Block::Ack(lv, Ack { epoch, boot: get("boot")?.to_owned(), state, at }))
        }
        _ => None,
    }
}

/// The checksums of some paths, each of 16 hexadecimal digits.
fn sums(text: &str) -> Option<BTreeSet<PathSum>> {
    let sum = |word: &str| (word.len() == 16).then(|| u64::from_str_radix(word, 16).ok().map(PathSum)).flatten();
    let sums: BTreeSet<PathSum> = text.split(',').map(sum).collect::<Option<_>>()?;
    (sums.len() <= Ack::MOST_PATHS).then_some(sums)
}

/// For the fuzzer: a block that can be read encodes to one that reads the same. It corrects the checksum, which a fuzzer cannot guess.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = decode(data);
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(MAGIC);
    let length = data.len().min(SUM - 8);
    block[8..8 + length].copy_from_slice(&data[..length]);
    seal(&mut block);
    if let Ok(content) = decode(&block) {
        assert_eq!(decode(&encode(&content)), Ok(content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{AccessMode, AccessType};
    use std::path::Path;

    fn grant() -> Block {
        let grant = Grant {
            vg: VgUuid::from_compact(&"v".repeat(32)).unwrap(),
            lv: LvUuid::from_compact(&"l".repeat(32)).unwrap(),
            name: Some(LvName::new("pvc-1").unwrap()),
            epoch: u64::MAX,
            mode: Mode::new(AccessType::Block, AccessMode::SingleNodeMultiWriter, true),
            holder: NodeId::new("node-1").unwrap(),
        };
        Block::Grant(grant, Some("b".repeat(36)))
    }

    #[test]
    fn blocks_round_trip() {
        let ack = Ack { epoch: 3, boot: "b".repeat(36), state: AckState::Released, at: BTreeSet::new() };
        // The longest acknowledgement: 16 paths, an epoch of 20 digits, a boot id of 64 bytes.
        let at = (0..16).map(|path| PathSum::of(Path::new(&format!("/staging/{path}")))).collect();
        let staged = Ack { epoch: u64::MAX, boot: "b".repeat(64), state: AckState::Staged, at };
        let lv = LvUuid::from_compact(&"l".repeat(32)).unwrap();
        assert_eq!(decode(&encode(&Block::Ack(lv.clone(), staged.clone()))), Ok(Block::Ack(lv, staged)));
        let Block::Grant(named, _) = grant() else { panic!() };
        let old = Block::Grant(Grant { name: None, ..named }, None);
        for block in [Block::Free, grant(), old, Block::Ack(LvUuid::from_compact(&"l".repeat(32)).unwrap(), ack)] {
            assert_eq!(decode(&encode(&block)), Ok(block));
        }
    }

    #[test]
    fn every_changed_byte_of_the_first_sector_is_noticed() {
        let good = encode(&grant());
        for at in 0..BLOCK {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert_eq!(decode(&bad).is_ok(), at >= SECTOR, "byte {at}");
        }
        assert!(decode(&good[..100]).is_err());
    }

    #[test]
    fn the_longest_record_fits_into_a_sector() {
        let longest = Grant {
            vg: VgUuid::from_compact(&"v".repeat(32)).unwrap(),
            lv: LvUuid::from_compact(&"l".repeat(32)).unwrap(),
            name: Some(LvName::new("n".repeat(63)).unwrap()),
            epoch: u64::MAX,
            mode: Mode::new(AccessType::Block, AccessMode::SingleNodeMultiWriter, true),
            holder: NodeId::new(&"h".repeat(63)).unwrap(),
        };
        assert!(LvName::new("n".repeat(64)).is_err() && NodeId::new(&"h".repeat(64)).is_none());
        let block = Block::Grant(longest, Some("b".repeat(64)));
        assert_eq!(decode(&encode(&block)), Ok(block));
    }

    /// A block as earlier versions wrote it.
    fn former(block: &Block) -> [u8; BLOCK] {
        let mut out = encode(block);
        if *block != Block::Free {
            out[SUM..SECTOR].fill(0);
            let sum = CRC.checksum(&out[..BLOCK - 4]);
            out[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
        }
        out
    }

    #[test]
    fn whichever_sectors_reached_the_disk_a_block_is_old_or_new() {
        let lv = LvUuid::from_compact(&"l".repeat(32)).unwrap();
        let Block::Grant(old, _) = grant() else { panic!() };
        let again = Block::Grant(Grant { epoch: 9, name: None, ..old }, None);
        let ack = |state| Block::Ack(lv.clone(), Ack { epoch: 7, boot: "b".repeat(36), state, at: BTreeSet::new() });
        let (staged, released) = (ack(AckState::Staged), ack(AckState::Released));
        let pairs = [
            (Block::Free, grant()),
            (grant(), Block::Free),
            (grant(), again.clone()),
            (again, grant()),
            (Block::Free, staged.clone()),
            (staged.clone(), released.clone()),
            (released, Block::Free),
            (staged, Block::Free),
        ];
        for (old, new) in pairs {
            assert_eq!(decode(&former(&old)), Ok(old.clone()));
            let torn = |old: [u8; BLOCK], new: [u8; BLOCK], sectors: u8| {
                let mut torn = old;
                for sector in (0..8).filter(|sector| sectors & 1 << sector != 0) {
                    let part = sector * SECTOR..(sector + 1) * SECTOR;
                    torn[part.clone()].copy_from_slice(&new[part]);
                }
                decode(&torn)
            };
            for sectors in 0..=u8::MAX {
                let expected = if sectors & 1 == 0 { &old } else { &new };
                assert_eq!(torn(encode(&old), encode(&new), sectors).as_ref(), Ok(expected), "{sectors:08b}");
                // A torn write over a block of an earlier version: its record may be lost, but nothing else is ever read.
                let read = torn(former(&old), encode(&new), sectors);
                assert!(if sectors & 1 == 0 { read.is_err() || read.as_ref() == Ok(&old) } else { read.as_ref() == Ok(&new) });
                // A block that an earlier version tore.
                let read = torn(former(&old), former(&new), sectors);
                assert!(read.is_err() || read.as_ref() == Ok(&old) || read.as_ref() == Ok(&new), "{sectors:08b} {read:?}");
            }
        }
    }
}
