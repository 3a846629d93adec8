//! Converts between the driver's types and the messages of `proto/agent.proto`. Total: a message that makes no sense is an error that
//! names the field, and every value of the driver has a message.

use std::sync::Arc;

use lvm_csi_proto::agent as wire;
use wire::error::{Kind, Object as WireObject};

use crate::agent::{Contents, GroupReading, Holdings, Offer};
use crate::attach::{Grant, Mode, PublishContext};
use crate::types::{
    AccessType, Bytes, Change, Error, FsKind, LvName, LvUuid, NodeId, Object, Parameters, Placement, SnapshotId, Usage, VgName,
    VgUuid, VolumeId,
};
use crate::volume::capacity::Capacity;
use crate::volume::create::{Source, VolumeSpec};
use crate::volume::inventory::{Snapshot, Volume};
use crate::volume::name::VolumeName;
use crate::volume::tag::{ClaimTag, Marks};
use crate::volume::{SizeRange, snapshot};

/// A message that makes no sense: the other end speaks another version of the protocol, or is not ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?} {reason}")]
pub(super) struct Malformed {
    /// The field, as the message names it.
    field: &'static str,
    value: String,
    reason: String,
}

fn malformed(field: &'static str, value: impl Into<String>, reason: impl Into<String>) -> Malformed {
    Malformed { field, value: value.into(), reason: reason.into() }
}

/// Requires a field.
pub(super) fn need<T>(field: &'static str, given: Option<T>) -> Result<T, Malformed> {
    given.ok_or_else(|| malformed(field, "", "is missing"))
}

fn vg_uuid(field: &'static str, text: &str) -> Result<VgUuid, Malformed> {
    VgUuid::new(text).ok_or_else(|| malformed(field, text, "is not an LVM UUID"))
}

fn lv_uuid(field: &'static str, text: &str) -> Result<LvUuid, Malformed> {
    LvUuid::new(text).ok_or_else(|| malformed(field, text, "is not an LVM UUID"))
}

fn lv_name(field: &'static str, text: &str) -> Result<LvName, Malformed> {
    LvName::new(text).map_err(|why| malformed(field, text, why.to_string()))
}

fn vg_name(field: &'static str, text: &str) -> Result<VgName, Malformed> {
    VgName::new(text).map_err(|why| malformed(field, text, why.to_string()))
}

fn mode(field: &'static str, text: &str) -> Result<Mode, Malformed> {
    Mode::parse(text).ok_or_else(|| malformed(field, text, "is not a grant mode"))
}

pub(super) fn node(field: &'static str, text: &str) -> Result<NodeId, Malformed> {
    NodeId::new(text).ok_or_else(|| malformed(field, text, "is not a node name"))
}

pub(super) fn volume_id(text: &str) -> Result<VolumeId, Malformed> {
    VolumeId::parse(text).ok_or_else(|| malformed("volume_id", text, "is not a volume handle"))
}

pub(super) fn snapshot_id(text: &str) -> Result<SnapshotId, Malformed> {
    SnapshotId::parse(text).ok_or_else(|| malformed("snapshot_id", text, "is not a snapshot handle"))
}

fn tags(marks: &Marks) -> Vec<String> {
    marks.tags().iter().map(|tag| tag.as_str().to_owned()).collect()
}

fn marks(field: &'static str, tags: &[String]) -> Result<Marks, Malformed> {
    let marks = Marks::read(tags).map_err(|why| malformed(field, tags.join(","), why.to_string()))?;
    marks.ok_or_else(|| malformed(field, tags.join(","), "are not those of this driver"))
}

/// The thin pool of a placement, as in messages.
fn of_placement(placement: &Placement) -> Option<String> {
    placement.thin_pool().map(ToString::to_string)
}

/// Reads a placement; away from the disks nobody needs to know how a thick volume is laid out.
fn placement(field: &'static str, pool: Option<String>) -> Result<Placement, Malformed> {
    let name = |pool: String| LvName::of_existing(&pool).map_err(|why| malformed(field, pool, why.to_string()));
    Ok(Placement::in_pool(pool.map(name).transpose()?))
}

