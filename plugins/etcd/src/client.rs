//! The connection to the cluster: one endpoint at a time, and the next one when that does not answer.

use std::error::Error;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::{OnceCell, watch};
use tokio::task::block_in_place;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::keys::Keys;
use crate::proto::{
    AuthenticateRequest, AuthenticateResponse, LeaseRequest, LeaseResponse, StatusRequest, StatusResponse,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::settings::{Chain, Settings, SettingsError};
use crate::tls;
use crate::write::EtcdLimit;

pub(crate) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(crate) const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(crate) const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
pub(crate) const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
pub(crate) const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that etcd may send ahead on one stream. The watch is read slowly if plugins are slow.
const STREAM_WINDOW: u32 = 2 << 20;
/// Bytes that etcd may send ahead on all streams, so that a slow watch does not block other responses.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest response: a page of entries.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{endpoint} did not answer within {limit:.1?}")]
    TimedOut { endpoint: String, limit: Duration },
    /// The endpoint answers for itself, but not for the cluster.
    #[error("etcd cannot answer: {endpoint} has no leader; check that most members of etcd run and reach each other")]
    NoLeader { endpoint: String },
    /// Another call has left the endpoint, for this reason.
    #[error("{reason}")]
    Moved { reason: String },
    /// Something between etcd and this client has failed.
    #[error("no connection to {endpoint}: {}{hint}", cause(.status))]
    Transport { endpoint: String, status: Box<Status>, hint: &'static str },
    #[error("{}", .0.message())]
    Etcd(Box<Status>),
    /// The password of the user cannot be read.
    #[error("{}", Chain(.0))]
    Password(Box<SettingsError>),
    /// The cluster has lost revisions that this host knows.
    #[error(
        "etcd is at revision {revision}, and this server was at {applied}: etcd has lost data or was restored from a backup; stop all \
         servers of the store, make sure that etcd has its data, and start them"
    )]
    WentBack { revision: u64, applied: u64 },
    /// The cluster has another group of writes at this revision, or none.
    #[error(
        "etcd does not have revision {revision} as this server has seen it: etcd has lost data or was restored from a backup; stop all \
         servers of the store, make sure that etcd has its data, and start them"
    )]
    OtherHistory { revision: u64 },
}

impl CallError {
    /// Returns whether etcd has lost changes that this host has applied.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self, Self::WentBack { .. } | Self::OtherHistory { .. })
    }

    /// Returns why there is no connection to the cluster.
    pub(crate) fn reason(&self, keys: &Keys) -> String {
        match self {
            Self::Etcd(status) if status.code() == Code::Unavailable => {
                format!("etcd cannot answer: {}", status.message())
            }
            Self::Etcd(status) => format!("etcd refuses this server: {}{}", status.message(), self.way_out(keys)),
            other => other.to_string(),
        }
    }

    /// Returns what to do about a refusal, if it is about the user.
    fn way_out(&self, keys: &Keys) -> String {
        if self.is_denied() {
            format!("; grant its user readwrite on the prefix {}", keys.common_prefix())
        } else if self.says("etcdserver: authentication is not enabled") {
            "; enable authentication in etcd, or remove user and its password from [plugins.etcd]".to_owned()
        } else if self.says("etcdserver: user name is empty") || self.says("etcdserver: authentication") {
            "; correct user and password_file of [plugins.etcd]".to_owned()
        } else {
            String::new()
        }
    }

    /// Returns the limit that a request exceeds, if etcd refuses it for that, which is before it takes effect.
    pub(crate) fn limit(&self) -> Option<EtcdLimit> {
        if self.says("etcdserver: too many operations in txn request") {
            Some(EtcdLimit::Operations)
        } else if self.says("etcdserver: request is too large") || self.says("grpc: received message larger than max") {
            Some(EtcdLimit::Bytes)
        } else {
            None
        }
    }

    /// Returns whether the database is full. A write has taken effect if it is the one with which etcd noticed it.
    pub(crate) fn is_no_space(&self) -> bool {
        self.says("etcdserver: mvcc: database space exceeded")
    }

    /// Returns whether the user may not do this. etcd refuses a write before it takes effect.
    pub(crate) fn is_denied(&self) -> bool {
        self.says("etcdserver: permission denied")
    }

    pub(crate) fn is_compacted(&self) -> bool {
        self.says("etcdserver: mvcc: required revision has been compacted")
    }

    /// Returns whether the response is larger than this client accepts.
    pub(crate) fn is_large_response(&self) -> bool {
        matches!(self, Self::Transport { status, .. } | Self::Etcd(status) if status.code() == Code::OutOfRange)
            && !self.is_compacted()
    }

    /// Returns whether a lease that the request names does not exist. etcd refuses a write before it takes effect.
    pub(crate) fn is_lease_gone(&self) -> bool {
        self.says("etcdserver: requested lease not found")
    }

    /// Returns whether the token is not valid any more.
    fn is_token(&self) -> bool {
        self.says("etcdserver: invalid auth token") || self.says("etcdserver: revision of auth store is old")
    }

    fn says(&self, message: &str) -> bool {
        matches!(self, Self::Etcd(status) if status.message().starts_with(message))
    }
}

