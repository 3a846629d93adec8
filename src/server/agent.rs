//! The listener for controllers: mutual TLS in front of this machine's agent.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lvm_csi_proto::agent::agent_server::AgentServer;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::agent::{AgentService, LARGEST_MESSAGE};
use crate::inflight::Inflight;
use crate::tls::{Credentials, TlsError};

use super::health::Groups;
use super::listener::{self, Limits};
use super::{call, deadline, drain};

/// Maximum connection age, so that no certificate stays trusted much past its expiry. After it the connection takes no new calls; after the
/// same time again it is closed. The controller reconnects.
const AGE: Duration = Duration::from_secs(600);
/// After this much silence the server pings the controller; after the same time without an answer it drops the connection.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Serves the agent until `stop`, then until running calls have been answered. Calls that wait for an operation on a hanging volume group
/// are cut off.
///
/// # Errors
/// The transport failed.
pub async fn serve_agent(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    service: AgentService,
    (inflight, groups): (Inflight, Groups),
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let door = listener::secured(listener, Limits::AGENT, move |connection: listener::Guarded| {
        let credentials = Arc::clone(&credentials);
        async move {
            let (peer, seat) = (connection.peer(), connection.seat());
            let stream = credentials.accept(connection, peer).await?;
            seat.prove();
            Ok::<_, TlsError>(stream)
        }
    });
    let service = AgentServer::new(service).max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE);
    let routes = Routes::new(service).into_axum_router().layer(axum::middleware::from_fn(deadline::keep));
    let routes = routes.layer(axum::middleware::from_fn(call::identify));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_pending_accept_reset_streams(super::RESETS)
        .max_connection_age(AGE)
        .max_connection_age_grace(AGE);
    door.serve(server, routes, stop, drain::hung(inflight, groups, listener::LINGER.1)).await
}

#[cfg(test)]
mod tests;
