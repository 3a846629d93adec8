//! Claims on an API server in memory.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

use super::*;

const DRIVER: &str = "lvm-csi.dev";
const VG: &str = "AbCdEf-0123-4567-89ab-cdef-0123-456789";

/// The API server.
struct Server {
    claims: Vec<Value>,
    volumes: Vec<Value>,
    /// Watch events of the claims.
    news: Mutex<mpsc::UnboundedReceiver<Value>>,
    /// The answer to a change.
    answer: Mutex<Result<(), (u16, &'static str)>>,
    /// The last change: path, type and text.
    change: Mutex<Option<(String, String, Value)>>,
}

impl Server {
    async fn answer(&self, request: Request<Body>) -> Response<String> {
        let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
        let (code, text) = if request.method() == Method::PATCH {
            let form = request.headers()["content-type"].to_str().unwrap().to_owned();
            let text = to_bytes(axum::body::Body::new(request.into_body()), 1 << 20).await.unwrap();
            *self.change.lock().await = Some((path, form, serde_json::from_slice(&text).unwrap()));
            match *self.answer.lock().await {
                Ok(()) => (200, self.claims[0].clone()),
                Err((code, message)) => (code, json!({"kind": "Status", "status": "Failure", "message": message, "code": code})),
            }
        } else {
            let claims = path == "/api/v1/persistentvolumeclaims";
            match (query.contains("watch="), claims) {
                (false, true) => (200, list("PersistentVolumeClaimList", &self.claims)),
                (false, false) => (200, list("PersistentVolumeList", &self.volumes)),
                (true, true) => (200, self.news.lock().await.recv().await.unwrap()),
                (true, false) => std::future::pending().await,
            }
        };
        Response::builder().status(StatusCode::from_u16(code).unwrap()).body(format!("{text}\n")).unwrap()
    }
}

fn list(kind: &str, items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})
}

fn claim(name: &str, version: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "resourceVersion": version, "annotations": annotations},
        "spec": {"volumeName": format!("pv-{name}"), "volumeMode": "Filesystem", "resources": {"requests": {"storage": "64Mi"}}},
        "status": {"phase": "Bound", "capacity": {"storage": "68Mi"}},
    })
}

fn volume(claim: &str, driver: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("pv-{claim}")},
        "spec": {
            "claimRef": {"namespace": "shop", "name": claim},
            "csi": {"driver": driver, "volumeHandle": format!("{VG}/pvc-{claim}")},
        },
    })
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

#[tokio::test]
async fn claims_of_ours_that_speak_of_growth_are_known_and_changed_as_they_were_seen() {
    let grows = json!({"lvm-csi.dev/grow-to": "1Gi", "lvm-csi.dev/grow-at": "70%", "other.dev/grow-to": "2Gi"});
    let mut pending = claim("pending", "1", &grows);
    pending["status"]["phase"] = json!("Pending");
    let mut going = claim("going", "1", &grows);
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    // Its volume belongs to another claim.
    let mut robber = claim("robber", "1", &grows);
    robber["spec"]["volumeName"] = json!("pv-data");
    let claims = vec![
        claim("data", "7", &grows),
        robber,
        claim("stays", "7", &json!({"other.dev/grow-to": "2Gi"})),
        claim("foreign", "7", &grows),
        pending,
        going,
    ];
    let volumes = vec![
        volume("data", DRIVER),
        volume("stays", DRIVER),
        volume("foreign", "other.dev"),
        volume("pending", DRIVER),
        volume("going", DRIVER),
    ];
    let (happens, news) = mpsc::unbounded_channel();
    let (news, answer) = (Mutex::new(news), Mutex::new(Ok(())));
    let server = Arc::new(Server { claims, volumes, news, answer, change: Mutex::default() });
    let serving = Arc::clone(&server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let serving = Arc::clone(&serving);
        async move { Ok::<_, Infallible>(serving.answer(request).await) }
    });
    let cluster = Cluster { client: Client::new(service, "lvm-csi"), namespace: "lvm-csi".to_owned() };
    let claims = cluster.follow_claims(DRIVER, cluster.follow_volumes(DRIVER));

    until("the claims are known", || !claims.all().is_empty()).await;
    let all = claims.all();
    let [(data, id)] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((id.to_string(), data.block), (format!("{VG}/pvc-data"), false));
    assert_eq!([&*data.namespace, &data.name, &data.uid, &data.version], ["shop", "data", "uid-data", "7"]);
    assert_eq!((&*data.request, &*data.capacity), ("64Mi", "68Mi"));
    let words: Vec<_> = data.words.iter().map(|(word, value)| (word.as_str(), value.as_str())).collect();
    assert_eq!(words, [("at", "70%"), ("to", "1Gi")]);

    assert_eq!(claims.enlarge(data, Bytes(128 << 20)).await.unwrap(), Asked::Taken);
    let (path, form, text) = server.change.lock().await.take().unwrap();
    assert_eq!((&*path, &*form), ("/api/v1/namespaces/shop/persistentvolumeclaims/data", "application/merge-patch+json"));
    // The patch names the version, so of two replicas that read the same one, the server refuses one.
    let expected = json!({"metadata": {"uid": "uid-data", "resourceVersion": "7"}, "spec": {"resources": {"requests": {"storage": "128Mi"}}}});
    assert_eq!(text, expected);
    for (answer, expected) in [
        ((409, "the object has been modified"), Asked::Changed),
        ((404, "not found"), Asked::Changed),
        ((403, "exceeded quota"), Asked::Refused("exceeded quota".to_owned())),
        ((422, "is invalid"), Asked::Refused("is invalid".to_owned())),
    ] {
        *server.answer.lock().await = Err(answer);
        assert_eq!(claims.enlarge(data, Bytes(1)).await.unwrap(), expected);
    }
    *server.answer.lock().await = Err((500, "etcd is away"));
    let error = claims.enlarge(data, Bytes(1)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { what, reason } if what == "claim data in shop" && reason.contains("etcd is away")),
        "{error}"
    );

    let tell = |kind: &str, object: Value| happens.send(json!({"type": kind, "object": object})).unwrap();
    tell("MODIFIED", claim("data", "8", &grows));
    until("the change is seen", || claims.all().iter().any(|(claim, _)| claim.version == "8")).await;
    tell("ADDED", {
        let mut block = claim("stays", "9", &grows);
        block["spec"]["volumeMode"] = json!("Block");
        block
    });
    until("the other is seen", || claims.all().iter().any(|(claim, _)| claim.name == "stays" && claim.block)).await;
    tell("DELETED", claim("data", "10", &grows));
    until("one is gone", || claims.all().len() == 1).await;
    tell("MODIFIED", claim("stays", "11", &json!({})));
    until("none is left", || claims.all().is_empty()).await;
}
