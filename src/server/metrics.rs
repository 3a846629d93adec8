//! The metrics: `/metrics` over HTTP/1, in the text format of OpenMetrics that Prometheus reads. Nothing here asks a disk.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::inflight::Inflight;
use crate::types::figure::{gauge, gauges};
use crate::types::{GroupQueue, GroupState, VgName};

use super::health::{Groups, States};

/// What the text is (OpenMetrics).
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves what is registered, and the present state of operations and groups, for as long as the driver runs.
pub(super) fn serve(listener: TcpListener, mut registry: Registry, groups: Groups, states: States, inflight: Inflight) {
    registry.register_collector(Box::new(Now { groups, states, inflight }));
    let registry = Arc::new(registry);
    let answer = move || {
        let mut body = String::new();
        let told = text::encode(&mut body, &registry).map(|()| ([(CONTENT_TYPE, FORMAT)], body));
        async move { told.map_err(|error| error.to_string()) }
    };
    let routes = Routes::from(Router::new().route("/metrics", get(answer)));
    let server = Server::builder().accept_http1(true).add_routes(routes);
    tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming(TcpListenerStream::new(listener)).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
}

/// What is read when somebody asks.
#[derive(Debug)]
struct Now {
    groups: Groups,
    states: States,
    inflight: Inflight,
}

/// A figure of each group that has it.
type Figure<'a> = &'a dyn Fn(&VgName) -> Option<i64>;

impl Now {
    fn state(&self, name: &VgName, is: impl Fn(&GroupState) -> bool) -> Option<i64> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).get(name).map(|state| i64::from(is(state)))
    }

    fn groups(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, figure: Figure<'_>) -> fmt::Result {
        let told = self.groups.names.iter().filter_map(|vg| Some(([("vg", vg.as_str())], figure(vg)?)));
        gauges(encoder, name, help, told)
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
