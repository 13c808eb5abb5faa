//! `/watch`: what is kept, as it is kept, as server-sent events.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;

use super::access::{Access, Scope};
use super::problem::{Manner, Problem};
use super::query::parameters;
use crate::config::Right;
use crate::http::{Body, RequestHead, Response, Stream};
use vkog_engine::{Engine, RequestContext, WatchEnd, Watcher};
use vkog_plugin_host::Refusal;
use vkog_store::{Event, Unwatchable};

/// After how many milliseconds a client comes again whose connection was lost.
const RETRY: u32 = 1000;
/// A longer value is not sent: who wants it reads the key. In bytes.
const VALUE_MAX: usize = 64 << 10;
/// The bytes after which a piece ends.
const PIECE: usize = 4 << 10;

/// So many bytes of encoded events are kept, for other watchers of the same.
const ENCODED_MAX: usize = 4 << 20;

/// The last events that were encoded, each once however many watchers it is sent to.
#[derive(Default)]
pub(super) struct Encoded(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// By revision, and whether the value is in it.
    events: HashMap<(u64, bool), Bytes>,
    /// In the order in which they were encoded.
    order: VecDeque<(u64, bool)>,
    bytes: usize,
}

impl Encoded {
    /// An event as a watcher gets it.
    fn event(&self, event: &Event, values: bool) -> Bytes {
        let key = (event.revision(), values);
        if let Some(bytes) = self.0.lock().events.get(&key) {
            return bytes.clone();
        }
        let mut encoded = Vec::new();
        put_event(&mut encoded, event, values);
        let encoded = Bytes::from(encoded);
        let mut kept = self.0.lock();
        if kept.events.insert(key, encoded.clone()).is_none() {
            kept.order.push_back(key);
            kept.bytes += encoded.len();
        }
        while kept.bytes > ENCODED_MAX {
            let oldest = kept.order.pop_front().and_then(|key| kept.events.remove(&key));
            kept.bytes -= oldest.map_or(0, |bytes| bytes.len());
        }
        encoded
    }
}

/// What somebody wants to watch.
pub(super) struct Question {
    prefix: String,
    since: Option<u64>,
    values: bool,
}

impl Question {
    /// How all keys begin that the answer may speak of.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }
}

/// What a query asks for. A client that comes again sends the query of the first time, so that the event that it saw last
/// goes before `since`.
pub(super) fn question(query: &str, head: &RequestHead) -> Result<Question, Problem> {
    let [prefix, since, values] = parameters(query, ["prefix", "since", "values"])?;
    if values.as_ref().is_some_and(|values| !values.is_empty()) {
        return Err(Problem::new(400, "values has no value; write &values"));
    }
    let last = head.headers.get("last-event-id").filter(|id| !id.is_empty());
    let last = last.map(|id| ("Last-Event-ID", String::from_utf8_lossy(id).into_owned()));
    let since = match last.or(since.map(|since| ("since", since))) {
        None => None,
        Some((name, text)) => match text.parse() {
            Ok(revision) if text.bytes().all(|byte| byte.is_ascii_digit()) => Some(revision),
            _ => return Err(Problem::new(400, format!("{name} is \"{text}\"; give a revision"))),
        },
    };
    Ok(Question { prefix: prefix.unwrap_or_default(), since, values: values.is_some() })
}

/// The answer. Waits for nobody.
pub(super) fn answer(
    engine: &Arc<Engine>,
    access: &Arc<Access>,
    encoded: &Arc<Encoded>,
    question: Question,
    query: String,
    head: Arc<RequestHead>,
) -> Response {
    let manner = Manner::of(&head);
    let Question { prefix, since, values } = question;
    let viewer = RequestContext { origin: Arc::clone(&head) as _, query };
    let watcher = match engine.watch(prefix.clone(), since, viewer) {
        Ok(watcher) => watcher,
        Err(unwatchable) => return gone(unwatchable).reply(manner),
    };
    let begin = format!("retry: {RETRY}\nid: {}\n\n", watcher.revision());
    let (access, encoded, piece) = (Arc::clone(access), Arc::clone(encoded), Piece::Many(begin.into_bytes()));
    let mut events = Events { watcher, values, prefix, access, encoded, head, piece, next: None, ended: false };
    // A client that comes again to what ended its stream learns it from the status, and so does not come for ever.
    match events.watcher.poll(&Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(WatchEnd::Refused(refusal))) => return Problem::of(refusal).reply(manner),
        Poll::Ready(first) => events.next = Some(first),
        Poll::Pending => {}
    }
    let mut reply = Response::new(200, &b""[..])
        .with_header("Content-Type", "text/event-stream")
        .with_header("Cache-Control", "no-store")
        .inert();
    reply.body = Body::Stream(Box::new(events));
    reply
}

/// The events of a watcher.
struct Events {
    watcher: Watcher,
    values: bool,
    prefix: String,
    access: Arc<Access>,
    encoded: Arc<Encoded>,
    head: Arc<RequestHead>,
    /// What is to be sent.
    piece: Piece,
    /// What the watcher said already.
    next: Option<Result<Event, WatchEnd>>,
    ended: bool,
}

