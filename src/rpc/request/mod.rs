//! Turns messages into checked requests. Secrets and pod information stay in the message: nothing behind this module sees them.

mod controller;
mod node;

pub(super) use controller::{capacity, create, create_snapshot, expand, list_limit, publish, snapshot_filter, validate};
pub(super) use node::{NodePublish, node_expand, node_publish, stage};

use std::collections::{BTreeMap, HashMap};

use lvm_csi_proto::csi::volume_capability::AccessType as WireAccess;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode as WireMode;
use lvm_csi_proto::csi::{CapacityRange, Topology, VolumeCapability};

use crate::controller::Segments;
use crate::types::{AccessMode, AccessType, Bytes, Capability, Error, FsKind, Object, SnapshotId, VolumeId, cut};
use crate::volume::SizeRange;
use crate::volume::context::VolumeContext;

/// Longest string in bytes, unless CSI says otherwise.
const LONGEST: usize = 128;
/// Most bytes in all keys and values of a map.
const LARGEST_MAP: usize = 4096;

/// A field that must not be empty.
pub(super) fn required<'a>(field: &'static str, value: &'a str) -> Result<&'a str, Error> {
    if value.is_empty() { Err(Error::invalid(field, value, "it is required")) } else { Ok(value) }
}

/// A volume id. An id of another form than ours is that of a volume that does not exist.
pub(super) fn volume_id(value: &str) -> Result<VolumeId, Error> {
    VolumeId::parse(required("volume_id", value)?).ok_or_else(|| Error::missing(Object::Volume, shown(value)))
}

/// A snapshot id; `None` if no snapshot can have it.
pub(super) fn snapshot_id(value: &str) -> Result<Option<SnapshotId>, Error> {
    Ok(SnapshotId::parse(required("snapshot_id", value)?))
}

/// A name that the orchestrator chose: at most 128 bytes of Unicode without control characters (CSI, "Size Limits", `name`).
fn name(value: &str) -> Result<String, Error> {
    required("name", value)?;
    if value.len() > LONGEST {
        return Err(Error::invalid("name", shown(value), format!("it is longer than {LONGEST} bytes")));
    }
    let forbidden = |c: char| matches!(u32::from(c), 0..=0x08 | 0x0b | 0x0c | 0x0e..=0x1f | 0x7f..=0x9f);
    if value.contains(forbidden) {
        return Err(Error::invalid("name", shown(value), "it contains a control character"));
    }
    Ok(value.to_owned())
}

/// A value as errors and log lines show it, cut to the length of a name.
pub(super) fn shown(value: &str) -> String {
    cut(value, LONGEST)
}

fn map(field: &'static str, map: HashMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > LARGEST_MAP {
        return Err(Error::invalid(field, format!("{bytes} bytes"), format!("it is larger than {LARGEST_MAP} bytes")));
    }
    Ok(map.into_iter().collect())
}

/// The checked `volume_context` of a volume.
fn volume_context(given: &HashMap<String, String>) -> Result<VolumeContext, Error> {
    VolumeContext::parse(entries(given))
}

