//! The Identity service.

use lvm_csi_proto::csi::identity_server::Identity;
use lvm_csi_proto::csi::plugin_capability::service::Type as Service;
use lvm_csi_proto::csi::plugin_capability::volume_expansion::Type as Expansion;
use lvm_csi_proto::csi::plugin_capability::{self, Type};
use lvm_csi_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse, PluginCapability,
    ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status};

use super::answer;
use crate::types::Error;

/// Whether the driver is ready; an error if a dependency is missing (CSI: 9 FAILED_PRECONDITION).
pub type Readiness = Box<dyn Fn() -> Result<bool, Error> + Send + Sync>;

pub struct IdentityService {
    name: String,
    readiness: Readiness,
}

impl IdentityService {
    /// The service of a driver with this name.
    pub fn new(name: String, readiness: Readiness) -> Self {
        Self { name, readiness }
    }
}

fn service(service: Service) -> PluginCapability {
    PluginCapability { r#type: Some(Type::Service(plugin_capability::Service { r#type: service.into() })) }
}

fn expansion(expansion: Expansion) -> PluginCapability {
    PluginCapability { r#type: Some(Type::VolumeExpansion(plugin_capability::VolumeExpansion { r#type: expansion.into() })) }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(&self, _: Request<GetPluginInfoRequest>) -> Result<Response<GetPluginInfoResponse>, Status> {
        answer("GetPluginInfo", async {
            Ok(GetPluginInfoResponse {
                name: self.name.clone(),
                vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..GetPluginInfoResponse::default()
            })
        })
        .await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        answer("GetPluginCapabilities", async {
            let capabilities = vec![
                service(Service::ControllerService),
                service(Service::VolumeAccessibilityConstraints),
                expansion(Expansion::Online),
            ];
            Ok(GetPluginCapabilitiesResponse { capabilities })
        })
        .await
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        answer("Probe", async {
            let ready = (self.readiness)()?;
            Ok(ProbeResponse { ready: Some(ready) })
        })
        .await
    }
}
