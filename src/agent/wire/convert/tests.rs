//! Every value survives the round trip.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::types::{AccessMode, Life, Parameter};
use crate::volume::tag::Origin;

fn uuid() -> impl Strategy<Value = String> {
    "[A-Za-z0-9]{6}(-[A-Za-z0-9]{4}){5}-[A-Za-z0-9]{6}"
}

fn a_vg() -> impl Strategy<Value = VgUuid> {
    uuid().prop_map(|text| VgUuid::new(&text).unwrap())
}

fn an_lv() -> impl Strategy<Value = LvUuid> {
    uuid().prop_map(|text| LvUuid::new(&text).unwrap())
}

fn a_name() -> impl Strategy<Value = LvName> {
    "(pvc|vh|snap)-[a-z0-9]{1,20}".prop_map(|text| LvName::new(text).unwrap())
}

fn a_mode() -> impl Strategy<Value = Mode> {
    let access = prop::sample::select(vec![
        AccessMode::SingleNodeWriter,
        AccessMode::SingleNodeReaderOnly,
        AccessMode::SingleNodeSingleWriter,
        AccessMode::SingleNodeMultiWriter,
    ]);
    (any::<bool>(), any::<bool>(), access).prop_map(|(read_only, block, access)| Mode { read_only, block, access })
}

prop_compose! {
    fn some_marks()(
        life in prop::sample::select(Life::ALL.to_vec()),
        of in prop::option::of(a_name()),
        from in prop::option::of((any::<bool>(), a_name())),
        min in prop::option::of(any::<u64>()),
        zeroed in any::<u64>(),
        named in prop::option::of(a_name()),
    ) -> Marks {
        let from = from.map(|(volume, name)| if volume { Origin::Volume(name) } else { Origin::Snapshot(name) });
        let marks = Marks { life, of, from, min: min.map(Bytes), zeroed: Bytes(zeroed), ..Marks::blank() };
        match named {
            Some(name) => marks.named(&name),
            None => marks,
        }
    }
}

prop_compose! {
    fn a_volume()(vg in a_vg(), lv in a_name(), uuid in an_lv(), size in any::<u64>(), pool in prop::option::of(a_name()), marks in some_marks())
        -> Volume {
        Volume { id: VolumeId { vg, lv }, uuid, size: Bytes(size), placement: Placement::in_pool(pool), marks }
    }
}

prop_compose! {
    fn a_snapshot()(volume in a_volume(), of in a_name(), created in any::<u64>()) -> Snapshot {
        let Volume { id: VolumeId { vg, lv }, uuid, size, placement, marks } = volume;
        let of = VolumeId { vg: vg.clone(), lv: of };
        Snapshot { id: SnapshotId { vg, lv }, uuid, size, placement, created, of, marks }
    }
}

prop_compose! {
    fn a_grant()(vg in a_vg(), lv in an_lv(), name in prop::option::of(a_name()), epoch in any::<u64>(), mode in a_mode(), holder in "[a-z]([a-z.-]{0,20}[a-z])?")
        -> Grant {
        Grant { vg, lv, name, epoch, mode, holder: NodeId::new(&holder).unwrap() }
    }
}

fn a_group() -> impl Strategy<Value = GroupReading> {
    let contents = (
        a_vg(),
        prop::collection::vec(a_volume(), 0..4),
        prop::collection::vec(a_snapshot(), 0..4),
        prop::collection::vec(a_name(), 0..3),
    );
    let contents = contents.prop_map(|(vg, volumes, snapshots, unfinished)| Contents { vg, volumes, snapshots, unfinished });
    prop_oneof![Just(Ok(None)), ".*".prop_map(Err), contents.prop_map(|contents| Ok(Some(Arc::new(contents)))),]
}

fn an_error() -> impl Strategy<Value = Error> {
    let object = prop::sample::select(vec![Object::Volume, Object::Snapshot, Object::Node, Object::Pool, Object::Path]);
    (0..10, object, ".*", ".*", ".*").prop_map(|(kind, object, what, reason, value)| match kind {
        0 => Error::Invalid { field: what, value, reason },
        1 => Error::Missing { object, id: what, hint: reason },
        2 => Error::Differs { object, id: what, difference: reason },
        3 => Error::Exhausted { what, reason },
        4 => Error::OutOfRange { what, reason },
        5 => Error::Precondition { what, reason },
        6 => Error::Busy { what, running: reason },
        7 => Error::Unavailable { what, reason },
        8 => Error::Unimplemented(what),
        _ => Error::failed(what, std::io::Error::other(reason)),
    })
}

