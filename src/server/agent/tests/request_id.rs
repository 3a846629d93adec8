//! One id in the logs of both ends, down to the program that runs.

use std::io::Write;

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::inflight::{CallId, called};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

thread_local! {
    static LOGGING: std::cell::RefCell<Option<DefaultGuard>> = const { std::cell::RefCell::new(None) };
}

impl Log {
    /// A runtime whose threads all log here, including the current one.
    fn runtime(&self) -> tokio::runtime::Runtime {
        let subscriber =
            tracing_subscriber::fmt().json().with_max_level(tracing::Level::DEBUG).with_writer(self.clone()).finish();
        let dispatch = tracing::Dispatch::new(subscriber);
        let log = move || LOGGING.set(Some(tracing::dispatcher::set_default(&dispatch)));
        log();
        tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(log).build().unwrap()
    }

    /// The lines that contain a word.
    fn lines(&self, word: &str) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(word)).map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn what_the_agent_does_for_a_call_is_logged_under_the_id_of_the_call() {
    let log = Log::default();
    log.runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let agent = Arc::new(Fake::new("a"));
        let Serving { address, stopping: _stopping, caller, .. } = serving(directory.path(), &agent).await;
        let remote = Remote::new(agent.node.clone(), Some(&address.to_string()), caller).unwrap();
        for id in ["first-call", "second-call"] {
            called(CallId::parse(id).unwrap(), remote.create("fast".to_owned(), spec("program"))).await.unwrap_err();
        }
    });
    // An effect, the program in it, and the end of the verb. The first two run on an operation's thread.
    for word in ["test.effect", "a program has ended", "not OK"] {
        let lines = log.lines(word);
        let ids: Vec<_> = lines.iter().map(|line| line["span"]["id"].as_str().unwrap_or("none")).collect();
        assert_eq!(ids, ["first-call", "second-call"], "{word}: {lines:?}");
        assert!(lines.iter().all(|line| line["span"]["rpc"] == "Create"), "{lines:?}");
    }
}