/// A volume as a message.
pub(super) fn of_volume(volume: &Volume) -> wire::Volume {
    wire::Volume {
        vg_uuid: volume.id.vg.to_string(),
        lv: volume.id.lv.to_string(),
        lv_uuid: volume.uuid.to_string(),
        size: volume.size.0,
        pool: of_placement(&volume.placement),
        tags: tags(&volume.marks),
    }
}

/// What a verb changed, as a message.
pub(super) fn of_change(change: Change) -> wire::Change {
    match change {
        Change::Unknown => wire::Change::Unknown,
        Change::Found => wire::Change::Found,
        Change::Made => wire::Change::Made,
        Change::Extended => wire::Change::Extended,
        Change::Removed => wire::Change::Removed,
        Change::Absent => wire::Change::Absent,
    }
}

/// Reads what a verb changed.
pub(super) fn change(message: wire::Change) -> Change {
    match message {
        wire::Change::Unknown => Change::Unknown,
        wire::Change::Found => Change::Found,
        wire::Change::Made => Change::Made,
        wire::Change::Extended => Change::Extended,
        wire::Change::Removed => Change::Removed,
        wire::Change::Absent => Change::Absent,
    }
}

/// Reads a volume.
pub(super) fn volume(message: wire::Volume) -> Result<Volume, Malformed> {
    Ok(Volume {
        id: VolumeId { vg: vg_uuid("volume.vg_uuid", &message.vg_uuid)?, lv: lv_name("volume.lv", &message.lv)? },
        uuid: lv_uuid("volume.lv_uuid", &message.lv_uuid)?,
        size: Bytes(message.size),
        placement: placement("volume.pool", message.pool)?,
        marks: marks("volume.tags", &message.tags)?,
    })
}

/// A snapshot as a message.
pub(super) fn of_snapshot(snapshot: &Snapshot) -> wire::SnapshotState {
    wire::SnapshotState {
        vg_uuid: snapshot.id.vg.to_string(),
        lv: snapshot.id.lv.to_string(),
        lv_uuid: snapshot.uuid.to_string(),
        size: snapshot.size.0,
        pool: of_placement(&snapshot.placement),
        created: snapshot.created,
        of: snapshot.of.lv.to_string(),
        tags: tags(&snapshot.marks),
    }
}

/// Reads a snapshot.
pub(super) fn snapshot(message: wire::SnapshotState) -> Result<Snapshot, Malformed> {
    let vg = vg_uuid("snapshot.vg_uuid", &message.vg_uuid)?;
    Ok(Snapshot {
        id: SnapshotId { vg: vg.clone(), lv: lv_name("snapshot.lv", &message.lv)? },
        uuid: lv_uuid("snapshot.lv_uuid", &message.lv_uuid)?,
        size: Bytes(message.size),
        placement: placement("snapshot.pool", message.pool)?,
        created: message.created,
        of: VolumeId { vg, lv: lv_name("snapshot.of", &message.of)? },
        marks: marks("snapshot.tags", &message.tags)?,
    })
}

/// A size as a message.
pub(super) fn of_size(size: SizeRange) -> wire::SizeRange {
    wire::SizeRange { required: size.required.0, limit: size.limit.0 }
}

/// Reads a size; a missing one has no bounds.
pub(super) fn size(message: Option<wire::SizeRange>) -> SizeRange {
    message.map_or_else(SizeRange::default, |size| SizeRange { required: Bytes(size.required), limit: Bytes(size.limit) })
}

/// A request for a volume in a pool, as a message.
pub(super) fn of_create(pool: String, spec: VolumeSpec) -> wire::CreateRequest {
    let access = |access: &AccessType| match access {
        AccessType::Block => wire::Access { block: true, fs_type: String::new() },
        AccessType::Mount(kind) => wire::Access { block: false, fs_type: kind.map_or("", FsKind::name).to_owned() },
    };
    wire::CreateRequest {
        name: spec.name.csi().to_owned(),
        pool,
        size: Some(of_size(spec.size)),
        access: spec.access.iter().map(access).collect(),
        claim: spec.claim.map(|claim| claim.as_str().to_owned()).unwrap_or_default(),
        parameters: spec.parameters.entries().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        source: spec.source.map(|source| match source {
            Source::Snapshot(id) => wire::create_request::Source::SnapshotId(id.to_string()),
            Source::Volume(id) => wire::create_request::Source::VolumeId(id.to_string()),
        }),
    }
}

