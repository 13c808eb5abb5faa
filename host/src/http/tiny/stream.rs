//! Responses that are streams. Each occupies a worker as long as it lasts.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::Shared;
use super::wire::{Shape, head_of, send};
use crate::http::{HEARTBEAT_INTERVAL, Response, Service, Stream};

/// Maximum number of endless streams at a time.
const STREAMS_MAX: usize = 64;
/// A stream that has been writing for longer loses its slot to a new stream: its client does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

impl<S: Service> Shared<S> {
    /// Sends a stream to its end. Then it ends the connection of an HTTP/1.0 client, because HTTP/1.0 has no chunks: nothing
    /// else ends the body. tiny_http would keep the connection of a client that has requested it.
    pub(super) fn stream(
        &self,
        shape: Shape,
        mut out: Box<dyn Write + Send>,
        client: Option<SocketAddr>,
        head: &Response,
        stream: Box<dyn Stream>,
        in_flight: Sender<Infallible>,
    ) {
        let is_chunked = shape.version > (1, 0);
        let keeps_alive = shape.keeps_alive();
        let shape = if is_chunked { shape } else { shape.closing() };
        let is_complete = self.stream_body(&shape, &mut *out, head, stream, in_flight);
        if !is_complete || !is_chunked && keeps_alive {
            // In this order, so that pipelined requests are not served.
            drop(client.and_then(|client| self.closing.begin(client)));
            drop(out);
        }
    }

    /// Sends the response. Returns whether it is complete, or the client has gone; it is not if the stream is broken. A stop does not wait for an endless stream that is writing: a write cannot be interrupted here,
    /// however long the client takes to read.
    fn stream_body(
        &self,
        shape: &Shape,
        out: &mut dyn Write,
        head: &Response,
        mut stream: Box<dyn Stream>,
        in_flight: Sender<Infallible>,
    ) -> bool {
        // A finite stream is the response to an operation that has succeeded: it is never refused.
        let slot = if stream.is_finite() { Some(StreamSlot(None)) } else { StreamSlot::acquire(self) };
        let Some(slot) = slot else {
            let fact = format!("Too many streams at once: {STREAMS_MAX} are the most of this engine; try again\n");
            let response = Response::new(503, fact.into_bytes())
                .with_header("Content-Type", "text/plain; charset=utf-8")
                .with_header("Retry-After", "1");
            send(shape, out, &response);
            return true;
        };
        let is_chunked = shape.version > (1, 0);
        let framing = is_chunked.then_some(("Transfer-Encoding", &b"chunked"[..]));
        let mut next = Some(head_of(head, shape, framing));
        let parked = Arc::new(Unpark(thread::current())).into();
        let mut context = Context::from_waker(&parked);
        let mut in_flight = Some(in_flight);
        while let Some(bytes) = next {
            slot.set_writing_since(Some(Instant::now()));
            if !stream.is_finite() {
                in_flight = None;
            }
            if out.write_all(&bytes).and_then(|()| out.flush()).is_err() || shape.is_head {
                return true;
            }
            if in_flight.is_none() {
                in_flight.clone_from(&self.in_flight.lock());
            }
            if !slot.set_writing_since(None) || in_flight.is_none() {
                break;
            }
            next = next_chunk(&mut *stream, &mut context)
                .map(|bytes| if is_chunked { encode_chunk(&bytes) } else { bytes });
        }
        if stream.is_broken() {
            return false;
        }
        if is_chunked {
            let _ = out.write_all(&encode_chunk(b"")).and_then(|()| out.flush());
        }
        drop(in_flight);
        true
    }
}

/// The slot of this thread's stream; `None` for a finite stream, which needs none.
struct StreamSlot<'a, S: Service>(Option<&'a Shared<S>>);

impl<'a, S: Service> StreamSlot<'a, S> {
    /// Acquires a slot, unless all belong to streams whose clients read.
    fn acquire(shared: &'a Shared<S>) -> Option<Self> {
        let mut streams = shared.streams.lock();
        if streams.len() == STREAMS_MAX {
            let is_stuck = |since: &Option<Instant>| since.is_some_and(|since| since.elapsed() > WRITE_TIMEOUT);
            let stuck = streams.iter().find_map(|(&thread, since)| is_stuck(since).then_some(thread))?;
            streams.remove(&stuck);
        }
        streams.insert(thread::current().id(), None);
        Some(Self(Some(shared)))
    }

    /// Sets since when the stream has been writing, if it is. Returns whether it still has its slot.
    fn set_writing_since(&self, since: Option<Instant>) -> bool {
        self.0.is_none_or(|shared| {
            shared.streams.lock().get_mut(&thread::current().id()).map(|slot| *slot = since).is_some()
        })
    }
}

impl<S: Service> Drop for StreamSlot<'_, S> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.streams.lock().remove(&thread::current().id());
        }
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the next chunk of a stream, or for its heartbeat.
fn next_chunk(stream: &mut dyn Stream, context: &mut Context<'_>) -> Option<Vec<u8>> {
    let mut until = Instant::now() + HEARTBEAT_INTERVAL;
    loop {
        if let Poll::Ready(chunk) = stream.poll(context) {
            return chunk.map(Vec::from);
        }
        match until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => match stream.heartbeat() {
                Some(bytes) if bytes.is_empty() => until = Instant::now() + HEARTBEAT_INTERVAL,
                bytes => return bytes.map(Vec::from),
            },
            left => thread::park_timeout(left),
        }
    }
}

/// Encodes a chunk. tiny_http's own encoder would buffer it until it has more.
fn encode_chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}