/// A failure of a call, before its connection is named.
enum Failure {
    Status(Box<Status>),
    Password(Box<SettingsError>),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// A connection to one endpoint.
#[derive(Clone)]
struct Connection {
    /// How many came before it.
    generation: usize,
    channel: Channel,
    /// Set when the endpoint has said that it is a member of the cluster.
    is_member: Arc<OnceCell<()>>,
}

impl Connection {
    /// Connects when it is first used.
    fn new(generation: usize, endpoint: &Endpoint) -> Self {
        Self { generation, channel: endpoint.connect_lazy(), is_member: Arc::default() }
    }

    fn grpc(&self) -> tonic::client::Grpc<Channel> {
        tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(RESPONSE_BYTES_MAX)
            .max_encoding_message_size(usize::MAX)
    }
}

/// The cluster.
pub(crate) struct Client {
    /// `HOST:PORT` of each member; not empty.
    names: Vec<String>,
    settings: Settings,
    /// One for each name, with the files of TLS as they were when they could be used last.
    endpoints: Mutex<Vec<Endpoint>>,
    current: Mutex<Connection>,
    /// The generation of the current connection.
    generation: watch::Sender<usize>,
    /// Why the last endpoint was left.
    left: Mutex<String>,
    /// The id of the cluster of the first endpoint that answered.
    cluster: OnceLock<u64>,
    token: tokio::sync::Mutex<Option<MetadataValue<Ascii>>>,
}

/// An open watch.
pub(crate) struct Watch {
    responses: Streaming<WatchResponse>,
    endpoint: String,
    generation: watch::Receiver<usize>,
    own: usize,
}

impl Client {
    /// Connects when it is first used. Must be called within a runtime.
    pub(crate) fn new(names: &[String], settings: &Settings) -> Result<Self, SettingsError> {
        let tls = tls::config(settings)?;
        let endpoints =
            names.iter().map(|name| endpoint(name, tls.as_ref())).collect::<Result<Vec<_>, SettingsError>>()?;
        let first = endpoints.first().ok_or(SettingsError::Url)?;
        // A file that is missing is a mistake at the start, and may return later.
        settings.user.as_ref().map(|_| settings.password()).transpose()?;
        Ok(Self {
            current: Mutex::new(Connection::new(0, first)),
            generation: watch::Sender::new(0),
            left: Mutex::default(),
            cluster: OnceLock::new(),
            token: tokio::sync::Mutex::new(None),
            names: names.to_vec(),
            settings: settings.clone(),
            endpoints: Mutex::new(endpoints),
        })
    }

