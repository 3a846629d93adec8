//! The driver's services as blocking calls over its socket. Each call has a deadline, and its time and its LVM commands are recorded.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::controller_client::ControllerClient;
use lvm_csi_proto::csi::group_controller_client::GroupControllerClient;
use lvm_csi_proto::csi::identity_client::IdentityClient;
use lvm_csi_proto::csi::node_client::NodeClient;
use lvm_csi_proto::csi::snapshot_metadata_client::SnapshotMetadataClient;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use lvm_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use lvm_csi_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::error::{Result, Trouble, ensure};
use crate::shim;

/// Default deadline of a call: kubelet's.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Largest response that the client accepts, in bytes: the sidecars' default.
const LARGEST: usize = 16 << 20;

/// A finished call.
#[derive(Clone, Debug)]
pub struct Record {
    pub rpc: &'static str,
    /// From request to response.
    pub took: Duration,
    /// Executions of `lvm` during the call, as the shim counted them.
    pub lvm: usize,
    pub code: Code,
}

/// A connection to a driver. Clones share the connection and the records.
#[derive(Clone)]
pub struct Csi {
    runtime: Arc<Runtime>,
    channel: Channel,
    /// Another process that serves the controller's services, if there is one.
    controller: Option<(Arc<Runtime>, Channel)>,
    deadline: Duration,
    records: Arc<Mutex<Vec<Record>>>,
}

macro_rules! calls {
    ($($client:ident { $($method:ident $name:literal ($request:ident) -> $response:ident;)* })*) => {
        impl Csi {
            $($(
                #[doc = concat!("Calls `", $name, "`.")]
                ///
                /// # Errors
                /// The driver's status, or that of a broken transport.
                pub fn $method(&self, request: csi::$request) -> std::result::Result<csi::$response, Status> {
                    let mut client = $client::new(self.to(stringify!($client))).max_decoding_message_size(LARGEST);
                    self.timed($name, async move { client.$method(self.request(request)).await })
                }
            )*)*
        }
    };
}

