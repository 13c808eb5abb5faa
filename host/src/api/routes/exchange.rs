//! The response of a route, on its way from the plugin to the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::super::deadlines::Timed;
use super::super::problem::{ErrorFormat, Problem};
use crate::http::{Body, Budget, Response, Share, Stream, UNCOUNTED};
use vkog_engine::host_refusal;
use vkog_plugin_host::{Refusal, RouteExchange, RouteHead};

/// The maximum length of a piece of a streamed body, in bytes.
const PIECE: usize = 64 << 10;
/// The number of pieces that wait for the client.
const PIECES_MAX: usize = 2;

/// Delivers the response, once.
pub(super) type Respond = Box<dyn FnOnce(Response) + Send>;

/// The response of one call. The thread of the plugin, the deadline and a reload may use it at the same time.
pub(super) struct Exchange {
    /// The name of the plugin, as the client sent it.
    plugin: String,
    format: ErrorFormat,
    budget: &'static Budget,
    /// The length of the body of the request, in bytes.
    body_len: u64,
    state: Mutex<State>,
    /// The memory of that body, from the response until the plugin returns.
    held: Mutex<Option<Share>>,
}

enum State {
    /// The plugin has not responded.
    Waiting(Respond),
    /// It has responded, and has not returned. The response waits for that, so that a client that receives it can send the
    /// next request although the plugin serves the maximum.
    Responded(Respond, Box<Response>),
    /// It sends a body part by part.
    Streaming {
        pieces: Sender<Bytes>,
        /// Set until the plugin has returned.
        is_broken: Arc<AtomicBool>,
    },
    /// The response was delivered as a whole, or timed out.
    Ended,
}

impl Exchange {
    pub(super) fn new(
        plugin: String,
        format: ErrorFormat,
        body_len: u64,
        budget: &'static Budget,
        respond: Respond,
    ) -> Arc<Self> {
        let (state, held) = (Mutex::new(State::Waiting(respond)), Mutex::default());
        Arc::new(Self { plugin, format, budget, body_len, state, held })
    }

    /// Delivers the response of the plugin, or this one if it has not responded. Returns whether nothing was delivered before.
    fn deliver(&self, otherwise: Response) -> bool {
        let mut state = self.state.lock();
        let (respond, response) = match std::mem::replace(&mut *state, State::Ended) {
            State::Waiting(respond) => (respond, otherwise),
            State::Responded(respond, response) => (respond, *response),
            other => {
                *state = other;
                return false;
            }
        };
        drop(state);
        respond(response);
        true
    }

    /// Delivers the response to a request that no plugin gets.
    pub(super) fn refuse(&self, response: Response) {
        self.deliver(response);
    }

    /// Whether the response is complete, or timed out.
    pub(super) fn has_ended(&self) -> bool {
        matches!(&*self.state.lock(), State::Ended)
    }

    /// Ends the response after the plugin has returned.
    pub(super) fn finish(&self, served: Result<(), Refusal>) {
        if let Err(refusal) = &served
            && !matches!(&*self.state.lock(), State::Waiting(_))
        {
            let (plugin, message) = (&*self.plugin, &refusal.message);
            tracing::warn!(plugin, "plugin \"{plugin}\" failed after it had responded: {message}");
        }
        if let (Ok(()), State::Streaming { is_broken, .. }) = (&served, &*self.state.lock()) {
            is_broken.store(false, Ordering::Release);
        }
        let refused =
            served.map_or_else(|refusal| Problem::of(refusal).reply(self.format), |()| Response::internal_error());
        if !self.deliver(refused) {
            *self.state.lock() = State::Ended;
        }
    }

    /// Counts the body of the request, which the plugin still has. The HTTP engine does so until the response only.
    fn hold_body(&self) {
        if self.body_len > UNCOUNTED as u64 {
            let mut share = self.budget.share();
            share.overdraw_to(self.body_len);
            *self.held.lock() = Some(share);
        }
    }

