//! The roles of the program. Each chooses its effects, assembles the services and serves until a signal ends it.
//!
//! | role | services | touches devices |
//! |---|---|---|
//! | `standalone` | Identity, Controller, Node; the agent in process | yes |
//! | `node` | Identity, Node; the agent for controllers elsewhere | yes |
//! | `controller` | Identity, Controller over the agents of the nodes | no |

mod controller;
mod node;
mod parts;
mod standalone;

pub use controller::controller;
pub use node::node;
pub use standalone::standalone;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::{self, Cluster};
use crate::host::files;
use crate::server::MetricsPort;
use crate::tls::Credentials;
use crate::types::{Reading, Secret};
use crate::{host, lvm, rpc, server};

/// Runs a role to its end.
fn run(role: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting the runtime")?;
    let ended = runtime.block_on(role);
    // Dropping the runtime would wait for threads that hang on a disk.
    runtime.shutdown_background();
    ended
}

/// The metrics of every role.
fn registry() -> Registry {
    let mut registry = Registry::with_prefix("lvm_csi");
    host::register_metrics(&mut registry);
    lvm::register_metrics(&mut registry);
    rpc::register_metrics(&mut registry);
    registry
}

/// Opens the network listener for metrics.
async fn metrics(address: Option<SocketAddr>) -> anyhow::Result<Option<MetricsPort>> {
    let Some(address) = address else { return Ok(None) };
    let listener = server::listen(address).await.with_context(|| format!("listening on {address} for metrics"))?;
    Ok(Some(MetricsPort { listener, guard: None }))
}

/// Lets the API server decide who may read the metrics.
fn guard(metrics: &mut Option<MetricsPort>, cluster: &Cluster, credentials: &Arc<Credentials>) {
    if let Some(metrics) = metrics {
        metrics.guard = Some((Arc::new(Tokens(cluster.readers())), Arc::clone(credentials)));
    }
}

/// Judges tokens with the API server.
struct Tokens(cluster::Tokens);

#[tonic::async_trait]
impl server::Readers for Tokens {
    async fn judge(&self, token: &Secret) -> Reading {
        self.0.judge(token).await
    }
}

/// Opens the network listener for health.
async fn health(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    server::listen(address).await.map(Some).with_context(|| format!("listening on {address} for health probes"))
}

/// Resolves when a signal ends the role.
fn stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: accepting no new calls; waiting for running ones"),
            _ = interrupt.recv() => tracing::info!("SIGINT: accepting no new calls; waiting for running ones"),
        }
    })
}

fn stopped(endpoint: &Path) {
    // A socket that nobody answers on would confuse clients.
    let _ = files::remove_file(endpoint);
    tracing::info!("stopped");
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_error_is_told_while_a_thread_hangs() {
        let (release, hangs) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            let role = async {
                let (begun, begins) = tokio::sync::oneshot::channel();
                tokio::task::spawn_blocking(move || {
                    let _ = begun.send(());
                    hangs.recv().ok();
                });
                begins.await?;
                anyhow::bail!("on purpose")
            };
            ended.send(run(role)).ok();
        });
        let ended = end.recv_timeout(Duration::from_secs(20)).expect("the end waits for the thread");
        assert_eq!(ended.unwrap_err().to_string(), "on purpose");
        drop(release);
    }
}
