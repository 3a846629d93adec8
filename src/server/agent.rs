//! The door for controllers: mutual TLS, and behind it the agent of this machine.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lvm_csi_proto::agent::agent_server::AgentServer;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::agent::{AgentService, LARGEST_MESSAGE};
use crate::tls::Credentials;
use crate::types::chain;

use super::{call, deadline};

/// Most handshakes at once: whoever can reach the port can begin one.
const HANDSHAKES: usize = 32;
/// The pause after a connection could not be taken, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);
/// After so long a connection takes no new call, so that no certificate is trusted for much longer than it is valid; after as long
/// again it is cut. The controller connects anew.
const AGE: Duration = Duration::from_secs(600);
/// After so long without a word, and as long again without an answer to a ping, a controller counts as gone.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Serves the agent to controllers until `stop`, and then until the calls that run have been answered.
///
/// # Errors
/// The transport failed.
pub async fn serve_agent(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    service: AgentService,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (sender, connections) = mpsc::channel(HANDSHAKES);
    let accepting = tokio::spawn(accept(listener, credentials, sender));
    let service = AgentServer::new(service).max_decoding_message_size(LARGEST_MESSAGE).max_encoding_message_size(LARGEST_MESSAGE);
    let routes = Routes::new(service).into_axum_router().layer(axum::middleware::from_fn(deadline::keep));
    let routes = routes.layer(axum::middleware::from_fn(call::identify));
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_connection_age(AGE)
        .max_connection_age_grace(AGE)
        .add_routes(Routes::from(routes))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop)
        .await;
    accepting.abort();
    served
}

/// Takes connections, and hands on those of a controller.
async fn accept(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    sender: mpsc::Sender<io::Result<TlsStream<tokio::net::TcpStream>>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the agent could not be taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (credentials, sender) = (Arc::clone(&credentials), sender.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match credentials.accept(stream).await {
                // Nobody is left to serve it when the driver ends.
                Ok(stream) => drop(sender.send(Ok(stream)).await),
                Err(error) => tracing::warn!(error = chain(&error), "a connection to the agent was refused"),
            }
        });
    }
}

#[cfg(test)]
mod tests;
