//! The Node service.

use lvm_csi_proto::csi::node_server::Node as Service;
use lvm_csi_proto::csi::node_service_capability::rpc::Type as Rpc;
use lvm_csi_proto::csi::node_service_capability::{self, Type};
use lvm_csi_proto::csi::volume_usage::Unit;
use lvm_csi_proto::csi::*;
use std::sync::Arc;
use tonic::{Request, Response, Status};

use super::looks::Looks;
use super::request::{self, NodePublish};
use super::{about, answer, unimplemented};
use crate::controller::topology_key;
use crate::inflight::{Operation, Reservation};
use crate::node::{Node, Stats};
use crate::types::{Bytes, EphemeralId, Error, VolumeId};

pub struct NodeService {
    node: Arc<Node>,
    topology_key: String,
    max_volumes: usize,
    /// A hanging device must not block kubelet's housekeeping, nor take another thread with each request.
    looks: Looks<Stats>,
}

impl NodeService {
    /// The service over a node. `driver` is the CSI name, `max_volumes` the attach limit (0: none).
    pub fn new(node: Arc<Node>, driver: &str, max_volumes: usize) -> Self {
        Self { node, topology_key: topology_key(driver), max_volumes, looks: Looks::default() }
    }

    /// Runs a call that reserves a volume.
    async fn reserved<R, T, W>(&self, call: &'static str, id: &VolumeId, request: R, work: W) -> Result<T, Error>
    where
        R: PartialEq + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
        W: FnOnce(&Node, &Reservation) -> Result<T, Error> + Send + 'static,
    {
        self.run(self.node.machine().on_volume(call, id, request), work).await
    }

    async fn run<T, W>(&self, operation: Operation, work: W) -> Result<T, Error>
    where
        T: Clone + Send + Sync + 'static,
        W: FnOnce(&Node, &Reservation) -> Result<T, Error> + Send + 'static,
    {
        let node = Arc::clone(&self.node);
        self.node.machine().inflight().run(operation, move |reservation| work(&node, reservation)).await
    }
}

/// CSI counts bytes and inodes in `int64`.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn usage(stats: Stats) -> Vec<VolumeUsage> {
    match stats {
        Stats::Block(Bytes(total)) => {
            vec![VolumeUsage { total: signed(total), unit: Unit::Bytes.into(), ..VolumeUsage::default() }]
        }
        Stats::Filesystem(fs) => vec![
            VolumeUsage {
                available: signed(fs.available.0),
                total: signed(fs.total.0),
                used: signed(fs.used.0),
                unit: Unit::Bytes.into(),
            },
            VolumeUsage {
                available: signed(fs.inodes_free),
                total: signed(fs.inodes),
                used: signed(fs.inodes.saturating_sub(fs.inodes_free)),
                unit: Unit::Inodes.into(),
            },
        ],
    }
}

