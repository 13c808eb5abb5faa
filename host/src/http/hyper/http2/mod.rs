//! A connection of HTTP/2 (RFC 9113), framed by the crate h2: its limits, its timeouts and its shutdown.
//!
//! Each request runs in its own task on the event loop of its connection: see [`exchange`]. h2 is used without hyper,
//! which can neither send `100 Continue` over HTTP/2 nor cancel one request whose client stalls.

mod exchange;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use bytes::{Buf, Bytes};
use h2::Reason;
use h2::server::{self, Builder};
use hyper::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::body::Chunk;
use super::convert::{Peer, fields_len};
use super::event_loops::CountGuard;
use super::futures::WakeFiltered;
use super::idle::{self, IdleTrackingStream, LINGER, Observer};
use super::{HEAD_MAX, Shared, stopped};
use crate::http::{Exhausted, Service, Share, UNCOUNTED};

/// Maximum number of concurrent requests of a connection.
const STREAMS_MAX: usize = 100;
/// The number of bytes that a client may send before the server has read them, for a request and for a connection.
const WINDOW: u32 = 1 << 20;

/// The state of a connection, shared by its requests.
pub(super) struct Connection<S: Service> {
    shared: Arc<Shared<S>>,
    peer: Peer,
    /// Grows with every request head, and with every piece of a body that is received or sent. Pings do not count.
    progress: AtomicU32,
    /// The number of requests that wait for the server.
    awaiting: Arc<AtomicUsize>,
    /// The number of requests that are not finished. One whose client has cancelled it is finished when the service is.
    running: Arc<AtomicUsize>,
}

/// A part of a response body that h2 has not sent yet. Notes the progress of the client that reads it.
pub(super) struct Piece<S: Service> {
    chunk: Chunk,
    connection: Arc<Connection<S>>,
}

/// Serves a connection until it ends. These bytes of it have already been read.
pub(super) async fn serve<I, S>(shared: Arc<Shared<S>>, stream: I, read: Bytes, peer: Peer)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service,
{
    let connection = Arc::new(Connection::new(shared, peer));
    let observer = Arc::clone(&connection);
    let stream = match read.is_empty() {
        true => IdleTrackingStream::new(stream, observer),
        false => IdleTrackingStream::resume(stream, observer, read),
    };
    if let Err(error) = connection.run(stream).await {
        tracing::debug!("a connection of HTTP/2 ended: {error}");
    }
}

/// The limits of h2. Its own suffice for resets, small frames and heads in many frames.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX as u32)
        .max_header_list_size(HEAD_MAX as u32)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    builder
}

impl<S: Service> Connection<S> {
    fn new(shared: Arc<Shared<S>>, peer: Peer) -> Self {
        let (progress, awaiting, running) = (AtomicU32::new(0), Arc::default(), Arc::default());
        Self { shared, peer, progress, awaiting, running }
    }

    /// Notes that the client has made progress.
    fn note_progress(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that the service does not get. h2 itself rejects longer heads than its limit, and reports none of them.
    fn count_rejected(&self) {
        self.shared.connections.rejected_requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Serves until the client leaves, the client times out or the server stops. In the last two cases, the requests that the
    /// client has sent by then are still served.
    async fn run<I: AsyncRead + AsyncWrite + Unpin>(self: &Arc<Self>, stream: I) -> Result<(), h2::Error> {
        let (connection, mut stopping) = (Arc::clone(self), self.shared.stopping.clone());
        let mut interrupted = WakeFiltered::new(async move {
            let awaits_server = || connection.awaiting.load(Ordering::Relaxed) > 0;
            tokio::select! {
                () = idle::timed_out(&connection.progress, awaits_server) => {}
                () = stopped(&mut stopping) => {}
            }
        });
        let mut h2 = tokio::select! {
            biased;
            h2 = builder().handshake(stream) => h2?,
            () = &mut interrupted => return Ok(()),
        };
        // Not the limit that h2 has: a request that its client has cancelled is not finished.
        let slots = Arc::new(Semaphore::new(STREAMS_MAX));
        tokio::select! {
            biased;
            result = self.accept(&mut h2, &slots) => return result,
            () = &mut interrupted => h2.graceful_shutdown(),
        }
        tokio::select! {
            biased;
            result = self.accept(&mut h2, &slots) => result,
            () = self.drained() => Ok(()),
        }
    }

    /// Accepts requests until the connection ends.
    async fn accept<I: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        h2: &mut server::Connection<I, Piece<S>>,
        slots: &Arc<Semaphore>,
    ) -> Result<(), h2::Error> {
        loop {
            let slot = tokio::select! {
                biased;
                slot = Arc::clone(slots).acquire_owned() => slot,
                result = poll_fn(|context| h2.poll_closed(context)) => return result,
            };
            let Some(accepted) = h2.accept().await else { return Ok(()) };
            let (request, mut respond) = accepted?;
            self.note_progress();
            let share = Arc::clone(&self.shared.streams).try_acquire_owned();
            let (Ok(share), Ok(memory)) = (share, self.memory_for(request.headers())) else {
                self.count_rejected();
                respond.send_reset(Reason::REFUSED_STREAM);
                continue;
            };
            let running = CountGuard::new(&self.running);
            let serving = exchange::serve(Arc::clone(self), request, respond);
            tokio::spawn(async move {
                serving.await;
                drop((slot, share, memory, running));
            });
        }
    }

    /// Takes the memory of a long head from that of all heads. A client that has sent a field once refers to it later with one
    /// byte, so it needs little to make the server hold long heads.
    fn memory_for(&self, headers: &HeaderMap) -> Result<Share, Exhausted> {
        let length = fields_len(headers);
        let mut share = self.shared.heads.share();
        if length > UNCOUNTED {
            share.grow_to(length as u64)?;
        }
        Ok(share)
    }

    /// Waits until no request is served and the client has read nothing for a while.
    async fn drained(&self) {
        loop {
            let seen = self.progress.load(Ordering::Relaxed);
            sleep(LINGER).await;
            if self.running.load(Ordering::Relaxed) == 0 && self.progress.load(Ordering::Relaxed) == seen {
                return;
            }
        }
    }
}

impl<S: Service> Observer for Connection<S> {
    fn received(&self, _: &[u8]) {}

    // What keeps a connection open are requests and their bodies, not pings.
    fn sent(&self) {}

    // Neither GOAWAY nor a response needs it: requests have ended by then, except those of a client that breaks the rules.
    fn lingers(&self) -> bool {
        false
    }
}

impl<S: Service> Buf for Piece<S> {
    fn remaining(&self) -> usize {
        self.chunk.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.chunk.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.connection.note_progress();
        self.chunk.advance(count);
    }
}
