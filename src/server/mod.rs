//! The CSI socket, the health service, metrics, logging, and draining at shutdown.

mod agent;
mod call;
mod deadline;
mod drain;
mod health;
mod listener;
mod logging;
mod metrics;
mod socket;

pub use agent::serve_agent;
pub use health::{Groups, ask as ask_health};
pub use logging::{LogFormat, init as init_logging};
pub use metrics::{MetricsPort, Readers, ask as ask_metrics};
pub use socket::{SocketError, bind};

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use lvm_csi_proto::csi::controller_server::ControllerServer;
use lvm_csi_proto::csi::identity_server::IdentityServer;
use lvm_csi_proto::csi::node_server::NodeServer;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Uri;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::inflight::Inflight;
use crate::rpc::{ControllerService, IdentityService, NodeService};

use listener::{Limits, Listener};

/// The largest message received or sent, in bytes. Lists are paged, but a client may ask for everything at once, and a sidecar takes the
/// transport's "too large" for the driver's answer.
const LARGEST_MESSAGE: usize = 64 << 20;

/// How many calls a client may cancel before they begin. Beyond that limit HTTP/2 closes the connection with ENHANCE_YOUR_CALM. gRPC
/// reports this to every call on it as RESOURCE_EXHAUSTED, which means a full pool to Kubernetes. Clients that can reach these sockets are
/// trusted, so there is no limit.
const RESETS: Option<usize> = Some(usize::MAX);

pub struct Services {
    pub identity: IdentityService,
    /// For roles with the Controller service.
    pub controller: Option<ControllerService>,
    /// For roles with the Node service.
    pub node: Option<NodeService>,
    /// The volume groups of this machine, for the health service.
    pub groups: Groups,
    /// The network listener for health, in addition to the socket.
    pub health: Option<TcpListener>,
    /// The network listener for metrics, in addition to the socket.
    pub metrics: Option<MetricsPort>,
    /// The metrics of other modules, served with the present state.
    pub registry: Registry,
}

/// Listens on a network address.
///
/// # Errors
/// The address is in use or not of this machine.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `stop`, then until every operation has ended that no hanging volume group holds up. Calls that wait for a hanging one are
/// cut off.
///
/// `start` is the first look at the machine; the driver's health is "not serving" until it returns. Each volume group has a health of its
/// own, `vg/<name>`, which does not affect the driver's. The service `live` serves from the beginning, for liveness probes.
///
/// # Errors
/// The transport failed.
pub async fn serve(
    listener: UnixListener,
    services: Services,
    inflight: Inflight,
    start: impl FnOnce() + Send + 'static,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let (states, groups) = (health::watch(&services.groups, &reporter), services.groups.clone());
    reporter.set_service_status(health::LIVE, tonic_health::ServingStatus::Serving).await;
    if let Some(listener) = services.health {
        health::serve(listener, health_service.clone());
    }
    let scrapes = metrics::Scrapes::new(services.registry, services.groups, states, inflight.clone());
    if let Some(port) = services.metrics {
        metrics::serve(port, &scrapes);
    }
    let identity = Arc::new(services.identity);
    let ready = reporter.clone();
    ready.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    tokio::spawn(async move {
        // The panic hook logs a panic in `start`. The driver then stays not ready.
        if tokio::task::spawn_blocking(start).await.is_ok() {
            ready.set_service_status("", tonic_health::ServingStatus::Serving).await;
        }
    });
    let mut routes = Routes::new(health_service).add_service(IdentityServer::from_arc(identity));
    if let Some(controller) = services.controller {
        let service = ControllerServer::new(controller);
        routes =
            routes.add_service(service.max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE));
    }
    if let Some(node) = services.node {
        routes = routes.add_service(NodeServer::new(node).max_decoding_message_size(LARGEST_MESSAGE));
    }
    // Without this fallback, the transport's answer for a service that is not offered has no readable text.
    let unknown = |uri: Uri| async move {
        Status::unimplemented(format!("{} is not offered by this driver", uri.path().trim_start_matches('/'))).into_http::<Body>()
    };
    let routes = routes.into_axum_router().fallback(unknown).merge(scrapes.routes());
    let routes = routes.layer(axum::middleware::from_fn(deadline::keep)).layer(axum::middleware::from_fn(call::identify));
    let door = listener::plain(Listener::Unix(listener), Limits::SOCKET);
    // Such a call is answered when its caller's deadline passes, or never.
    let hung = drain::hung(inflight.clone(), groups.clone(), listener::LINGER.1);
    door.serve(Server::builder().http2_max_pending_accept_reset_streams(RESETS), routes, stop, hung).await?;
    drain::drain(&inflight, &groups).await;
    Ok(())
}

#[cfg(test)]
mod tests;
