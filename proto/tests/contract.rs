//! Checks `csi.proto` against the published wire contract: a changed number breaks every orchestrator. `agent.proto` must keep its fields,
//! because its two ends have different versions during an upgrade.

use std::collections::BTreeMap;

use lvm_csi_proto::csi;
use prost::Message as _;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// The compiled `csi.proto`.
fn contract() -> FileDescriptorProto {
    compiled("csi.v1")
}

/// The compiled file of a package.
fn compiled(package: &str) -> FileDescriptorProto {
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/csi.descriptor"));
    let set = FileDescriptorSet::decode(bytes).expect("the build script wrote a descriptor set");
    set.file.into_iter().find(|file| file.package() == package).unwrap_or_else(|| panic!("{package} is not in the set"))
}

/// All messages, nested ones included, without the entry types of maps.
fn messages(of: &[DescriptorProto]) -> Vec<&DescriptorProto> {
    let is_map_entry = |m: &DescriptorProto| m.options.as_ref().is_some_and(|o| o.map_entry());
    of.iter()
        .filter(|message| !is_map_entry(message))
        .flat_map(|message| [vec![message], messages(&message.nested_type)].concat())
        .collect()
}

/// Values of the enum at a path of names such as `["PluginCapability", "Service", "Type"]`.
fn values(path: &[&str]) -> Vec<(String, i32)> {
    let (name, parents) = path.split_last().expect("a path is not empty");
    let file = contract();
    let mut scope = (file.message_type, file.enum_type);
    for parent in parents {
        let message = scope.0.into_iter().find(|m| m.name() == *parent);
        let message = message.unwrap_or_else(|| panic!("no message {parent} of {path:?}"));
        scope = (message.nested_type, message.enum_type);
    }
    let found = scope.1.into_iter().find(|e| e.name() == *name);
    let found = found.unwrap_or_else(|| panic!("no enum {path:?}"));
    let pair = |v: &prost_types::EnumValueDescriptorProto| (v.name().to_owned(), v.number());
    found.value.iter().map(pair).collect()
}

#[track_caller]
fn assert_values(path: &[&str], expected: &[(&str, i32)]) {
    let expected: Vec<_> = expected.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
    assert_eq!(values(path), expected, "{path:?}");
}

#[test]
fn services_and_calls() {
    let file = contract();
    let calls: BTreeMap<_, _> = file.service.iter().map(|s| (s.name(), s.method.len())).collect();
    let expected = [("Identity", 3), ("Controller", 17), ("GroupController", 4), ("SnapshotMetadata", 2), ("Node", 10)];
    assert_eq!(calls, BTreeMap::from(expected));

    let streams: Vec<_> = file
        .service
        .iter()
        .flat_map(|s| &s.method)
        .filter(|m| m.server_streaming() || m.client_streaming())
        .map(|m| m.name())
        .collect();
    assert_eq!(streams, ["GetMetadataAllocated", "GetMetadataDelta"]);
}

#[test]
fn services_answer_under_their_wire_names() {
    use lvm_csi_proto::csi::{
        controller_server, group_controller_server, identity_server, node_server, snapshot_metadata_server,
    };
    assert_eq!(identity_server::SERVICE_NAME, "csi.v1.Identity");
    assert_eq!(controller_server::SERVICE_NAME, "csi.v1.Controller");
    assert_eq!(group_controller_server::SERVICE_NAME, "csi.v1.GroupController");
    assert_eq!(snapshot_metadata_server::SERVICE_NAME, "csi.v1.SnapshotMetadata");
    assert_eq!(node_server::SERVICE_NAME, "csi.v1.Node");
}

#[test]
fn plugin_capabilities() {
    assert_values(
        &["PluginCapability", "Service", "Type"],
        &[
            ("UNKNOWN", 0),
            ("CONTROLLER_SERVICE", 1),
            ("VOLUME_ACCESSIBILITY_CONSTRAINTS", 2),
            ("GROUP_CONTROLLER_SERVICE", 3),
            ("SNAPSHOT_METADATA_SERVICE", 4),
            ("SNAPSHOT_ACCESSIBILITY_CONSTRAINTS", 5),
        ],
    );
    assert_values(&["PluginCapability", "VolumeExpansion", "Type"], &[("UNKNOWN", 0), ("ONLINE", 1), ("OFFLINE", 2)]);
}

#[test]
fn controller_capabilities() {
    assert_values(
        &["ControllerServiceCapability", "RPC", "Type"],
        &[
            ("UNKNOWN", 0),
            ("CREATE_DELETE_VOLUME", 1),
            ("PUBLISH_UNPUBLISH_VOLUME", 2),
            ("LIST_VOLUMES", 3),
            ("GET_CAPACITY", 4),
            ("CREATE_DELETE_SNAPSHOT", 5),
            ("LIST_SNAPSHOTS", 6),
            ("CLONE_VOLUME", 7),
            ("PUBLISH_READONLY", 8),
            ("EXPAND_VOLUME", 9),
            ("LIST_VOLUMES_PUBLISHED_NODES", 10),
            ("GET_VOLUME", 12),
            ("SINGLE_NODE_MULTI_WRITER", 13),
            ("MODIFY_VOLUME", 14),
            ("GET_SNAPSHOT", 15),
            ("GET_VOLUME_HEALTH", 16),
            ("LIST_VOLUME_HEALTH", 17),
        ],
    );
    assert_values(
        &["GroupControllerServiceCapability", "RPC", "Type"],
        &[("UNKNOWN", 0), ("CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT", 1)],
    );
}

