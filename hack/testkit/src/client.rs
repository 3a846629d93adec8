//! The driver's services as plain calls over its socket, each with a deadline, each timed and its LVM commands counted.

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

/// Deadline of a call unless another is asked for; kubelet's.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Largest answer taken, in bytes; the sidecars' default.
const LARGEST: usize = 16 << 20;

/// One call that was made.
#[derive(Clone, Debug)]
pub struct Record {
    /// Name of the call.
    pub rpc: &'static str,
    /// From sending to the answer.
    pub took: Duration,
    /// Executions of `lvm` meanwhile, by the shim.
    pub lvm: usize,
    /// The code it was answered with.
    pub code: Code,
}

/// A connection to a driver. Clones share the connection and the record.
#[derive(Clone)]
pub struct Csi {
    runtime: Arc<Runtime>,
    channel: Channel,
    /// Where the services of the controller are asked for, if not there.
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
                /// The status it was answered with, or what broke the transport.
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
    /// Prepares a connection to a socket; it is made with the first call, and made again when it breaks.
    ///
    /// # Errors
    /// The path cannot be the address of a socket.
    pub fn new(socket: &Path) -> Result<Self> {
        Self::with_authority(socket, "localhost")
    }

    /// As [`Csi::new`], telling the driver another `:authority` than kubelet's and the sidecars' `localhost`.
    ///
    /// # Errors
    /// The path cannot be the address of a socket, or the authority is none.
    pub fn with_authority(socket: &Path, authority: &str) -> Result<Self> {
        let broken = |what: &str| Trouble::wrong(format!("{what} for {}", socket.display()));
        let origin = format!("http://{authority}").parse().map_err(|_| broken("no authority"))?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(|_| broken("no address"))?;
        Self::at(endpoint.origin(origin))
    }

