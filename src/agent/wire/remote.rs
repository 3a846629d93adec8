//! The agent of another machine: the verbs over mutual TLS, and what the node has from memory.
//!
//! ```text
//!               first update                     connection lost, or silence
//!   not heard ───────────────▶ heard: present ────────────────────────────────▶ heard: away
//!                                    ▲                                               │
//!                                    └───────────── says hello, and tells everything ┘
//! ```
//!
//! What was received stays: volumes still exist while their node is away.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use lvm_csi_proto::agent as wire;
use lvm_csi_proto::agent::agent_client::AgentClient;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use super::convert::{self, Malformed};
use crate::agent::{Agent, GroupReading, Holdings, LARGEST_MESSAGE, Offer, PROTOCOL};
use crate::attach::{Mode, PublishContext};
use crate::host::effect_elsewhere;
use crate::inflight::{self, CallId};
use crate::tls::{Credentials, TlsError, agent_name};
use crate::types::{Change, Changed, Error, NodeId, SnapshotId, Usage, VolumeId, chain};
use crate::volume::create::VolumeSpec;
use crate::volume::inventory::{Snapshot, Volume};
use crate::volume::{SizeRange, snapshot};

/// The other end counts as dead after this long without traffic on a connection, and as long again without an answer to a ping.
const KEEPALIVE: Duration = Duration::from_secs(4);
/// The longest silence of a watch: an agent sends something at least every five seconds.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the first call of a connection may take.
const HELLO: Duration = Duration::from_secs(10);
/// The pause after the first failure to connect, and the longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long a call waits for an agent's first update, soon after the controller's start.
const FIRST_UPDATE: Duration = Duration::from_secs(5);
/// Why an agent without an address cannot be reached.
const NOWHERE: &str = "no pod of lvm-csi node runs there";
/// How long the answer of a verb waits until the controller has received the change.
const CATCH_UP: Duration = Duration::from_secs(2);

/// What was received from an agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    offers: Option<Arc<[Offer]>>,
    /// The holdings, with their version.
    pub(super) holdings: Option<(u64, Arc<Holdings>)>,
    /// Why it cannot be reached; `None` while it can, and before the first try.
    away: Option<String>,
}

impl Heard {
    /// Applies an update. A group whose state became unknown keeps its last contents: its volumes still exist.
    pub(super) fn add(&mut self, update: wire::Update) -> Result<(), Malformed> {
        let mut holdings = self.holdings.as_ref().map_or_else(Holdings::default, |(_, holdings)| Holdings::clone(holdings));
        for group in update.groups {
            let (name, now) = convert::group(group)?;
            match holdings.groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, before)) => {
                    if !matches!((&*before, &now), (GroupReading::Ok(Some(_)), GroupReading::Err(_))) {
                        *before = now;
                    }
                }
                None => holdings.groups.push((name, now)),
            }
        }
        if let Some(pools) = update.pools {
            convert::pools(pools, &mut holdings)?;
        }
        if let Some(grants) = update.grants {
            holdings.grants = grants.grants.iter().map(convert::grant).collect::<Result<_, _>>()?;
        }
        self.holdings = Some((update.version, Arc::new(holdings)));
        self.away = None;
        Ok(())
    }

    fn has(&self, version: u64) -> bool {
        self.holdings.as_ref().is_some_and(|(heard, _)| *heard >= version)
    }
}

/// The address of an agent (`host:port`), if it has one.
type Place = watch::Receiver<Option<Arc<str>>>;

/// The connection to an agent.
#[derive(Clone)]
struct Connection {
    node: NodeId,
    place: Place,
    driver: String,
    client: AgentClient<Channel>,
}