    /// Calls a function of the cluster. The error does not say whether the request took effect, unless it is one of those that
    /// [`CallError`] can recognise.
    pub(crate) async fn call<Q, R>(&self, path: &'static str, request: Q, limit: Duration) -> Result<R, CallError>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let connection = self.connection();
        let call = async {
            let request = self.authorized(&connection, request).await?;
            let mut grpc = self.grpc(&connection).await?;
            let codec = ProstCodec::<Q, R>::default();
            Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
        };
        self.bounded(&connection, limit, call).await
    }

    /// Keeps a lease alive. Returns its remaining seconds; 0 or less: there is no such lease.
    pub(crate) async fn keep_alive(&self, lease: i64, limit: Duration) -> Result<i64, CallError> {
        let connection = self.connection();
        let call = async {
            let requests = tokio_stream::once(LeaseRequest { id: lease });
            let mut responses: Streaming<LeaseResponse> = self.stream(&connection, LEASE_KEEP_ALIVE, requests).await?;
            let response = responses.message().await?;
            response.map(|response| response.ttl).ok_or_else(|| Status::unavailable("the stream ended").into())
        };
        self.bounded(&connection, limit, call).await
    }

    /// Opens a watch.
    pub(crate) async fn watch(&self, create: WatchCreateRequest, limit: Duration) -> Result<Watch, CallError> {
        let connection = self.connection();
        // etcd closes the watch when the requests end.
        let requests = tokio_stream::once(WatchRequest { create: Some(create) }).chain(tokio_stream::pending());
        let responses = self.bounded(&connection, limit, self.stream(&connection, WATCH, requests)).await?;
        let endpoint = self.name(&connection);
        Ok(Watch { responses, endpoint, generation: self.generation.subscribe(), own: connection.generation })
    }

    /// Returns the number of endpoints.
    pub(crate) fn endpoints(&self) -> u32 {
        u32::try_from(self.names.len()).unwrap_or(u32::MAX)
    }

    /// Leaves the current endpoint for the next one. All calls that wait for it fail.
    pub(crate) fn fail_over(&self) {
        let connection = self.connection();
        self.leave(connection.generation, format!("{} does not answer", self.name(&connection)));
    }

    fn leave(&self, generation: usize, reason: String) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.generation != generation {
            return;
        }
        let generation = generation + 1;
        *current = Connection::new(generation, &self.endpoint(generation % self.names.len()));
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        self.generation.send_replace(generation);
    }

    /// Returns an endpoint with the files of TLS as they are now, so that a certificate can be replaced.
    fn endpoint(&self, index: usize) -> Endpoint {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may be writing a file that cannot be used.
        if let Ok(tls @ Some(_)) = block_in_place(|| tls::config(&self.settings))
            && let Ok(now) = endpoint(&self.names[index], tls.as_ref())
        {
            endpoints[index] = now;
        }
        endpoints[index].clone()
    }