calls! {
    IdentityClient {
        get_plugin_info "GetPluginInfo" (GetPluginInfoRequest) -> GetPluginInfoResponse;
        get_plugin_capabilities "GetPluginCapabilities" (GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse;
        probe "Probe" (ProbeRequest) -> ProbeResponse;
    }
    ControllerClient {
        create_volume "CreateVolume" (CreateVolumeRequest) -> CreateVolumeResponse;
        delete_volume "DeleteVolume" (DeleteVolumeRequest) -> DeleteVolumeResponse;
        controller_publish_volume "ControllerPublishVolume" (ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse;
        controller_unpublish_volume "ControllerUnpublishVolume"
            (ControllerUnpublishVolumeRequest) -> ControllerUnpublishVolumeResponse;
        validate_volume_capabilities "ValidateVolumeCapabilities"
            (ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse;
        list_volumes "ListVolumes" (ListVolumesRequest) -> ListVolumesResponse;
        controller_list_volume_health "ControllerListVolumeHealth"
            (ControllerListVolumeHealthRequest) -> ControllerListVolumeHealthResponse;
        controller_get_volume_health "ControllerGetVolumeHealth"
            (ControllerGetVolumeHealthRequest) -> ControllerGetVolumeHealthResponse;
        get_capacity "GetCapacity" (GetCapacityRequest) -> GetCapacityResponse;
        controller_get_capabilities "ControllerGetCapabilities"
            (ControllerGetCapabilitiesRequest) -> ControllerGetCapabilitiesResponse;
        create_snapshot "CreateSnapshot" (CreateSnapshotRequest) -> CreateSnapshotResponse;
        delete_snapshot "DeleteSnapshot" (DeleteSnapshotRequest) -> DeleteSnapshotResponse;
        list_snapshots "ListSnapshots" (ListSnapshotsRequest) -> ListSnapshotsResponse;
        get_snapshot "GetSnapshot" (GetSnapshotRequest) -> GetSnapshotResponse;
        controller_expand_volume "ControllerExpandVolume" (ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse;
        controller_get_volume "ControllerGetVolume" (ControllerGetVolumeRequest) -> ControllerGetVolumeResponse;
        controller_modify_volume "ControllerModifyVolume" (ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse;
    }
    GroupControllerClient {
        group_controller_get_capabilities "GroupControllerGetCapabilities"
            (GroupControllerGetCapabilitiesRequest) -> GroupControllerGetCapabilitiesResponse;
        create_volume_group_snapshot "CreateVolumeGroupSnapshot"
            (CreateVolumeGroupSnapshotRequest) -> CreateVolumeGroupSnapshotResponse;
    }
    NodeClient {
        node_stage_volume "NodeStageVolume" (NodeStageVolumeRequest) -> NodeStageVolumeResponse;
        node_unstage_volume "NodeUnstageVolume" (NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse;
        node_publish_volume "NodePublishVolume" (NodePublishVolumeRequest) -> NodePublishVolumeResponse;
        node_unpublish_volume "NodeUnpublishVolume" (NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse;
        node_get_volume_stats "NodeGetVolumeStats" (NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse;
        node_get_volume_health "NodeGetVolumeHealth" (NodeGetVolumeHealthRequest) -> NodeGetVolumeHealthResponse;
        node_get_storage_health "NodeGetStorageHealth" (NodeGetStorageHealthRequest) -> NodeGetStorageHealthResponse;
        node_expand_volume "NodeExpandVolume" (NodeExpandVolumeRequest) -> NodeExpandVolumeResponse;
        node_get_capabilities "NodeGetCapabilities" (NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse;
        node_get_info "NodeGetInfo" (NodeGetInfoRequest) -> NodeGetInfoResponse;
    }
}

impl Csi {
    /// A client for a socket. It connects with the first call, and reconnects when the connection breaks.
    ///
    /// # Errors
    /// The path is not a valid address.
    pub fn new(socket: &Path) -> Result<Self> {
        Self::with_authority(socket, "localhost")
    }

    /// As [`Csi::new`], with another HTTP/2 `:authority` than `localhost`, which kubelet and the sidecars send.
    ///
    /// # Errors
    /// The path is not a valid address, or the authority is malformed.
    pub fn with_authority(socket: &Path, authority: &str) -> Result<Self> {
        let broken = |what: &str| Trouble::wrong(format!("{what} for the socket {}", socket.display()));
        let origin = format!("http://{authority}").parse().map_err(|_| broken("malformed authority"))?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(|_| broken("malformed address"))?;
        Self::at(endpoint.origin(origin))
    }

    /// As [`Csi::new`], for a TCP address, as kubelet's gRPC probes use.
    ///
    /// # Errors
    /// The client cannot be created.
    pub fn over_network(address: SocketAddr) -> Result<Self> {
        Self::at(
            Endpoint::from_shared(format!("http://{address}"))
                .map_err(|_| Trouble::wrong(format!("malformed address {address}")))?,
        )
    }

    fn at(endpoint: Endpoint) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(Trouble::io("starting the client's runtime"))?;
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Ok(Self { runtime: Arc::new(runtime), channel, controller: None, deadline: DEADLINE, records: Arc::default() })
    }

    /// This connection, with the controller's services from another process.
    pub fn with_controller(&self, controller: &Csi) -> Self {
        Self { controller: Some((Arc::clone(&controller.runtime), controller.channel.clone())), ..self.clone() }
    }

    fn to(&self, client: &str) -> Channel {
        match &self.controller {
            Some((_, controller)) if client == "ControllerClient" || client == "GroupControllerClient" => controller.clone(),
            _ => self.channel.clone(),
        }
    }

    /// This connection with another deadline per call.
    pub fn deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Whether the standard health service reports the whole server as serving.
    ///
    /// # Errors
    /// The driver's status.
    pub fn serving(&self) -> std::result::Result<bool, Status> {
        self.healthy("")
    }

    /// Whether the standard health service reports one service as serving, such as `vg/NAME`.
    ///
    /// # Errors
    /// The driver's status.
    pub fn healthy(&self, service: &str) -> std::result::Result<bool, Status> {
        let mut client = HealthClient::new(self.channel.clone());
        let request = self.request(HealthCheckRequest { service: service.to_owned() });
        let answer = self.runtime.block_on(async move { client.check(request).await })?;
        Ok(answer.into_inner().status == ServingStatus::Serving as i32)
    }

    /// Calls `GetMetadataAllocated` and drops the stream that it returns.
    ///
    /// # Errors
    /// The driver's status.
    pub fn get_metadata_allocated(&self, request: csi::GetMetadataAllocatedRequest) -> std::result::Result<(), Status> {
        let mut client = SnapshotMetadataClient::new(self.channel.clone());
        self.timed("GetMetadataAllocated", async move { client.get_metadata_allocated(self.request(request)).await }).map(drop)
    }

    /// Clears the records.
    pub fn forget(&self) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// All calls so far, in the order in which they finished.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The call that finished last.
    ///
    /// # Errors
    /// There was none.
    pub fn last(&self) -> Result<Record> {
        self.records().pop().ok_or_else(|| Trouble::wrong("no call has finished yet"))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    fn timed<T>(
        &self,
        rpc: &'static str,
        call: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> std::result::Result<T, Status> {
        // Without the shim's log the count is 0.
        let mark = shim::count().unwrap_or_default();
        let start = Instant::now();
        let answer = self.runtime.block_on(call);
        let took = start.elapsed();
        let lvm = shim::count().unwrap_or_default().saturating_sub(mark);
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(Record { rpc, took, lvm, code });
        answer.map(Response::into_inner)
    }
}

/// For calls that must succeed: turns a status into a [`Trouble`] that names the call.
pub trait Accepted<T> {
    /// The response.
    ///
    /// # Errors
    /// The driver returned an error.
    fn accepted(self, rpc: &'static str) -> Result<T>;
}

impl<T> Accepted<T> for std::result::Result<T, Status> {
    fn accepted(self, rpc: &'static str) -> Result<T> {
        self.map_err(|status| Trouble::Call { rpc, code: status.code(), message: status.message().to_owned() })
    }
}

/// For calls that must fail with one of these codes; returns the message.
///
/// # Errors
/// The call succeeded or failed with another code; or the status has no message, has details (CSI forbids them), or names a device or an
/// LVM UUID.
pub fn refused<T>(answer: std::result::Result<T, Status>, codes: &[Code], what: &str) -> Result<String> {
    let Err(status) = answer else { return Err(Trouble::wrong(format!("{what}: returned OK instead of {codes:?}"))) };
    let message = status.message();
    ensure(codes.contains(&status.code()), || format!("{what}: returned {:?} instead of {codes:?}: {message}", status.code()))?;
    ensure(!message.trim().is_empty(), || format!("{what}: returned {:?} without a message", status.code()))?;
    ensure(status.details().is_empty(), || format!("{what}: the status has details"))?;
    // Kubernetes shows it to tenants in events.
    ensure(!names_device(message), || format!("{what}: the message names a device or an LVM UUID: {message}"))?;
    Ok(message.to_owned())
}

/// Whether a text contains the path of a device or an LVM UUID.
fn names_device(text: &str) -> bool {
    let is_path = |word: &str| word.starts_with("/dev/") || word.starts_with("/sys/");
    let lengths = |part: &str| part.split('-').map(str::len).collect::<Vec<_>>();
    let is_uuid = |word: &str| lengths(word).windows(7).any(|parts| parts == [6, 4, 4, 4, 4, 4, 6]);
    text.split([' ', '"', '\'', '(', ')', ',', ';', '=']).any(|word| is_path(word) || word.split(['/', ':']).any(is_uuid))
}

/// A filesystem capability. An empty type leaves the choice to the driver.
pub fn mount(filesystem: &str, mode: Mode) -> csi::VolumeCapability {
    mount_with(filesystem, mode, &[])
}

/// A filesystem capability with mount options.
pub fn mount_with(filesystem: &str, mode: Mode, flags: &[&str]) -> csi::VolumeCapability {
    let volume = MountVolume {
        fs_type: filesystem.to_owned(),
        mount_flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        volume_mount_group: String::new(),
    };
    csi::VolumeCapability { access_type: Some(AccessType::Mount(volume)), access_mode: Some(AccessMode { mode: mode as i32 }) }
}

/// A raw block capability.
pub fn block(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: mode as i32 }),
    }
}

/// A capacity range in bytes. A limit of 0 means no limit.
pub fn range(required: u64, limit: u64) -> csi::CapacityRange {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    csi::CapacityRange { required_bytes: signed(required), limit_bytes: signed(limit) }
}

/// A CreateVolume request for at least this many bytes in a pool.
pub fn create(name: &str, pool: &str, bytes: u64, capability: csi::VolumeCapability) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(range(bytes, 0)),
        volume_capabilities: vec![capability],
        parameters: map(&[("pool", pool)]),
        ..Default::default()
    }
}

/// A snapshot as the content source of a volume.
pub fn from_snapshot(id: &str) -> Option<csi::VolumeContentSource> {
    Some(csi::VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })) })
}

/// A volume as the content source of a volume.
pub fn from_volume(id: &str) -> Option<csi::VolumeContentSource> {
    Some(csi::VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.to_owned() })) })
}

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}
