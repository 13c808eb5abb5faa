//! `/watch`: what is kept, as it is kept, as server-sent events.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::access::{Access, Scope};
use super::problem::{Manner, Problem};
use super::query::parameters;
use crate::config::Right;
use crate::http::{Body, Head, Reply, Stream};
use crate::ops::{Ended, Ops, Viewer, Watcher};
use crate::plugins::Refusal;
use crate::store::{Event, Unwatchable};

/// After how many milliseconds a client comes again whose connection was lost.
const RETRY: u32 = 1000;
/// A longer value is not sent: who wants it reads the key. In bytes.
const VALUE_MAX: usize = 64 << 10;
/// The bytes after which a piece ends.
const PIECE: usize = 4 << 10;

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
pub(super) fn question(query: &str, head: &Head) -> Result<Question, Problem> {
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
    ops: &Arc<Ops>,
    access: &Arc<Access>,
    question: Question,
    query: String,
    head: Arc<Head>,
) -> Reply {
    let manner = Manner::of(&head);
    let Question { prefix, since, values } = question;
    let viewer = Viewer { origin: Arc::clone(&head) as _, query };
    let watcher = match ops.watch(prefix.clone(), since, viewer) {
        Ok(watcher) => watcher,
        Err(unwatchable) => return gone(unwatchable).reply(manner),
    };
    let begin = format!("retry: {RETRY}\nid: {}\n\n", watcher.revision());
    let (access, next) = (Arc::clone(access), None);
    let mut events = Events { watcher, values, prefix, access, head, piece: begin.into_bytes(), next, ended: false };
    // A client that comes again to what ended its stream learns it from the status, and so does not come for ever.
    match events.watcher.poll(&Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(Ended::Refused(refusal))) => return Problem::of(refusal).reply(manner),
        Poll::Ready(first) => events.next = Some(first),
        Poll::Pending => {}
    }
    let mut reply = Reply::new(200, &b""[..])
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
    head: Arc<Head>,
    /// What is to be sent.
    piece: Vec<u8>,
    /// What the watcher said already.
    next: Option<Result<Event, Ended>>,
    ended: bool,
}

impl Stream for Events {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        while !self.ended && self.piece.len() < PIECE {
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.watcher.poll(context) {
                    Poll::Ready(next) => next,
                    Poll::Pending if self.piece.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                },
            };
            match next {
                Ok(event) => put_event(&mut self.piece, &event, self.values),
                Err(ended) => self.end(ended),
            }
        }
        self.check();
        let piece = std::mem::take(&mut self.piece);
        Poll::Ready((!piece.is_empty()).then_some(piece))
    }

    /// How far the watcher is, so that it does not come again from where it was told of something last.
    fn silent(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        self.piece = format!("id: {}\n\n", self.watcher.revision()).into_bytes();
        self.check();
        Some(std::mem::take(&mut self.piece))
    }
}

impl Events {
    /// Nothing is sent to whom it may not be told any more.
    fn check(&mut self) {
        let scope = Scope::Prefix(&self.prefix);
        if !self.ended
            && let Err(reply) = self.access.check(&self.head, Right::Read, scope)
        {
            self.piece.clear();
            self.end(Ended::Refused(Refusal {
                plugin: String::new(),
                status: reply.status,
                message: "The token is not for this any more".to_owned(),
                headers: Vec::new(),
            }));
        }
    }

    fn end(&mut self, ended: Ended) {
        self.ended = true;
        let problem = match ended {
            Ended::Stopped => return,
            Ended::Unwatchable(unwatchable) => gone(unwatchable),
            Ended::Refused(refusal) => Problem::of(refusal),
        };
        put(&mut self.piece, None, "end", &problem);
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
