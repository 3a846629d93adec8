//! The CSI services: messages become checked requests, and answers become messages. No decisions are made here.

mod controller;
mod identity;
mod looks;
mod metrics;
mod node;
mod request;
mod status;

pub use controller::ControllerService;
pub use identity::{IdentityService, Readiness};
pub use metrics::register_metrics;
pub use node::NodeService;

#[cfg(any(test, fuzzing))]
pub(crate) use request::fuzz as fuzz_request;

use std::future::Future;

use tonic::{Code, Response, Status};
use tracing::{Instrument, Span, field};

use crate::inflight::CallId;
use crate::types::{Change, Error};

/// Runs one call with its span, log line and metrics, and turns its error into a status.
async fn answer<T>(call: &'static str, work: impl Future<Output = Result<T, Error>>) -> Result<Response<T>, Status> {
    let span = tracing::info_span!("call", rpc = call, id = %CallId::present(), about = field::Empty, change = field::Empty);
    async {
        let timer = metrics::Timer::start(call);
        let result = work.await;
        let ms = timer.stop(result.as_ref().err().map_or(Code::Ok, status::code)).as_millis();
        match result {
            Ok(message) => {
                tracing::debug!(ms, "OK");
                Ok(Response::new(message))
            }
            Err(error) => {
                let code = status::code(&error);
                tracing::warn!(ms, ?code, error = %error.chain(), "not OK");
                Err(status::of(&error))
            }
        }
    }
    .instrument(span)
    .await
}

/// Adds the object of the present call to its log lines: a volume or snapshot, by its id or requested name.
fn about(object: &str) {
    if !object.is_empty() {
        Span::current().record("about", request::shown(object));
    }
}

/// Adds what the present call changed to its log line, and counts it.
fn changed(call: &'static str, change: Change) {
    Span::current().record("change", change.as_str());
    metrics::count(call, change);
}

/// The answer to a call that is not advertised (CSI: 12 UNIMPLEMENTED).
fn unimplemented<T>(call: &'static str, capability: &'static str) -> Result<Response<T>, Status> {
    Err(status::of(&Error::Unimplemented(format!("{call} is not offered: {capability} is not among the capabilities"))))
}
