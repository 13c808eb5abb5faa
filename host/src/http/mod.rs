//! The types that both HTTP engines share: request heads, responses, bodies within a memory budget, and the service that they call.
//! Knows no route and no store.

mod body;
mod budget;
mod hyper;
mod request;
mod response;
mod tiny;
mod tls;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use self::body::{BodyBuffer, UNCOUNTED};
pub use self::budget::{Budget, Exhausted, Share, default_limit};
use self::hyper::HyperServer;
pub use self::request::{BodyFault, BodyLength, Headers, Method, RequestHead};
pub use self::response::{Body, HEARTBEAT_INTERVAL, Responder, Response, Stream};
use self::tiny::TinyServer;
pub use self::tls::{Certificate, CertificateNames, ClientFiles, Tls, TlsError, TlsFiles};

/// A listening socket.
pub enum Listener {
    /// A TCP address without TLS.
    Tcp(TcpListener),
    /// A TCP address with TLS.
    Tls(TcpListener),
    /// A Unix socket.
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener),
}

/// Counts the connections, and what the engine rejects on them. Only hyper's engine does so.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    /// The connections that were accepted.
    pub accepted: AtomicU64,
    /// The accepted connections that have ended.
    pub ended: AtomicU64,
    /// The connections that were refused because there were too many.
    pub refused: AtomicU64,
    /// The requests that were rejected before the service got them: malformed ones, and those beyond a limit.
    pub rejected_requests: AtomicU64,
}

impl ConnectionCounts {
    /// Returns the number of open connections.
    pub fn open(&self) -> u64 {
        // In this order: a connection that ends in between is not subtracted from the older number.
        let ended = self.ended.load(Ordering::Relaxed);
        self.accepted.load(Ordering::Relaxed).saturating_sub(ended)
    }
}

/// A running server.
pub enum HttpServer {
    /// On tiny_http: a server for each listening socket.
    Tiny(Vec<TinyServer>),
    /// On hyper.
    Hyper(HyperServer),
}

impl HttpServer {
    /// Serves on listening sockets with tiny_http, until [`stop`](Self::stop). From then on Linux schedules the calling
    /// thread as `SCHED_BATCH`.
    ///
    /// # Errors
    ///
    /// A socket is one for TLS, or the system refuses to listen or to start a thread.
    pub fn tiny<S: Service>(listeners: Vec<Listener>, service: Arc<S>) -> io::Result<Self> {
        let start = |listener| TinyServer::start(listener, Arc::clone(&service));
        listeners.into_iter().map(start).collect::<Result<_, _>>().map(Self::Tiny)
    }

    /// Serves on listening sockets with hyper, until [`stop`](Self::stop). All of them share the event loops and the limit of
    /// connections. Sockets for TLS need `tls`.
    ///
    /// # Errors
    ///
    /// The system refuses to listen or to start a thread.
    pub fn hyper<S: Service>(
        listeners: Vec<Listener>,
        tls: Option<Arc<Tls>>,
        connections: Arc<ConnectionCounts>,
        service: Arc<S>,
    ) -> io::Result<Self> {
        HyperServer::start(listeners, tls, connections, service).map(Self::Hyper)
    }

    /// Returns the name of the engine.
    pub fn engine(&self) -> &'static str {
        match self {
            Self::Tiny(_) => "tiny_http",
            Self::Hyper(_) => "hyper",
        }
    }

    /// Returns a probe of the threads that serve requests, which may outlive the server.
    pub fn probe(&self) -> Probe {
        match self {
            Self::Tiny(servers) => Probe(servers.iter().map(TinyServer::probe).collect()),
            Self::Hyper(server) => Probe(vec![server.probe()]),
        }
    }

    /// Accepts no further requests and waits for those in flight. Returns whether all were answered before the timeout.
    pub fn stop(self, timeout: Duration) -> bool {
        match self {
            Self::Tiny(servers) => {
                let deadline = Instant::now() + timeout;
                servers.iter().for_each(TinyServer::close);
                let left = || deadline.saturating_duration_since(Instant::now());
                // Each one, also after one that was too late.
                let drained: Vec<bool> = servers.iter().map(|server| server.drain(left())).collect();
                drained.into_iter().all(|drained| drained)
            }
            Self::Hyper(server) => server.stop(timeout),
        }
    }
}

/// Checks whether an engine still serves requests.
pub struct Probe(Vec<ProbeOne>);

/// The probe of one server: returns whether it responded within the timeout.
type ProbeOne = Arc<dyn Fn(Duration) -> bool + Send + Sync>;

impl Probe {
    /// Returns whether all threads of the engine that must not block have responded within the timeout. Blocks until then.
    pub fn responds(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.0.iter().all(|probe| probe(deadline.saturating_duration_since(Instant::now())))
    }
}

/// The service that an engine calls for each request, from any of its threads. No method may block for long: hyper's engine calls them
/// on its event loops.
pub trait Service: Send + Sync + 'static {
    /// A request whose head was accepted.
    type Admitted: Send;

    /// Checks the head of a request before its body is read.
    ///
    /// # Errors
    ///
    /// The response to a request whose body need not be read.
    fn admit(&self, head: Arc<RequestHead>) -> Result<Self::Admitted, Response>;

    /// Returns the memory budget that bodies count against.
    fn budget(&self) -> &'static Budget;

    /// Returns the maximum length of the request's body, in bytes.
    fn body_max(&self, admitted: &Self::Admitted) -> u64;

    /// Returns the response to a request whose body is refused.
    fn refuse_body(&self, admitted: Self::Admitted, fault: BodyFault) -> Response;

    /// Runs a request. The response may be delivered later, from another thread.
    fn serve(&self, admitted: Self::Admitted, body: Vec<u8>, responder: Responder);
}