    /// Prepares a connection to an address of the network, as [`Csi::new`] to a socket: kubelet's probes ask so.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn over_network(address: SocketAddr) -> Result<Self> {
        Self::at(
            Endpoint::from_shared(format!("http://{address}")).map_err(|_| Trouble::wrong(format!("no address: {address}")))?,
        )
    }

    fn at(endpoint: Endpoint) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(Trouble::io("starting the client's runtime"))?;
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Ok(Self { runtime: Arc::new(runtime), channel, controller: None, deadline: DEADLINE, records: Arc::default() })
    }

    /// The same connection, for a driver whose controller is another process.
    pub fn with_controller(&self, controller: &Csi) -> Self {
        Self { controller: Some((Arc::clone(&controller.runtime), controller.channel.clone())), ..self.clone() }
    }

    /// The channel for a client.
    fn to(&self, client: &str) -> Channel {
        match &self.controller {
            Some((_, controller)) if client == "ControllerClient" || client == "GroupControllerClient" => controller.clone(),
            _ => self.channel.clone(),
        }
    }

    /// The same connection with another deadline per call.
    pub fn deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// What the standard health service says of the whole server.
    ///
    /// # Errors
    /// The status it was answered with.
    pub fn serving(&self) -> std::result::Result<bool, Status> {
        self.healthy("")
    }

    /// What the standard health service says of one service, such as `vg/NAME`.
    ///
    /// # Errors
    /// The status it was answered with.
    pub fn healthy(&self, service: &str) -> std::result::Result<bool, Status> {
        let mut client = HealthClient::new(self.channel.clone());
        let request = self.request(HealthCheckRequest { service: service.to_owned() });
        let answer = self.runtime.block_on(async move { client.check(request).await })?;
        Ok(answer.into_inner().status == ServingStatus::Serving as i32)
    }

    /// Calls `GetMetadataAllocated`, whose answer is a stream, and gives only whether it was taken.
    ///
    /// # Errors
    /// The status it was answered with.
    pub fn get_metadata_allocated(&self, request: csi::GetMetadataAllocatedRequest) -> std::result::Result<(), Status> {
        let mut client = SnapshotMetadataClient::new(self.channel.clone());
        self.timed("GetMetadataAllocated", async move { client.get_metadata_allocated(self.request(request)).await }).map(drop)
    }

    /// Forgets the calls made so far.
    pub fn forget(&self) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// All calls so far, in the order of their ends.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The call that ended last.
    ///
    /// # Errors
    /// None was made.
    pub fn last(&self) -> Result<Record> {
        self.records().pop().ok_or_else(|| Trouble::wrong("no call was made yet"))
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
        // Without a shim there is nothing to count, and that is 0.
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

/// For calls that must go well: turns a status into a [`Trouble`] that names the call.
pub trait Accepted<T> {
    /// The answer.
    ///
    /// # Errors
    /// The call was answered with an error.
    fn accepted(self, rpc: &'static str) -> Result<T>;
}

impl<T> Accepted<T> for std::result::Result<T, Status> {
    fn accepted(self, rpc: &'static str) -> Result<T> {
        self.map_err(|status| Trouble::Call { rpc, code: status.code(), message: status.message().to_owned() })
    }
}

/// For calls that must be refused with one of some codes; gives the message.
///
/// # Errors
/// The call went well or has another code, has no message, names a device or a UUID of LVM, or carries details, which CSI forbids.
pub fn refused<T>(answer: std::result::Result<T, Status>, codes: &[Code], what: &str) -> Result<String> {
    let Err(status) = answer else { return Err(Trouble::wrong(format!("{what}: answered OK instead of {codes:?}"))) };
    let message = status.message();
    ensure(codes.contains(&status.code()), || format!("{what}: answered {:?} instead of {codes:?}: {message}", status.code()))?;
    ensure(!message.trim().is_empty(), || format!("{what}: answered {:?} without a message", status.code()))?;
    ensure(status.details().is_empty(), || format!("{what}: the status carries details"))?;
    // It gets into the events of a tenant.
    ensure(!tells_of_devices(message), || format!("{what}: the message tells of devices: {message}"))?;
    Ok(message.to_owned())
}

/// Whether a text holds the path of a device or a UUID of LVM.
fn tells_of_devices(text: &str) -> bool {
    let is_path = |word: &str| word.starts_with("/dev/") || word.starts_with("/sys/");
    let lengths = |part: &str| part.split('-').map(str::len).collect::<Vec<_>>();
    let is_uuid = |word: &str| lengths(word).windows(7).any(|parts| parts == [6, 4, 4, 4, 4, 4, 6]);
    text.split([' ', '"', '\'', '(', ')', ',', ';', '=']).any(|word| is_path(word) || word.split(['/', ':']).any(is_uuid))
}

/// A capability with a filesystem; an empty type leaves the choice to the driver.
pub fn mount(filesystem: &str, mode: Mode) -> csi::VolumeCapability {
    mount_with(filesystem, mode, &[])
}

/// A capability with a filesystem and mount options.
pub fn mount_with(filesystem: &str, mode: Mode, flags: &[&str]) -> csi::VolumeCapability {
    let volume = MountVolume {
        fs_type: filesystem.to_owned(),
        mount_flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        volume_mount_group: String::new(),
    };
    csi::VolumeCapability { access_type: Some(AccessType::Mount(volume)), access_mode: Some(AccessMode { mode: mode as i32 }) }
}

/// A capability with a raw block device.
pub fn block(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: mode as i32 }),
    }
}

/// A range of sizes in bytes; a limit of 0 is none.
pub fn range(required: u64, limit: u64) -> csi::CapacityRange {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    csi::CapacityRange { required_bytes: signed(required), limit_bytes: signed(limit) }
}

/// A request for a volume of a size in bytes in a pool.
pub fn create(name: &str, pool: &str, bytes: u64, capability: csi::VolumeCapability) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(range(bytes, 0)),
        volume_capabilities: vec![capability],
        parameters: map(&[("pool", pool)]),
        ..Default::default()
    }
}

/// A snapshot as the source of a volume.
pub fn from_snapshot(id: &str) -> Option<csi::VolumeContentSource> {
    Some(csi::VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })) })
}

/// A volume as the source of a volume.
pub fn from_volume(id: &str) -> Option<csi::VolumeContentSource> {
    Some(csi::VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.to_owned() })) })
}

/// A map of texts.
pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}