    fn connection(&self) -> Connection {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn name(&self, connection: &Connection) -> String {
        format!("{}://{}", self.settings.scheme(), self.names[connection.generation % self.names.len()])
    }

    /// Ends a call after a time limit, or when its endpoint is left. Leaves the endpoint if it cannot be reached.
    async fn bounded<T>(
        &self,
        connection: &Connection,
        limit: Duration,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, CallError> {
        let mut generation = self.generation.subscribe();
        let result = tokio::select! {
            result = call => result.map_err(|failure| match failure {
                Failure::Status(status) if is_etcds(&status) => CallError::Etcd(status),
                Failure::Status(status) => {
                    let hint = tls::hint(&self.settings, &status, connection.is_member.initialized());
                    CallError::Transport { endpoint: self.name(connection), status, hint }
                }
                Failure::Password(error) => CallError::Password(error),
            }),
            () = tokio::time::sleep(limit) => Err(CallError::TimedOut { endpoint: self.name(connection), limit }),
            _ = generation.wait_for(|generation| *generation != connection.generation) => {
                Err(CallError::Moved { reason: self.left.lock().unwrap_or_else(PoisonError::into_inner).clone() })
            }
        };
        match &result {
            Err(error) if error.is_token() => *self.token.lock().await = None,
            Err(error) if error.is_large_response() => {}
            // Whether a member that is late is worth leaving, `alive` decides.
            Err(error @ CallError::Transport { .. }) => self.leave(connection.generation, error.to_string()),
            _ => {}
        }
        result
    }

    async fn grpc(&self, connection: &Connection) -> Result<tonic::client::Grpc<Channel>, Status> {
        connection.is_member.get_or_try_init(|| self.check_cluster(connection)).await?;
        let mut grpc = connection.grpc();
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        Ok(grpc)
    }

    /// Fails if the endpoint is a member of another cluster than those before: that has other entries and revisions.
    async fn check_cluster(&self, connection: &Connection) -> Result<(), Status> {
        let mut grpc = connection.grpc();
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let codec = ProstCodec::<StatusRequest, StatusResponse>::default();
        let response = grpc.unary(Request::new(StatusRequest {}), PathAndQuery::from_static(STATUS), codec).await?;
        let found = response.into_inner().header.map_or(0, |header| header.cluster_id);
        let cluster = *self.cluster.get_or_init(|| found);
        if found == cluster {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "it is a member of cluster {found:x}, not of {cluster:x}; name members of one cluster"
        )))
    }

    async fn stream<Q, R>(
        &self,
        connection: &Connection,
        path: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<R>, Failure>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let requests = self.authorized(connection, requests).await?;
        let mut grpc = self.grpc(connection).await?;
        let codec = ProstCodec::<Q, R>::default();
        Ok(grpc.streaming(requests, PathAndQuery::from_static(path), codec).await?.into_inner())
    }

    /// Adds the token of the user to a request.
    async fn authorized<Q>(&self, connection: &Connection, request: Q) -> Result<Request<Q>, Failure> {
        let mut request = Request::new(request);
        if let Some(user) = &self.settings.user {
            let mut token = self.token.lock().await;
            let token = match &*token {
                Some(token) => token.clone(),
                None => {
                    let password = block_in_place(|| self.settings.password());
                    let password = password.map_err(|error| Failure::Password(Box::new(error)))?;
                    let login = AuthenticateRequest { name: user.clone(), password };
                    let codec = ProstCodec::<_, AuthenticateResponse>::default();
                    let path = PathAndQuery::from_static(AUTHENTICATE);
                    let response = self.grpc(connection).await?.unary(Request::new(login), path, codec).await?;
                    let new = response.into_inner().token.parse::<MetadataValue<Ascii>>();
                    let new = new.map_err(|error| Status::from_error(error.into()))?;
                    token.insert(new).clone()
                }
            };
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }
}

impl Watch {
    /// Returns the next response.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Status> {
        tokio::select! {
            response = self.responses.message() => {
                response.and_then(|response| response.ok_or_else(|| Status::unavailable("etcd ended the watch")))
            }
            _ = self.generation.wait_for(|generation| *generation != self.own) => {
                Err(Status::unavailable(format!("{} does not answer", self.endpoint)))
            }
        }
    }
}

/// Returns the first cause of a status: the error of the system or of TLS, without the layers above it.
pub(crate) fn cause(status: &Status) -> String {
    let mut cause = status.source();
    while let Some(source) = cause.and_then(Error::source) {
        cause = Some(source);
    }
    cause.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// Returns whether etcd sent a status, and not something between it and this client.
fn is_etcds(status: &Status) -> bool {
    status.message().starts_with("etcdserver:") || status.message().starts_with("grpc:")
}

fn endpoint(name: &str, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, SettingsError> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let refused = |error| SettingsError::Endpoint { endpoint: name.to_owned(), error };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{name}"))
        .map_err(refused)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    match tls {
        Some(tls) => endpoint.tls_config(tls.clone()).map_err(refused),
        None => Ok(endpoint),
    }
}