/// The agent of another machine.
pub struct Remote {
    connection: Connection,
    place: watch::Sender<Option<Arc<str>>>,
    heard: watch::Receiver<Heard>,
    follower: AbortHandle,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Remote {
    /// The agent of a node at an address (`host:port`), or without one yet. Connects from now on, and again after every loss.
    ///
    /// # Errors
    /// No certificate can carry the node's name.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(node: NodeId, address: Option<&str>, credentials: Arc<Credentials>) -> Result<Self, TlsError> {
        let name = agent_name(credentials.driver(), &node)?;
        let driver = credentials.driver().to_owned();
        // The address is what to connect to; the name is what the other end must be called.
        let host = format!("http://{}", name.to_str());
        let endpoint = Endpoint::from_shared(host).map_err(|_| TlsError::Name(name.to_str().into_owned()))?;
        let endpoint = endpoint.http2_keep_alive_interval(KEEPALIVE).keep_alive_timeout(KEEPALIVE).keep_alive_while_idle(true);
        let (place, dialled) = watch::channel(address.map(Arc::from));
        let known = dialled.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (credentials, address, name) = (Arc::clone(&credentials), dialled.borrow().clone(), name.clone());
            async move {
                let address = address.ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, NOWHERE))?;
                credentials.connect(&address, name).await.map(TokioIo::new)
            }
        });
        let client = AgentClient::new(endpoint.connect_with_connector_lazy(connector))
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE);
        let connection = Connection { node, place: known, driver, client };
        let (sender, heard) = watch::channel(Heard::default());
        let follower = tokio::spawn(follow(connection.clone(), sender)).abort_handle();
        Ok(Self { connection, place, heard, follower })
    }

    /// Changes the agent's address. A working connection stays.
    pub fn move_to(&self, address: Option<&str>) {
        let new = address.map(Arc::from);
        self.place.send_if_modified(|old| {
            let moved = *old != new;
            *old = new;
            moved
        });
    }

    /// What was received, as soon as there is anything; otherwise why the agent is away.
    async fn heard<T>(&self, pick: impl Fn(&Heard) -> Option<T>) -> Result<T, Error> {
        let mut heard = self.heard.clone();
        // Even after a timeout, what is there then counts.
        let _ = tokio::time::timeout(FIRST_UPDATE, heard.wait_for(|heard| heard.away.is_some() || pick(heard).is_some())).await;
        let heard = heard.borrow();
        let silent = || heard.away.clone().unwrap_or_else(|| "it has not sent anything yet".to_owned());
        pick(&heard).ok_or_else(|| self.connection.away(&silent()))
    }

    /// Waits until the controller has received what a verb changed, so that the caller's next call sees it.
    async fn catch_up(&self, version: u64) {
        let mut heard = self.heard.clone();
        // A list that comes too early is corrected by the next one.
        let _ = tokio::time::timeout(CATCH_UP, heard.wait_for(|heard| heard.away.is_some() || heard.has(version))).await;
    }

    /// Calls one verb. It counts as an effect here too, and this end may never learn its outcome.
    async fn verb<M, A, F>(
        &self,
        name: &'static str,
        message: M,
        rpc: impl FnOnce(AgentClient<Channel>, Request<M>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        effect_elsewhere(name, &self.connection.node, self.call(message, rpc)).await
    }

    /// Makes one call with the id of its caller's call, and within that call's deadline if there is one.
    async fn call<M, A, F>(&self, message: M, rpc: impl FnOnce(AgentClient<Channel>, Request<M>) -> F) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(message);
        if let Some(left) = inflight::time_left() {
            request.set_timeout(left);
        }
        if let Ok(id) = CallId::present().as_str().parse() {
            request.metadata_mut().insert(CallId::HEADER, id);
        }
        match rpc(self.connection.client.clone(), request).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.connection.failed(&status)),
        }
    }

    /// The answer of a verb that returns nothing.
    async fn done(&self, answer: Result<wire::EmptyAnswer, Error>) -> Result<Change, Error> {
        let answer = answer?;
        self.catch_up(answer.version).await;
        let change = convert::change(answer.change());
        answer.error.map_or(Ok(change), |error| Err(self.connection.remote_error(error)))
    }

    /// The answer of a verb that returns a volume.
    async fn volume(&self, answer: Result<wire::VolumeAnswer, Error>) -> Result<Changed<Volume>, Error> {
        use wire::volume_answer::Result::{Error, Ok as Done};
        let answer = answer?;
        self.catch_up(answer.version).await;
        let change = convert::change(answer.change());
        match self.connection.read(convert::need("result", answer.result))? {
            Done(volume) => Ok(Changed { object: self.connection.read(convert::volume(volume))?, change }),
            Error(error) => Err(self.connection.remote_error(error)),
        }
    }
}