/// What is sent at once.
enum Piece {
    /// One event, which others get too; or nothing.
    One(Bytes),
    Many(Vec<u8>),
}

impl Piece {
    const EMPTY: Self = Self::One(Bytes::new());

    fn len(&self) -> usize {
        match self {
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn push(&mut self, event: Bytes) {
        if self.len() == 0 {
            *self = Self::One(event);
        } else {
            self.many().extend_from_slice(&event);
        }
    }

    /// To be added to.
    fn many(&mut self) -> &mut Vec<u8> {
        if let Self::One(bytes) = self {
            *self = Self::Many(bytes.to_vec());
        }
        match self {
            Self::Many(bytes) => bytes,
            Self::One(_) => unreachable!("it was just made another"),
        }
    }

    fn take(&mut self) -> Bytes {
        match std::mem::replace(self, Self::EMPTY) {
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.into(),
        }
    }
}

impl Stream for Events {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while !self.ended && self.piece.len() < PIECE {
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.watcher.poll(context) {
                    Poll::Ready(next) => next,
                    Poll::Pending if self.piece.len() == 0 => return Poll::Pending,
                    Poll::Pending => break,
                },
            };
            match next {
                Ok(event) => self.piece.push(self.encoded.event(&event, self.values)),
                Err(ended) => self.end(ended),
            }
        }
        self.check();
        let piece = self.piece.take();
        Poll::Ready((!piece.is_empty()).then_some(piece))
    }

    /// How far the watcher is, so that it does not come again from where it was told of something last.
    fn heartbeat(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        self.piece = Piece::Many(format!("id: {}\n\n", self.watcher.revision()).into_bytes());
        self.check();
        Some(self.piece.take())
    }
}

impl Events {
    /// Nothing is sent to whom it may not be told any more.
    fn check(&mut self) {
        let scope = Scope::Prefix(&self.prefix);
        if !self.ended
            && let Err(reply) = self.access.check(&self.head, Right::Read, scope)
        {
            self.piece = Piece::EMPTY;
            self.end(WatchEnd::Refused(Refusal {
                plugin: String::new(),
                status: reply.status,
                message: "The token is not for this any more".to_owned(),
                headers: Vec::new(),
            }));
        }
    }

    fn end(&mut self, ended: WatchEnd) {
        self.ended = true;
        let problem = match ended {
            WatchEnd::Stopped => return,
            WatchEnd::Unwatchable(unwatchable) => gone(unwatchable),
            WatchEnd::Refused(refusal) => Problem::of(refusal),
        };
        put(self.piece.many(), None, "end", &problem);
    }
}

/// Why a watcher cannot go on from where it wants to.
fn gone(unwatchable: Unwatchable) -> Problem {
    Problem::new(
        410,
        match unwatchable {
            Unwatchable::Forgotten(begins) => format!(
                "Too far back: what came up to revision {begins} is not told any more; watch from now on, and read the keys again"
            ),
            Unwatchable::Ahead(last) => format!(
                "Too far ahead: {last} is the last revision; it was another store that gave more: watch from now on, and read the keys again"
            ),
        },
    )
}

#[derive(Serialize)]
struct Data<'a> {
    key: &'a str,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

fn put_event(into: &mut Vec<u8>, event: &Event, values: bool) {
    let (entry, revision) = (event.entry(), event.revision());
    let mut data = Data { key: entry.key(), revision, size: None, content_type: None, value: None, value_base64: None };
    if event.is_removal() {
        return put(into, Some(revision), "delete", &data);
    }
    let value = entry.value();
    (data.size, data.content_type) = (Some(value.len()), Some(entry.content_type()));
    if values && value.len() <= VALUE_MAX {
        match str::from_utf8(value) {
            Ok(text) => data.value = Some(text),
            Err(_) => data.value_base64 = Some(STANDARD.encode(value)),
        }
    }
    put(into, Some(revision), "put", &data);
}

/// An event. JSON in one line has no line end in it, whatever a key has.
fn put(into: &mut Vec<u8>, id: Option<u64>, event: &str, data: &impl Serialize) {
    if let Some(id) = id {
        into.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    into.extend_from_slice(format!("event: {event}\ndata: ").as_bytes());
    // Writing to memory does not fail, nor do these types.
    let _ = serde_json::to_writer(&mut *into, data);
    into.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_are_sent_together_are_those_that_are_sent_alone_one_after_the_other() {
        let (one, two) = (Bytes::from_static(b"one\n\n"), Bytes::from_static(b"two\n\n"));
        let mut piece = Piece::EMPTY;
        piece.push(one.clone());
        // Not a copy: what many watchers are sent is there once.
        assert_eq!(piece.take().as_ptr(), one.as_ptr());
        assert_eq!(piece.len(), 0);
        piece.push(one);
        piece.push(two);
        assert_eq!(piece.take(), "one\n\ntwo\n\n");
    }
}
