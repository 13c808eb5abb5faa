//! Touch: writes an entry again with the value that it has, so that plugins decide anew about what they store with it, such as an
//! expiry. It is a get, as this client would see the entry, and then a put of that value if the entry has not changed meanwhile.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::Guard;

use super::attempts::{Attempts, attempts_max};
use super::{
    Conditions, Engine, ExtraHeaders, Form, Outcome, PreconditionFailed, Request, Revisions, check_memory,
    content_coding, host_refusal, offload, write,
};
use vkog_plugin_host::{CallStates, Cause, ChainGuard, GuardOutput, Origin, Transforms, Verb};
use vkog_store::{Entry, Reads, Store, owned_content_type};

/// Why a touch fails after all attempts.
pub(super) const CHANGED: &str = "Entry changed again and again while the request was in flight: send it again";

/// The attempts of a touch so far. The client of a shared store gets a response at its deadline, so the last attempt begins earlier.
#[derive(Copy, Clone)]
pub(super) struct Tries {
    number: usize,
    began: Instant,
}

impl Tries {
    /// Returns the first attempt.
    pub(super) fn begin() -> Self {
        Self { number: 1, began: Instant::now() }
    }

    /// Returns the next attempt, if there may be one.
    pub(super) fn next<S: Store>(self, store: &S) -> Option<Self> {
        let is_allowed = self.number < attempts_max(store)
            && store.retry_max().is_none_or(|retry_max| self.began.elapsed() < retry_max);
        is_allowed.then_some(Self { number: self.number + 1, ..self })
    }
}

/// The part of a touch that its attempts share.
struct Touch {
    key: String,
    query: String,
    conditions: Conditions,
    arrived: u64,
    origin: Arc<dyn Origin>,
}

impl<S: Store> Engine<S> {
    /// Writes an entry again with the stored value, the media type and the content coding that it has. The value and the media type of
    /// the request do not count. Plugins see a get and a put; a put cannot change the value here. Calls `on_done` as
    /// [`run`](Self::run) does. Copies the value, so do not call it on an event loop.
    pub fn touch(self: &Arc<Self>, request: Request, on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static) {
        let Request { key, query, conditions, arrived, origin, .. } = request;
        attempt(self, Touch { key, query, conditions, arrived, origin }, Tries::begin(), on_done);
    }
}

fn attempt<S: Store>(
    engine: &Arc<Engine<S>>,
    touch: Touch,
    tries: Tries,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    let get = Request { form: Form::Stored, ..touch.request(Verb::Get, Arc::clone(&touch.origin)) };
    let writing = Arc::clone(engine);
    engine.run(get, move |outcome, headers| match outcome {
        Outcome::Found(entry) => match check_memory(entry.value().len()) {
            Ok(()) => write_again(&writing, touch, &entry, tries, on_done),
            Err(refusal) => on_done(Outcome::Refused(refusal), Vec::new()),
        },
        other => on_done(other, headers),
    });
}

/// Writes the entry that was read, unless it has changed meanwhile.
fn write_again<S: Store>(
    engine: &Arc<Engine<S>>,
    touch: Touch,
    entry: &Entry,
    tries: Tries,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    let origin = TouchOrigin::new(Arc::clone(&touch.origin), entry);
    let request = Request {
        value: entry.value().to_vec(),
        content_type: owned_content_type(entry.content_type()),
        conditions: Conditions { if_match: Some(Revisions::These(vec![entry.revision()])), if_none_match: None },
        transforms: Transforms::of(entry.details()),
        ..touch.request(Verb::Put, Arc::new(origin))
    };
    let retrying = Arc::clone(engine);
    let on_put = move |outcome, headers| match outcome {
        Outcome::PreconditionFailed(PreconditionFailed::IfMatch) => match tries.next(&retrying.store) {
            Some(next) => attempt(&retrying, touch, next, on_done),
            None => on_done(Outcome::Refused(host_refusal(409, CHANGED)), headers),
        },
        other => on_done(other, headers),
    };
    let engine = Arc::clone(engine);
    Arc::clone(&engine).plugins.when_available(move |chain| {
        offload(engine.pool_for(&chain, &request), move || put(&engine, chain, request, on_put));
    });
}

/// Puts a value that is stored already. Plugins have replaced it when it was first written, so what they would replace it with
/// now does not count.
fn put<S: Store>(
    engine: &Arc<Engine<S>>,
    chain: ChainGuard,
    request: Request,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    match chain.before(&request.op_context()) {
        Err(refusal) => request.end(Outcome::Refused(refusal), Vec::new(), on_done),
        Ok(_) => write::attempt(engine, Guard::into_inner(chain), Arc::new(request), Attempts::default(), on_done),
    }
}

impl Touch {
    fn request(&self, verb: Verb, origin: Arc<dyn Origin>) -> Request {
        Request {
            verb,
            key: self.key.clone(),
            value: Vec::new(),
            content_type: "".into(),
            query: self.query.clone(),
            conditions: self.conditions.clone(),
            arrived: self.arrived,
            depth: 0,
            cause: Cause::Touch,
            origin,
            form: Form::Sent,
            // The get decides about a write.
            reads: Reads::Linearizable,
            transforms: Transforms::default(),
            states: CallStates::default(),
            guarded: GuardOutput::default(),
        }
    }
}

/// The client of a touch, with headers that describe the stored value instead of the client's.
struct TouchOrigin {
    client: Arc<dyn Origin>,
    /// The media type and the content coding, if there is one.
    own: Vec<(&'static str, String)>,
}

impl TouchOrigin {
    fn new(client: Arc<dyn Origin>, entry: &Entry) -> Self {
        let coding = content_coding(entry).map(|coding| (CODING, coding.to_owned()));
        Self { client, own: [(TYPE, entry.content_type().to_owned())].into_iter().chain(coding).collect() }
    }
}

pub(super) const TYPE: &str = "Content-Type";
pub(super) const CODING: &str = "Content-Encoding";

/// Whether a header describes a value.
pub(super) fn describes_a_value(name: &str) -> bool {
    [TYPE, CODING].iter().any(|own| own.eq_ignore_ascii_case(name))
}

impl Origin for TouchOrigin {
    fn header(&self, name: &str) -> Option<&[u8]> {
        if !describes_a_value(name) {
            return self.client.header(name);
        }
        self.own.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        if let Some((name, value)) = self.own.get(index) {
            return Some((name, value.as_bytes()));
        }
        let all = (0..).map_while(|index| self.client.header_at(index));
        all.filter(|(name, _)| !describes_a_value(name)).nth(index - self.own.len())
    }

    fn client(&self) -> &str {
        self.client.client()
    }

    fn asker(&self) -> &str {
        self.client.asker()
    }

    fn token(&self) -> &str {
        self.client.token()
    }

    fn method(&self) -> &str {
        self.client.method()
    }
}
