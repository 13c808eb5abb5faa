//! One connection of HTTP/1: its timeouts, and each of its requests from head to response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Version};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::convert::{HyperResponse, Peer, hyper_response, request_head};
use super::futures::{ReadyOr, WakeFiltered};
use super::http2;
use super::idle::{self, IdleTrackingStream, LINGER, Observer};
use super::scanner::RequestScanner;
use super::{Shared, stopped};
use crate::http::response::date;
use crate::http::{Body, BodyBuffer, BodyFault, BodyLength, Response, Service, Share};
use vkog_runtime::Oneshot;

/// Maximum length of an unwanted body that is read to its end so that the connection stays usable, in bytes.
const DISCARDED_BODY_MAX: u64 = 64 << 10;
/// Timeout for reading an unwanted body.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(100);

type ResponseFuture = ReadyOr<HyperResponse>;

/// Serves a connection until it ends. One that begins with the preface of HTTP/2 becomes a connection of HTTP/2.
pub(super) async fn serve<I, S>(shared: Arc<Shared<S>>, stream: I, peer: Peer)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service,
{
    let mut stopping = shared.stopping.clone();
    let mut builder = shared.builder.clone();
    builder.auto_date_header(date(SystemTime::now()).is_some());
    let connection = Arc::new(Connection::new(shared, peer));
    let io = TokioIo::new(IdleTrackingStream::new(stream, Arc::clone(&connection)));
    let serving = Arc::clone(&connection);
    let service = service_fn(move |request| serving.handle(request));
    let mut served = builder.serve_connection(io, service);
    let timed = Arc::clone(&connection);
    let interrupted = WakeFiltered::new(async move {
        tokio::select! {
            () = timed.timed_out() => Interrupted::TimedOut,
            () = stopped(&mut stopping) => Interrupted::Stopping,
        }
    });
    let result = tokio::select! {
        biased;
        result = Pin::new(&mut served) => result,
        interrupted = interrupted => {
            if let Interrupted::TimedOut = interrupted {
                return;
            }
            Pin::new(&mut served).graceful_shutdown();
            // An endless stream has ended by now. A client that does not read the rest of it delays the stop no longer.
            let grace = if connection.sends_endless.load(Ordering::Relaxed) { LINGER } else { Duration::MAX };
            tokio::select! {
                result = Pin::new(&mut served) => result,
                () = connection.timed_out() => return,
                () = sleep(grace) => return,
            }
        }
    };
    // After a request that offers an upgrade, hyper returns without sending the rest of the last response and closing. Polled
    // again, it does both.
    let result = match result {
        Ok(()) if connection.offers_upgrade.load(Ordering::Relaxed) => tokio::select! {
            result = Pin::new(&mut served) => result,
            () = connection.timed_out() => return,
        },
        result => result,
    };
    match result {
        Err(error) if error.is_parse_version_h2() && connection.is_new() => {
            let Connection { shared, peer, .. } = &*connection;
            let parts = served.into_parts();
            let stream = parts.io.into_inner().into_inner();
            // Boxed, because it is large and HTTP/1 does not need the space.
            Box::pin(http2::serve(Arc::clone(shared), stream, parts.read_buf, peer.clone())).await;
        }
        Err(error) => {
            if error.is_parse() {
                connection.shared.connections.rejected_requests.fetch_add(1, Ordering::Relaxed);
            }
            tracing::debug!("a connection ended: {error}");
        }
        Ok(()) => {}
    }
}

/// Why a connection ends early.
enum Interrupted {
    TimedOut,
    Stopping,
}

/// The state of a connection, shared by its stream and its request handler. One task at a time uses it, except for the
/// oneshot.
pub(super) struct Connection<S: Service> {
    shared: Arc<Shared<S>>,
    peer: Peer,
    /// Grows with every request head, and with every piece of a body that is received or sent.
    progress: AtomicU32,
    /// Whether a complete request waits for its response: the client waits for the server, not the reverse.
    awaits_response: AtomicBool,
    /// Whether the response is a stream that does not end on its own.
    sends_endless: AtomicBool,
    /// Whether the client may still be sending when it gets the last response of the connection.
    lingers: AtomicBool,
    /// Whether the current request is of HTTP/1.0.
    is_http_1_0: AtomicBool,
    /// Whether a request has offered to switch to another protocol, such as HTTP/2. The server never accepts.
    offers_upgrade: AtomicBool,
    response: Oneshot<Response>,
    scanner: Mutex<RequestScanner>,
}

