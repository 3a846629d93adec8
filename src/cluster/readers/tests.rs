//! The API server is a function that answers as a real one does.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::to_bytes;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tonic::codegen::http::{Request, Response};

use super::*;

#[derive(Default)]
struct Server {
    questions: Mutex<Vec<(String, Value)>>,
    away: AtomicBool,
    hangs: AtomicBool,
    came: Notify,
}

impl Server {
    async fn answer(&self, request: Request<Body>) -> Response<String> {
        let path = request.uri().path().to_owned();
        let text = to_bytes(axum::body::Body::new(request.into_body()), 1 << 20).await.unwrap();
        let mut object: Value = serde_json::from_slice(&text).unwrap();
        self.questions.lock().unwrap().push((path.clone(), object["spec"].clone()));
        self.came.notify_one();
        if self.hangs.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if self.away.load(Ordering::Relaxed) {
            let text = json!({"kind": "Status", "status": "Failure", "message": "etcd is away", "code": 500});
            return Response::builder().status(500).body(text.to_string()).unwrap();
        }
        object["status"] = match path.as_str() {
            "/apis/authentication.k8s.io/v1/tokenreviews" => match object["spec"]["token"].as_str().unwrap() {
                name @ ("prometheus" | "shop") => json!({"authenticated": true, "user": {"username": name, "groups": ["g"]}}),
                _ => json!({"authenticated": false}),
            },
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => json!({"allowed": object["spec"]["user"] == "prometheus"}),
            other => panic!("{other}"),
        };
        Response::builder().status(201).body(object.to_string()).unwrap()
    }

    fn questions(&self) -> usize {
        self.questions.lock().unwrap().len()
    }
}

fn tokens() -> (Arc<Server>, Arc<Tokens>) {
    let server = Arc::new(Server::default());
    let serving = Arc::clone(&server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let serving = Arc::clone(&serving);
        async move { Ok::<_, Infallible>(serving.answer(request).await) }
    });
    let cluster = Cluster { client: Client::new(service, "lvm-csi"), namespace: "lvm-csi".to_owned() };
    (server, Arc::new(cluster.readers()))
}

#[tokio::test]
async fn a_token_reads_by_the_right_of_its_owner_and_is_asked_about_once() {
    let (server, tokens) = tokens();
    for _ in 0..3 {
        assert_eq!(tokens.judge(&Secret::from("prometheus".to_owned())).await, Reading::Allowed);
        assert_eq!(tokens.judge(&Secret::from("shop".to_owned())).await, Reading::Forbidden);
        assert_eq!(tokens.judge(&Secret::from("forged".to_owned())).await, Reading::Unknown);
    }
    // Two questions for each known account, one for an unknown token.
    assert_eq!(server.questions(), 5);
    let right = server.questions.lock().unwrap()[1].1.clone();
    let expected = json!({"user": "prometheus", "groups": ["g"], "nonResourceAttributes": {"path": "/metrics", "verb": "get"}});
    assert_eq!(right, expected);
    // While the API server is away, cached answers hold; other tokens are neither admitted nor cached.
    server.away.store(true, Ordering::Relaxed);
    assert_eq!(tokens.judge(&Secret::from("prometheus".to_owned())).await, Reading::Allowed);
    assert_eq!(tokens.judge(&Secret::from("new".to_owned())).await, Reading::Undecided);
    server.away.store(false, Ordering::Relaxed);
    assert_eq!(tokens.judge(&Secret::from("new".to_owned())).await, Reading::Unknown);
}

#[tokio::test]
async fn tokens_without_end_displace_none_that_may_read_and_ask_few_questions_at_once() {
    let (server, tokens) = tokens();
    for number in 0..2 * KEPT {
        assert_eq!(tokens.judge(&Secret::from(format!("forged-{number}"))).await, Reading::Unknown);
    }
    assert_eq!(tokens.judge(&Secret::from("prometheus".to_owned())).await, Reading::Allowed);
    assert_eq!(tokens.cached().len(), KEPT);
    let before = server.questions();
    assert_eq!(tokens.judge(&Secret::from("prometheus".to_owned())).await, Reading::Allowed);
    assert_eq!(server.questions(), before);
    server.hangs.store(true, Ordering::Relaxed);
    let waiting: Vec<_> = (0..3 * AT_ONCE)
        .map(|number| {
            let tokens = Arc::clone(&tokens);
            tokio::spawn(async move { tokens.judge(&Secret::from(format!("slow-{number}"))).await })
        })
        .collect();
    while server.questions() < before + AT_ONCE {
        server.came.notified().await;
    }
    tokio::task::yield_now().await;
    assert_eq!(server.questions(), before + AT_ONCE);
    waiting.into_iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn a_token_that_was_good_is_not_asked_about_after_those_of_strangers() {
    let (server, tokens) = tokens();
    assert_eq!(tokens.judge(&Secret::from("prometheus".to_owned())).await, Reading::Allowed);
    server.hangs.store(true, Ordering::Relaxed);
    let before = server.questions();
    let strangers: Vec<_> = (0..AT_ONCE)
        .map(|number| {
            let tokens = Arc::clone(&tokens);
            tokio::spawn(async move { tokens.judge(&Secret::from(format!("slow-{number}"))).await })
        })
        .collect();
    while server.questions() < before + AT_ONCE {
        tokio::task::yield_now().await;
    }
    server.hangs.store(false, Ordering::Relaxed);
    // Let the cached answers expire.
    tokens.cached().values_mut().for_each(|(until, _)| *until = Instant::now());
    assert_eq!(tokens.judge(&Secret::from("prometheus".to_owned())).await, Reading::Allowed);
    assert_eq!(server.questions(), before + AT_ONCE + 2);
    assert!(strangers.iter().all(|stranger| !stranger.is_finished()), "they were waited for");
    strangers.into_iter().for_each(|stranger| stranger.abort());
    // A revoked right is gone all the same.
    tokens.cached().values_mut().for_each(|(_, reading)| *reading = Reading::Forbidden);
    assert_eq!(tokens.judge(&Secret::from("prometheus".to_owned())).await, Reading::Forbidden);
}
