//! Parses texts that LVM wrote, then texts that it did not write.

use crate::types::{Bytes, Extents, Sectors};

use super::text::{self, Fault, Value};
use super::{MetadataError, SegmentKind, Stripe, Vg};

const SNAPSHOTS: &str = include_str!("../../../tests/fixtures/lvm/snapshots.txt");
const EXTERNAL: &str = include_str!("../../../tests/fixtures/lvm/external-origin.txt");
const MISSING: &str = include_str!("../../../tests/fixtures/lvm/missing-pv.txt");

/// Decodes lines of hexadecimal digits.
pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn kind(vg: &Vg, lv: &str) -> SegmentKind {
    vg.lv(lv).unwrap().segments[0].kind.clone()
}

/// Parses a text with one change; `from` must occur in it.
fn changed(text: &str, from: &str, to: &str) -> Result<Vg, MetadataError> {
    assert!(text.contains(from), "{from}");
    Vg::parse(text.replacen(from, to, 1))
}

#[test]
fn a_group_with_pool_snapshots_and_linear_lvs() {
    let vg = Vg::parse(SNAPSHOTS).unwrap();
    assert_eq!((vg.name.as_str(), vg.seqno, vg.extent_size), ("vg", 36, Sectors(8192)));
    assert_eq!((vg.writable, vg.exported, vg.partial, vg.max_lv), (true, false, false, 0));
    assert_eq!(vg.extent_bytes(), Bytes(4 << 20));
    assert_eq!(vg.metadata_bytes, SNAPSHOTS.trim_end_matches('\0').len());
    assert_eq!(vg.pvs.len(), 2);
    let pv = vg.pv("pv0").unwrap();
    assert_eq!((pv.dev_size, pv.pe_start, pv.pe_count), (Sectors(4_096_000), Sectors(4096), Extents(499)));

    let v1 = vg.lv("v1").unwrap();
    assert_eq!(v1.tags, ["d.b=2", "t=1", "t=3"]);
    assert!(v1.is_linear() && v1.visible && v1.writable && !v1.activation_skip);
    assert_eq!((v1.created, vg.lv_size(v1)), (Some(1_795_255_608), Bytes(48 << 20)));
    assert_eq!(vg.lv_by_uuid(&v1.uuid), Some(v1));

    let SegmentKind::ThinPool { data, metadata, chunk_size, zero_new_blocks, discards, pending, .. } = kind(&vg, "pool") else {
        panic!("no pool");
    };
    assert_eq!((data.as_str(), metadata.as_str(), chunk_size), ("pool_tdata", "pool_tmeta", Sectors(128)));
    assert_eq!((zero_new_blocks, discards.as_str(), pending), (true, "passdown", 0));
    assert!(!vg.lv("pool_tdata").unwrap().visible);
    assert!(matches!(kind(&vg, "t1"), SegmentKind::Thin { device_id: 1, transaction_id: 0, origin: None, .. }));
    assert!(matches!(kind(&vg, "c1"), SegmentKind::Thin { origin: Some(of), .. } if of == "s1"));
    let s1 = vg.lv("s1").unwrap();
    assert!(!s1.writable && s1.activation_skip && !s1.is_linear());
    // t1 and s1 of 256 extents, c1 of 512.
    assert_eq!(vg.provisioned("pool"), Bytes(1024 * (4 << 20)));
    assert_eq!(vg.provisioned("v1"), Bytes(0));

    assert!(matches!(kind(&vg, "snapshot0"), SegmentKind::Snapshot { origin, cow, chunk_size: Sectors(8), merging: false }
        if origin == "g3" && cow == "g3snap"));
    assert_eq!(vg.dependents("g3"), ["g3snap"]);
    // Thin snapshots outlive their origin.
    assert!(vg.dependents("t1").is_empty());
}

