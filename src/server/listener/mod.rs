//! Connections of every listener: how many, from where, and how long one may stay without a request.
//!
//! ```text
//!   accepted ──(TLS handshake)──▶ silent ──first complete request──▶ busy ⇄ idle
//!       └───── first_request ──────┘                                    └─ idle
//! ```
//!
//! A connection costs a descriptor, and anyone who reaches a port can open one. So each listener has a limit, and a second one per address.
//! At a limit, the oldest connection that never made a request gives way, then the one idle for longest. A connection with a request in
//! flight never does. A request counts once its message is complete.

mod seat;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::tls::ServerStream;

use seat::{Seat, Seats};

/// Pause after a failed accept, for example for want of descriptors. The connection still waits, so accept would fail again at once.
const PAUSE: Duration = Duration::from_millis(200);
/// Capacity of the queue of accepted connections on their way to the server.
const ON_THE_WAY: usize = 16;
/// During shutdown: how long an idle client may take to notice, and how long the rest of an answer may take. The second one also applies to
/// requests that are left when only hanging operations run.
pub(super) const LINGER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How often shutdown checks the connections.
const LOOK: Duration = Duration::from_millis(50);
/// Each reason for refusing connections is logged once in this interval, and at most `REASONS` of them.
const COMPLAINT: Duration = Duration::from_secs(10);
const REASONS: usize = 16;
/// The most bytes that a stranger may send without a request.
const WORDS: usize = 64 << 10;

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Concurrent connections.
    pub(super) connections: usize,
    /// Concurrent connections from one network address.
    pub(super) per_address: usize,
    /// Time limit for the first complete request of a connection, and for the complete message of every request.
    pub(super) first_request: Duration,
    /// How long a connection may be idle after its first request; `None` means for ever.
    pub(super) idle: Option<Duration>,
    /// Whether an answer in flight keeps its connection. Not for strangers, who may ask for an answer that never ends.
    pub(super) streams: bool,
    /// The largest message, in bytes.
    pub(super) message: usize,
    /// The most bytes a client may send before its first complete request or its certificate.
    pub(super) hello: usize,
    /// The most bytes a client may send between two complete requests.
    pub(super) between: usize,
}

impl Limits {
    /// The CSI socket, which only root can open. Sidecars exit when a connection that they used closes, so idle ones stay.
    pub(super) const SOCKET: Self = Self {
        connections: 256,
        per_address: 256,
        first_request: Duration::from_secs(60),
        idle: None,
        streams: true,
        message: super::LARGEST_MESSAGE + FRAME,
        hello: usize::MAX,
        between: usize::MAX,
    };
    /// The agent's port. Each controller has one connection, and several during its replacement.
    pub(super) const AGENT: Self = Self {
        connections: 192,
        per_address: 96,
        first_request: Duration::from_secs(10),
        idle: Some(Duration::from_secs(600)),
        streams: true,
        message: crate::agent::LARGEST_MESSAGE + FRAME,
        hello: WORDS,
        between: usize::MAX,
    };
    /// The port for health probes. Kubelet opens a connection for each.
    pub(super) const HEALTH: Self = Self { connections: 128, per_address: 64, message: 4 << 10, ..Self::METRICS };
    /// The metrics port: a few collectors, which keep their connection between scrapes.
    pub(super) const METRICS: Self = Self {
        connections: 64,
        per_address: 32,
        first_request: Duration::from_secs(10),
        idle: Some(Duration::from_secs(300)),
        streams: false,
        message: 4 << 10,
        hello: WORDS,
        between: WORDS,
    };
}

/// The length of a gRPC message header, in bytes.
const FRAME: usize = 5;

#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Listener {
    async fn accept(&self) -> io::Result<(Box<dyn Io>, Option<IpAddr>)> {
        Ok(match self {
            Self::Unix(listener) => (Box::new(listener.accept().await?.0), None),
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Send answers at once, without waiting for more to fill a packet. This fails when the client has gone; then the next read
                // reports it.
                let _ = stream.set_nodelay(true);
                (Box::new(stream), Some(peer.ip()))
            }
        })
    }
}

