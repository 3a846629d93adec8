//! Requests of the controller service.

use std::collections::BTreeMap;

use lvm_csi_proto::csi::volume_content_source::Type as WireSource;
use lvm_csi_proto::csi::{
    ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    GetCapacityRequest, ListSnapshotsRequest, ValidateVolumeCapabilitiesRequest, VolumeCapability, VolumeContentSource,
};

use crate::controller::{CapacityRequest, CreateRequest, Filter, PublishRequest, ValidateRequest};
use crate::node::check_mount_flags;
use crate::types::{Capability, ClaimName, Error, Object, Parameter, Parameters, SnapshotId, VolumeId, refuse_parameters};
use crate::volume::create::{Source, VolumeSpec};
use crate::volume::name::VolumeName;
use crate::volume::tag::ClaimTag;
use crate::volume::{SizeRange, snapshot};

use super::{capability, invalid, map, name, required, segments, size, volume_context, volume_id};

fn checked(given: Option<VolumeCapability>) -> Result<Capability, Error> {
    let capability = capability(given, invalid)?;
    check_mount_flags(&capability)
        .map_err(|(flag, reason)| Error::invalid("volume_capability.mount.mount_flags", flag, reason))?;
    Ok(capability)
}

fn some(given: &[VolumeCapability]) -> Result<(), Error> {
    if given.is_empty() { Err(Error::invalid("volume_capabilities", "", "at least one is required")) } else { Ok(()) }
}

fn source(given: Option<VolumeContentSource>) -> Result<Option<Source>, Error> {
    let Some(given) = given else { return Ok(None) };
    let need = |field: &'static str, id: String| required(field, &id).map(str::to_owned);
    match given.r#type {
        None => Err(Error::invalid("volume_content_source.type", "", "it is required: snapshot or volume")),
        Some(WireSource::Snapshot(from)) => {
            let id = need("volume_content_source.snapshot.snapshot_id", from.snapshot_id)?;
            let missing = || Error::missing(Object::Snapshot, &id);
            SnapshotId::parse(&id).ok_or_else(missing).map(|id| Some(Source::Snapshot(id)))
        }
        Some(WireSource::Volume(from)) => {
            let id = need("volume_content_source.volume.volume_id", from.volume_id)?;
            volume_id(&id).map(|id| Some(Source::Volume(id)))
        }
    }
}

/// CreateVolume.
pub(in crate::rpc) fn create(message: CreateVolumeRequest) -> Result<CreateRequest, Error> {
    let topology = message.accessibility_requirements.unwrap_or_default();
    let name = name(&message.name)?;
    some(&message.volume_capabilities)?;
    let size = size(message.capacity_range)?;
    let access =
        message.volume_capabilities.into_iter().map(|one| Ok(checked(Some(one))?.access)).collect::<Result<_, Error>>()?;
    let class = map("parameters", message.parameters)?;
    let parameters = parameters(&class, &map("mutable_parameters", message.mutable_parameters)?)?;
    let claim = ClaimName::of_volume(&name, &class);
    let recorded = claim.as_ref().and_then(|claim| ClaimTag::new(&format!("{}/{}", claim.namespace, claim.name)));
    // Last: a missing source is reported only after all fields were checked.
    let source = source(message.volume_content_source)?;
    Ok(CreateRequest {
        spec: VolumeSpec { name: VolumeName::new(name), size, access, source, parameters, claim: recorded },
        claim,
        requisite: topology.requisite.into_iter().map(segments).collect(),
        preferred: topology.preferred.into_iter().map(segments).collect(),
    })
}

/// `parameters`. There is no mutable one.
fn parameters(class: &BTreeMap<String, String>, mutable: &BTreeMap<String, String>) -> Result<Parameters, Error> {
    refuse_parameters("mutable_parameters", mutable)?;
    Parameters::read("parameters", class)
}

/// ControllerPublishVolume. A missing volume is reported only after all fields were checked.
pub(in crate::rpc) fn publish(message: ControllerPublishVolumeRequest) -> Result<PublishRequest, Error> {
    required("volume_id", &message.volume_id)?;
    required("node_id", &message.node_id)?;
    let capability = checked(message.volume_capability)?;
    let said = volume_context(&message.volume_context)?;
    Ok(PublishRequest {
        id: volume_id(&message.volume_id)?,
        node: message.node_id,
        capability,
        read_only: message.readonly,
        said,
    })
}

/// ValidateVolumeCapabilities.
pub(in crate::rpc) fn validate(message: ValidateVolumeCapabilitiesRequest) -> Result<ValidateRequest, Error> {
    required("volume_id", &message.volume_id)?;
    some(&message.volume_capabilities)?;
    Ok(ValidateRequest {
        id: message.volume_id,
        capabilities: message.volume_capabilities.into_iter().map(|one| checked(Some(one))).collect(),
        said: volume_context(&message.volume_context),
        parameters: parameters(&map("parameters", message.parameters)?, &map("mutable_parameters", message.mutable_parameters)?),
    })
}

/// GetCapacity. Capabilities, if given, must be ones that volumes can have.
pub(in crate::rpc) fn capacity(message: GetCapacityRequest) -> Result<CapacityRequest, Error> {
    message.volume_capabilities.into_iter().try_for_each(|one| checked(Some(one)).map(drop))?;
    Ok(CapacityRequest {
        pool: map("parameters", message.parameters)?.remove(Parameter::Pool.key()),
        topology: message.accessible_topology.map(segments),
    })
}

/// CreateSnapshot. Its parameters are those of a VolumeSnapshotClass, and this driver knows none.
pub(in crate::rpc) fn create_snapshot(message: CreateSnapshotRequest) -> Result<snapshot::Request, Error> {
    let name = name(&message.name)?;
    required("source_volume_id", &message.source_volume_id)?;
    refuse_parameters("parameters", &map("parameters", message.parameters)?)?;
    Ok(snapshot::Request { name, source: volume_id(&message.source_volume_id)? })
}

/// ListSnapshots.
pub(in crate::rpc) fn snapshot_filter(message: ListSnapshotsRequest) -> (Filter, String) {
    let given = |id: String| (!id.is_empty()).then_some(id);
    (Filter { snapshot: given(message.snapshot_id), source: given(message.source_volume_id) }, message.starting_token)
}

/// `max_entries`; 0 means no limit.
pub(in crate::rpc) fn list_limit(max_entries: i32) -> Result<usize, Error> {
    usize::try_from(max_entries).map_err(|_| Error::invalid("max_entries", max_entries.to_string(), "it must not be negative"))
}

/// ControllerExpandVolume.
pub(in crate::rpc) fn expand(message: ControllerExpandVolumeRequest) -> Result<(VolumeId, SizeRange), Error> {
    required("volume_id", &message.volume_id)?;
    if message.capacity_range.is_none() {
        return Err(Error::invalid("capacity_range", "", "it is required"));
    }
    let size = size(message.capacity_range)?;
    if message.volume_capability.is_some() {
        checked(message.volume_capability)?;
    }
    Ok((volume_id(&message.volume_id)?, size))
}
