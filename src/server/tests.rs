//! Runs the driver as a separate process with 1,024 descriptors against silent clients that would use them all.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lvm_csi_proto::csi::GetPluginInfoRequest;
use lvm_csi_proto::csi::identity_client::IdentityClient;
use tokio::sync::Notify;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// Limit of descriptors for a process, as in many containers.
const DESCRIPTORS: u32 = 1024;
/// Environment variable with the part that a child process plays.
const PART: &str = "LVM_CSI_TEST_PART";

fn services(health: Option<TcpListener>, metrics: Option<TcpListener>) -> Services {
    Services {
        identity: IdentityService::new("lvm-csi.dev".to_owned(), Box::new(|| Ok(true))),
        controller: None,
        node: None,
        groups: Groups::none(),
        health,
        metrics: metrics.map(|listener| MetricsPort { listener, guard: None }),
        registry: Registry::with_prefix("lvm_csi"),
    }
}

/// A child process of this test binary that plays a part and dies with its owner.
struct Part(Child);

impl Part {
    fn start(part: &str, descriptors: u32) -> Self {
        #[expect(clippy::disallowed_methods, reason = "this program itself, which must end with its owner")]
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n $1; exec \"$0\" --exact server::tests::a_process_that_plays_a_part --ignored"]);
        shell.arg(std::env::current_exe().unwrap()).arg(descriptors.to_string()).env(PART, part);
        Self(shell.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// The processor time it used.
    fn worked(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(10 * ticks)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(path: &Path) -> String {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if let Ok(text) = fs::read_to_string(path) {
            return text;
        }
        std::thread::yield_now();
    }
    panic!("waited in vain for {}", path.display());
}

/// Writes a file atomically.
fn write_atomically(path: &Path, text: &str) {
    let part = path.with_extension("part");
    fs::write(&part, text).unwrap();
    fs::rename(part, path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of the next"]
async fn a_process_that_plays_a_part() {
    let Ok(part) = std::env::var(PART) else { return };
    let words: Vec<&str> = part.split(' ').collect();
    match words[..] {
        ["driver", directory] => {
            let directory = PathBuf::from(directory);
            let any = || listen(([127, 0, 0, 1], 0).into());
            let (health, metrics) = (any().await.unwrap(), any().await.unwrap());
            let addresses = format!("{} {}", health.local_addr().unwrap(), metrics.local_addr().unwrap());
            let socket = bind(&directory.join("csi.sock")).await.unwrap();
            write_atomically(&directory.join("addresses"), &addresses);
            let services = services(Some(health), Some(metrics));
            serve(socket, services, Inflight::default(), || (), std::future::pending()).await.unwrap();
        }
        ["silent", address, count, ready] => {
            let streams: Vec<_> = (0..count.parse().unwrap()).map(|_| TcpStream::connect(address).unwrap()).collect();
            write_atomically(Path::new(ready), "ready");
            // Until the other end of the pipe closes.
            let _ = std::io::stdin().read(&mut [0]);
            drop(streams);
        }
        _ => panic!("{part}"),
    }
}

/// The time limit for a call next to a crowd of clients: one second plus twice the time it takes alone on this machine.
pub(super) fn allowed(usual: Duration) -> Duration {
    Duration::from_secs(1) + 2 * usual
}

/// Runs something up to three times and panics unless one run stays within the limit. Returns the best time.
pub(super) async fn within(limit: Duration, what: &str, once: impl AsyncFn()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let begin = Instant::now();
        once().await;
        best = best.min(begin.elapsed());
        if best < limit {
            return best;
        }
    }
    panic!("{what} took {best:?} at best, and may take {limit:?}");
}

async fn call(socket: &Path) {
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap();
    let info = IdentityClient::new(channel).get_plugin_info(GetPluginInfoRequest {}).await.unwrap();
    assert_eq!(info.into_inner().name, "lvm-csi.dev");
}

/// Makes a call, a probe on a new connection and a scrape on a new connection, each within the limit. Returns the longest time.
async fn is_served(limit: Duration, socket: &Path, health: &str, metrics: &str) -> Duration {
    let called = within(limit, "a call", async || call(socket).await).await;
    let probed = within(limit, "a probe", async || {
        let channel = Endpoint::from_shared(format!("http://{health}")).unwrap().connect().await.unwrap();
        HealthClient::new(channel).check(HealthCheckRequest { service: "live".to_owned() }).await.unwrap();
    })
    .await;
    let scraped = within(limit, "a scrape", async || {
        let address = metrics.to_owned();
        let text = tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        let text = text.await.unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 ") && text.contains("lvm_csi_operations 0") && text.ends_with("# EOF\n"),
            "{text}"
        );
    })
    .await;
    called.max(probed).max(scraped)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_keep_no_call_and_no_probe_from_being_answered() {
    let directory = tempfile::tempdir().unwrap();
    let driver = Part::start(&format!("driver {}", directory.path().display()), DESCRIPTORS);
    let addresses = wait_for(&directory.path().join("addresses"));
    let (health, metrics) = addresses.split_once(' ').unwrap();
    let socket = directory.path().join("csi.sock");
    let limit = allowed(is_served(PATIENCE, &socket, health, metrics).await);
    // 1,100 connections at each port.
    let mut crowd = Vec::new();
    for (number, address) in [health, health, metrics, metrics].into_iter().enumerate() {
        let ready = directory.path().join(format!("ready-{number}"));
        crowd.push(Part::start(&format!("silent {address} 550 {}", ready.display()), DESCRIPTORS));
        wait_for(&ready);
    }
    is_served(limit, &socket, health, metrics).await;
    let (begin, worked) = (Instant::now(), driver.worked());
    let mut rounds = 0;
    while begin.elapsed() < Duration::from_secs(1) {
        is_served(limit, &socket, health, metrics).await;
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (worked, took) = (driver.worked() - worked, begin.elapsed());
    assert!(worked < took / 2, "it worked for {worked:?} of {took:?}, in {rounds} rounds");
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_give_way_where_descriptors_are_missing() {
    let directory = tempfile::tempdir().unwrap();
    let few = 64;
    let _driver = Part::start(&format!("driver {}", directory.path().display()), few);
    wait_for(&directory.path().join("addresses"));
    let socket = directory.path().join("csi.sock");
    // Far fewer than the socket's limit, and each may be silent for a minute. But with the driver's own descriptors they are too many.
    let silent: Vec<_> = (0..few).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    tokio::time::timeout(PATIENCE, call(&socket)).await.expect("a call waits for a descriptor");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_holds_up_no_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("csi.sock");
    let listener = bind(&path).await.unwrap();
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let stop_it = async move { stopped.notified().await };
    let serving = tokio::spawn(serve(listener, services(None, None), Inflight::default(), || (), stop_it));
    let silent = std::os::unix::net::UnixStream::connect(&path).unwrap();
    // And a client that watches health for ever.
    let channel = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
    let mut watch = HealthClient::new(channel).watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    // Root can read the metrics here.
    let metrics = ask_metrics(&path).await.unwrap();
    assert!(metrics.contains("lvm_csi_operations 0"), "{metrics}");
    // The watching client takes some seconds to end.
    stop.notify_one();
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
    drop((silent, watch));
}