#[test]
fn free_extents_are_what_no_lv_holds() {
    let vg = Vg::parse(SNAPSHOTS).unwrap();
    let held: u64 = vg.lvs.iter().filter(|lv| lv.is_linear()).map(|lv| lv.extents().0).sum();
    assert_eq!(vg.free_extents(), Extents(998 - held));
    let [first, second] = &vg.pvs[..] else { panic!("two PVs") };
    assert_eq!(vg.free_extents_of(second), Extents(497));
    assert_eq!(vg.gaps(second), [(Extents(2), Extents(497))]);
    assert_eq!(vg.free_extents_of(first).0 + 497, vg.free_extents().0);
    let locked = changed(SNAPSHOTS, "\"ALLOCATABLE\"", "").unwrap();
    assert_eq!(locked.free_extents(), Extents(497));
}

#[test]
fn an_external_origin_has_a_dependent() {
    let vg = Vg::parse(EXTERNAL).unwrap();
    assert_eq!(vg.dependents("e0"), ["e1"]);
    assert!(!vg.lv("e0").unwrap().writable);
}

#[test]
fn striped_raid_and_missing_pv() {
    let vg = Vg::parse(MISSING).unwrap();
    assert!(vg.partial && vg.pvs[1].missing);
    assert_eq!(vg.free_extents_of(&vg.pvs[1]), Extents(0));
    assert_eq!(vg.tags, ["vgtag"]);
    let SegmentKind::Striped { stripes, stripe_size } = kind(&vg, "st") else { panic!("not striped") };
    let on = |key: &str, start| Stripe::Pv { key: key.into(), start: Extents(start) };
    assert_eq!((stripes, stripe_size), (vec![on("pv0", 2), on("pv1", 0)], Sectors(128)));
    let SegmentKind::Other { type_name, refs, areas } = kind(&vg, "r1") else { panic!("not raid") };
    assert_eq!((type_name.as_str(), refs.len(), areas.len()), ("raid1", 4, 0));
    assert!(refs.contains(&"r1_rimage_1".to_owned()));
    assert!(vg.lv("q+u_o.t").is_some());
}

#[test]
fn a_linear_map_names_sectors_on_devices() {
    let vg = Vg::parse(MISSING).unwrap();
    let x = vg.lv("x").unwrap();
    let (first, second) = (&vg.pvs[0].uuid, &vg.pvs[1].uuid);
    let piece =
        |pv: &crate::types::PvUuid, extent: u64, count: u64| (pv.clone(), Sectors(4096 + extent * 8192), Sectors(count * 8192));
    let all = vec![piece(first, 0, 2), piece(second, 5, 198), piece(first, 7, 100)];
    assert_eq!(vg.linear_map(x, Extents(0)), Some(all));
    assert_eq!(vg.linear_map(x, Extents(150)), Some(vec![piece(second, 153, 50), piece(first, 7, 100)]));
    assert_eq!(vg.linear_map(x, Extents(299)), Some(vec![piece(first, 106, 1)]));
    assert_eq!(vg.linear_map(x, Extents(300)), Some(vec![]));
    assert_eq!(vg.linear_map(x, Extents(301)), None);
    assert_eq!(vg.linear_map(vg.lv("st").unwrap(), Extents(0)), None);
    assert_eq!(vg.linear_map(vg.lv("r1").unwrap(), Extents(0)), None);
}

