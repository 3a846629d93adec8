//! The id of each call: the caller's, or a new one.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use crate::inflight::{self, CallId};

/// Gives a call its id before any work starts.
pub(super) async fn identify(request: Request, next: Next) -> Response {
    let given = request.headers().get(CallId::HEADER).and_then(|value| CallId::parse(value.to_str().ok()?));
    inflight::called(given.unwrap_or_else(CallId::unique), next.run(request)).await
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    async fn id_of_a_call(given: Option<&str>) -> String {
        let routes = Router::new().route("/", get(async || CallId::present().to_string()));
        let routes = routes.layer(axum::middleware::from_fn(identify));
        let request = given.into_iter().fold(Request::builder(), |request, id| request.header(CallId::HEADER, id));
        let answer = routes.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        String::from_utf8(to_bytes(answer.into_body(), 100).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_call_has_the_id_of_its_caller_or_one_of_its_own() {
        assert_eq!(id_of_a_call(Some("from-outside")).await, "from-outside");
        let (own, other) = (id_of_a_call(None).await, id_of_a_call(Some("two words")).await);
        assert!(own != other && own.len() == 12 && other.len() == 12, "{own} {other}");
    }
}