impl<S: Service> Connection<S> {
    pub(super) fn new(shared: Arc<Shared<S>>, peer: Peer) -> Self {
        let [awaits_response, sends_endless, lingers, is_http_1_0, offers_upgrade] =
            [const { AtomicBool::new(false) }; 5];
        let (progress, response, scanner) = (AtomicU32::new(0), Oneshot::default(), Mutex::default());
        Self {
            shared,
            peer,
            progress,
            awaits_response,
            sends_endless,
            lingers,
            is_http_1_0,
            offers_upgrade,
            response,
            scanner,
        }
    }

    /// Notes that the client has made progress.
    pub(super) fn note_progress(&self) {
        // No read-modify-write: only the task of the connection stores it.
        self.progress.store(self.progress.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Whether nothing has been received yet, except for what hyper did not accept.
    fn is_new(&self) -> bool {
        self.progress.load(Ordering::Relaxed) == 0
    }

    /// Waits until the client has made no progress for several checks while the server waited for it.
    pub(super) async fn timed_out(&self) {
        idle::timed_out(&self.progress, || self.awaits_response.load(Ordering::Relaxed)).await;
    }

    /// Handles a request.
    fn handle(self: &Arc<Self>, request: Request<Incoming>) -> ResponseFuture {
        self.note_progress();
        let (parts, body) = request.into_parts();
        self.is_http_1_0.store(parts.version == Version::HTTP_10, Ordering::Relaxed);
        if parts.extensions.get::<OnUpgrade>().is_some() {
            self.offers_upgrade.store(true, Ordering::Relaxed);
        }
        let service = &self.shared.service;
        let scanned = self.scanner.lock().next_head();
        let has_fragment = scanned.as_ref().is_some_and(|scanned| scanned.has_fragment);
        let head = request_head(&parts, has_fragment, &self.peer);
        // The scanner loses track only in malformed chunks.
        let length = head.body_len().and_then(|length| {
            let scanned = scanned.ok_or(BodyFault::BadChunk)?;
            scanned.check(length).map(|()| length)
        });
        let expects = head.headers.get("expect").is_some();
        let admitted = self.shared.admit(head);
        let length = match length {
            Ok(length) => length,
            Err(fault) => {
                let refused = |admitted| service.refuse_body(admitted, fault);
                return ReadyOr::ready(self.last_response(admitted.map_or_else(|response| response, refused)));
            }
        };
        if length == BodyLength::Known(0) {
            return match admitted {
                Ok(admitted) => self.run(admitted, Vec::new(), None),
                Err(response) => ReadyOr::ready(self.response(response)),
            };
        }
        let refusal = match admitted {
            Err(response) => response,
            Ok(admitted) => match BodyBuffer::new(length, service.body_max(&admitted), service.budget()) {
                Ok(buffer) => {
                    let connection = Arc::clone(self);
                    return ReadyOr::later(async move {
                        match connection.receive(body, buffer).await {
                            Ok((bytes, share)) => connection.run(admitted, bytes, Some(share)).value().await,
                            Err(fault) => {
                                connection.last_response(connection.shared.service.refuse_body(admitted, fault))
                            }
                        }
                    });
                }
                Err(fault) => service.refuse_body(admitted, fault),
            },
        };
        self.refuse(refusal, length, body, expects)
    }

    /// Refuses a request with an unwanted body. A short body that arrives at once is read to its end, so that the connection
    /// stays usable.
    fn refuse(
        self: &Arc<Self>,
        refusal: Response,
        length: BodyLength,
        body: Incoming,
        expects: bool,
    ) -> ResponseFuture {
        if expects || matches!(length, BodyLength::Known(length) if length > DISCARDED_BODY_MAX) {
            return ReadyOr::ready(self.last_response(refusal));
        }
        let connection = Arc::clone(self);
        ReadyOr::later(async move {
            let discarded = timeout(DISCARD_TIMEOUT, connection.discard(body)).await;
            if discarded == Ok(true) { connection.response(refusal) } else { connection.last_response(refusal) }
        })
    }

    /// Runs the request. The response is delivered through the oneshot, possibly later.
    fn run(self: &Arc<Self>, admitted: S::Admitted, body: Vec<u8>, share: Option<Share>) -> ResponseFuture {
        let waiting = Arc::clone(self);
        self.shared.run(admitted, body, share, move |response| waiting.response.send(response));
        match self.response.try_receive() {
            Some(response) => ReadyOr::ready(self.response(response)),
            None => {
                let connection = Arc::clone(self);
                ReadyOr::later(async move { connection.late_response().await })
            }
        }
    }

    /// Waits for the response to a request that another thread completes.
    async fn late_response(&self) -> HyperResponse {
        self.awaits_response.store(true, Ordering::Relaxed);
        let response = std::future::poll_fn(|context| self.response.poll(context)).await;
        self.awaits_response.store(false, Ordering::Relaxed);
        self.response(response)
    }

    /// Receives a body to its end.
    async fn receive(&self, mut body: Incoming, mut buffer: BodyBuffer) -> Result<(Vec<u8>, Share), BodyFault> {
        // Read only for a body that does not arrive at once: the clock costs as much as the rest of a short one.
        let mut began = None;
        while !buffer.is_full() {
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            let piece = match frame {
                // Trailers are ignored.
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) if is_bad_chunk(&error) => return Err(BodyFault::BadChunk),
                Some(Err(_)) => return Err(buffer.cut_off()),
                None => break,
            };
            self.note_progress();
            buffer.push(&piece)?;
            if !buffer.is_full() {
                buffer.check_rate(began.get_or_insert_with(Instant::now).elapsed())?;
            }
        }
        buffer.finish()
    }

    /// Reads an unwanted body. Returns whether its end was reached.
    async fn discard(&self, mut body: Incoming) -> bool {
        let mut left = DISCARDED_BODY_MAX;
        loop {
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            let Some(frame) = frame else { return true };
            let Some(rest) = frame.ok().and_then(|frame| {
                let length = frame.data_ref().map_or(0, Bytes::len);
                left.checked_sub(length as u64)
            }) else {
                return false;
            };
            self.note_progress();
            left = rest;
        }
    }

    /// Makes hyper's response.
    fn response(&self, response: Response) -> HyperResponse {
        let (has_length, is_endless) = match &response.body {
            Body::Whole(_) => (true, false),
            Body::Stream(stream) => (false, !stream.is_finite()),
        };
        self.sends_endless.store(is_endless, Ordering::Relaxed);
        let response = hyper_response(response);
        if has_length { response } else { self.close_http_1_0(response) }
    }

    /// Makes hyper's response, which ends the connection.
    fn last_response(&self, response: Response) -> HyperResponse {
        self.lingers.store(true, Ordering::Relaxed);
        let mut response = self.response(response);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        self.close_http_1_0(response)
    }

    /// Ends the connection of an HTTP/1.0 client with the response. Without a length nothing else ends the body, since
    /// HTTP/1.0 has no chunks. hyper adds `Connection: keep-alive` for a client that sent it, regardless of the response,
    /// unless the response is of HTTP/1.0 too.
    fn close_http_1_0(&self, mut response: HyperResponse) -> HyperResponse {
        if self.is_http_1_0.load(Ordering::Relaxed) {
            *response.version_mut() = Version::HTTP_10;
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl<S: Service> Observer for Connection<S> {
    fn received(&self, bytes: &[u8]) {
        self.scanner.lock().scan(bytes);
    }

    fn sent(&self) {
        self.note_progress();
    }

    fn lingers(&self) -> bool {
        self.lingers.load(Ordering::Relaxed)
    }
}

/// Whether a body ended with malformed chunks, not with the connection.
fn is_bad_chunk(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}
