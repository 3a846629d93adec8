//! The socket, the health service beside CSI, metrics, logging, and the end: draining what runs.

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

/// The largest message taken or sent, in bytes. Lists are paged, but a client may ask for everything at once, and a sidecar takes
/// the transport's "too large" for the driver's word.
const LARGEST_MESSAGE: usize = 64 << 20;

/// How many calls a client may give up before they are begun. Beyond it HTTP/2 closes the connection with ENHANCE_YOUR_CALM, which gRPC
/// hands to every call on it as RESOURCE_EXHAUSTED: a full pool, to Kubernetes. Who can reach these sockets need not be guarded against.
const RESETS: Option<usize> = Some(usize::MAX);

/// The services of one role.
pub struct Services {
    /// Identity.
    pub identity: IdentityService,
    /// Controller, in the roles that have it.
    pub controller: Option<ControllerService>,
    /// Node, in the roles that have it.
    pub node: Option<NodeService>,
    /// The volume groups of this machine, whose health is told beside.
    pub groups: Groups,
    /// Where health is told over the network, beside the socket.
    pub health: Option<TcpListener>,
    /// Where metrics are asked for over the network, beside the socket.
    pub metrics: Option<MetricsPort>,
    /// What is told there, beside the present state.
    pub registry: Registry,
}

/// Listens at an address of the network.
///
/// # Errors
/// The address is in use or not of this machine.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `stop`, then until every operation has ended that is not held up by a hanging group. Calls that wait for such a one are
/// cut off.
///
/// `start` is the first look at the machine; health says "not serving" until it is over. Each volume group has a health of its own,
/// `vg/<name>`, which that of the driver does not depend on. The service `live` is serving from the beginning: whoever ends a driver that
/// does not answer asks for that one.
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
        // A panic in it is logged by the panic hook; what it would have made ready stays away.
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
    // Services that are not offered: the transport's own answer says nothing that a person could read.
    let unknown = |uri: Uri| async move {
        Status::unimplemented(format!("{} is not offered by this driver", uri.path().trim_start_matches('/'))).into_http::<Body>()
    };
    let routes = routes.into_axum_router().fallback(unknown).merge(scrapes.routes());
    let routes = routes.layer(axum::middleware::from_fn(deadline::keep)).layer(axum::middleware::from_fn(call::identify));
    let door = listener::plain(Listener::Unix(listener), Limits::SOCKET);
    // A call whose operation hangs is answered when its caller's deadline passes, or never.
    let hung = drain::hung(inflight.clone(), groups.clone(), listener::LINGER.1);
    door.serve(Server::builder().http2_max_pending_accept_reset_streams(RESETS), routes, stop, hung).await?;
    drain::drain(&inflight, &groups).await;
    Ok(())
}

#[cfg(test)]
mod tests;
