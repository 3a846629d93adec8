//! Metrics in the OpenMetrics text format, which Prometheus reads. Nothing here touches a disk.
//!
//! They name everybody's volumes, claims and namespaces, so access is limited. In Kubernetes they are served over TLS to clients with the
//! token of an account that may `get /metrics`; elsewhere only on a loopback address. `lvm-csi metrics` reads them from the CSI socket,
//! which only root can open.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::transport::{Endpoint, Server};
use tower::Service;

use crate::inflight::Inflight;
use crate::tls::Credentials;
use crate::types::figure::{gauge, gauges};
use crate::types::{GroupQueue, GroupState, Reading, Secret, VgName, chain};

use super::health::{Groups, States};
use super::listener::{self, Limits, Listener};

const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PATH: &str = "/metrics";
/// Time limit for an answer: the attach ledger may wait for its disk.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer tokens are rejected unread, in bytes.
const LONGEST_TOKEN: usize = 8 << 10;
/// The largest text that `ask` reads, in bytes.
const LARGEST: usize = 64 << 20;

/// Decides who may read the metrics over the network.
#[tonic::async_trait]
pub trait Readers: Send + Sync {
    async fn judge(&self, token: &Secret) -> Reading;
}

/// The network listener for metrics.
pub struct MetricsPort {
    pub listener: TcpListener,
    /// Who may read them, and the certificate to present. Without these, anyone who can connect.
    pub guard: Option<(Arc<dyn Readers>, Arc<Credentials>)>,
}

/// The metrics. Only one scrape runs at a time.
#[derive(Clone)]
pub(super) struct Scrapes {
    registry: Arc<Registry>,
    /// A hanging scrape keeps the permit, so it never occupies a second thread.
    turn: Arc<Semaphore>,
}

impl Scrapes {
    /// Combines the registered metrics with the present state of operations and groups.
    pub(super) fn new(mut registry: Registry, groups: Groups, states: States, inflight: Inflight) -> Self {
        registry.register_collector(Box::new(Now { groups, states, inflight }));
        Self { registry: Arc::new(registry), turn: Arc::new(Semaphore::new(1)) }
    }

    pub(super) fn routes(&self) -> Router {
        let scrapes = self.clone();
        Router::new().route(PATH, get(async move || scrapes.answer().await))
    }

    async fn answer(&self) -> Response {
        match tokio::time::timeout(PATIENCE, self.text()).await {
            Ok(Some(body)) => ([(CONTENT_TYPE, FORMAT)], body).into_response(),
            Ok(None) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Err(_) => {
                let text = format!(
                    "no metrics within {} s: a disk may hang; check the health of the volume groups\n",
                    PATIENCE.as_secs()
                );
                (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
            }
        }
    }

    async fn text(&self) -> Option<String> {
        let turn = Arc::clone(&self.turn).acquire_owned().await.ok()?;
        let registry = Arc::clone(&self.registry);
        let encode = move || {
            let _turn = turn;
            let mut body = String::new();
            text::encode(&mut body, &registry).map(|()| body)
        };
        tokio::task::spawn_blocking(encode).await.ok()?.ok()
    }
}

/// Serves metrics on the network for as long as the driver runs.
pub(super) fn serve(port: MetricsPort, scrapes: &Scrapes) {
    let server =
        || Server::builder().accept_http1(true).http2_max_header_list_size(LONGEST_HEADERS).max_concurrent_streams(STREAMS);
    let never = std::future::pending::<()>;
    let routes = scrapes.routes();
    tokio::spawn(async move {
        let served = match port.guard {
            None => {
                let door = listener::plain(Listener::Tcp(port.listener), Limits::METRICS);
                door.serve(server(), routes, never(), never()).await
            }
            Some((readers, credentials)) => {
                let shake = move |connection: listener::Guarded| {
                    let (credentials, peer) = (Arc::clone(&credentials), connection.peer());
                    async move { credentials.accept_anyone(connection, peer).await }
                };
                let door = listener::secured(port.listener, Limits::METRICS, shake);
                let admitted = axum::middleware::from_fn(move |request: Request, next: Next| {
                    let readers = Arc::clone(&readers);
                    async move { admit(&*readers, request, next).await }
                });
                door.serve_behind(|routes| routes.layer(admitted), server(), routes, never(), never()).await
            }
        };
        if let Err(error) = served {
            tracing::error!(error = chain(&error), "metrics are no longer served on the network");
        }
    });
}

/// The largest request headers, in bytes.
const LONGEST_HEADERS: u32 = 16 << 10;
/// Concurrent requests on one connection.
const STREAMS: u32 = 4;

/// Passes requests of permitted readers only.
async fn admit(readers: &dyn Readers, mut request: Request, next: Next) -> Response {
    let reading = match take_token(request.headers_mut()) {
        Some(token) => readers.judge(&token).await,
        None => Reading::Unknown,
    };
    match reading {
        Reading::Allowed => next.run(request).await,
        Reading::Forbidden => (StatusCode::FORBIDDEN, "the account of this token may not get /metrics\n").into_response(),
        Reading::Unknown => {
            let text = "send a bearer token of an account that may get /metrics\n";
            (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], text).into_response()
        }
        Reading::Undecided => {
            (StatusCode::SERVICE_UNAVAILABLE, "the API server cannot be asked about this token; try again\n").into_response()
        }
    }
}