/// Reads a request for a volume, with the name of its pool.
pub(super) fn create(message: wire::CreateRequest) -> Result<(String, VolumeSpec), Malformed> {
    let access = |access: wire::Access| match (access.block, access.fs_type.as_str()) {
        (true, "") => Ok(AccessType::Block),
        (false, "") => Ok(AccessType::Mount(None)),
        (false, kind) if FsKind::parse(kind).is_some() => Ok(AccessType::Mount(FsKind::parse(kind))),
        (_, kind) => Err(malformed("create.access.fs_type", kind, "is not a filesystem that this version offers")),
    };
    let source = |source| match source {
        wire::create_request::Source::SnapshotId(id) => snapshot_id(&id).map(Source::Snapshot),
        wire::create_request::Source::VolumeId(id) => volume_id(&id).map(Source::Volume),
    };
    let spec = VolumeSpec {
        name: VolumeName::new(message.name),
        size: size(message.size),
        access: message.access.into_iter().map(access).collect::<Result<_, _>>()?,
        source: message.source.map(source).transpose()?,
        claim: ClaimTag::new(&message.claim),
        // An unknown key belongs to a later version: this one would make a volume that lacks what was asked for.
        parameters: Parameters::read("parameters", &message.parameters)
            .map_err(|error| malformed("create.parameters", error.to_string(), "is not known to this version"))?,
    };
    Ok((message.pool, spec))
}

/// Reads a request for a snapshot.
pub(super) fn snapshot_wish(message: wire::SnapshotRequest) -> Result<snapshot::Request, Malformed> {
    Ok(snapshot::Request { source: volume_id(&message.volume_id)?, name: message.name })
}

/// Reads a request for a grant.
pub(super) fn grant_wish(message: &wire::GrantRequest) -> Result<(VolumeId, NodeId, Mode), Malformed> {
    Ok((volume_id(&message.volume_id)?, node("grant.node", &message.node)?, mode("grant.mode", &message.mode)?))
}

/// A publish context as a message.
pub(super) fn of_context(context: &PublishContext) -> wire::Context {
    wire::Context {
        vg_uuid: context.vg.to_string(),
        lv_uuid: context.lv.to_string(),
        epoch: context.epoch,
        mode: context.mode.to_text(),
    }
}

/// Reads a publish context.
pub(super) fn context(message: &wire::Context) -> Result<PublishContext, Malformed> {
    Ok(PublishContext {
        vg: vg_uuid("context.vg_uuid", &message.vg_uuid)?,
        lv: lv_uuid("context.lv_uuid", &message.lv_uuid)?,
        epoch: message.epoch,
        mode: mode("context.mode", &message.mode)?,
    })
}

/// An offered pool as a message.
pub(super) fn of_offer(offer: &Offer) -> wire::Offer {
    wire::Offer {
        name: offer.name.clone(),
        vg: offer.vg.to_string(),
        default_size: offer.default_size.0,
        is_default: offer.is_default,
    }
}

/// Reads an offered pool.
pub(super) fn offer(message: wire::Offer) -> Result<Offer, Malformed> {
    Ok(Offer {
        vg: vg_name("offer.vg", &message.vg)?,
        name: message.name,
        default_size: Bytes(message.default_size),
        is_default: message.is_default,
    })
}

/// A volume group as a message.
pub(super) fn of_group(name: &VgName, known: &GroupReading) -> wire::Group {
    use wire::group::State;
    let state = match known {
        Ok(None) => None,
        Err(reason) => Some(State::Unknown(reason.clone())),
        Ok(Some(contents)) => Some(State::Contents(wire::Contents {
            vg_uuid: contents.vg.to_string(),
            volumes: contents.volumes.iter().map(of_volume).collect(),
            snapshots: contents.snapshots.iter().map(of_snapshot).collect(),
            unfinished: contents.unfinished.iter().map(ToString::to_string).collect(),
        })),
    };
    wire::Group { name: name.to_string(), state }
}