#[test]
fn node_capabilities() {
    assert_values(
        &["NodeServiceCapability", "RPC", "Type"],
        &[
            ("UNKNOWN", 0),
            ("STAGE_UNSTAGE_VOLUME", 1),
            ("GET_VOLUME_STATS", 2),
            ("EXPAND_VOLUME", 3),
            ("SINGLE_NODE_MULTI_WRITER", 5),
            ("VOLUME_MOUNT_GROUP", 6),
            ("GET_VOLUME_HEALTH", 7),
            ("GET_STORAGE_HEALTH", 8),
        ],
    );
}

#[test]
fn access_modes() {
    assert_values(
        &["VolumeCapability", "AccessMode", "Mode"],
        &[
            ("UNKNOWN", 0),
            ("SINGLE_NODE_WRITER", 1),
            ("SINGLE_NODE_READER_ONLY", 2),
            ("MULTI_NODE_READER_ONLY", 3),
            ("MULTI_NODE_SINGLE_WRITER", 4),
            ("MULTI_NODE_MULTI_WRITER", 5),
            ("SINGLE_NODE_SINGLE_WRITER", 6),
            ("SINGLE_NODE_MULTI_WRITER", 7),
        ],
    );
}

#[test]
fn health_types() {
    assert_values(
        &["VolumeHealthErrorType"],
        &[("UNKNOWN_VOLUME_HEALTH_TYPE", 0), ("DEGRADED", 1), ("INACCESSIBLE", 2), ("DATA_LOSS", 3)],
    );
    assert_values(
        &["StorageHealthErrorType"],
        &[("UNKNOWN_STORAGE_HEALTH_ERROR_TYPE", 0), ("STORAGE_DEGRADED", 1), ("STORAGE_UNREACHABLE", 2)],
    );
}

#[test]
fn removed_numbers_stay_reserved() {
    let file = contract();
    let mut reserved = Vec::new();
    for message in messages(&file.message_type) {
        // The end is exclusive for fields and inclusive for enum values.
        let fields = message.reserved_range.iter();
        reserved.extend(fields.map(|r| (message.name(), r.start(), r.end() - 1)));
        let ranges = message.enum_type.iter().flat_map(|e| &e.reserved_range);
        reserved.extend(ranges.map(|r| (message.name(), r.start(), r.end())));
    }
    let expected = [
        ("VolumeStatus", 2, 2), // of ListVolumesResponse
        ("VolumeStatus", 2, 2), // of ControllerGetVolumeResponse
        ("RPC", 11, 11),        // of ControllerServiceCapability
        ("NodeGetVolumeStatsResponse", 2, 2),
        ("RPC", 4, 4), // of NodeServiceCapability
    ];
    assert_eq!(reserved, expected);
}

#[test]
fn debug_shows_no_secret() {
    const SECRET: &str = "correct horse battery staple";
    let mut shown = Vec::new();
    macro_rules! show {
        ($($message:ident),+ $(,)?) => {
            $(
                let mut message = csi::$message::default();
                message.secrets.insert("key".to_owned(), SECRET.to_owned());
                assert_eq!(format!("{message:?}"), concat!(stringify!($message), " { .. }"));
                shown.push(stringify!($message));
            )+
        };
    }
    show!(
        CreateVolumeRequest,
        DeleteVolumeRequest,
        ControllerPublishVolumeRequest,
        ControllerUnpublishVolumeRequest,
        ValidateVolumeCapabilitiesRequest,
        ControllerListVolumeHealthRequest,
        ControllerGetVolumeHealthRequest,
        ControllerModifyVolumeRequest,
        CreateSnapshotRequest,
        DeleteSnapshotRequest,
        ListSnapshotsRequest,
        GetSnapshotRequest,
        ControllerExpandVolumeRequest,
        NodeStageVolumeRequest,
        NodePublishVolumeRequest,
        NodeGetStorageHealthRequest,
        NodeExpandVolumeRequest,
        CreateVolumeGroupSnapshotRequest,
        DeleteVolumeGroupSnapshotRequest,
        GetVolumeGroupSnapshotRequest,
        GetMetadataAllocatedRequest,
        GetMetadataDeltaRequest,
    );

    let file = contract();
    let with_secrets: Vec<_> = messages(&file.message_type)
        .into_iter()
        .filter(|m| m.field.iter().any(|f| f.name() == "secrets"))
        .map(|m| m.name())
        .collect();
    assert_eq!(shown, with_secrets, "every message with secrets is tried");
}