impl Connection {
    fn address(&self) -> Arc<str> {
        self.place.borrow().clone().unwrap_or_else(|| "no address".into())
    }

    fn away(&self, reason: &str) -> Error {
        let reason = format!(
            "its agent at {} cannot be asked: {reason}; volumes of this node wait until it answers: check that the node and its lvm-csi \
             node run",
            self.address()
        );
        Error::unavailable(format!("node {}", self.node), reason)
    }

    /// What a broken transport means for a call. Its work may continue; a repeated call joins it or finds it done.
    fn failed(&self, status: &Status) -> Error {
        match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => {
                let reason =
                    format!("its agent at {} has not answered in time; its work goes on, repeat the call", self.address());
                Error::unavailable(format!("node {}", self.node), reason)
            }
            Code::InvalidArgument => {
                let reason = format!("its agent at {} refuses the request: {}", self.address(), status.message());
                Error::unavailable(format!("node {}", self.node), reason)
            }
            _ => self.away(&words(status)),
        }
    }

    fn read<T>(&self, message: Result<T, Malformed>) -> Result<T, Error> {
        message.map_err(|error| self.away(&format!("this version cannot read its answer ({error})")))
    }

    fn remote_error(&self, error: wire::Error) -> Error {
        self.read(convert::error(error)).unwrap_or_else(|malformed| malformed)
    }

    /// Says hello and receives updates for as long as they come. Returns why they ended; `None` if the agent ended them.
    async fn watch(&self, heard: &watch::Sender<Heard>) -> Option<String> {
        let mut client = self.client.clone();
        let mut hello =
            Request::new(wire::HelloRequest { protocol: PROTOCOL, driver_version: env!("CARGO_PKG_VERSION").to_owned() });
        hello.set_timeout(HELLO);
        let answer = match client.hello(hello).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Some(words(&status)),
        };
        if let Err(reason) = self.greet(&answer) {
            return Some(reason);
        }
        let offers: Result<Arc<[Offer]>, _> = answer.offers.into_iter().map(convert::offer).collect();
        let offers = match offers {
            Ok(offers) => offers,
            Err(error) => return Some(format!("this version cannot read its hello ({error})")),
        };
        let mut updates = match client.watch(wire::WatchRequest {}).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Some(words(&status)),
        };
        heard.send_modify(|heard| heard.offers = Some(offers));
        loop {
            let update = match tokio::time::timeout(SILENCE, updates.message()).await {
                Err(_) => return Some(format!("it has sent nothing for {} s", SILENCE.as_secs())),
                Ok(Err(status)) => return Some(words(&status)),
                Ok(Ok(None)) => return None,
                Ok(Ok(Some(update))) => update,
            };
            let mut added = Ok(());
            heard.send_modify(|heard| added = heard.add(update));
            if let Err(error) = added {
                return Some(format!("this version cannot read its update ({error})"));
            }
        }
    }

    /// Checks that the right agent answers, in a protocol that this end speaks.
    fn greet(&self, answer: &wire::HelloResponse) -> Result<(), String> {
        if answer.protocol != PROTOCOL {
            return Err(format!(
                "it is version {} with protocol {}, and this controller is version {} with protocol {PROTOCOL}: bring both to one \
                 version",
                answer.driver_version,
                answer.protocol,
                env!("CARGO_PKG_VERSION")
            ));
        }
        if answer.node != self.node.as_str() || answer.driver != self.driver {
            return Err(format!("it says that it is node {:?} of driver {:?}", answer.node, answer.driver));
        }
        Ok(())
    }
}

