//! Makes an older metadata text fit the thin pools as they are now, before `vgcfgrestore`.
//!
//! A pool has metadata of its own, which `vgcfgrestore` does not touch. They are ahead of an older text, and LVM does not
//! activate a pool whose transaction differs. Editing the number in the text would let it activate, but could show one tenant
//! another's data: the pool reuses the numbers of removed devices. So we compare each thin LV of the text with the device of its
//! number, which records the transaction that made it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::host::Kernel;
use crate::types::{Extents, LvUuid, PvUuid};

use super::metadata::{Lv, MetadataError, SegmentKind, Vg, label};
use super::thin_metadata::{BLOCK, Device, ThinMetadata, ThinMetadataError};

/// Why a text cannot be made to fit.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("this is not an LVM metadata text")]
    Text(#[from] MetadataError),
    /// The devices of this machine cannot be listed, or the kernel cannot be asked.
    #[error("cannot look for the disks of volume group {vg}")]
    Kernel {
        vg: String,
        #[source]
        source: io::Error,
    },
    /// A disk with a pool's metadata is away.
    #[error(
        "PV {pv}, which has metadata of thin pool {pool}, is on no device; if its label is lost, first run \
         pvcreate --uuid {pv} --restorefile FILE DISK, then udevadm settle"
    )]
    Away { pv: PvUuid, pool: String },
    /// A pool is in use.
    #[error("thin pool {pool} is active; stop the driver and the pods, and run vgchange -an {vg}")]
    Active { vg: String, pool: String },
    /// The pool's own metadata cannot be read where the text locates them.
    #[error("cannot read the metadata of thin pool {pool} where this text locates them; if pvmove ran since, use a newer text")]
    Pool {
        pool: String,
        #[source]
        source: ThinMetadataError,
    },
    /// The text is newer than the pool.
    #[error(
        "thin pool {pool} is at transaction {pool_at}, but this text is at {text_at}: the pool's own metadata are older (lvconvert --repair?)"
    )]
    PoolOlder {
        pool: String,
        /// The pool's transaction.
        pool_at: u64,
        /// The text's transaction.
        text_at: u64,
    },
    /// A pool's metadata are not linear on PVs of the group.
    #[error(
        "the metadata of thin pool {pool} are not linear on PVs of the group; bring back the newest copy of the group, or repair the pool (lvconvert --repair), and never set a transaction id by hand"
    )]
    Layout { pool: String },
}

/// Reads the thin pools of a metadata text from the disks of this machine. Returns a text that fits them, starting with comments
/// on what differs.
///
/// # Errors
/// See [`RestoreError`]; nothing was changed.
pub fn prepare(kernel: &dyn Kernel, text: &str) -> Result<String, RestoreError> {
    let vg = Vg::parse(text)?;
    let failed = |source| RestoreError::Kernel { vg: vg.name.to_string(), source };
    let mut disks = BTreeMap::new();
    for device in kernel.pv_candidates().map_err(failed)? {
        let label = kernel.read_at(&device, 0, label::SCAN).ok().and_then(|bytes| label::find(&bytes).ok().flatten());
        disks.extend(label.map(|label| (label.pv, device)));
    }
    let mut pools_on_disk = BTreeMap::new();
    for (pool, metadata) in pools(&vg) {
        // The pool's own devices are layers with a suffix on its UUID; a device of an LV of the pool stands on one of them.
        let prefix = format!("LVM-{}{}", vg.uuid.compact(), pool.uuid.compact());
        if !kernel.dm_list(&prefix).map_err(failed)?.is_empty() {
            return Err(RestoreError::Active { vg: vg.name.to_string(), pool: pool.name.clone() });
        }
        pools_on_disk.insert(pool.name.clone(), read_pool(kernel, &vg, pool, metadata, &disks)?);
    }
    fit(text, &vg, &pools_on_disk)
}

/// The thin pools of a group, each with the name of its metadata LV.
fn pools(vg: &Vg) -> impl Iterator<Item = (&Lv, &str)> {
    vg.lvs.iter().filter_map(|lv| match &lv.segments.first()?.kind {
        SegmentKind::ThinPool { metadata, .. } => Some((lv, metadata.as_str())),
        _ => None,
    })
}