fn a_spec() -> impl Strategy<Value = (String, VolumeSpec)> {
    let access = prop::sample::select(vec![
        AccessType::Block,
        AccessType::Mount(None),
        AccessType::Mount(Some(FsKind::Ext4)),
        AccessType::Mount(Some(FsKind::Xfs)),
    ]);
    let source = prop::option::of((any::<bool>(), a_vg(), a_name())).prop_map(|source| {
        source.map(
            |(is_volume, vg, lv)| {
                if is_volume { Source::Volume(VolumeId { vg, lv }) } else { Source::Snapshot(SnapshotId { vg, lv }) }
            },
        )
    });
    let named = prop::option::of(".*");
    (".*", ".*", any::<u64>(), any::<u64>(), prop::collection::vec(access, 0..4), source, named).prop_map(
        |(name, pool, required, limit, access, source, named): (String, _, _, _, _, _, Option<String>)| {
            let class = named.map(|pool| ("pool".to_owned(), pool)).into_iter().collect::<BTreeMap<_, _>>();
            let parameters = Parameters::read("parameters", &class).unwrap();
            let claim = crate::volume::tag::ClaimTag::new("shop/data").filter(|_| required % 2 == 0);
            let size = SizeRange { required: Bytes(required), limit: Bytes(limit) };
            (pool, VolumeSpec { name: VolumeName::new(name), size, access, source, parameters, claim })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn objects_come_back_as_they_were(one in a_volume(), other in a_snapshot(), right in a_grant(), known in a_group()) {
        let measured = (one.id.clone(), Usage { used: one.size, available: Bytes(other.created) });
        prop_assert_eq!(usage(&of_usage(&measured)), Ok(measured));
        prop_assert_eq!(volume(of_volume(&one)), Ok(one));
        prop_assert_eq!(snapshot(of_snapshot(&other)), Ok(other));
        prop_assert_eq!(context(&of_context(&right.context())), Ok(right.context()));
        prop_assert_eq!(grant(&of_grant(&right)), Ok(right));
        let name = VgName::new("vg0").unwrap();
        prop_assert_eq!(group(of_group(&name, &known)), Ok((name, known)));
    }

    #[test]
    fn wishes_pools_and_room_come_back_as_they_were((in_pool, spec) in a_spec(), left in prop::result::maybe_ok(any::<u64>(), ".*"), is_default: bool) {
        prop_assert_eq!(create(of_create(in_pool.clone(), spec.clone())), Ok((in_pool, spec)));
        let left = left.map(|bytes| Capacity { available: Bytes(bytes), maximum: Bytes(bytes / 2), minimum: Bytes(1) });
        prop_assert_eq!(pool(of_pool("fast", &left)), Ok(("fast".to_owned(), left)));
        let one = Offer { name: "fast".to_owned(), vg: VgName::new("vg0").unwrap(), default_size: Bytes(7), is_default };
        prop_assert_eq!(offer(of_offer(&one)), Ok(one));
    }

    #[test]
    fn an_error_keeps_its_kind_and_its_words(told in an_error()) {
        let heard = error(of_error(&told)).unwrap();
        prop_assert_eq!(std::mem::discriminant(&heard), std::mem::discriminant(&told));
        prop_assert_eq!(heard.chain(), told.chain());
    }
}

#[test]
fn what_a_person_must_know_of_a_node_comes_back_as_it_was() {
    let vg = |name: &str| VgName::new(name).unwrap();
    let sent = Holdings {
        notices: vec![("fast".to_owned(), "it runs full".to_owned())],
        strangers: vec![(vg("vg0"), "/dev/sdx".to_owned())],
        away: vec![
            (Some(vg("vg1")), VgUuid::from_compact(&"v".repeat(32)).unwrap()),
            // As an agent of an earlier version sends it.
            (None, VgUuid::from_compact(&"w".repeat(32)).unwrap()),
        ],
        ..Holdings::default()
    };
    let mut heard = Holdings::default();
    pools(of_pools(&sent), &mut heard).unwrap();
    assert_eq!(heard, sent);
}

#[test]
fn what_makes_no_sense_names_the_field() {
    let bad = volume(wire::Volume { vg_uuid: "x".into(), ..wire::Volume::default() }).unwrap_err();
    assert!(bad.to_string().contains("volume.vg_uuid"), "{bad}");
    let odd = wire::Access { block: true, fs_type: "ext4".into() };
    let bad = create(wire::CreateRequest { access: vec![odd], ..wire::CreateRequest::default() }).unwrap_err();
    assert!(bad.to_string().contains("fs_type"), "{bad}");
    assert!(error(wire::Error { kind: 99, what: "v".into(), ..wire::Error::default() }).is_err());
    assert!(error(wire::Error { kind: Kind::Missing.into(), ..wire::Error::default() }).is_err());
    assert!(pool(wire::Pool::default()).is_err());
}

#[test]
fn a_parameter_of_a_later_version_is_refused_by_its_name() {
    let mut message = of_create("fast".to_owned(), a_volume_spec());
    message.parameters.insert("pool".to_owned(), "fast".to_owned());
    assert_eq!(create(message.clone()).unwrap().1.parameters.get(Parameter::Pool), Some("fast"));
    message.parameters.insert("encryption".to_owned(), "luks2".to_owned());
    let error = create(message).unwrap_err().to_string();
    assert!(error.contains("encryption") && error.contains("is not known to this version"), "{error}");
}

fn a_volume_spec() -> VolumeSpec {
    let size = SizeRange { required: Bytes(1 << 20), limit: Bytes(0) };
    VolumeSpec {
        name: VolumeName::new("pvc-1"),
        size,
        access: vec![AccessType::Block],
        source: None,
        parameters: Parameters::default(),
        claim: None,
    }
}
