//! For tests: writes a PV's on-disk bytes from a model.

use std::fmt::Write;

use super::metadata::label::Area;
use super::metadata::{Lv, Pv, Segment, SegmentKind, Stripe, Vg, checksum};

/// The metadata area of every PV made here by default.
pub(crate) const AREA: Area = Area { offset: 4096, size: 64 << 10 };

/// A PV with these empty metadata areas.
pub(crate) fn labelled(pv: &str, areas: &[Area]) -> Vec<u8> {
    let mut label = b"LABELONE".to_vec();
    label.extend(1u64.to_le_bytes());
    label.extend([0; 4]);
    label.extend(32u32.to_le_bytes());
    label.extend(b"LVM2 001");
    label.extend(pv.replace('-', "").bytes());
    label.extend((1u64 << 31).to_le_bytes());
    // One data area to the end, then the metadata areas; an empty entry ends each list.
    let lists = [&[Area { offset: 1 << 20, size: 0 }][..], areas];
    for area in lists.iter().flat_map(|list| list.iter().chain([&Area { offset: 0, size: 0 }])) {
        label.extend(area.offset.to_le_bytes());
        label.extend(area.size.to_le_bytes());
    }
    label.resize(512, 0);
    let sum = checksum([&label[20..]]);
    label[16..20].copy_from_slice(&sum.to_le_bytes());
    let end = areas.iter().chain([&AREA]).map(|area| area.offset + area.size).max().unwrap();
    let mut image = vec![0; usize::try_from(end).unwrap()];
    image[512..1024].copy_from_slice(&label);
    image
}

/// A PV with one metadata area that holds a text.
pub(crate) fn disk(pv: &str, seqno: u64, text: &str, ignored: bool) -> Vec<u8> {
    disk_with(AREA, pv, seqno, text, ignored)
}

/// The same, with the area elsewhere.
pub(crate) fn disk_with(area: Area, pv: &str, seqno: u64, text: &str, ignored: bool) -> Vec<u8> {
    let mut text = text.as_bytes().to_vec();
    text.push(0);
    // Each commit is at another offset; every other one wraps around.
    let offset = if seqno.is_multiple_of(2) { 512 + 512 * (seqno % 16) } else { area.size - 512 * (seqno % 16) };
    let mut header = b" LVM2 x[5A%r0N*>".to_vec();
    header.extend(1u32.to_le_bytes());
    for number in [area.offset, area.size, offset, text.len() as u64] {
        header.extend(number.to_le_bytes());
    }
    header.extend(checksum([&text[..]]).to_le_bytes());
    header.extend(u32::from(ignored).to_le_bytes());
    header.resize(508, 0);
    let mut image = labelled(pv, &[area]);
    let at = usize::try_from(area.offset).unwrap();
    image[at..at + 4].copy_from_slice(&checksum([&header[..]]).to_le_bytes());
    image[at + 4..at + 512].copy_from_slice(&header);
    let ring = usize::try_from(area.size).unwrap() - 512;
    for (n, byte) in text.iter().enumerate() {
        image[at + 512 + (usize::try_from(offset).unwrap() - 512 + n) % ring] = *byte;
    }
    image
}

/// The metadata text of a group, with everything the model knows.
pub(crate) fn text(vg: &Vg) -> String {
    let mut out = "contents = \"Text Format Volume Group\"\nversion = 1\n".to_owned();
    let name = &vg.name;
    let flag = |on: bool, flag: &'static str| on.then_some(flag);
    let status = [Some("RESIZEABLE"), Some("READ"), flag(vg.writable, "WRITE"), flag(vg.exported, "EXPORTED")];
    let _ =
        write!(out, "{name} {{\nid = \"{}\"\nseqno = {}\nstatus = {}\n", vg.uuid, vg.seqno, list(status.into_iter().flatten()));
    let _ = writeln!(out, "flags = {}", list(flag(!vg.autoactivation, "NOAUTOACTIVATE").into_iter()));
    let _ = writeln!(out, "tags = {}", list(vg.tags.iter().map(String::as_str)));
    let _ = write!(out, "extent_size = {}\nmax_lv = {}\nphysical_volumes {{\n", vg.extent_size.0, vg.max_lv);
    vg.pvs.iter().for_each(|one| pv(&mut out, one));
    out.push_str("}\nlogical_volumes {\n");
    vg.lvs.iter().for_each(|one| lv(&mut out, one));
    out.push_str("}\n}\n");
    out
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(", "))
}