#[test]
fn states_of_a_group() {
    let export = changed(MISSING, "status = [\"RESIZEABLE\", ", "status = [\"EXPORTED\", \"RESIZEABLE\", ").unwrap();
    assert!(export.exported);
    assert!(!changed(MISSING, "\"READ\", \"WRITE\"]", "\"READ\"]").unwrap().writable);
    let owned = changed(MISSING, "format = \"lvm2\"", "format = \"lvm2\"\nsystem_id = \"n1\"\nlock_type = \"sanlock\"").unwrap();
    assert_eq!((owned.system_id.as_deref(), owned.lock_type.as_deref()), (Some("n1"), Some("sanlock")));
    let queue = changed(SNAPSHOTS, "pool {\nid", "pool {\nunknown = [1, \"x\"]\nfuture { a = 1 }\nid");
    // An unknown section in an LV would be a segment.
    assert!(queue.is_err());
    assert!(changed(SNAPSHOTS, "pool {\nid", "pool {\nunknown = [1, \"x\"]\nid").is_ok());
    let pending = changed(SNAPSHOTS, "zero_new_blocks = 1\n", "zero_new_blocks = 1\nmessage1 {\ncreate = \"t1\"\n}\n").unwrap();
    assert!(matches!(kind(&pending, "pool"), SegmentKind::ThinPool { pending: 1, .. }));
    assert!(changed(SNAPSHOTS, "type = \"thin-pool\"", "type = \"thin-pool+CROP_METADATA\"").is_ok());
    let merging = changed(SNAPSHOTS, "cow_store", "merging_store").unwrap();
    assert!(matches!(kind(&merging, "snapshot0"), SegmentKind::Snapshot { merging: true, .. }));
}

#[test]
fn a_text_that_leaves_doubt_is_refused() {
    let v1 = "m4e10P-O7na-2l8D-NJLt-AdwK-gtFu-L8G72b";
    let v2 = "xc0Skt-ejO3-9UAM-Qo8g-R9XV-AImj-qlvmtp";
    let cases = [
        ("contents = \"Text", "contents = \"Other", "it has other contents"),
        ("version = 1", "version = 2", "another version"),
        ("version = 1", "version = 1\nother { id = 1 }", "more than one volume group"),
        ("seqno = 36", "seqno = 99999999999999999999", "volume group vg in the metadata: seqno"),
        ("seqno = 36", "seqno = -1", "seqno"),
        ("seqno = 36", "", "seqno"),
        ("extent_size = 8192", "extent_size = 0", "extent_size"),
        ("extent_size = 8192", "extent_size = 9223372036854775807", "extent_size"),
        ("pe_count = 499", "pe_count = 9223372036854775807", "physical volume pv0 in the metadata: pe_count"),
        ("vg {", "v*g {", "cannot be used"),
        (v1, "m4e10P", "logical volume v1 in the metadata: id"),
        (v2, v1, "logical volume v2 in the metadata: its UUID is used twice"),
        ("segment_count = 2", "segment_count = 3", "segment_count is not"),
        ("start_extent = 4", "start_extent = 5", "gap or overlap"),
        ("extent_count = 4", "extent_count = 5", "gap or overlap"),
        ("extent_count = 8", "extent_count = 0", "empty"),
        ("extent_count = 8", "extent_count = 9223372036854775807", "outside its PV"),
        ("\"pv0\", 8", "\"pv0\", 498", "outside its PV"),
        ("\"pv0\", 8", "\"pv7\", 8", "stripes"),
        ("\"pv0\", 8", "\"pv0\"", "stripes"),
        ("stripe_count = 1", "stripe_count = 2", "stripes"),
        ("tags = [", "tags = [1, ", "tags"),
        ("physical_volumes {", "physical_volumes = 1 x {", "physical_volumes"),
    ];
    for (from, to, expected) in cases {
        let error = changed(SNAPSHOTS, from, to).unwrap_err();
        assert!(error.to_string().contains(expected), "{from} to {to}: {error}");
    }
}

#[test]
fn no_text_cut_off_anywhere_passes_or_panics() {
    for source in [SNAPSHOTS, MISSING] {
        let end = source.find("contents").unwrap();
        for length in 0..source.len() {
            let read = Vg::parse(&source.as_bytes()[..length]);
            assert!(length > end || read.is_err(), "{length} bytes of {} were enough", source.len());
        }
    }
}

#[test]
fn no_changed_byte_panics() {
    let mut bytes = SNAPSHOTS.as_bytes().to_vec();
    let others = [0, b'"', b'{', b'}', b'\\', b'9', 0xff];
    for at in 0..bytes.len() {
        let kept = std::mem::replace(&mut bytes[at], others[at % others.len()]);
        let _ = Vg::parse(&bytes);
        bytes[at] = kept;
    }
}