#[test]
fn debug_shows_no_mount_option() {
    let mount = csi::volume_capability::MountVolume {
        fs_type: "xfs".to_owned(),
        mount_flags: vec!["password=hunter2".to_owned()],
        ..Default::default()
    };
    let capability =
        csi::VolumeCapability { access_type: Some(csi::volume_capability::AccessType::Mount(mount)), access_mode: None };
    let shown = format!("{capability:?}");
    assert!(shown.contains("xfs"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// The messages of `agent.proto` with the names and types of their fields, numbered from 1; an `s` means `repeated`. The file may have
/// more of both.
const AGENT: [(&str, &str); 33] = [
    ("HelloRequest", "protocol:uint32 driver_version:string"),
    ("HelloResponse", "protocol:uint32 driver_version:string node:string driver:string offers:messages"),
    ("Offer", "name:string vg:string default_size:uint64 is_default:bool"),
    ("WatchRequest", ""),
    ("Update", "version:uint64 groups:messages pools:message grants:message"),
    ("Group", "name:string contents:message unknown:string"),
    ("Contents", "vg_uuid:string volumes:messages snapshots:messages unfinished:strings"),
    ("Volume", "vg_uuid:string lv:string lv_uuid:string size:uint64 pool:string tags:strings"),
    ("SnapshotState", "vg_uuid:string lv:string lv_uuid:string size:uint64 pool:string created:uint64 of:string tags:strings"),
    ("Pools", "pools:messages notices:messages strangers:messages away:strings away_groups:messages"),
    ("Stranger", "vg:string text:string"),
    ("Notice", "pool:string text:string"),
    ("Pool", "name:string left:message absent:string"),
    ("Capacity", "available:uint64 maximum:uint64 minimum:uint64"),
    ("Grants", "grants:messages"),
    ("GrantState", "vg_uuid:string lv_uuid:string lv:string epoch:uint64 mode:string holder:string"),
    ("LookRequest", ""),
    ("LookResponse", "version:uint64"),
    (
        "CreateRequest",
        "name:string pool:string size:message access:messages snapshot_id:string volume_id:string parameters:messages claim:string",
    ),
    ("SizeRange", "required:uint64 limit:uint64"),
    ("Access", "block:bool fs_type:string"),
    ("DeleteRequest", "volume_id:string"),
    ("ExpandRequest", "volume_id:string size:message"),
    ("SnapshotRequest", "name:string volume_id:string"),
    ("DeleteSnapshotRequest", "snapshot_id:string"),
    ("GrantRequest", "volume_id:string node:string mode:string"),
    ("ReleaseRequest", "volume_id:string node:string"),
    ("EmptyAnswer", "version:uint64 error:message change:enum"),
    ("VolumeAnswer", "version:uint64 ok:message error:message change:enum"),
    ("SnapshotAnswer", "version:uint64 ok:message error:message change:enum"),
    ("GrantAnswer", "version:uint64 ok:message error:message"),
    ("Context", "vg_uuid:string lv_uuid:string epoch:uint64 mode:string"),
    ("Error", "kind:enum what:string reason:string value:string object:enum"),
];

#[test]
fn controller_and_agent_of_two_versions_understand_each_other() {
    let file = compiled("lvmcsi.agent.v1");
    for (name, fields) in AGENT {
        let message = file.message_type.iter().find(|message| message.name() == name);
        let message = message.unwrap_or_else(|| panic!("no message {name}"));
        for (expected, number) in fields.split_whitespace().zip(1..) {
            let field = message.field.iter().find(|field| field.number() == number);
            let found = field.map(|field| {
                let kind = field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase();
                format!("{}:{kind}{}", field.name(), if field.label() == Label::Repeated { "s" } else { "" })
            });
            assert_eq!(found.as_deref(), Some(expected), "field {number} of {name}");
        }
    }
    let calls: Vec<_> = file.service.iter().flat_map(|service| &service.method).map(|call| call.name()).collect();
    let expected = ["Hello", "Watch", "Look", "Create", "Delete", "Expand", "Snapshot", "DeleteSnapshot", "Grant", "Release"];
    assert!(expected.iter().all(|call| calls.contains(call)), "{calls:?}");
    let error = file.message_type.iter().find(|message| message.name() == "Error").expect("it was found above");
    let kinds = "UNKNOWN INVALID MISSING DIFFERS EXHAUSTED OUT_OF_RANGE PRECONDITION BUSY UNAVAILABLE UNIMPLEMENTED FAILED";
    for (name, expected) in [("Kind", kinds), ("Object", "NONE VOLUME SNAPSHOT NODE POOL PATH")] {
        let values = error.enum_type.iter().find(|values| values.name() == name).map(|found| &found.value);
        for (expected, number) in expected.split_whitespace().zip(0..) {
            let found = values.and_then(|values| values.iter().find(|value| value.number() == number));
            assert_eq!(found.map(|value| value.name()), Some(expected), "{number} of {name}");
        }
    }
}
