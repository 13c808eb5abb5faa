//! `/watch`: durable changes as server-sent events.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;

use super::auth::{Authorizer, Credential, Scope};
use super::prefix;
use super::problem::{ErrorFormat, Problem};
use super::query::parameters;
use crate::any_store::{AnyStore, Engine};
use crate::config::Permission;
use crate::http::{Body, RequestHead, Response, Stream};
use vkog_engine::{Reads, RequestContext, WatchEnd, Watcher, content_coding};
use vkog_plugin_host::Refusal;
use vkog_store::{Event, Unwatchable};

/// The reconnection delay of clients, in milliseconds.
const RETRY: u32 = 1000;
/// The maximum length of a value in an event, in bytes. Clients read longer ones by their keys.
const VALUE_MAX: usize = 64 << 10;
/// The length after which a piece ends, in bytes.
const PIECE: usize = 4 << 10;

/// The parameter with the same meaning as `Last-Event-ID`.
const LAST_EVENT_ID: &str = "lastEventId";
/// The parameter with a ticket, which plugins do not see.
pub(super) const TICKET: &str = "ticket";

/// The size of the cache of encoded events, in bytes.
const ENCODED_MAX: usize = 4 << 20;

/// A cache of the last encoded events, so that each is encoded once for all watchers.
#[derive(Default)]
pub(super) struct Encoded(Mutex<Cache>);

/// The position of an event among all, and its form.
type EventKey = ((u64, u32), EventForm);

/// How an event is encoded.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
struct EventForm {
    /// It has the value.
    values: bool,
    /// The length of the prefix that its key lacks, in bytes.
    hidden: usize,
    /// It has an id: the client has got all events up to its revision.
    id: bool,
}

#[derive(Default)]
struct Cache {
    events: HashMap<EventKey, Bytes>,
    /// In the order in which they were encoded.
    order: VecDeque<EventKey>,
    bytes: usize,
}

impl Encoded {
    /// Returns an encoded event.
    fn event(&self, event: &Event, form: EventForm) -> Bytes {
        let key = (event.position(), form);
        if let Some(bytes) = self.0.lock().events.get(&key) {
            return bytes.clone();
        }
        let mut encoded = Vec::new();
        put_event(&mut encoded, event, form);
        let encoded = Bytes::from(encoded);
        let mut cache = self.0.lock();
        if cache.events.insert(key, encoded.clone()).is_none() {
            cache.order.push_back(key);
            cache.bytes += encoded.len();
        }
        while cache.bytes > ENCODED_MAX {
            let oldest = cache.order.pop_front().and_then(|key| cache.events.remove(&key));
            cache.bytes -= oldest.map_or(0, |bytes| bytes.len());
        }
        encoded
    }
}

/// The parsed query of a watcher.
pub(super) struct Subscription {
    prefix: String,
    since: Option<u64>,
    values: bool,
    /// The ticket that stands for a token.
    pub(super) ticket: Option<String>,
}

impl Subscription {
    /// Returns the revision after which it begins, if it names one.
    pub(super) fn since(&self) -> Option<u64> {
        self.since
    }

    /// Returns the prefix of all keys in the events.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }
}

/// Parses the query, and puts the key prefix of its request before the prefix. `Last-Event-ID` takes precedence over `lastEventId`, which clients send that cannot set header fields, and
/// both over `since`, because a client that reconnects repeats its first query.
///
/// # Errors
///
/// A parameter is repeated or has a wrong value.
pub(super) fn parse_query(query: &str, head: &RequestHead) -> Result<Subscription, Problem> {
    let [prefix, since, last_id, values, ticket] =
        parameters(query, ["prefix", "since", LAST_EVENT_ID, "values", TICKET])?;
    if values.as_ref().is_some_and(|values| !values.is_empty()) {
        return Err(Problem::new(400, "values takes no value; write &values"));
    }
    let header = head.headers.get("last-event-id").filter(|id| !id.is_empty());
    let header = header.map(|id| revision("Last-Event-ID", String::from_utf8_lossy(id).into_owned())).transpose()?;
    let last_id = last_id.filter(|id| !id.is_empty()).map(|id| revision(LAST_EVENT_ID, id)).transpose()?;
    let since = since.map(|since| revision("since", since)).transpose()?;
    let since = header.or(last_id).or(since);
    let prefix = prefix::whole(head, prefix.unwrap_or_default());
    Ok(Subscription { prefix, since, values: values.is_some(), ticket })
}

/// Parses the revision of a parameter.
pub(super) fn revision(name: &str, text: String) -> Result<u64, Problem> {
    match text.parse() {
        Ok(revision) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(revision),
        _ => Err(Problem::new(400, format!("{name} is \"{text}\"; use a revision"))),
    }
}