    /// Delivers a response whose body is sent part by part.
    fn start(&self, head: RouteHead, part: &[u8]) -> bool {
        let (pieces, receiver) = channel(PIECES_MAX);
        let is_broken = Arc::new(AtomicBool::new(true));
        let stream = Pieces { pieces: receiver, is_broken: Arc::clone(&is_broken) };
        let response = response(head, Body::Stream(Box::new(stream)));
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Streaming { pieces, is_broken }) {
            State::Waiting(respond) => {
                drop(state);
                self.hold_body();
                respond(response);
                self.send(part)
            }
            other => {
                *state = other;
                false
            }
        }
    }
}

/// Makes a response with a whole body, or a 503 if that exceeds the memory budget.
pub(super) fn whole(head: RouteHead, body: &[u8], budget: &'static Budget, format: ErrorFormat) -> Response {
    match counted(body, budget) {
        Some(body) => response(head, Body::Whole(body)),
        None => Problem::busy("Not enough memory for the response; try again later").reply(format),
    }
}

impl Timed for Exchange {
    /// Delivers the response of a plugin that has not returned in time, or a 504.
    fn time_out(&self) {
        let message = format!("plugin \"{}\" did not respond in time (route-timeout)", self.plugin);
        let refusal = Refusal { plugin: self.plugin.clone(), ..host_refusal(504, message) };
        if self.deliver(Problem::of(refusal).reply(self.format)) {
            self.hold_body();
        }
    }
}

/// Returns a body within the memory budget.
fn counted(body: &[u8], budget: &'static Budget) -> Option<Bytes> {
    if body.len() <= UNCOUNTED {
        return Some(Bytes::copy_from_slice(body));
    }
    let mut share = budget.share();
    share.grow_to(body.len() as u64).ok()?;
    Some(share.body(body.to_vec()))
}

impl RouteExchange for Exchange {
    fn respond(&self, head: RouteHead, body: &[u8], more: bool) -> bool {
        if !matches!(&*self.state.lock(), State::Waiting(_)) {
            return false;
        }
        if more {
            return self.start(head, body);
        }
        let response = whole(head, body, self.budget, self.format);
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Ended) {
            State::Waiting(respond) => {
                *state = State::Responded(respond, Box::new(response));
                true
            }
            other => {
                *state = other;
                false
            }
        }
    }

    fn send(&self, part: &[u8]) -> bool {
        let pieces = match &*self.state.lock() {
            State::Streaming { pieces, .. } => pieces.clone(),
            _ => return false,
        };
        let send = |piece| pieces.blocking_send(Bytes::copy_from_slice(piece)).is_ok();
        part.chunks(PIECE).all(send) && !pieces.is_closed()
    }
}

/// Makes the response of a plugin. It is a document without an origin, unless the plugin sends another policy.
fn response(RouteHead { status, headers }: RouteHead, body: Body) -> Response {
    let has_none = matches!(status, 204 | 205 | 304);
    let sends = |name: &str| headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
    let mut response = Response::new(status, Bytes::new());
    if !sends("x-content-type-options") {
        response = response.with_header("X-Content-Type-Options", "nosniff");
    }
    if !sends("content-security-policy") {
        response = response.with_header("Content-Security-Policy", "sandbox");
    }
    response.extend(headers);
    if !has_none {
        response.body = body;
    }
    response
}

/// The body of a response that the plugin sends part by part.
struct Pieces {
    pieces: Receiver<Bytes>,
    is_broken: Arc<AtomicBool>,
}

impl Stream for Pieces {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.pieces.poll_recv(context)
    }

    /// Sends nothing: only the plugin knows what its clients accept.
    fn heartbeat(&mut self) -> Option<Bytes> {
        Some(Bytes::new())
    }

    fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    fn is_finite(&self) -> bool {
        true
    }
}