fn read_pool(
    kernel: &dyn Kernel,
    vg: &Vg,
    pool: &Lv,
    metadata: &str,
    disks: &BTreeMap<PvUuid, PathBuf>,
) -> Result<ThinMetadata, RestoreError> {
    let pieces = vg.lv(metadata).and_then(|lv| vg.linear_map(lv, Extents(0)));
    let pieces = pieces.ok_or_else(|| RestoreError::Layout { pool: pool.name.clone() })?;
    let mut map = Vec::new();
    for (pv, first, length) in pieces {
        let device = disks.get(&pv).ok_or_else(|| RestoreError::Away { pv: pv.clone(), pool: pool.name.clone() })?;
        map.push((device, first.to_bytes().0, length.to_bytes().0));
    }
    let block = |number: u64| {
        let mut offset = number.checked_mul(BLOCK as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        for (device, first, length) in &map {
            if offset < *length {
                return kernel.read_at(device, first + offset, BLOCK);
            }
            offset -= length;
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    };
    ThinMetadata::read(&block).map_err(|source| RestoreError::Pool { pool: pool.name.clone(), source })
}

/// The changes to a text.
#[derive(Debug, Default)]
struct Edit {
    comments: Vec<String>,
    /// The new transaction of each pool, by name.
    transactions: BTreeMap<String, u64>,
    /// Names of the LVs to leave out.
    gone: BTreeSet<String>,
    /// Sections of the LVs to add.
    added: String,
}

fn fit(text: &str, vg: &Vg, pools_on_disk: &BTreeMap<String, ThinMetadata>) -> Result<String, RestoreError> {
    let mut edit = Edit::default();
    for (pool, _) in pools(vg) {
        if let Some(there) = pools_on_disk.get(&pool.name) {
            compare(vg, pool, there, &mut edit)?;
        }
    }
    Ok(edit.apply(text))
}

fn compare(vg: &Vg, pool: &Lv, there: &ThinMetadata, edit: &mut Edit) -> Result<(), RestoreError> {
    let Some(SegmentKind::ThinPool { transaction_id, pending, .. }) = pool.segments.first().map(|segment| &segment.kind) else {
        return Ok(());
    };
    let (name, text_at) = (&pool.name, *transaction_id);
    // While a message waits for delivery the text is one ahead; LVM delivers it.
    let waits = *pending > 0 && there.transaction + 1 == text_at;
    if there.transaction < text_at && !waits {
        return Err(RestoreError::PoolOlder { pool: name.clone(), pool_at: there.transaction, text_at });
    }
    if there.transaction > text_at {
        edit.comments.push(format!(
            "thin pool {name} is at transaction {}; this text was at {text_at} and is corrected",
            there.transaction
        ));
        edit.transactions.insert(name.clone(), there.transaction);
    }
    let mut matched = BTreeSet::new();
    for lv in vg.thins(name) {
        let Some(SegmentKind::Thin { device_id, transaction_id, .. }) = lv.segments.first().map(|segment| &segment.kind) else {
            continue;
        };
        let why = match there.devices.get(device_id) {
            Some(device) if device.transaction == *transaction_id => {
                matched.insert(*device_id);
                continue;
            }
            None if waits && *transaction_id == there.transaction => continue,
            None => "it was removed since then, and its data are gone",
            Some(_) => "it was removed since then, and its device number is another's now, whose data it would show",
        };
        edit.comments.push(format!("LV {} (device {device_id} of {name}) is left out: {why}", lv.name));
        edit.gone.insert(lv.name.clone());
    }
    for (number, device) in there.devices.iter().filter(|(number, _)| !matched.contains(number)) {
        let lost = format!("lost-{name}-{number}");
        edit.comments.push(format!(
            "device {number} of {name} was made since then, and this text does not know its name. It is now LV {lost}, without \
             tags; look at it (lvchange -ay -K) before you remove it"
        ));
        edit.added += &block_of(vg, pool, &lost, *number, *device, there.block_sectors);
    }
    Ok(())
}

/// The section of an LV for a pool device without a known LV. It covers what was written to the device: the true size is unknown.
fn block_of(vg: &Vg, pool: &Lv, lost: &str, number: u64, device: Device, block_sectors: u64) -> String {
    let sectors = device.reach.saturating_mul(block_sectors).max(1);
    let extents = sectors.div_ceil(vg.extent_size.0.max(1));
    let digest = Sha256::new()
        .chain_update(pool.uuid.as_str())
        .chain_update(number.to_le_bytes())
        .chain_update(device.transaction.to_le_bytes())
        .finalize();
    let compact = digest[..16].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let uuid = LvUuid::from_compact(&compact).map_or_else(String::new, |uuid| uuid.to_string());
    format!(
        "\n{lost} {{\nid = \"{uuid}\"\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nflags = [\"ACTIVATION_SKIP\"]\nsegment_count = 1\n\n\
         segment1 {{\nstart_extent = 0\nextent_count = {extents}\n\ntype = \"thin\"\nthin_pool = \"{}\"\ntransaction_id = {}\n\
         device_id = {number}\n}}\n}}\n",
        pool.name, device.transaction
    )
}

impl Edit {
    /// Applies the changes line by line: LVM puts one section's beginning or end, or one value, on a line.
    fn apply(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 4096);
        for comment in &self.comments {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# lvm-csi: {comment}");
        }
        let mut path: Vec<String> = Vec::new();
        for line in text.lines() {
            let code = without_comment(line);
            let ends = code == "}";
            if let Some(name) = code.strip_suffix('{') {
                path.push(name.trim().to_owned());
            }
            let inside: Vec<&str> = path.iter().map(String::as_str).collect();
            match inside.as_slice() {
                [_, "logical_volumes"] if ends => out += &self.added,
                _ => {}
            }
            if let Some(line) = self.line(line, code, &inside) {
                out += &line;
                out.push('\n');
            }
            if ends {
                path.pop();
            }
        }
        out
    }

    /// The new line; `None` to leave it out.
    fn line(&self, line: &str, code: &str, inside: &[&str]) -> Option<String> {
        let [_, "logical_volumes", lv, deeper @ ..] = inside else { return Some(line.to_owned()) };
        if self.gone.contains(*lv) {
            return None;
        }
        let value = |key: &str| Some(code.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim());
        if value("origin").is_some_and(|origin| self.gone.contains(origin.trim_matches('"'))) {
            return None;
        }
        let Some(transaction) = self.transactions.get(*lv) else { return Some(line.to_owned()) };
        match deeper {
            // The pool has received its messages, or never will.
            [_, message, ..] if message.starts_with("message") => None,
            [_] if value("transaction_id").is_some() => Some(format!("transaction_id = {transaction}")),
            _ => Some(line.to_owned()),
        }
    }
}

/// A line without the comment at its end.
fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    let mut escaped = false;
    for (at, letter) in line.char_indices() {
        match letter {
            '#' if !quoted => return line[..at].trim(),
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = letter == '\\' && !escaped;
    }
    line.trim()
}

#[cfg(test)]
mod tests {
    use super::super::thin_metadata::tests::made;
    use super::*;

    const TEXT: &str = include_str!("../../tests/fixtures/lvm/external-origin.txt");

    /// Number and transaction of the pool's devices, as the text has them.
    fn devices(vg: &Vg) -> Vec<(u64, u64, u64)> {
        let mut devices: Vec<_> = vg
            .thins("pool")
            .filter_map(|lv| match lv.segments[0].kind {
                SegmentKind::Thin { device_id, transaction_id, .. } => Some((device_id, transaction_id, 10)),
                _ => None,
            })
            .collect();
        devices.sort_unstable();
        devices
    }

    fn fitted(text: &str, transaction: u64, devices: &[(u64, u64, u64)]) -> Result<(String, Vg), RestoreError> {
        let blocks = made(transaction, devices);
        let block = |at: u64| Ok(blocks[usize::try_from(at).unwrap()].clone());
        let pools_on_disk = BTreeMap::from([("pool".to_owned(), ThinMetadata::read(&block).unwrap())]);
        let text = fit(text, &Vg::parse(text).unwrap(), &pools_on_disk)?;
        let vg = Vg::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        Ok((text, vg))
    }

    fn transaction(vg: &Vg) -> u64 {
        match vg.lv("pool").unwrap().segments[0].kind {
            SegmentKind::ThinPool { transaction_id, .. } => transaction_id,
            _ => panic!("no pool"),
        }
    }

    #[test]
    fn a_text_that_fits_stays_as_it_is() {
        let before = Vg::parse(TEXT).unwrap();
        let (text, _) = fitted(TEXT, transaction(&before), &devices(&before)).unwrap();
        assert_eq!(text.trim_end(), TEXT.trim_end().trim_end_matches('\0'));
    }

    #[test]
    fn the_transaction_is_that_of_the_pool_and_what_was_made_since_is_kept() {
        let before = Vg::parse(TEXT).unwrap();
        let mut there = devices(&before);
        there.push((90, 7, 300));
        let (text, after) = fitted(TEXT, 9, &there).unwrap();
        assert_eq!(transaction(&after), 9);
        let lost = after.lv("lost-pool-90").unwrap();
        assert!(lost.tags.is_empty() && lost.activation_skip && lost.visible);
        // 300 blocks of 128 sectors.
        assert_eq!(lost.extents().0, (300 * 128_u64).div_ceil(after.extent_size.0));
        let SegmentKind::Thin { pool, device_id, transaction_id, .. } = &lost.segments[0].kind else { panic!("not thin") };
        assert_eq!((pool.as_str(), *device_id, *transaction_id), ("pool", 90, 7));
        // Everything else is unchanged.
        let mut rest = after.clone();
        rest.lvs.retain(|lv| lv.name != "lost-pool-90" && lv.name != "pool");
        assert!(before.lvs.iter().filter(|lv| lv.name != "pool").eq(&rest.lvs));
        assert_eq!(text.lines().filter(|line| line.starts_with("# lvm-csi: ")).count(), 2);
    }

    #[test]
    fn an_lv_whose_device_is_gone_or_anothers_is_left_out() {
        let before = Vg::parse(TEXT).unwrap();
        // t1, the origin of a snapshot, was removed; the number of s1 was used again.
        let mut there = devices(&before);
        there.retain(|(number, ..)| *number != 1);
        for device in there.iter_mut().filter(|(number, ..)| *number == 3) {
            device.1 = 8;
        }
        let (text, after) = fitted(TEXT, 9, &there).unwrap();
        assert!(after.lv("t1").is_none() && after.lv("s1").is_none());
        let lost = after.lv("lost-pool-3").unwrap();
        assert_ne!(lost.uuid, before.lv("s1").unwrap().uuid);
        let clone = after.lv("c1").unwrap();
        assert!(matches!(&clone.segments[0].kind, SegmentKind::Thin { origin: None, .. }), "{clone:?}");
        assert!(text.contains("LV s1 (device 3 of pool) is left out") && text.contains("another's now"), "{text}");
    }

    #[test]
    fn a_pool_that_is_behind_is_refused_and_a_waiting_message_is_left_to_lvm() {
        let before = Vg::parse(TEXT).unwrap();
        let (at, there) = (transaction(&before), devices(&before));
        assert!(matches!(fitted(TEXT, at - 1, &there), Err(RestoreError::PoolOlder { .. })));
        let pool = "type = \"thin-pool\"";
        let waits = TEXT.replace(pool, &format!("{pool}\n\nmessage1 {{\ncreate = 9\n}}"));
        let (text, _) = fitted(&waits, at - 1, &there).unwrap();
        assert!(text.contains("create = 9"));
        let (text, after) = fitted(&waits, at + 3, &there).unwrap();
        assert!(!text.contains("create = 9"));
        assert_eq!(transaction(&after), at + 3);
    }

    #[test]
    fn indented_texts_with_comments_are_understood_too() {
        let indented: String = TEXT.lines().map(|line| format!("\t{line}\t# a }} or {{ \"here\"\n")).collect();
        let before = Vg::parse(&indented).unwrap();
        let (_, after) = fitted(&indented, 9, &devices(&before)).unwrap();
        assert_eq!(transaction(&after), 9);
        assert_eq!(without_comment("a = \"# \\\" #\" # b"), "a = \"# \\\" #\"");
    }
}