/// Starts the stream of events. Does not block.
pub(super) fn stream(
    engine: &Arc<Engine>,
    auth: &Arc<Authorizer>,
    encoded: &Arc<Encoded>,
    subscription: Subscription,
    credential: Credential,
    query: String,
    head: Arc<RequestHead>,
) -> Response {
    let format = ErrorFormat::of(&head);
    let Subscription { prefix, since, values, ticket: _ } = subscription;
    let client = RequestContext { origin: Arc::clone(&head) as _, query, reads: Reads::Local };
    let watcher = match engine.watch(prefix.clone(), since, client) {
        Ok(watcher) => watcher,
        Err(unwatchable) => return gone(unwatchable, LIST_AGAIN).reply(format),
    };
    let begin = format!("retry: {RETRY}\nid: {}\n\n", watcher.revision());
    let (auth, encoded, piece) = (Arc::clone(auth), Arc::clone(encoded), Piece::Many(begin.into_bytes()));
    let mut events =
        Events { watcher, values, prefix, auth, credential, encoded, head, piece, next: None, ended: false };
    // A client that reconnects to a stream that has ended gets a status, so that it stops reconnecting.
    match events.watcher.poll(&Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(WatchEnd::Refused(refusal))) => {
            return Problem::of(prefix::seen_refusal(&events.head, refusal)).reply(format);
        }
        Poll::Ready(first) => events.next = Some(first),
        Poll::Pending => {}
    }
    let mut reply = Response::new(200, &b""[..])
        .with_header("Content-Type", "text/event-stream")
        // A proxy that compresses or collects the stream would hold events back.
        .with_cache_control("no-store, no-transform")
        .with_header("X-Accel-Buffering", "no")
        .inert();
    reply.body = Body::Stream(Box::new(events));
    reply
}

/// The events of a watcher.
struct Events {
    watcher: Watcher<AnyStore>,
    values: bool,
    prefix: String,
    auth: Arc<Authorizer>,
    credential: Credential,
    encoded: Arc<Encoded>,
    head: Arc<RequestHead>,
    /// The next piece to be sent.
    piece: Piece,
    /// Changes of the watcher that are not in the stream yet.
    next: Option<Result<Event, WatchEnd>>,
    ended: bool,
}

/// Bytes that are sent together.
enum Piece {
    /// One event, shared with other watchers; or nothing.
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

    /// Turns the chunk into a private buffer that can be appended to.
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
                Ok(event) => {
                    // A client that resumes at an id has got all changes of that revision.
                    let id = self.watcher.revision() >= event.revision();
                    let form = EventForm { values: self.values, hidden: self.head.key_prefix().len(), id };
                    self.piece.push(self.encoded.event(&event, form));
                }
                Err(ended) => self.end(ended),
            }
        }
        self.check();
        let piece = self.piece.take();
        Poll::Ready((!piece.is_empty()).then_some(piece))
    }

    /// Sends the position of the watcher, so that its client reconnects there and not at the last event.
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
    /// Ends the stream if its client no longer has the permission.
    fn check(&mut self) {
        let scope = Scope::Prefix(&self.prefix);
        if !self.ended
            && let Err(reply) = self.auth.rules().check_as(&self.head, &self.credential, Permission::Read, scope)
        {
            self.piece = Piece::EMPTY;
            self.end(WatchEnd::Refused(Refusal {
                plugin: String::new(),
                status: reply.status,
                message: "The token no longer has this right".to_owned(),
                headers: Vec::new(),
            }));
        }
    }

    fn end(&mut self, ended: WatchEnd) {
        self.ended = true;
        let problem = match ended {
            WatchEnd::Stopped => return,
            WatchEnd::Unwatchable(unwatchable) => gone(unwatchable, LIST_AGAIN),
            WatchEnd::Refused(refusal) => Problem::of(prefix::seen_refusal(&self.head, refusal)),
        };
        put(self.piece.many(), None, "end", problem.document());
    }
}

/// The way out of a watcher that cannot resume.
const LIST_AGAIN: &str = "watch without since, then list the keys";

/// Returns the response to a request for the changes after a revision which the history does not have.
pub(super) fn gone(unwatchable: Unwatchable, way_out: &str) -> Problem {
    let fact = match unwatchable {
        Unwatchable::Forgotten(begins) => {
            format!("Too far back: changes up to revision {begins} are no longer in the history")
        }
        Unwatchable::Ahead(last) => format!("Too far ahead: {last} is the last revision"),
        Unwatchable::Unassigned(first) => {
            format!("Unknown revision: this server's revisions start after {first}")
        }
    };
    Problem::new(410, format!("{fact}; {way_out}"))
}

#[derive(Default, Serialize)]
struct Data<'a> {
    key: &'a str,
    revision: u64,
    /// Why an entry was removed, if no client removed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

fn put_event(into: &mut Vec<u8>, event: &Event, form: EventForm) {
    let (entry, revision) = (event.entry(), event.revision());
    let id = form.id.then_some(revision);
    let key = entry.key().get(form.hidden..).unwrap_or_default();
    let mut data = Data { key, revision, ..Data::default() };
    if event.is_removal() {
        data.reason = event.is_expiry().then_some("expired");
        return put(into, id, "delete", &data);
    }
    let value = entry.value();
    (data.size, data.content_type) = (Some(value.len()), Some(entry.content_type()));
    data.content_encoding = content_coding(entry);
    if form.values && value.len() <= VALUE_MAX {
        match str::from_utf8(value) {
            Ok(text) => data.value = Some(text),
            Err(_) => data.value_base64 = Some(STANDARD.encode(value)),
        }
    }
    put(into, id, "put", &data);
}

/// Writes an event. Compact JSON escapes line ends, so that every key fits into one line.
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
    fn events_in_one_piece_are_the_concatenated_events() {
        let (one, two) = (Bytes::from_static(b"one\n\n"), Bytes::from_static(b"two\n\n"));
        let mut piece = Piece::EMPTY;
        piece.push(one.clone());
        // Not a copy: all watchers share it.
        assert_eq!(piece.take().as_ptr(), one.as_ptr());
        assert_eq!(piece.len(), 0);
        piece.push(one);
        piece.push(two);
        assert_eq!(piece.take(), "one\n\ntwo\n\n");
    }
}
