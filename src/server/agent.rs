//! The door for controllers: mutual TLS, and behind it the agent of this machine.

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

/// After so long a connection takes no new call, so that no certificate is trusted for much longer than it is valid; after as long
/// again it is cut. The controller connects anew.
const AGE: Duration = Duration::from_secs(600);
/// After so long without a word, and as long again without an answer to a ping, a controller counts as gone.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Serves the agent to controllers until `stop`, and then until the calls that run have been answered. Those that wait for an operation on
/// a volume group that hangs are cut off.
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
