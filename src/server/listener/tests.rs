//! Real sockets, with limits so small that the tests wait for little.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use axum::routing::get;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::seat::Running;
use super::*;

const SMALL: Limits = Limits { connections: 8, per_address: 4, ..Limits::METRICS };
const PATIENCE: Duration = Duration::from_secs(20);
/// An answer too large for the kernel's buffers, in bytes.
const LARGE: usize = 16 << 20;

struct Served {
    address: SocketAddr,
    seats: Seats,
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

/// Serves `/` at a free local port; `/slow` and `/large` wait for `slow`.
async fn served(limits: Limits, slow: &Arc<Notify>) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let slow = Arc::clone(slow);
    let (wait, wait_too) = (Arc::clone(&slow), slow);
    let wait = async move || {
        wait.notified().await;
        "slow"
    };
    let large = async move || {
        wait_too.notified().await;
        vec![b'x'; LARGE]
    };
    let routes = Router::new().route("/", get(async || "ok")).route("/slow", get(wait)).route("/large", get(large));
    let door = plain(Listener::Tcp(listener), limits);
    let (seats, stop) = (door.seats.clone(), Arc::new(Notify::new()));
    let stopped = Arc::clone(&stop);
    let stop_it = async move { stopped.notified().await };
    let server = Server::builder().accept_http1(true);
    let task = tokio::spawn(async move { door.serve(server, routes, stop_it, std::future::pending()).await.unwrap() });
    Served { address, seats, stop, task }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_request_was_let_pass_of_gives_way() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let judging = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let judged = Arc::clone(&judging);
    let judge = move |request: Request, next: Next| {
        let judged = Arc::clone(&judged);
        async move {
            if request.uri().path() == "/forged" {
                judged.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            next.run(request).await
        }
    };
    let door = plain(Listener::Tcp(listener), SMALL);
    let routes = Router::new().route("/", get(async || "ok"));
    let layer = |routes: Router| routes.layer(axum::middleware::from_fn(judge));
    let never = std::future::pending::<()>;
    tokio::spawn(door.serve_behind(layer, Server::builder().accept_http1(true), routes, never(), never()));
    let forge = move || {
        [(); SMALL.per_address].map(|()| {
            let mut stream = connect(address);
            ask(&mut stream, "/forged");
            stream
        })
    };
    let mut forged = apart(forge).await;
    until("each is judged", || judging.load(std::sync::atomic::Ordering::SeqCst) == SMALL.per_address).await;
    apart(move || {
        let mut good = connect(address);
        ask(&mut good, "/");
        assert!(answer(&mut good).contains("ok"));
        assert_eq!(answer(&mut forged[0]), "");
        // A connection that once made an admitted request stays, however many more come.
        let _more = forge();
        ask(&mut good, "/");
        assert!(answer(&mut good).contains("ok"));
    })
    .await;
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
}

/// Reads the answer; empty if the connection was closed.
fn answer(stream: &mut TcpStream) -> String {
    let mut text = [0; 1024];
    let count = match stream.read(&mut text) {
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
        Err(error) => panic!("neither an answer nor an end: {error}"),
    };
    String::from_utf8_lossy(&text[..count]).into_owned()
}

/// Runs blocking work.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_that_never_asked_gives_way_and_what_has_a_request_stays() {
    let slow = Arc::new(Notify::new());
    let Served { address, seats, .. } = served(SMALL, &slow).await;
    let (mut busy, mut idle) = apart(move || {
        let (mut busy, mut idle) = (connect(address), connect(address));
        ask(&mut busy, "/slow");
        ask(&mut idle, "/");
        assert!(answer(&mut idle).contains("ok"));
        (busy, idle)
    })
    .await;
    until("the slow request has begun", || seats.working() == 1).await;
    // These two and two more reach the limit of an address; many more follow.
    let silent = apart(move || (0..100).map(|_| connect(address)).collect::<Vec<_>>()).await;
    let mut silent = apart(move || {
        let mut silent = silent;
        let stay = silent.split_off(98);
        assert!(silent.iter_mut().all(|stream| answer(stream).is_empty()));
        stay
    })
    .await;
    assert_eq!(seats.count(), 4);
    apart(move || {
        // The newest silent connections still serve a request, and an idle one is spared while a silent one exists.
        for stream in &mut silent {
            ask(stream, "/");
            assert!(answer(stream).contains("ok"));
        }
        ask(&mut idle, "/");
        assert!(answer(&mut idle).contains("ok"));
        // All have made a request now, so the one idle for longest gives way.
        let mut newest = connect(address);
        ask(&mut newest, "/");
        assert!(answer(&mut newest).contains("ok"));
        assert_eq!(answer(&mut silent[0]), "");
        slow.notify_one();
        assert!(answer(&mut busy).contains("slow"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_may_be_silent_or_send_for_long_without_a_request() {
    let short = Duration::from_secs(2);
    let limits = Limits { first_request: short, idle: Some(short), ..SMALL };
    let slow = Arc::new(Notify::new());
    let Served { address, seats, .. } = served(limits, &slow).await;
    let mut busy = apart(move || {
        let mut idle = connect(address);
        ask(&mut idle, "/");
        assert!(answer(&mut idle).contains("ok"));
        // Half a request counts as none.
        let (mut half, mut silent) = (connect(address), connect(address));
        half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
        for stream in [&mut silent, &mut half, &mut idle] {
            assert_eq!(answer(stream), "");
        }
        let mut busy = connect(address);
        ask(&mut busy, "/slow");
        busy
    })
    .await;
    until("the slow request has begun", || seats.working() == 1).await;
    apart(move || {
        // The slow request takes longer than a connection may stay silent.
        assert_eq!(answer(&mut connect(address)), "");
        slow.notify_one();
        assert!(answer(&mut busy).contains("slow"));
    })
    .await;
    until("none is left", || seats.count() == 0).await;

    let Served { address, seats, .. } = served(SMALL, &Arc::new(Notify::new())).await;
    let sent = apart(move || {
        let mut endless = connect(address);
        // One header name that never ends.
        let mut sent = endless.write(b"GET / HTTP/1.1\r\n").unwrap();
        while sent < 100 * WORDS {
            match endless.write(&[b'x'; 4096]) {
                Ok(count) => sent += count,
                Err(_) => break,
            }
        }
        sent
    })
    .await;
    assert!(sent < 100 * WORDS);
    until("it is gone", || seats.count() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_only_a_request_is_waited_for() {
    let slow = Arc::new(Notify::new());
    let Served { address, stop, task, seats } = served(SMALL, &slow).await;
    let mut streams = apart(move || {
        let (silent, mut idle, mut busy) = (connect(address), connect(address), connect(address));
        ask(&mut idle, "/");
        assert!(answer(&mut idle).contains("ok"));
        ask(&mut busy, "/slow");
        [silent, idle, busy]
    })
    .await;
    until("the request is there", || seats.working() == 1).await;
    stop.notify_one();
    until("the others are gone", || seats.count() == 1).await;
    assert!(!task.is_finished());
    slow.notify_one();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    assert!(apart(move || answer(&mut streams[2])).await.contains("slow"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_ends_long_after_the_stop_arrives_whole() {
    let slow = Arc::new(Notify::new());
    let Served { address, stop, task, seats } = served(SMALL, &slow).await;
    let (idle, busy) = apart(move || {
        let (mut idle, mut busy) = (connect(address), connect(address));
        ask(&mut idle, "/");
        assert!(answer(&mut idle).contains("ok"));
        ask(&mut busy, "/large");
        (idle, busy)
    })
    .await;
    until("the request is there", || seats.working() == 1).await;
    stop.notify_one();
    until("the idle one is gone", || seats.count() == 1).await;
    // Longer than a connection without a request may stay.
    tokio::time::sleep(LINGER.0 + 3 * LOOK).await;
    slow.notify_one();
    until("the answer has been handed over", || seats.working() + seats.answering() == 0).await;
    // A client that reads slowly. The shutdown checks its connection several times meanwhile.
    tokio::time::sleep(3 * LOOK).await;
    let text = apart(move || {
        let (mut busy, mut text) = (busy, Vec::new());
        busy.read_to_end(&mut text).unwrap();
        text
    })
    .await;
    assert!(text.len() > LARGE && text.ends_with(b"xxxx"), "{} of {LARGE} bytes", text.len());
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    drop(idle);
}

#[tokio::test]
async fn at_the_end_each_connection_has_its_time_from_its_own_last_change() {
    let seats = Seats::new(Limits::SOCKET);
    let past = Instant::now();
    let [silent, idle, busy, answering] = [(); 4].map(|()| seats.admit(None, past).unwrap());
    drop(idle.begin());
    let (running, sending) = (busy.begin(), answering.begin());
    sending.answered();
    // As if the stop had been long ago: only the later changes of these two count.
    let stopped = past.checked_sub(10 * LINGER.1).unwrap();
    let gone = || [&silent, &idle, &busy, &answering].map(|seat| seat.has_to_go());
    assert!(!seats.close(stopped, Instant::now()));
    assert_eq!(gone(), [true, false, false, false]);
    assert!(!seats.close(stopped, Instant::now() + LINGER.0));
    assert_eq!(gone(), [true, true, false, false]);
    assert!(!seats.close(stopped, Instant::now() + LINGER.1));
    assert_eq!(gone(), [true, true, false, true]);
    running.answered();
    drop(running);
    assert!(!seats.close(stopped, Instant::now()));
    assert!(!gone()[2]);
    assert!(seats.close(stopped, Instant::now() + LINGER.0));
    // A connection that has been idle for long still gets the time to notice the end.
    let idle = seats.admit(None, past).unwrap();
    drop(idle.begin());
    let stopped = Instant::now() + LINGER.1;
    assert!(!seats.close(stopped, stopped + LINGER.0 / 2) && !idle.has_to_go());
    assert!(seats.close(stopped, stopped + LINGER.0) && idle.has_to_go());
}

#[tokio::test]
async fn only_for_want_of_descriptors_or_memory_a_silent_connection_gives_way() {
    for (code, frees) in [
        (Errno::EMFILE, true),
        (Errno::ENFILE, true),
        (Errno::ENOMEM, true),
        (Errno::ENOBUFS, true),
        (Errno::ECONNABORTED, false),
        (Errno::EPERM, false),
    ] {
        assert_eq!(frees_by_closing(&io::Error::from_raw_os_error(code as i32)), frees, "{code}");
    }
    // A sidecar exits when a connection that it used closes.
    for (limits, spared) in [(Limits::SOCKET, true), (Limits::AGENT, false)] {
        let seats = Seats::new(limits);
        let (used, silent) = (seats.admit(None, Instant::now()).unwrap(), seats.admit(None, Instant::now()).unwrap());
        drop(used.begin());
        seats.give_way();
        assert!(silent.has_to_go() && !used.has_to_go());
        seats.give_way();
        assert_eq!(used.has_to_go(), !spared);
    }
}

#[tokio::test]
async fn those_who_hold_most_without_a_word_give_way_first() {
    let seats = Seats::new(SMALL);
    let now = Instant::now();
    let at = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
    let good = seats.admit(at(1), now).unwrap();
    let from = |last: u8| (0..4).map(move |_| last);
    // Four of one address and three of another: full.
    let others = from(2).chain(from(3).take(3)).zip(1..);
    let others: Vec<_> = others.map(|(last, ms)| seats.admit(at(last), now + Duration::from_millis(ms)).unwrap()).collect();
    let next = seats.admit(at(4), now + PAUSE).unwrap();
    assert!(!good.has_to_go() && others[0].has_to_go() && !others[4].has_to_go());
    // A full address has to make room itself.
    let more = seats.admit(at(3), now + PAUSE).unwrap();
    let again = seats.admit(at(3), now + PAUSE).unwrap();
    assert!(!more.has_to_go() && !again.has_to_go() && !next.has_to_go() && !good.has_to_go());
    assert!(others[1].has_to_go() && others[4].has_to_go());
    // When all have a request, no more are admitted.
    let running: Vec<_> = seats.all().iter().map(Seat::begin).collect();
    assert!(seats.admit(at(5), now).is_none());
    // Answers that never end do not keep a stranger's connection.
    running.iter().for_each(Running::answered);
    assert!(seats.admit(at(5), now).is_some());
}

/// An HTTP/2 frame: length, type, flags, stream, content.
fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(content.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(content);
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_given_up_end_no_other_call() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let door = plain(Listener::Unix(UnixListener::bind(&path).unwrap()), Limits::SOCKET);
    let server = Server::builder().http2_max_pending_accept_reset_streams(crate::server::RESETS);
    tokio::spawn(door.serve(server, Router::new(), std::future::pending(), std::future::pending()));
    let kinds = apart(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        // 150 calls (POST, http, /), each cancelled at once with CANCEL; all arrive before the first begins.
        for number in 0..150 {
            let stream = 2 * number + 1;
            bytes.extend(frame(1, 4, stream, &[0x83, 0x86, 0x84]));
            bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
        }
        bytes.extend(frame(6, 0, 0, b"still up"));
        stream.write_all(&bytes).unwrap();
        // The kinds of the frames received, up to the answer to the ping or the end.
        let mut kinds = Vec::new();
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).is_err() {
                return kinds;
            }
            let mut content = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            stream.read_exact(&mut content).unwrap();
            kinds.push(head[3]);
            if head[3] == 6 && content == b"still up" {
                return kinds;
            }
        }
    })
    .await;
    assert!(kinds.last() == Some(&6) && !kinds.contains(&7), "a GOAWAY is a 7: {kinds:?}");
}
