//! Requests that plugins make. They pass the pipeline like a client's, in the chain of the request whose hook makes them.

mod route_update;
mod update;

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::Guard;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::touch::CODING;
use super::{
    Conditions, Engine, ExtraHeaders, Form, Outcome, Request, Revisions, batch, check_memory, check_operation,
    content_coding, host_refusal, view,
};
use vkog_plugin_host::{
    CallScope, CallStates, Cause, EntryView, GuardOutput, KeyRange, Origin, PluginRequest, PluginResponse, Refusal,
    StoreAccess, Transforms, Verb,
};
use vkog_runtime::{Detached, Mailbox};
use vkog_store::{DEFAULT_CONTENT_TYPE, Entry, Reads, Store, owned_content_type};

pub(super) use update::UpdateLocks;

/// The plugin that makes a request, and the headers it sets.
struct PluginOrigin {
    plugin: &'static str,
    headers: Vec<(String, Vec<u8>)>,
}

impl Origin for PluginOrigin {
    fn header(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.headers.iter();
        fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.headers.get(index).map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    fn client(&self) -> &str {
        ""
    }

    fn asker(&self) -> &str {
        self.plugin
    }
}

impl PluginOrigin {
    /// `coding` is the content coding that the entry keeps.
    fn new(request: &PluginRequest<'_>, coding: Option<String>) -> Self {
        let headers = request.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec()));
        let mut origin = Self { plugin: request.scope.plugin, headers: headers.collect() };
        if let Some(coding) = coding {
            origin.headers.retain(|(name, _)| !name.eq_ignore_ascii_case(CODING));
            origin.headers.push((CODING.to_owned(), coding.into_bytes()));
        }
        // Plugins see the precondition as a client would send it. With it, they let a put create the entry.
        let creates = request.if_absent || request.upserts && request.verb == Verb::Put;
        if creates && origin.header("if-none-match").is_none() {
            origin.headers.push(("If-None-Match".to_owned(), b"*".to_vec()));
        }
        origin
    }
}

/// Whether a plugin removes an entry because it has expired: its request has the header `Vkog-Reason: expired`. The headers of
/// clients do not count.
#[inline]
pub(super) fn is_expiry(origin: &dyn Origin) -> bool {
    !origin.asker().is_empty() && origin.header("vkog-reason") == Some(b"expired")
}

