//! The Controller service.

use lvm_csi_proto::csi::controller_server::Controller as Service;
use lvm_csi_proto::csi::controller_service_capability::rpc::Type as Rpc;
use lvm_csi_proto::csi::controller_service_capability::{self, Type};
use lvm_csi_proto::csi::volume_content_source::{SnapshotSource, Type as WireSource, VolumeSource};
use lvm_csi_proto::csi::*;
use std::sync::Arc;
use tonic::{Request, Response, Status};

use super::{about, answer, changed, request, status, unimplemented};
use crate::controller::{Controller, Listed};
use crate::types::{Bytes, Changed, NodeId, SnapshotId, VolumeId};
use crate::volume::inventory;
use crate::volume::tag::Origin;

pub struct ControllerService {
    controller: Arc<Controller>,
    snapshots: bool,
    attach: bool,
}

impl ControllerService {
    /// The service over a controller. `snapshots`: a pool offers them. `attach`: volumes are attached to nodes here.
    pub fn new(controller: Arc<Controller>, snapshots: bool, attach: bool) -> Self {
        Self { controller, snapshots, attach }
    }

    fn volume(&self, node: &NodeId, volume: &inventory::Volume) -> Volume {
        let source = volume.marks.from.as_ref().map(|from| {
            let vg = volume.id.vg.clone();
            let source = match from {
                Origin::Snapshot(lv) => {
                    WireSource::Snapshot(SnapshotSource { snapshot_id: SnapshotId { vg, lv: lv.clone() }.to_string() })
                }
                Origin::Volume(lv) => WireSource::Volume(VolumeSource { volume_id: VolumeId { vg, lv: lv.clone() }.to_string() }),
            };
            VolumeContentSource { r#type: Some(source) }
        });
        Volume {
            capacity_bytes: signed(volume.size),
            volume_id: volume.id.to_string(),
            content_source: source,
            accessible_topology: vec![Topology { segments: self.controller.topology(node).into_iter().collect() }],
            ..Volume::default()
        }
    }

    fn snapshot(snapshot: &inventory::Snapshot) -> Snapshot {
        Snapshot {
            size_bytes: signed(snapshot.size),
            snapshot_id: snapshot.id.to_string(),
            source_volume_id: snapshot.of.to_string(),
            creation_time: Some(prost_types::Timestamp {
                seconds: i64::try_from(snapshot.created).unwrap_or(i64::MAX),
                nanos: 0,
            }),
            ready_to_use: true,
            ..Snapshot::default()
        }
    }

    fn published(&self, listed: &Listed) -> Vec<String> {
        // CSI: only with LIST_VOLUMES_PUBLISHED_NODES.
        listed.published.iter().filter(|_| self.attach).map(ToString::to_string).collect()
    }

    fn capabilities(&self) -> Vec<Rpc> {
        let mut all = vec![
            Rpc::CreateDeleteVolume,
            Rpc::ListVolumes,
            Rpc::GetVolume,
            Rpc::GetCapacity,
            Rpc::ExpandVolume,
            Rpc::SingleNodeMultiWriter,
        ];
        if self.attach {
            all.extend([Rpc::PublishUnpublishVolume, Rpc::PublishReadonly, Rpc::ListVolumesPublishedNodes]);
        }
        if self.snapshots {
            all.extend([Rpc::CreateDeleteSnapshot, Rpc::ListSnapshots, Rpc::GetSnapshot, Rpc::CloneVolume]);
        }
        all
    }
}

/// CSI counts bytes in `int64`; no volume is that large.
fn signed(bytes: Bytes) -> i64 {
    i64::try_from(bytes.0).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl Service for ControllerService {
    async fn create_volume(&self, message: Request<CreateVolumeRequest>) -> Result<Response<CreateVolumeResponse>, Status> {
        answer("CreateVolume", async {
            let message = message.into_inner();
            about(&message.name);
            let (node, made) = self.controller.create(request::create(message)?).await?;
            changed("CreateVolume", made.change);
            Ok(CreateVolumeResponse { volume: Some(self.volume(&node, &made.object)) })
        })
        .await
    }

    async fn delete_volume(&self, message: Request<DeleteVolumeRequest>) -> Result<Response<DeleteVolumeResponse>, Status> {
        answer("DeleteVolume", async {
            let id = message.into_inner().volume_id;
            about(&id);
            request::required("volume_id", &id)?;
            // An id of another form than ours is that of a volume that does not exist, so it is gone.
            if let Some(id) = VolumeId::parse(&id) {
                changed("DeleteVolume", self.controller.delete(&id).await?);
            }
            Ok(DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        message: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        if !self.attach {
            return unimplemented("ControllerPublishVolume", "PUBLISH_UNPUBLISH_VOLUME");
        }
        answer("ControllerPublishVolume", async {
            let message = message.into_inner();
            about(&message.volume_id);
            let context = self.controller.publish(request::publish(message)?).await?;
            Ok(ControllerPublishVolumeResponse { publish_context: context.to_map().into_iter().collect() })
        })
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        message: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        if !self.attach {
            return unimplemented("ControllerUnpublishVolume", "PUBLISH_UNPUBLISH_VOLUME");
        }
        answer("ControllerUnpublishVolume", async {
            let message = message.into_inner();
            about(&message.volume_id);
            request::required("volume_id", &message.volume_id)?;
            if let Some(id) = VolumeId::parse(&message.volume_id) {
                self.controller.unpublish(id, &message.node_id).await?;
            }
            Ok(ControllerUnpublishVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        message: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        answer("ValidateVolumeCapabilities", async {
            let message = message.into_inner();
            about(&message.volume_id);
            let confirmed = validate_volume_capabilities_response::Confirmed {
                volume_context: message.volume_context.clone(),
                volume_capabilities: message.volume_capabilities.clone(),
                parameters: message.parameters.clone(),
                mutable_parameters: message.mutable_parameters.clone(),
            };
            Ok(match self.controller.validate(&request::validate(message)?).await? {
                Ok(()) => ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() },
                Err(why) => ValidateVolumeCapabilitiesResponse { confirmed: None, message: status::text(&why) },
            })
        })
        .await
    }

    async fn list_volumes(&self, message: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        answer("ListVolumes", async {
            let message = message.into_inner();
            let most = request::list_limit(message.max_entries)?;
            let page = self.controller.volumes(most, &message.starting_token).await?;
            let entry = |listed: &Listed| list_volumes_response::Entry {
                volume: Some(self.volume(&listed.node, &listed.volume)),
                status: Some(list_volumes_response::VolumeStatus { published_node_ids: self.published(listed) }),
            };
            Ok(ListVolumesResponse { entries: page.entries.iter().map(entry).collect(), next_token: page.next_token })
        })
        .await
    }

    async fn get_capacity(&self, message: Request<GetCapacityRequest>) -> Result<Response<GetCapacityResponse>, Status> {
        answer("GetCapacity", async {
            let left = self.controller.capacity(&request::capacity(message.into_inner())?).await?;
            Ok(GetCapacityResponse {
                available_capacity: signed(left.available),
                maximum_volume_size: Some(signed(left.maximum)),
                minimum_volume_size: Some(signed(left.minimum)),
            })
        })
        .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        answer("ControllerGetCapabilities", async {
            let capability = |rpc: Rpc| ControllerServiceCapability {
                r#type: Some(Type::Rpc(controller_service_capability::Rpc { r#type: rpc.into() })),
            };
            Ok(ControllerGetCapabilitiesResponse { capabilities: self.capabilities().into_iter().map(capability).collect() })
        })
        .await
    }

    async fn create_snapshot(&self, message: Request<CreateSnapshotRequest>) -> Result<Response<CreateSnapshotResponse>, Status> {
        if !self.snapshots {
            return unimplemented("CreateSnapshot", "CREATE_DELETE_SNAPSHOT");
        }
        answer("CreateSnapshot", async {
            let message = message.into_inner();
            about(&message.name);
            let Changed { object: snapshot, change } = self.controller.cut(&request::create_snapshot(message)?).await?;
            changed("CreateSnapshot", change);
            Ok(CreateSnapshotResponse { snapshot: Some(Self::snapshot(&snapshot)) })
        })
        .await
    }

    async fn delete_snapshot(&self, message: Request<DeleteSnapshotRequest>) -> Result<Response<DeleteSnapshotResponse>, Status> {
        if !self.snapshots {
            return unimplemented("DeleteSnapshot", "CREATE_DELETE_SNAPSHOT");
        }
        answer("DeleteSnapshot", async {
            let id = message.into_inner().snapshot_id;
            about(&id);
            if let Some(id) = request::snapshot_id(&id)? {
                changed("DeleteSnapshot", self.controller.delete_snapshot(&id).await?);
            }
            Ok(DeleteSnapshotResponse {})
        })
        .await
    }

    async fn list_snapshots(&self, message: Request<ListSnapshotsRequest>) -> Result<Response<ListSnapshotsResponse>, Status> {
        if !self.snapshots {
            return unimplemented("ListSnapshots", "LIST_SNAPSHOTS");
        }
        answer("ListSnapshots", async {
            let message = message.into_inner();
            let most = request::list_limit(message.max_entries)?;
            let (filter, token) = request::snapshot_filter(message);
            let page = self.controller.snapshots(&filter, most, &token).await?;
            let entry = |snapshot| list_snapshots_response::Entry { snapshot: Some(Self::snapshot(snapshot)) };
            Ok(ListSnapshotsResponse { entries: page.entries.iter().map(entry).collect(), next_token: page.next_token })
        })
        .await
    }

    async fn get_snapshot(&self, message: Request<GetSnapshotRequest>) -> Result<Response<GetSnapshotResponse>, Status> {
        if !self.snapshots {
            return unimplemented("GetSnapshot", "GET_SNAPSHOT");
        }
        answer("GetSnapshot", async {
            let id = message.into_inner().snapshot_id;
            about(&id);
            let snapshot = self.controller.snapshot(request::required("snapshot_id", &id)?).await?;
            Ok(GetSnapshotResponse { snapshot: Some(Self::snapshot(&snapshot)) })
        })
        .await
    }

    async fn controller_expand_volume(
        &self,
        message: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        answer("ControllerExpandVolume", async {
            let message = message.into_inner();
            about(&message.volume_id);
            let (id, size) = request::expand(message)?;
            let Changed { object: volume, change } = self.controller.expand(&id, size).await?;
            changed("ControllerExpandVolume", change);
            // True for a block device too: NodeExpandVolume grows what a pod sees of it.
            Ok(ControllerExpandVolumeResponse { capacity_bytes: signed(volume.size), node_expansion_required: true })
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        message: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        answer("ControllerGetVolume", async {
            let id = message.into_inner().volume_id;
            about(&id);
            let listed = self.controller.volume(request::required("volume_id", &id)?).await?;
            let status = controller_get_volume_response::VolumeStatus { published_node_ids: self.published(&listed) };
            Ok(ControllerGetVolumeResponse { volume: Some(self.volume(&listed.node, &listed.volume)), status: Some(status) })
        })
        .await
    }

    async fn controller_modify_volume(
        &self,
        _: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        unimplemented("ControllerModifyVolume", "MODIFY_VOLUME")
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<ControllerListVolumeHealthRequest>,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        unimplemented("ControllerListVolumeHealth", "LIST_VOLUME_HEALTH")
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        unimplemented("ControllerGetVolumeHealth", "GET_VOLUME_HEALTH")
    }
}