/// Reads a volume group.
pub(super) fn group(message: wire::Group) -> Result<(VgName, GroupReading), Malformed> {
    use wire::group::State;
    let known = match message.state {
        None => Ok(None),
        Some(State::Unknown(reason)) => Err(reason),
        Some(State::Contents(contents)) => Ok(Some(Arc::new(Contents {
            vg: vg_uuid("contents.vg_uuid", &contents.vg_uuid)?,
            volumes: contents.volumes.into_iter().map(volume).collect::<Result<_, _>>()?,
            snapshots: contents.snapshots.into_iter().map(snapshot).collect::<Result<_, _>>()?,
            unfinished: contents.unfinished.iter().map(|name| lv_name("contents.unfinished", name)).collect::<Result<_, _>>()?,
        }))),
    };
    Ok((vg_name("group.name", &message.name)?, known))
}

/// The room left in a pool, as a message.
fn of_pool(name: &str, state: &Result<Capacity, String>) -> wire::Pool {
    use wire::pool::State;
    let state = match state {
        Ok(left) => State::Left(wire::Capacity { available: left.available.0, maximum: left.maximum.0, minimum: left.minimum.0 }),
        Err(reason) => State::Absent(reason.clone()),
    };
    wire::Pool { name: name.to_owned(), state: Some(state) }
}

/// Reads the room left in a pool.
fn pool(message: wire::Pool) -> Result<(String, Result<Capacity, String>), Malformed> {
    use wire::pool::State;
    let state = match need("pool.state", message.state)? {
        State::Left(left) => {
            Ok(Capacity { available: Bytes(left.available), maximum: Bytes(left.maximum), minimum: Bytes(left.minimum) })
        }
        State::Absent(reason) => Err(reason),
    };
    Ok((message.name, state))
}

/// The pools of a node as a message.
pub(super) fn of_pools(holdings: &Holdings) -> wire::Pools {
    let notices = holdings.notices.iter().map(|(pool, text)| wire::Notice { pool: pool.clone(), text: text.clone() });
    let strangers = holdings.strangers.iter().map(|(vg, text)| wire::Stranger { vg: vg.to_string(), text: text.clone() });
    let named =
        |(vg, uuid): &(Option<VgName>, VgUuid)| Some(wire::Away { vg: vg.as_ref()?.to_string(), vg_uuid: uuid.to_string() });
    wire::Pools {
        pools: holdings.pools.iter().map(|(name, state)| of_pool(name, state)).collect(),
        notices: notices.collect(),
        strangers: strangers.collect(),
        away: holdings.away.iter().map(|(_, uuid)| uuid.to_string()).collect(),
        away_groups: holdings.away.iter().filter_map(named).collect(),
    }
}

/// Reads the pools of a node, and the warnings about them.
pub(super) fn pools(message: wire::Pools, holdings: &mut Holdings) -> Result<(), Malformed> {
    holdings.pools = message.pools.into_iter().map(pool).collect::<Result<_, _>>()?;
    holdings.notices = message.notices.into_iter().map(|notice| (notice.pool, notice.text)).collect();
    let stranger = |stranger: wire::Stranger| Ok((vg_name("stranger.vg", &stranger.vg)?, stranger.text));
    holdings.strangers = message.strangers.into_iter().map(stranger).collect::<Result<_, Malformed>>()?;
    let named = |away: wire::Away| Ok((vg_name("away.vg", &away.vg)?, vg_uuid("away.vg_uuid", &away.vg_uuid)?));
    let named: Vec<(VgName, VgUuid)> = message.away_groups.into_iter().map(named).collect::<Result<_, Malformed>>()?;
    let name_of = |vg: &VgUuid| named.iter().find(|(_, of)| of == vg).map(|(name, _)| name.clone());
    let away = message.away.iter().map(|vg| vg_uuid("pools.away", vg).map(|vg| (name_of(&vg), vg)));
    holdings.away = away.collect::<Result<_, Malformed>>()?;
    Ok(())
}

/// A grant as a message.
pub(super) fn of_grant(grant: &Grant) -> wire::GrantState {
    wire::GrantState {
        vg_uuid: grant.vg.to_string(),
        lv_uuid: grant.lv.to_string(),
        lv: grant.name.as_ref().map(ToString::to_string),
        epoch: grant.epoch,
        mode: grant.mode.to_text(),
        holder: grant.holder.to_string(),
    }
}

