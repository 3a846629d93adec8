//! Connections, of every listener of the driver: how many, from whom, and for how long without a request.
//!
//! ```text
//!   accepted ──(TLS handshake)──▶ silent ──first complete request──▶ busy ⇄ idle
//!       └───── first_request ──────┘                                    └─ idle
//! ```
//!
//! A connection costs a descriptor, and whoever can reach a port can open one. So each listener has a limit, and another one for each
//! address. Where one is reached, the oldest connection that never asked for anything gives way, then the one that has been idle for
//! longest; what has a request never does. A request counts once its message is complete.

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

/// The pause after a connection could not be accepted, such as for want of descriptors: it still waits, and would be tried at once.
const PAUSE: Duration = Duration::from_millis(200);
/// Accepted connections on their way to the server.
const ON_THE_WAY: usize = 16;
/// At the end, how long an idle client may take to hear of it, and how long the rest of an answer may take. The latter also is what requests
/// get that are left when nothing but hanging operations runs.
pub(super) const LINGER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How often the connections are looked at then.
const LOOK: Duration = Duration::from_millis(50);
/// In so long each reason why connections are refused is logged once, and no more of them than these.
const COMPLAINT: Duration = Duration::from_secs(10);
const REASONS: usize = 16;
/// The most that a stranger may send without a request, in bytes.
const WORDS: usize = 64 << 10;

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) connections: usize,
    /// Of these from one address of the network.
    pub(super) per_address: usize,
    /// How long a connection may take to its first complete request, and any request to its complete message.
    pub(super) first_request: Duration,
    /// How long a connection may be without a request after that; `None`: for ever.
    pub(super) idle: Option<Duration>,
    /// Whether an answer keeps its connection for as long as it takes: strangers may ask for one that never ends.
    pub(super) streams: bool,
    /// The largest message, in bytes.
    pub(super) message: usize,
    /// The most that a client may send until its first complete request or its certificate, in bytes.
    pub(super) hello: usize,
    /// And from one complete request to the next.
    pub(super) between: usize,
}

impl Limits {
    /// The CSI socket, which root alone can open. Sidecars end when a connection that they used is closed, so idle ones stay.
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
    /// The agent's port: each controller has one connection, and several while it is replaced.
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
    /// The port for probes of health: kubelet connects anew for each.
    pub(super) const HEALTH: Self = Self { connections: 128, per_address: 64, message: 4 << 10, ..Self::METRICS };
    /// The port of the metrics: a few collectors, which keep a connection between scrapes.
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

/// The header of a gRPC message.
const FRAME: usize = 5;

/// Where connections come from.
#[derive(Debug)]
pub(super) enum Listener {
    /// A socket of this machine.
    Unix(UnixListener),
    /// The network.
    Tcp(TcpListener),
}

/// A stream of bytes.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Listener {
    async fn accept(&self) -> io::Result<(Box<dyn Io>, Option<IpAddr>)> {
        Ok(match self {
            Self::Unix(listener) => (Box::new(listener.accept().await?.0), None),
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // An answer shall not wait for the next packet of the other end. Fails where that is gone already, as a read then tells.
                let _ = stream.set_nodelay(true);
                (Box::new(stream), Some(peer.ip()))
            }
        })
    }
}

/// A connection that counts. It ends, for its server, when it has to give way.
pub(super) struct Guarded {
    stream: Box<dyn Io>,
    seat: Arc<Seat>,
    seats: Seats,
}

impl Guarded {
    /// Where it comes from.
    pub(super) fn peer(&self) -> String {
        self.seat.address.map_or_else(|| "this machine".to_owned(), |address| address.to_string())
    }

    /// What is counted of it.
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
        // To its server it is as if the client had gone.
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

/// Takes connections as they are.
pub(super) fn plain(listener: Listener, limits: Limits) -> Door<Guarded> {
    open(listener, limits, |connection| std::future::ready(Ok::<_, Infallible>(connection)))
}

/// Takes those that shake hands, many at once: one that says nothing holds up nobody.
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

/// Accepts connections until nobody takes them any more.
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
                complaints.log("a connection cannot be accepted", &error);
                if frees_by_closing(&error) {
                    seats.give_way();
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(seat) = seats.admit(address, Instant::now()) else {
            complaints.log("a connection is refused", &"all connections are in use");
            continue;
        };
        let known = Arc::clone(&seat);
        let shaken = welcome(Guarded { stream, seat, seats: seats.clone() });
        let (sender, complaints) = (sender.clone(), Arc::clone(&complaints));
        tokio::spawn(async move {
            match shaken.await {
                // Nobody is left to serve it when the driver ends.
                Ok(stream) => drop(sender.send(Ok(stream)).await),
                // What had to give way was told so.
                Err(_) if known.has_to_go() => {}
                Err(error) => complaints.log("a connection is refused", &crate::types::chain(&error)),
            }
        });
    }
}

/// Whether a connection could not be accepted for want of what another one has: descriptors or memory.
fn frees_by_closing(error: &io::Error) -> bool {
    let missing = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS];
    error.raw_os_error().is_some_and(|code| missing.contains(&Errno::from_raw(code)))
}

/// Log lines about connections, of which strangers could otherwise make as many as they like.
#[derive(Default)]
struct Complaints(Mutex<Said>);

/// What was said lately.
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
    /// Serves until `stop`, and then until all requests have been answered, or `hung` says that the rest will not be. A connection that
    /// never made one ends at once then. `hung` is not asked before `stop`.
    pub(super) async fn serve(
        self,
        server: Server,
        routes: Router,
        stop: impl Future<Output = ()>,
        hung: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), tonic::transport::Error> {
        self.serve_behind(|routes| routes, server, routes, stop, hung).await
    }

    /// The same behind a layer that looks at each request first: what it does not let pass counts as no request, and a connection that has
    /// nothing else gives way.
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

/// Ends what has no request: HTTP/2 tells the client, and waits for its answer, which it need not give.
async fn close(seats: Seats, hung: impl Future<Output = ()>) {
    let stopped = Instant::now();
    let mut hung = pin!(hung);
    while !seats.close(stopped, Instant::now()) {
        tokio::select! {
            () = &mut hung => {
                tracing::warn!("ending connections whose requests wait for operations on volume groups that hang");
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
                Status::invalid_argument(format!("the message of the call cannot be read: {error}; at most {message} bytes"));
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
    // A body that is watched does not tell its length any more.
    if let Some(length) = answer.body().size_hint().exact().filter(|length| *length > 0) {
        answer.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            // Counts for as long as the body is there.
            let _ = &running;
            frame
        }))
    })
}

#[cfg(test)]
mod tests;