/// Takes the bearer token out of the headers; nobody behind needs it.
fn take_token(headers: &mut HeaderMap) -> Option<Secret> {
    let header = headers.remove(AUTHORIZATION)?;
    let token = header.to_str().ok()?.strip_prefix("Bearer ")?.trim();
    (!token.is_empty() && token.len() <= LONGEST_TOKEN).then(|| Secret::from(token.to_owned()))
}

/// Asks a driver on this machine, over its socket, for its metrics.
///
/// # Errors
/// The socket, and why no metrics came within ten seconds.
pub async fn ask(socket: &Path) -> Result<String, String> {
    let asked = async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(|error| chain(&error))?;
        let mut channel = endpoint.connect().await.map_err(|error| chain(&error))?;
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await.map_err(|error| chain(&error))?;
        let request = axum::http::Request::get(PATH).body(tonic::body::Body::empty()).map_err(|error| chain(&error))?;
        let answer = channel.call(request).await.map_err(|error| chain(&error))?;
        let status = answer.status();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), LARGEST).await.map_err(|error| chain(&error))?;
        let text = String::from_utf8(body.to_vec()).map_err(|error| chain(&error))?;
        if status == StatusCode::OK { Ok(text) } else { Err(format!("the driver answers {status}: {}", text.trim_end())) }
    };
    let asked = tokio::time::timeout(2 * PATIENCE, asked).await;
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} seconds", 2 * PATIENCE.as_secs())));
    asked.map_err(|error| format!("{}: {error}", socket.display()))
}

/// Metrics read at scrape time.
#[derive(Debug)]
struct Now {
    groups: Groups,
    states: States,
    inflight: Inflight,
}

/// A value per group, where the group has one.
type Figure<'a> = &'a dyn Fn(&VgName) -> Option<i64>;

impl Now {
    fn state(&self, name: &VgName, is: impl Fn(&GroupState) -> bool) -> Option<i64> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(|state| i64::from(is(state)))
    }

    fn groups(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, figure: Figure<'_>) -> fmt::Result {
        let values = self.groups.names.iter().filter_map(|vg| Some(([("vg", vg.as_str())], figure(vg)?)));
        gauges(encoder, name, help, values)
    }
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let running = i64::try_from(self.inflight.running().len()).unwrap_or(i64::MAX);
        gauge(&mut encoder, "operations", "Operations that run now", Some(running))?;
        let queue = |vg: &VgName| (self.groups.queue)(vg);
        let since = |queue: GroupQueue| queue.wedge?.since.duration_since(UNIX_EPOCH).ok()?.as_secs().try_into().ok();
        let figures: [(&str, &str, Figure<'_>); 6] = [
            ("vg_present", "Whether a disk of the volume group is there", &|vg| {
                self.state(vg, |state| !matches!(state, GroupState::Absent(_) | GroupState::Away(_)))
            }),
            ("vg_readable", "Whether the volume group can be read", &|vg| {
                self.state(vg, |state| matches!(state, GroupState::Complete | GroupState::Foreign(_) | GroupState::Incomplete(_)))
            }),
            ("vg_complete", "Whether all disks of the volume group are there and readable", &|vg| {
                self.state(vg, |state| matches!(state, GroupState::Complete | GroupState::Foreign(_)))
            }),
            ("vg_wedged", "Whether a command of the volume group has been running for too long", &|vg| {
                Some(i64::from(queue(vg).wedge.is_some()))
            }),
            ("vg_wedged_since_seconds", "When that command began, in seconds since 1970", &|vg| since(queue(vg))),
            ("vg_queue_length", "Changes of the volume group that run or wait", &|vg| queue(vg).length.try_into().ok()),
        ];
        figures.into_iter().try_for_each(|(name, help, figure)| self.groups(&mut encoder, name, help, figure))
    }
}