/// Reads a grant.
pub(super) fn grant(message: &wire::GrantState) -> Result<Grant, Malformed> {
    Ok(Grant {
        vg: vg_uuid("grant.vg_uuid", &message.vg_uuid)?,
        lv: lv_uuid("grant.lv_uuid", &message.lv_uuid)?,
        name: message.lv.as_deref().map(|name| lv_name("grant.lv", name)).transpose()?,
        epoch: message.epoch,
        mode: mode("grant.mode", &message.mode)?,
        holder: node("grant.holder", &message.holder)?,
    })
}

/// The usage of a volume's filesystem, as a message.
pub(super) fn of_usage((id, usage): &(VolumeId, Usage)) -> wire::UsageState {
    wire::UsageState { volume_id: id.to_string(), used: usage.used.0, available: usage.available.0 }
}

/// Reads the usage of a volume's filesystem.
pub(super) fn usage(message: &wire::UsageState) -> Result<(VolumeId, Usage), Malformed> {
    let usage = Usage { used: Bytes(message.used), available: Bytes(message.available) };
    Ok((volume_id(&message.volume_id)?, usage))
}

fn of_object(object: Object) -> WireObject {
    match object {
        Object::Volume => WireObject::Volume,
        Object::Snapshot => WireObject::Snapshot,
        Object::Node => WireObject::Node,
        Object::Pool => WireObject::Pool,
        Object::Path => WireObject::Path,
    }
}

/// An error as a message. The causes of a failed step become text.
pub(super) fn of_error(error: &Error) -> wire::Error {
    let plain = |kind: Kind, what: &str, reason: &str| wire::Error {
        kind: kind.into(),
        what: what.to_owned(),
        reason: reason.to_owned(),
        ..wire::Error::default()
    };
    match error {
        Error::Invalid { field, value, reason } => wire::Error { value: value.clone(), ..plain(Kind::Invalid, field, reason) },
        Error::Missing { object, id, hint } => {
            wire::Error { object: of_object(*object).into(), ..plain(Kind::Missing, id, hint) }
        }
        Error::Differs { object, id, difference } => {
            wire::Error { object: of_object(*object).into(), ..plain(Kind::Differs, id, difference) }
        }
        Error::Exhausted { what, reason } => plain(Kind::Exhausted, what, reason),
        Error::OutOfRange { what, reason } => plain(Kind::OutOfRange, what, reason),
        Error::Precondition { what, reason } => plain(Kind::Precondition, what, reason),
        Error::Busy { what, running } => plain(Kind::Busy, what, running),
        Error::Unavailable { what, reason } => plain(Kind::Unavailable, what, reason),
        Error::Unimplemented(what) => plain(Kind::Unimplemented, what, ""),
        Error::Failed { what, cause } => plain(Kind::Failed, what, &crate::types::chain(cause)),
    }
}

/// The cause of a failed step on another machine, as text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RemoteCause(String);

/// Reads an error.
pub(super) fn error(message: wire::Error) -> Result<Error, Malformed> {
    let object = match message.object() {
        WireObject::None => None,
        WireObject::Volume => Some(Object::Volume),
        WireObject::Snapshot => Some(Object::Snapshot),
        WireObject::Node => Some(Object::Node),
        WireObject::Pool => Some(Object::Pool),
        WireObject::Path => Some(Object::Path),
    };
    let kind = message.kind();
    let wire::Error { what, reason, value, .. } = message;
    Ok(match kind {
        Kind::Unknown => {
            return Err(malformed("error.kind", "", format!("is unknown to this version; it says: {what}: {reason}")));
        }
        Kind::Invalid => Error::Invalid { field: what, value, reason },
        Kind::Missing => Error::Missing { object: need("error.object", object)?, id: what, hint: reason },
        Kind::Differs => Error::Differs { object: need("error.object", object)?, id: what, difference: reason },
        Kind::Exhausted => Error::Exhausted { what, reason },
        Kind::OutOfRange => Error::OutOfRange { what, reason },
        Kind::Precondition => Error::Precondition { what, reason },
        Kind::Busy => Error::Busy { what, running: reason },
        Kind::Unavailable => Error::Unavailable { what, reason },
        Kind::Unimplemented => Error::Unimplemented(what),
        Kind::Failed => Error::failed(what, RemoteCause(reason)),
    })
}

#[cfg(test)]
mod tests;