fn entries(map: &HashMap<String, String>) -> impl Iterator<Item = (&str, &str)> + Clone {
    map.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

fn segments(topology: Topology) -> Segments {
    topology.segments.into_iter().collect()
}

fn size(range: Option<CapacityRange>) -> Result<SizeRange, Error> {
    let Some(CapacityRange { required_bytes, limit_bytes }) = range else { return Ok(SizeRange::default()) };
    let bytes = |field: &str, value: i64| {
        u64::try_from(value).map(Bytes).map_err(|_| Error::OutOfRange {
            what: "the volume".to_owned(),
            reason: format!("capacity_range.{field} is {value}, which is negative"),
        })
    };
    let size = SizeRange { required: bytes("required_bytes", required_bytes)?, limit: bytes("limit_bytes", limit_bytes)? };
    if size.limit.0 > 0 && size.limit < size.required {
        let reason = format!("capacity_range: limit_bytes {} is less than required_bytes {}", size.limit, size.required);
        return Err(Error::OutOfRange { what: "the volume".to_owned(), reason });
    }
    Ok(size)
}

/// Checks a capability. `unsupported` makes the error for one that this driver does not support: CSI wants another code at the node than
/// at the controller.
pub(super) fn capability(
    capability: Option<VolumeCapability>,
    unsupported: fn(&'static str, String, String) -> Error,
) -> Result<Capability, Error> {
    let Some(capability) = capability else { return Err(Error::invalid("volume_capability", "", "it is required")) };
    let mode = capability.access_mode.map_or(WireMode::Unknown, |mode| mode.mode());
    let mode = match mode {
        WireMode::Unknown => return Err(Error::invalid("volume_capability.access_mode", "", "it is required")),
        WireMode::SingleNodeWriter => AccessMode::SingleNodeWriter,
        WireMode::SingleNodeReaderOnly => AccessMode::SingleNodeReaderOnly,
        WireMode::SingleNodeSingleWriter => AccessMode::SingleNodeSingleWriter,
        WireMode::SingleNodeMultiWriter => AccessMode::SingleNodeMultiWriter,
        WireMode::MultiNodeReaderOnly | WireMode::MultiNodeSingleWriter | WireMode::MultiNodeMultiWriter => {
            let reason = "a volume group of one node can attach a volume to that node only";
            return Err(unsupported("volume_capability.access_mode", mode.as_str_name().to_owned(), reason.to_owned()));
        }
    };
    match capability.access_type {
        None => Err(Error::invalid("volume_capability.access_type", "", "it is required: block or mount")),
        Some(WireAccess::Block(_)) => Ok(Capability { access: AccessType::Block, mode, mount_flags: Vec::new() }),
        Some(WireAccess::Mount(mount)) => {
            if !mount.volume_mount_group.is_empty() {
                let reason = "VOLUME_MOUNT_GROUP is not among the node's capabilities";
                return Err(unsupported(
                    "volume_capability.mount.volume_mount_group",
                    shown(&mount.volume_mount_group),
                    reason.into(),
                ));
            }
            let kind = match mount.fs_type.as_str() {
                "" => None,
                given => Some(FsKind::parse(given).ok_or_else(|| {
                    let offered: Vec<&str> = FsKind::ALL.into_iter().map(FsKind::name).collect();
                    unsupported(
                        "volume_capability.mount.fs_type",
                        shown(given),
                        format!("supported are {}", offered.join(" and ")),
                    )
                })?),
            };
            let bytes: usize = mount.mount_flags.iter().map(String::len).sum();
            if bytes > LARGEST_MAP {
                let reason = format!("they are longer than {LARGEST_MAP} bytes");
                return Err(Error::invalid("volume_capability.mount.mount_flags", format!("{bytes} bytes"), reason));
            }
            Ok(Capability { access: AccessType::Mount(kind), mode, mount_flags: mount.mount_flags })
        }
    }
}

/// The controller's error for something unsupported (CSI: 3 INVALID_ARGUMENT).
pub(super) fn invalid(field: &'static str, value: String, reason: String) -> Error {
    Error::invalid(field, value, reason)
}

/// The node's error for something unsupported (CSI: 9 FAILED_PRECONDITION, "Exceeds capabilities").
pub(super) fn exceeds(field: &'static str, value: String, reason: String) -> Error {
    Error::precondition(format!("{field} {value:?}"), reason)
}

/// Reads the bytes as a message of the call that the first byte selects, for the fuzzer. Bad input must never cause an internal error.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    use lvm_csi_proto::csi::Message;
    let Some((call, bytes)) = data.split_first() else { return };
    fn checked<M: Message + Default, T>(bytes: &[u8], check: impl FnOnce(M) -> Result<T, Error>) -> Option<Error> {
        check(M::decode(bytes).ok()?).err()
    }
    let error = match call % 9 {
        0 => checked(bytes, create),
        1 => checked(bytes, publish),
        2 => checked(bytes, validate),
        3 => checked(bytes, capacity),
        4 => checked(bytes, create_snapshot),
        5 => checked(bytes, expand),
        6 => checked(bytes, |message| stage(message, true)),
        7 => checked(bytes, |message| node_publish(message, true)),
        _ => checked(bytes, node_expand),
    };
    if let Some(error) = error {
        let code = super::status::code(&error);
        assert!(!matches!(code, tonic::Code::Internal | tonic::Code::Unknown | tonic::Code::Ok), "{code:?}: {error:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lvm_csi_proto::csi::volume_capability::{AccessMode as WireAccessMode, BlockVolume, MountVolume};

    fn wire(access: Option<WireAccess>, mode: WireMode) -> Option<VolumeCapability> {
        Some(VolumeCapability { access_mode: Some(WireAccessMode { mode: mode.into() }), access_type: access })
    }

    #[test]
    fn capabilities_are_taken_or_named() {
        let block = || Some(WireAccess::Block(BlockVolume {}));
        let good = capability(wire(block(), WireMode::SingleNodeWriter), invalid).unwrap();
        assert_eq!((good.access, good.mode), (AccessType::Block, AccessMode::SingleNodeWriter));
        let fs = |fs_type: &str| Some(WireAccess::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() }));
        for (wrong, word) in [
            (None, "volume_capability"),
            (wire(block(), WireMode::Unknown), "access_mode"),
            (wire(None, WireMode::SingleNodeWriter), "access_type"),
            (wire(block(), WireMode::MultiNodeMultiWriter), "MULTI_NODE_MULTI_WRITER"),
            (wire(fs("ntfs"), WireMode::SingleNodeWriter), "ntfs"),
        ] {
            let error = capability(wrong, invalid).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(word), "{error}");
        }
        let error = capability(wire(fs("ntfs"), WireMode::SingleNodeWriter), exceeds).unwrap_err();
        assert!(matches!(error, Error::Precondition { .. }), "{error}");
    }

    #[test]
    fn names_and_sizes_are_checked() {
        assert!(name("käse / .. -x\n\t").is_ok());
        assert!(name(&"x".repeat(128)).is_ok());
        for odd in ["", "a\u{0}b", "a\u{85}b", &"x".repeat(129), &"ü".repeat(65)] {
            assert!(matches!(name(odd), Err(Error::Invalid { .. })), "{odd:?}");
        }
        assert_eq!(shown(&"ü".repeat(65)).chars().count(), 65);
        let range = |required_bytes, limit_bytes| size(Some(CapacityRange { required_bytes, limit_bytes }));
        assert!(range(1, 1).is_ok() && range(5, 0).is_ok());
        for (required, limit) in [(2, 1), (-1, 0), (0, -1), (i64::MIN, i64::MIN)] {
            assert!(matches!(range(required, limit), Err(Error::OutOfRange { .. })));
        }
    }

    #[test]
    fn an_id_of_any_other_shape_is_one_that_does_not_exist() {
        assert!(matches!(volume_id(""), Err(Error::Invalid { .. })));
        for odd in ["fake-vol-id", "a/b", "\u{0}", &"x".repeat(5000)] {
            assert!(matches!(volume_id(odd), Err(Error::Missing { id, .. }) if id.len() <= 131));
        }
    }
}
