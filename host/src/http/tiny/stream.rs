//! Responses that are streams: each has a worker as long as it lasts.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::Engine;
use super::wire::{Shape, head_of, send};
use crate::http::{Reply, SILENCE, Service, Stream};

/// The most streams at a time.
const STREAMS_MAX: usize = 64;
/// A stream that has been writing for longer loses its slot to one that needs it: its client does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

impl<S: Service> Engine<S> {
    /// Sends a stream to its end, and ends the connection of a client that speaks HTTP/1.0: it knows no chunks, so nothing else
    /// says where the body ends. tiny_http keeps the connection of one that has asked for it.
    pub(super) fn stream(
        &self,
        shape: Shape,
        mut out: Box<dyn Write + Send>,
        client: Option<SocketAddr>,
        head: &Reply,
        stream: Box<dyn Stream>,
        in_flight: Sender<Infallible>,
    ) {
        let is_chunked = shape.version > (1, 0);
        let ends_connection = !is_chunked && shape.keeps_alive();
        let shape = if is_chunked { shape } else { shape.closing() };
        self.stream_body(&shape, &mut *out, head, stream, in_flight);
        if ends_connection {
            // In this order: what the client has pipelined is not served.
            drop(client.and_then(|client| self.closing.begin(client)));
            drop(out);
        }
    }

    /// Sends the response. While one writes that does not end by itself, no stop waits for it: a write cannot be ended
    /// here, however long the client takes to read.
    fn stream_body(
        &self,
        shape: &Shape,
        out: &mut dyn Write,
        head: &Reply,
        mut stream: Box<dyn Stream>,
        in_flight: Sender<Infallible>,
    ) {
        // One that ends by itself is the answer to something that has been done: it is not refused.
        let slot = if stream.ends() { Some(Slot(None)) } else { Slot::among(self) };
        let Some(slot) = slot else {
            let fact = format!("Too many streams at once: {STREAMS_MAX} are the most of this engine; try again\n");
            let reply = Reply::new(503, fact.into_bytes())
                .with_header("Content-Type", "text/plain; charset=utf-8")
                .with_header("Retry-After", "1");
            return send(shape, out, &reply);
        };
        let is_chunked = shape.version > (1, 0);
        let framing = is_chunked.then_some(("Transfer-Encoding", &b"chunked"[..]));
        let mut next = Some(head_of(head, shape, framing));
        let parked = Arc::new(Parked(thread::current())).into();
        let mut context = Context::from_waker(&parked);
        let mut in_flight = Some(in_flight);
        while let Some(bytes) = next {
            slot.writes_since(Some(Instant::now()));
            if !stream.ends() {
                in_flight = None;
            }
            if out.write_all(&bytes).and_then(|()| out.flush()).is_err() || shape.is_head {
                return;
            }
            if in_flight.is_none() {
                in_flight.clone_from(&self.in_flight.lock());
            }
            if !slot.writes_since(None) || in_flight.is_none() {
                break;
            }
            next = next_piece(&mut *stream, &mut context).map(|piece| if is_chunked { chunk(&piece) } else { piece });
        }
        if is_chunked {
            let _ = out.write_all(&chunk(b"")).and_then(|()| out.flush());
        }
        drop(in_flight);
    }
}

/// The slot of this thread's stream, if it needs one.
struct Slot<'a, S: Service>(Option<&'a Engine<S>>);

impl<'a, S: Service> Slot<'a, S> {
    /// A slot, unless there are too many that read.
    fn among(engine: &'a Engine<S>) -> Option<Self> {
        let mut streams = engine.streams.lock();
        if streams.len() == STREAMS_MAX {
            let is_stuck = |since: &Option<Instant>| since.is_some_and(|since| since.elapsed() > WRITE_TIMEOUT);
            let stuck = streams.iter().find_map(|(&thread, since)| is_stuck(since).then_some(thread))?;
            streams.remove(&stuck);
        }
        streams.insert(thread::current().id(), None);
        Some(Self(Some(engine)))
    }

    /// Notes since when the stream writes, if it does. Returns whether it still has its slot.
    fn writes_since(&self, since: Option<Instant>) -> bool {
        self.0.is_none_or(|engine| {
            engine.streams.lock().get_mut(&thread::current().id()).map(|slot| *slot = since).is_some()
        })
    }
}

impl<S: Service> Drop for Slot<'_, S> {
    fn drop(&mut self) {
        if let Some(engine) = self.0 {
            engine.streams.lock().remove(&thread::current().id());
        }
    }
}

/// Wakes a thread that is parked.
struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the next piece of a stream, or for the end of its silence.
fn next_piece(stream: &mut dyn Stream, context: &mut Context<'_>) -> Option<Vec<u8>> {
    let until = Instant::now() + SILENCE;
    loop {
        if let Poll::Ready(piece) = stream.poll(context) {
            return piece.map(Vec::from);
        }
        match until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return stream.silent().map(Vec::from),
            left => thread::park_timeout(left),
        }
    }
}

/// tiny_http would keep what it sends in chunks until it has enough.
fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}
