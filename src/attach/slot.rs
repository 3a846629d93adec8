//! How a grant and an acknowledgement lie in a block of the ledger.
//!
//! One block is 4096 bytes: `magic(8) | length(4, LE) | text | zeros … | CRC-32C(4, LE) over all before it`. The text is one
//! `key=value` a line. A block of zeros is free. Anything else is damaged and stops the driver from reusing it.

use std::collections::BTreeMap;

use crate::types::{LvName, LvUuid, NodeId, VgUuid};

use super::grant::{Ack, AckState, Grant, Mode};

/// Bytes in one block: the largest unit that a disk writes at once.
pub(super) const BLOCK: usize = 4096;

const MAGIC: &[u8; 8] = b"LVMCSI\x00\x01";
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// What one block says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Never used, or given back.
    Free,
    /// A grant, written by the controller's side, and the boot in which it was.
    Grant(Grant, Option<String>),
    /// An acknowledgement for the volume, written by its holder.
    Ack(LvUuid, Ack),
}

/// Writes a block.
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
            format!("kind=ack\nlv={lv}\nepoch={}\nboot={}\nstate={state}\n", ack.epoch, ack.boot)
        }
    };
    let mut out = [0; BLOCK];
    // Every value is a checked id, a number or a boot id that was cut to 64 bytes when read: far below one block.
    let text = &text.as_bytes()[..text.len().min(BLOCK - 16)];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&u32::try_from(text.len()).unwrap_or_default().to_le_bytes());
    out[12..12 + text.len()].copy_from_slice(text);
    let sum = CRC.checksum(&out[..BLOCK - 4]);
    out[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Reads a block; the error is the reason why it is damaged.
pub(super) fn decode(bytes: &[u8]) -> Result<Block, &'static str> {
    if bytes.len() != BLOCK {
        return Err("it is cut short");
    }
    if bytes == [0; BLOCK] {
        return Ok(Block::Free);
    }
    let (body, sum) = bytes.split_at(BLOCK - 4);
    if !body.starts_with(MAGIC) {
        return Err("it does not begin as a ledger block does");
    }
    if CRC.checksum(body).to_le_bytes() != sum {
        return Err("its checksum is wrong");
    }
    let length = u32::from_le_bytes([body[8], body[9], body[10], body[11]]) as usize;
    let text = body.get(12..).and_then(|rest| rest.get(..length)).ok_or("its length is absurd")?;
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
            Some(Block::Ack(lv, Ack { epoch, boot: get("boot")?.to_owned(), state }))
        }
        _ => None,
    }
}

/// What is read is written the same, for the fuzzer. The checksum is mended: a fuzzer does not guess it.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = decode(data);
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(MAGIC);
    let length = data.len().min(BLOCK - 12);
    block[8..8 + length].copy_from_slice(&data[..length]);
    let sum = CRC.checksum(&block[..BLOCK - 4]);
    block[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    if let Ok(content) = decode(&block) {
        assert_eq!(decode(&encode(&content)), Ok(content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{AccessMode, AccessType};

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
        let ack = Ack { epoch: 3, boot: "b".repeat(36), state: AckState::Released };
        let Block::Grant(named, _) = grant() else { panic!() };
        let old = Block::Grant(Grant { name: None, ..named }, None);
        for block in [Block::Free, grant(), old, Block::Ack(LvUuid::from_compact(&"l".repeat(32)).unwrap(), ack)] {
            assert_eq!(decode(&encode(&block)), Ok(block));
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let good = encode(&grant());
        for at in 0..BLOCK {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert!(decode(&bad).is_err(), "byte {at}");
        }
        assert!(decode(&good[..100]).is_err());
    }
}