fn pv(out: &mut String, pv: &Pv) {
    let flag = |on: bool, flag: &'static str| on.then_some(flag);
    let status = [flag(pv.allocatable, "ALLOCATABLE"), flag(pv.missing, "MISSING")];
    let _ = write!(out, "{} {{\nid = \"{}\"\nstatus = {}\n", pv.key, pv.uuid, list(status.into_iter().flatten()));
    if let Some(device) = &pv.device {
        let _ = writeln!(out, "device = {device:?}");
    }
    let _ = write!(out, "dev_size = {}\npe_start = {}\npe_count = {}\n}}\n", pv.dev_size.0, pv.pe_start.0, pv.pe_count.0);
}

fn lv(out: &mut String, lv: &Lv) {
    let flag = |on: bool, flag: &'static str| on.then_some(flag);
    let status = [Some("READ"), flag(lv.writable, "WRITE"), flag(lv.visible, "VISIBLE")];
    let flags = [
        flag(lv.activation_skip, "ACTIVATION_SKIP"),
        flag(!lv.autoactivation, "NOAUTOACTIVATE"),
        flag(lv.error_when_full, "ERROR_WHEN_FULL"),
    ];
    let (status, flags) = (list(status.into_iter().flatten()), list(flags.into_iter().flatten()));
    let _ = write!(out, "{} {{\nid = \"{}\"\nstatus = {status}\nflags = {flags}\n", lv.name, lv.uuid);
    let _ = writeln!(out, "tags = {}", list(lv.tags.iter().map(String::as_str)));
    if let Some(created) = lv.created {
        let _ = writeln!(out, "creation_time = {created}");
    }
    let _ = writeln!(out, "segment_count = {}", lv.segments.len());
    for (n, one) in (1..).zip(&lv.segments) {
        let _ = write!(out, "segment{n} {{\nstart_extent = {}\nextent_count = {}\n", one.start.0, one.count.0);
        segment(out, one);
        out.push_str("}\n");
    }
    out.push_str("}\n");
}

fn segment(out: &mut String, segment: &Segment) {
    match &segment.kind {
        SegmentKind::Striped { stripes, .. } => {
            let place = |stripe: &Stripe| match stripe {
                Stripe::Pv { key: name, start } | Stripe::Lv { name, start } => format!("\"{name}\", {}", start.0),
            };
            let places: Vec<String> = stripes.iter().map(place).collect();
            let _ = write!(out, "type = \"striped\"\nstripe_count = {}\nstripes = [{}]\n", stripes.len(), places.join(", "));
        }
        SegmentKind::ThinPool { data, metadata, transaction_id, chunk_size, zero_new_blocks, discards, pending } => {
            let _ = write!(out, "type = \"thin-pool\"\nmetadata = {metadata:?}\npool = {data:?}\n");
            let _ = write!(out, "transaction_id = {transaction_id}\nchunk_size = {}\n", chunk_size.0);
            let _ = write!(out, "discards = {discards:?}\nzero_new_blocks = {}\n", u8::from(*zero_new_blocks));
            for n in 1..=*pending {
                let _ = write!(out, "message{n} {{\ncreate = 1\n}}\n");
            }
        }
        SegmentKind::Thin { pool, device_id, transaction_id, origin, external_origin, .. } => {
            let _ = write!(out, "type = \"thin\"\nthin_pool = {pool:?}\n");
            let _ = write!(out, "transaction_id = {transaction_id}\ndevice_id = {device_id}\n");
            for (key, of) in [("origin", origin), ("external_origin", external_origin)] {
                if let Some(of) = of {
                    let _ = writeln!(out, "{key} = {of:?}");
                }
            }
        }
        other => panic!("no test writes {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let vg = Vg::parse(include_str!("../../tests/fixtures/lvm/snapshots.txt")).unwrap();
        let mut vg = Vg {
            lvs: vg.lvs.into_iter().filter(|lv| !matches!(lv.segments[0].kind, SegmentKind::Snapshot { .. })).collect(),
            ..vg
        };
        let written = text(&vg);
        vg.metadata_bytes = written.trim_end().len();
        let mut read = Vg::parse(&written).unwrap();
        read.metadata_bytes = vg.metadata_bytes;
        assert_eq!(read, vg);
    }
}
