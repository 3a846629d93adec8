//! Requests of the node service.

use std::collections::HashMap;

use lvm_csi_proto::csi::{NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability};

use crate::attach::PublishContext;
use crate::node::{Publish, PublishEphemeral, Stage};
use crate::types::{Capability, EphemeralId, Error, VolumeId};
use crate::volume::SizeRange;
use crate::volume::context::VolumeContext;
use crate::volume::ephemeral::InlineSpec;

use super::{capability, entries, exceeds, required, size, volume_context, volume_id};

fn checked(given: Option<VolumeCapability>) -> Result<Capability, Error> {
    capability(given, exceeds)
}

fn staged(
    id: &str,
    staging: String,
    capability: Capability,
    context: &HashMap<String, String>,
    attach_required: bool,
    said: VolumeContext,
) -> Result<Stage, Error> {
    // Report a missing volume before what is wrong with its context.
    let id = volume_id(id)?;
    let attached = attach_required || !context.is_empty();
    let context = attached.then(|| PublishContext::parse(|key| context.get(key).map(String::as_str))).transpose()?;
    Ok(Stage { id, staging, capability, context, said })
}

/// NodeStageVolume.
pub(in crate::rpc) fn stage(message: NodeStageVolumeRequest, attach_required: bool) -> Result<Stage, Error> {
    required("volume_id", &message.volume_id)?;
    required("staging_target_path", &message.staging_target_path)?;
    let capability = checked(message.volume_capability)?;
    let said = volume_context(&message.volume_context)?;
    staged(&message.volume_id, message.staging_target_path, capability, &message.publish_context, attach_required, said)
}

/// A volume to show to a pod.
pub(in crate::rpc) enum NodePublish {
    /// A staged volume.
    Staged(Publish),
    /// An inline volume of the pod.
    Ephemeral(PublishEphemeral),
}

/// NodePublishVolume. The node service checks for an empty staging path: that is not a matter of form.
pub(in crate::rpc) fn node_publish(message: NodePublishVolumeRequest, attach_required: bool) -> Result<NodePublish, Error> {
    required("volume_id", &message.volume_id)?;
    required("target_path", &message.target_path)?;
    let capability = checked(message.volume_capability)?;
    if let Some(spec) = InlineSpec::parse(entries(&message.volume_context))? {
        let form = "an inline ephemeral volume has an id from kubelet: csi- and 64 hexadecimal digits";
        let id = EphemeralId::parse(&message.volume_id).ok_or_else(|| Error::invalid("volume_id", &message.volume_id, form))?;
        let (target, read_only) = (message.target_path, message.readonly);
        return Ok(NodePublish::Ephemeral(PublishEphemeral { id, target, capability, read_only, spec }));
    }
    let said = volume_context(&message.volume_context)?;
    let staged =
        staged(&message.volume_id, message.staging_target_path, capability, &message.publish_context, attach_required, said)?;
    Ok(NodePublish::Staged(Publish { staged, target: message.target_path, read_only: message.readonly }))
}

/// NodeExpandVolume. The capability and the staging path add nothing that the volume does not know itself.
pub(in crate::rpc) fn node_expand(message: NodeExpandVolumeRequest) -> Result<(VolumeId, String, SizeRange), Error> {
    required("volume_id", &message.volume_id)?;
    required("volume_path", &message.volume_path)?;
    let size = size(message.capacity_range)?;
    Ok((volume_id(&message.volume_id)?, message.volume_path, size))
}