/// The full text of a status, with its causes.
fn words(status: &Status) -> String {
    match status.source() {
        Some(cause) => chain(cause),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Receives an agent's updates for as long as the controller runs.
async fn follow(mut connection: Connection, heard: watch::Sender<Heard>) {
    let mut pause = PAUSES.0;
    loop {
        let before = heard.borrow().holdings.as_ref().map(|(version, _)| *version);
        let ended = connection.watch(&heard).await;
        let progress = ended.is_none() || heard.borrow().holdings.as_ref().map(|(version, _)| *version) != before;
        if let Some(reason) = ended {
            if heard.borrow().away.as_ref() != Some(&reason) {
                tracing::warn!(node = %connection.node, address = &*connection.address(), reason, "the agent of this node is away");
            }
            heard.send_modify(|heard| heard.away = Some(reason));
        }
        pause = if progress { PAUSES.0 } else { (2 * pause).min(PAUSES.1) };
        // An agent that has moved is tried at once.
        if let Ok(Ok(())) = tokio::time::timeout(pause, connection.place.changed()).await {
            pause = PAUSES.0;
        }
    }
}

#[tonic::async_trait]
impl Agent for Remote {
    fn node(&self) -> &NodeId {
        &self.connection.node
    }

    fn away(&self) -> Option<String> {
        self.heard.borrow().away.clone()
    }

    async fn create(&self, pool: String, spec: VolumeSpec) -> Result<Changed<Volume>, Error> {
        let message = convert::of_create(pool, spec);
        let answer = self.verb("agent.create", message, |mut client, request| async move { client.create(request).await }).await;
        self.volume(answer).await
    }

    async fn delete(&self, id: VolumeId) -> Result<Change, Error> {
        let message = wire::DeleteRequest { volume_id: id.to_string() };
        let answer = self.verb("agent.delete", message, |mut client, request| async move { client.delete(request).await }).await;
        self.done(answer).await
    }

    async fn expand(&self, id: VolumeId, size: SizeRange) -> Result<Changed<Volume>, Error> {
        let message = wire::ExpandRequest { volume_id: id.to_string(), size: Some(convert::of_size(size)) };
        let answer = self.verb("agent.expand", message, |mut client, request| async move { client.expand(request).await }).await;
        self.volume(answer).await
    }

    async fn snapshot(&self, request: snapshot::Request) -> Result<Changed<Snapshot>, Error> {
        use wire::snapshot_answer::Result::{Error, Ok as Done};
        let message = wire::SnapshotRequest { name: request.name, volume_id: request.source.to_string() };
        let answer =
            self.verb("agent.snapshot", message, |mut client, request| async move { client.snapshot(request).await }).await?;
        self.catch_up(answer.version).await;
        let change = convert::change(answer.change());
        match self.connection.read(convert::need("result", answer.result))? {
            Done(snapshot) => Ok(Changed { object: self.connection.read(convert::snapshot(snapshot))?, change }),
            Error(error) => Err(self.connection.remote_error(error)),
        }
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<Change, Error> {
        let message = wire::DeleteSnapshotRequest { snapshot_id: id.to_string() };
        let answer = self
            .verb("agent.delete_snapshot", message, |mut client, request| async move { client.delete_snapshot(request).await })
            .await;
        self.done(answer).await
    }

    async fn grant(&self, id: VolumeId, node: NodeId, mode: Mode) -> Result<PublishContext, Error> {
        use wire::grant_answer::Result::{Error, Ok as Done};
        let message = wire::GrantRequest { volume_id: id.to_string(), node: node.to_string(), mode: mode.to_text() };
        let answer = self.verb("agent.grant", message, |mut client, request| async move { client.grant(request).await }).await?;
        self.catch_up(answer.version).await;
        match self.connection.read(convert::need("result", answer.result))? {
            Done(context) => self.connection.read(convert::context(&context)),
            Error(error) => Err(self.connection.remote_error(error)),
        }
    }

    async fn release(&self, id: VolumeId, node: Option<NodeId>) -> Result<(), Error> {
        let message = wire::ReleaseRequest { volume_id: id.to_string(), node: node.map(|node| node.to_string()) };
        let answer =
            self.verb("agent.release", message, |mut client, request| async move { client.release(request).await }).await;
        self.done(answer).await.map(drop)
    }

    async fn usage(&self, ids: Vec<VolumeId>) -> Result<Vec<(VolumeId, Usage)>, Error> {
        let message = wire::UsageRequest { volume_ids: ids.iter().map(ToString::to_string).collect() };
        let answer = self.call(message, |mut client, request| async move { client.usage(request).await }).await?;
        match answer.error {
            Some(error) => Err(self.connection.remote_error(error)),
            None => self.connection.read(answer.volumes.iter().map(convert::usage).collect()),
        }
    }

    async fn offers(&self) -> Result<Arc<[Offer]>, Error> {
        self.heard(|heard| heard.offers.clone()).await
    }

    async fn holdings(&self) -> Result<Arc<Holdings>, Error> {
        self.heard(|heard| Some(Arc::clone(&heard.holdings.as_ref()?.1))).await
    }

    async fn fresh(&self) -> Result<Arc<Holdings>, Error> {
        let answer = self.call(wire::LookRequest {}, |mut client, request| async move { client.look(request).await }).await?;
        self.catch_up(answer.version).await;
        self.holdings().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Contents;
    use crate::types::{VgName, VgUuid};

    #[test]
    fn what_was_heard_stays_when_it_is_not_known_any_more() {
        let name = VgName::new("vg0").unwrap();
        let uuid = VgUuid::new("AbCdEf-0123-4567-89ab-cdef-0123-456789").unwrap();
        let contents = Arc::new(Contents { vg: uuid, volumes: vec![], snapshots: vec![], unfinished: vec![] });
        let update = |version, known: GroupReading| wire::Update {
            version,
            groups: vec![convert::of_group(&name, &known)],
            ..wire::Update::default()
        };
        let mut heard = Heard::default();
        for (version, received, kept) in [
            (1, Ok(None), Ok(None)),
            (2, Err("it hangs".to_owned()), Err("it hangs".to_owned())),
            (3, Ok(Some(Arc::clone(&contents))), Ok(Some(Arc::clone(&contents)))),
            (4, Err("it hangs".to_owned()), Ok(Some(contents))),
            (5, Ok(None), Ok(None)),
        ] {
            heard.add(update(version, received)).unwrap();
            assert!(heard.has(version) && !heard.has(version + 1));
            assert_eq!(heard.holdings.as_ref().unwrap().1.groups, [(name.clone(), kept)]);
        }
        heard.add(wire::Update { version: 6, ..wire::Update::default() }).unwrap();
        assert_eq!(heard.holdings.unwrap().1.groups.len(), 1);
    }

    #[tokio::test]
    async fn no_word_of_the_transport_says_that_a_pool_is_full() {
        let credentials = Arc::new(Credentials::awaited("lvm-csi.dev"));
        let remote = Remote::new(crate::types::NodeId::new("a").unwrap(), None, credentials).unwrap();
        for code in 1..=16 {
            let error = remote.connection.failed(&Status::new(Code::from_i32(code), "h2 protocol error: too_many_resets"));
            assert!(matches!(error, Error::Unavailable { .. }), "{code}: {error}");
        }
    }
}