#[tonic::async_trait]
impl Service for NodeService {
    async fn node_stage_volume(
        &self,
        message: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        answer("NodeStageVolume", async {
            let message = message.into_inner();
            about(&message.volume_id);
            let stage = request::stage(message, self.node.attach_required())?;
            self.reserved("NodeStageVolume", &stage.id.clone(), stage.clone(), move |node, reservation| {
                node.stage(reservation, &stage)
            })
            .await?;
            Ok(NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        message: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        answer("NodeUnstageVolume", async {
            let message = message.into_inner();
            about(&message.volume_id);
            request::required("volume_id", &message.volume_id)?;
            let path = request::required("staging_target_path", &message.staging_target_path)?.to_owned();
            if let Some(id) = VolumeId::parse(&message.volume_id) {
                self.reserved("NodeUnstageVolume", &id.clone(), path.clone(), move |node, reservation| {
                    node.unstage(reservation, &id, &path)
                })
                .await?;
            }
            Ok(NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        message: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        answer("NodePublishVolume", async {
            const CALL: &str = "NodePublishVolume";
            let message = message.into_inner();
            about(&message.volume_id);
            match request::node_publish(message, self.node.attach_required())? {
                NodePublish::Staged(publish) => {
                    self.reserved(CALL, &publish.staged.id.clone(), publish.clone(), move |node, reservation| {
                        node.publish(reservation, &publish)
                    })
                    .await?;
                }
                NodePublish::Ephemeral(publish) => {
                    let operation = self.node.machine().on_ephemeral(CALL, &publish.id, publish.clone());
                    self.run(operation, move |node, reservation| node.publish_ephemeral(reservation, &publish)).await?;
                }
            }
            Ok(NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        message: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        answer("NodeUnpublishVolume", async {
            let message = message.into_inner();
            about(&message.volume_id);
            request::required("volume_id", &message.volume_id)?;
            let path = request::required("target_path", &message.target_path)?.to_owned();
            // What was published has an id of ours; for any other id there is nothing to undo.
            if let Some(id) = VolumeId::parse(&message.volume_id) {
                self.reserved("NodeUnpublishVolume", &id.clone(), path.clone(), move |node, reservation| {
                    node.unpublish(reservation, &id, &path)
                })
                .await?;
            } else if let Some(id) = EphemeralId::parse(&message.volume_id) {
                let operation = self.node.machine().on_ephemeral("NodeUnpublishVolume", &id, path.clone());
                self.run(operation, move |node, reservation| node.unpublish_ephemeral(reservation, &id, &path)).await?;
            }
            Ok(NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        message: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        answer("NodeGetVolumeStats", async {
            let message = message.into_inner();
            about(&message.volume_id);
            request::required("volume_id", &message.volume_id)?;
            let path = request::required("volume_path", &message.volume_path)?.to_owned();
            let what = format!("volume {}", message.volume_id);
            let node = Arc::clone(&self.node);
            let place = format!("{what} at {path}");
            let stats = match EphemeralId::parse(&message.volume_id) {
                Some(id) => self.looks.at(place, &what, move || node.stats_of_ephemeral(&id, &path)).await,
                None => {
                    let id = request::volume_id(&message.volume_id)?;
                    self.looks.at(place, &what, move || node.stats(&id, &path)).await
                }
            }?;
            Ok(NodeGetVolumeStatsResponse { usage: usage(stats) })
        })
        .await
    }

    async fn node_expand_volume(
        &self,
        message: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        answer("NodeExpandVolume", async {
            let message = message.into_inner();
            about(&message.volume_id);
            let (id, path, size) = request::node_expand(message)?;
            let request = (path.clone(), size);
            let size = self
                .reserved("NodeExpandVolume", &id.clone(), request, move |node, reservation| {
                    node.expand(reservation, &id, &path, size)
                })
                .await?;
            Ok(NodeExpandVolumeResponse { capacity_bytes: signed(size.0) })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        answer("NodeGetCapabilities", async {
            let all = [Rpc::StageUnstageVolume, Rpc::GetVolumeStats, Rpc::ExpandVolume, Rpc::SingleNodeMultiWriter];
            let capability =
                |rpc: Rpc| NodeServiceCapability { r#type: Some(Type::Rpc(node_service_capability::Rpc { r#type: rpc.into() })) };
            Ok(NodeGetCapabilitiesResponse { capabilities: all.into_iter().map(capability).collect() })
        })
        .await
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        answer("NodeGetInfo", async {
            let node = self.node.id().to_string();
            let segments = [(self.topology_key.clone(), node.clone())].into();
            Ok(NodeGetInfoResponse {
                node_id: node,
                max_volumes_per_node: i64::try_from(self.max_volumes).unwrap_or(i64::MAX),
                accessible_topology: Some(Topology { segments }),
            })
        })
        .await
    }

    async fn node_get_volume_health(
        &self,
        _: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        unimplemented("NodeGetVolumeHealth", "GET_VOLUME_HEALTH")
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        unimplemented("NodeGetStorageHealth", "GET_STORAGE_HEALTH")
    }
}