#[test]
fn the_format_is_read_in_all_its_forms() {
    let source = b"# comment {\n a=1 b = -7\tc = 2.5 # more\n\"odd name\" = \"q\\\"\\\\ {\"\n'n' = 'raw\\'\nbare = word\n\
        big = 99999999999999999999\nlist = [ 1, \"two\", 3. ]\nempty = []\nsplit = [\n1\n2 # c ]\n]\ns { t { u = 0 } }\n\0 garbage {";
    let tree = text::parse(source).unwrap();
    let text = |text: &str| Some(Value::Text(text.to_owned().into()));
    assert_eq!(tree.value("a"), Some(&Value::Int(1)));
    assert_eq!(tree.value("b"), Some(&Value::Int(-7)));
    assert_eq!(tree.value("c"), Some(&Value::Float(2.5)));
    assert_eq!(tree.value("odd name").cloned(), text("q\"\\ {"));
    assert_eq!(tree.value("n").cloned(), text("raw\\"));
    assert_eq!(tree.value("bare").cloned(), text("word"));
    assert!(matches!(tree.value("big"), Some(Value::Float(_))));
    assert_eq!(tree.value("list"), Some(&Value::List(vec![Value::Int(1), text("two").unwrap(), Value::Float(3.0)])));
    assert_eq!(tree.value("empty"), Some(&Value::List(vec![])));
    assert_eq!(tree.value("split"), Some(&Value::List(vec![Value::Int(1), Value::Int(2)])));
    assert_eq!(tree.section("s").unwrap().section("t").unwrap().value("u"), Some(&Value::Int(0)));
    assert_eq!((tree.value("s"), tree.section("a"), tree.get("none")), (None, None, None));
}

#[test]
fn faults_of_the_format_have_their_line() {
    let deep = "\na {".repeat(200);
    let cases: [(&[u8], usize, Fault); 16] = [
        (b"a {\nb = 1\n", 3, Fault::Ends("section")),
        (b"a = \"x\ny", 1, Fault::Ends("string")),
        (b"a = \"x\\", 1, Fault::Ends("string")),
        (b"a = [1,\n", 2, Fault::Ends("array")),
        (b"a =", 1, Fault::Ends("line")),
        (b"a", 1, Fault::Ends("line")),
        (b"a b", 1, Fault::Expected("= or {")),
        (b"\n}", 2, Fault::Expected("a name")),
        (b"= 1", 1, Fault::Expected("a name")),
        (b"a = }", 1, Fault::Expected("a value")),
        (b"a = [[1]]", 1, Fault::Expected("a value")),
        (b"a = [,1]", 1, Fault::Expected("a value")),
        (b"a = 0x10", 1, Fault::Number("0x10".into())),
        (b"a = 010", 1, Fault::Number("010".into())),
        (b"a = \"1\n2\\\n3\"\na = 2", 4, Fault::Twice("a".into())),
        (deep.as_bytes(), 18, Fault::TooDeep),
    ];
    for (source, line, fault) in cases {
        let error = text::parse(source).unwrap_err();
        assert_eq!((error.line, error.fault), (line, fault), "{}", String::from_utf8_lossy(source));
    }
    assert_eq!(text::parse(&vec![b' '; text::LARGEST + 1]).unwrap_err().fault, Fault::TooLarge);
}

#[test]
fn bytes_that_are_not_utf8_are_kept_as_replacements() {
    let tree = text::parse(b"description = \"lvcreate \xff\" x\xfe = 1").unwrap();
    assert_eq!(tree.value("description"), Some(&Value::Text("lvcreate \u{fffd}".into())));
    assert_eq!(tree.value("x\u{fffd}"), Some(&Value::Int(1)));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(proptest::sample::select(b"a =\"'\\[]{},#.0-9\n\xff\0".to_vec()), 0..200)) {
        let _ = text::parse(&bytes);
        let _ = Vg::parse(&bytes);
    }
}