/// A connection that counts against the limits. When it must give way, its server sees it end.
pub(super) struct Guarded {
    stream: Box<dyn Io>,
    seat: Arc<Seat>,
    seats: Seats,
}

impl Guarded {
    pub(super) fn peer(&self) -> String {
        self.seat.address.map_or_else(|| "this machine".to_owned(), |address| address.to_string())
    }

    pub(super) fn seat(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.seats.leave(&self.seat);
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // The server sees this as a client that closed the connection.
        if self.seat.is_cut(cx) {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if !self.seat.take(buffer.filled().len() - before) {
            return Poll::Ready(Err(io::Error::other("the client sent too much without a request")));
        }
        polled
    }
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.seat.is_cut(cx) { Poll::Ready(Err(gone())) } else { Pin::new(&mut self.stream).poll_write(cx, bytes) }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.seat.is_cut(cx) { Poll::Ready(Err(gone())) } else { Pin::new(&mut self.stream).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.seat.is_cut(cx) { Poll::Ready(Ok(())) } else { Pin::new(&mut self.stream).poll_shutdown(cx) }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.seat.is_cut(cx) { Poll::Ready(Err(gone())) } else { Pin::new(&mut self.stream).poll_write_vectored(cx, bytes) }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Guarded {
    type ConnectInfo = Arc<Seat>;

    fn connect_info(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }
}

/// The connections of one listener, from which a server takes them.
pub(super) struct Door<S> {
    connections: ReceiverStream<io::Result<S>>,
    seats: Seats,
}

/// Accepts connections without a handshake.
pub(super) fn plain(listener: Listener, limits: Limits) -> Door<Guarded> {
    open(listener, limits, |connection| std::future::ready(Ok::<_, Infallible>(connection)))
}

/// Accepts connections and runs their handshakes concurrently: a silent client holds up nobody.
pub(super) fn secured<S, E, F>(
    listener: TcpListener,
    limits: Limits,
    shake: impl Fn(Guarded) -> F + Send + Sync + 'static,
) -> Door<S>
where
    S: Send + 'static,
    E: std::error::Error + Send + 'static,
    F: Future<Output = Result<S, E>> + Send + 'static,
{
    open(Listener::Tcp(listener), limits, shake)
}

fn open<S, E, F>(listener: Listener, limits: Limits, welcome: impl Fn(Guarded) -> F + Send + Sync + 'static) -> Door<S>
where
    S: Send + 'static,
    E: std::error::Error + Send + 'static,
    F: Future<Output = Result<S, E>> + Send + 'static,
{
    let seats = Seats::new(limits);
    let (sender, connections) = mpsc::channel(ON_THE_WAY);
    tokio::spawn(accept(listener, seats.clone(), welcome, sender));
    Door { connections: ReceiverStream::new(connections), seats }
}

/// Accepts connections until the server is gone.
async fn accept<S, E, F>(listener: Listener, seats: Seats, welcome: impl Fn(Guarded) -> F, sender: mpsc::Sender<io::Result<S>>)
where
    S: Send + 'static,
    E: std::error::Error + Send + 'static,
    F: Future<Output = Result<S, E>> + Send + 'static,
{
    let complaints = Arc::new(Complaints::default());
    loop {
        let next = seats.expire(Instant::now());
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tokio::time::sleep_until(next) => continue,
            () = sender.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                complaints.log("cannot accept a connection", &error);
                if frees_by_closing(&error) {
                    seats.give_way();
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(seat) = seats.admit(address, Instant::now()) else {
            complaints.log("refused a connection", &"all connections are busy");
            continue;
        };
        let admitted = Arc::clone(&seat);
        let shaken = welcome(Guarded { stream, seat, seats: seats.clone() });
        let (sender, complaints) = (sender.clone(), Arc::clone(&complaints));
        tokio::spawn(async move {
            match shaken.await {
                // The send fails when the driver is ending and no server is left.
                Ok(stream) => drop(sender.send(Ok(stream)).await),
                // The connection gave way to another one.
                Err(_) if admitted.has_to_go() => {}
                Err(error) => complaints.log("refused a connection", &crate::types::chain(&error)),
            }
        });
    }
}

/// Whether accept failed for want of something that closing another connection frees: descriptors or memory.
fn frees_by_closing(error: &io::Error) -> bool {
    let missing = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS];
    error.raw_os_error().is_some_and(|code| missing.contains(&Errno::from_raw(code)))
}

/// Rate-limited log lines about connections: strangers could otherwise cause any number of them.
#[derive(Default)]
struct Complaints(Mutex<Said>);

#[derive(Default)]
struct Said {
    since: Option<Instant>,
    reasons: BTreeSet<String>,
    unsaid: u64,
}

impl Complaints {
    fn log(&self, what: &str, why: &dyn fmt::Display) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.since.is_none_or(|since| since.elapsed() >= COMPLAINT) {
            said.since = Some(Instant::now());
            said.reasons.clear();
        }
        let reason = why.to_string();
        if said.reasons.len() >= REASONS || said.reasons.contains(&reason) {
            said.unsaid += 1;
            return;
        }
        let others_unsaid = std::mem::take(&mut said.unsaid);
        tracing::warn!(reason, others_unsaid, "{what}");
        said.reasons.insert(reason);
    }
}

impl<S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static> Door<S> {
    /// Serves until `stop`, then until all requests have been answered or `hung` says that the rest will not be. After `stop`, a connection
    /// that never made a request ends at once. `hung` is not polled before `stop`.
    pub(super) async fn serve(
        self,
        server: Server,
        routes: Router,
        stop: impl Future<Output = ()>,
        hung: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), tonic::transport::Error> {
        self.serve_behind(|routes| routes, server, routes, stop, hung).await
    }

    /// Like `serve`, behind a layer that checks each request first. A request that the layer rejects does not count, so a connection that
    /// made no other gives way.
    pub(super) async fn serve_behind(
        self,
        layer: impl FnOnce(Router) -> Router,
        mut server: Server,
        routes: Router,
        stop: impl Future<Output = ()>,
        hung: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), tonic::transport::Error> {
        let seats = self.seats;
        let stop = async move {
            stop.await;
            tokio::spawn(close(seats, hung));
        };
        let routes = Routes::from(layer(routes.layer(axum::middleware::from_fn(enter))));
        server.add_routes(routes).serve_with_incoming_shutdown(self.connections, stop).await
    }
}

/// Ends connections that have no request. HTTP/2 announces the end to the client and waits for its answer, which may never come.
async fn close(seats: Seats, hung: impl Future<Output = ()>) {
    let stopped = Instant::now();
    let mut hung = pin!(hung);
    while !seats.close(stopped, Instant::now()) {
        tokio::select! {
            () = &mut hung => {
                tracing::warn!("ending connections whose requests wait for operations on hanging volume groups");
                return seats.cut_all();
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Lets a request in when its message is complete, and counts it until its answer has been sent.
async fn enter(request: Request, next: Next) -> Response {
    let given = request.extensions();
    let tls = || Some(given.get::<<ServerStream<Guarded> as Connected>::ConnectInfo>()?.get_ref());
    let Some(seat) = given.get::<Arc<Seat>>().or_else(tls).cloned() else { return next.run(request).await };
    let (parts, body) = request.into_parts();
    let Limits { message, first_request, .. } = seat.limits;
    let whole = match tokio::time::timeout(first_request, to_bytes(body, message)).await {
        Ok(Ok(whole)) => whole,
        Ok(Err(error)) => {
            let status =
                Status::invalid_argument(format!("cannot read the message of the call: {error}; the limit is {message} bytes"));
            return status.into_http::<Body>().into_response();
        }
        Err(_) => {
            let seconds = first_request.as_secs();
            let status = Status::deadline_exceeded(format!("the message of the call was not complete within {seconds} s"));
            return status.into_http::<Body>().into_response();
        }
    };
    let running = seat.begin();
    let mut answer = next.run(Request::from_parts(parts, Body::from(whole))).await;
    running.answered();
    // The wrapped body below no longer reports its length, so set the header here.
    if let Some(length) = answer.body().size_hint().exact().filter(|length| *length > 0) {
        answer.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            // The request counts for as long as its body lives.
            let _ = &running;
            frame
        }))
    })
}

#[cfg(test)]
mod tests;