impl<S: Store> StoreAccess for Engine<S> {
    fn request(self: Arc<Self>, request: &PluginRequest<'_>, respond: &mut dyn FnMut(PluginResponse<'_>)) {
        let checked = match checked(&self, request) {
            Ok(request) => request,
            Err(refusal) => return respond(PluginResponse::Refused(Cow::Owned(refusal))),
        };
        // This thread blocks until the outcome comes, so it must not come to its mailbox.
        let detached = Mailbox::detach();
        let (send, outcome) = bounded(1);
        let chain = request.scope.chain.clone().unwrap_or_else(|| self.plugins.acquire_blocking());
        self.run_in(Guard::from_inner(chain), checked, move |outcome, _: ExtraHeaders| {
            let _ = send.send(outcome);
        });
        respond_with(self.received(&outcome, &detached).unwrap_or_else(Outcome::Refused), respond);
    }

    fn request_each(self: Arc<Self>, requests: &[PluginRequest<'_>], respond: &mut dyn FnMut(PluginResponse<'_>)) {
        let Some(first) = requests.first() else { return };
        let detached = Mailbox::detach();
        let chain = first.scope.chain.clone().unwrap_or_else(|| self.plugins.acquire_blocking());
        let (send, done) = bounded(requests.len());
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(requests.len());
        // All of them start before this thread waits for the first, so that they share few syncs of the log.
        for (index, request) in requests.iter().enumerate() {
            outcomes.push(match checked(&self, request) {
                Err(refusal) => Some(Outcome::Refused(refusal)),
                Ok(request) => {
                    let send = send.clone();
                    self.run_in(Guard::from_inner(Arc::clone(&chain)), request, move |outcome, _: ExtraHeaders| {
                        let _ = send.send((index, outcome));
                    });
                    None
                }
            });
        }
        drop(send);
        let ended = loop {
            match self.received(&done, &detached) {
                Ok((index, outcome)) => outcomes[index] = Some(outcome),
                Err(refusal) => break refusal,
            }
        };
        let missing = || Outcome::Refused(ended.clone());
        outcomes.into_iter().for_each(|outcome| respond_with(outcome.unwrap_or_else(missing), respond));
    }

    fn for_each(
        self: Arc<Self>,
        prefix: &str,
        scope: &CallScope,
        each: &mut dyn FnMut(&str, EntryView<'_>) -> bool,
    ) -> Result<(), Refusal> {
        self.pass_prefix(prefix, scope, each)
    }

    fn for_each_from(
        self: Arc<Self>,
        range: KeyRange<'_>,
        scope: &CallScope,
        each: &mut dyn FnMut(&str, Result<EntryView<'_>, Refusal>) -> bool,
    ) -> Result<(), Refusal> {
        self.pass_range(range, scope, each)
    }

    fn sample(self: Arc<Self>, count: usize, scope: &CallScope, each: &mut dyn FnMut(&str, EntryView<'_>) -> bool) {
        self.pass_sample(count, scope, each);
    }

    fn batch(
        self: Arc<Self>,
        requests: &[PluginRequest<'_>],
        respond: &mut dyn FnMut(PluginResponse<'_>),
    ) -> Option<usize> {
        let checked_all = requests.iter().enumerate().map(|(index, request)| match checked(&self, request) {
            Ok(request) => Ok(request),
            Err(refusal) => Err((index, refusal)),
        });
        let checked_all = match checked_all.collect::<Result<Vec<_>, _>>() {
            Ok(requests) => requests,
            Err((index, refusal)) => {
                respond(PluginResponse::Refused(Cow::Owned(refusal)));
                return Some(index);
            }
        };
        let detached = Mailbox::detach();
        let chain = requests.first()?.scope.chain.clone().unwrap_or_else(|| self.plugins.acquire_blocking());
        let (send, outcome) = bounded(1);
        batch::run_requests(Arc::clone(&self), chain, checked_all, move |outcome| _ = send.send(outcome));
        match self.received(&outcome, &detached) {
            Ok(Ok(done)) => {
                done.into_iter().for_each(|(outcome, _)| respond_with(outcome, respond));
                None
            }
            Ok(Err(failure)) => {
                respond_with(failure.outcome, respond);
                Some(failure.at.map_or(0, |(index, _)| index))
            }
            Err(refusal) => {
                respond_with(Outcome::Refused(refusal), respond);
                Some(0)
            }
        }
    }

    fn update(
        self: Arc<Self>,
        request: &PluginRequest<'_>,
        value_of: &mut dyn FnMut(Option<EntryView<'_>>) -> Option<Vec<u8>>,
        respond: &mut dyn FnMut(PluginResponse<'_>),
    ) {
        Engine::update(&self, request, value_of, respond);
    }

    fn on_quarantine(&self) {
        self.plugins.quarantine();
    }

    fn leads(&self) -> bool {
        self.store.leads()
    }
}

impl<S: Store> Engine<S> {
    /// Waits for the next outcome, within the [time](Self::limit_plugin_requests) that a plugin waits.
    ///
    /// # Errors
    ///
    /// The time is over, or none will come: the host panicked, which was logged.
    fn received<T>(&self, outcomes: &Receiver<T>, detached: &Detached) -> Result<T, Refusal> {
        if let Ok(outcome) = outcomes.try_recv() {
            return Ok(outcome);
        }
        // On a shared store, the outcome may depend on what this thread has to do for other operations.
        detached.hand_over();
        let received = match self.plugin_request_timeout.get() {
            Some(timeout) => outcomes.recv_timeout(*timeout),
            None => outcomes.recv().map_err(RecvTimeoutError::from),
        };
        received.map_err(|error| match error {
            RecvTimeoutError::Timeout => host_refusal(504, LATE),
            RecvTimeoutError::Disconnected => host_refusal(500, "the server failed; see its log"),
        })
    }
}

/// Why a plugin gets no outcome of its request.
const LATE: &str = "Outcome unknown: the shared store did not respond in time (store-timeout); read the entry before you \
                    repeat the write";

/// Passes an outcome to the plugin that made the request.
fn respond_with(outcome: Outcome, respond: &mut dyn FnMut(PluginResponse<'_>)) {
    match outcome {
        Outcome::Found(entry) => respond(PluginResponse::Found(view(&entry))),
        Outcome::Written(revision) | Outcome::Removed(revision) => respond(PluginResponse::Done(revision)),
        Outcome::Absent => respond(PluginResponse::Absent),
        Outcome::Refused(refusal) => respond(PluginResponse::Refused(Cow::Owned(refusal))),
        failed @ (Outcome::PreconditionFailed(_) | Outcome::StoreFailed(_)) => {
            let (status, message) = failed.failure().unwrap_or((500, Cow::Borrowed("Internal error")));
            respond(PluginResponse::Refused(Cow::Owned(host_refusal(status, message))));
        }
    }
}

fn conditions(request: &PluginRequest<'_>) -> Conditions {
    Conditions {
        if_match: request.if_revision.map(|revision| Revisions::These(vec![revision])),
        if_none_match: request.if_absent.then_some(Revisions::Any),
    }
}

/// Returns the content coding of the entry that a request replaces and keeps the coding of. If the entry has another revision than
/// the required one, the request fails anyway.
fn kept_coding<S: Store>(engine: &Engine<S>, request: &PluginRequest<'_>) -> Result<Option<String>, Refusal> {
    if !request.keeps_coding || request.verb != Verb::Put {
        return Ok(None);
    }
    let Some(revision) = request.if_revision else {
        let fact = "a put keeps the content coding of the entry with a required revision only: use if_revision";
        return Err(host_refusal(400, fact));
    };
    let coding = |entry: &Entry| content_coding(entry).filter(|_| entry.revision() == revision).map(str::to_owned);
    Ok(engine.store.read(request.key, |entry| entry.and_then(coding)).0)
}

/// A plugin's request as one for the pipeline.
pub(super) fn checked<S: Store>(engine: &Engine<S>, request: &PluginRequest<'_>) -> Result<Request, Refusal> {
    let PluginRequest { verb, key, value, content_type, .. } = *request;
    check_operation(verb, key, content_type, value)?;
    check_memory(value.len())?;
    let coding = kept_coding(engine, request)?;
    let content_type = match verb {
        Verb::Get | Verb::Delete => "",
        Verb::Post | Verb::Put if content_type.is_empty() => DEFAULT_CONTENT_TYPE,
        Verb::Post | Verb::Put => content_type,
    };
    Ok(Request {
        verb,
        key: key.to_owned(),
        value: value.to_vec(),
        content_type: owned_content_type(content_type),
        query: request.query.to_owned(),
        conditions: conditions(request),
        // An upsert overlaps no other write.
        arrived: if request.upserts { u64::MAX } else { engine.revision() },
        depth: request.scope.depth,
        cause: Cause::Plugin,
        origin: Arc::new(PluginOrigin::new(request, coding)),
        form: Form::Sent,
        reads: Reads::Local,
        transforms: Transforms::default(),
        states: CallStates::default(),
        guarded: GuardOutput::default(),
    })
}
