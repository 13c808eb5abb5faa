//! Requests that plugins make. They pass the pipeline like a client's, in the chain of the request whose hook makes them.

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::Guard;
use crossbeam_channel::bounded;

use super::{
    Conditions, Engine, ExtraHeaders, Outcome, Request, Revisions, check_memory, check_operation, host_refusal, view,
};
use vkog_plugin_host::{
    CallScope, EntryView, KeyRange, Origin, PluginRequest, PluginResponse, Refusal, StoreAccess, Verb,
};
use vkog_runtime::Mailbox;
use vkog_store::{DEFAULT_CONTENT_TYPE, Store, owned_content_type};

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
        let _detached = Mailbox::detach();
        let (send, outcome) = bounded(1);
        let chain = request.scope.chain.clone().unwrap_or_else(|| self.plugins.acquire_blocking());
        self.run_in(Guard::from_inner(chain), checked, move |outcome, _: ExtraHeaders| {
            let _ = send.send(outcome);
        });
        respond_with(outcome.recv().ok(), respond);
    }

    fn request_each(self: Arc<Self>, requests: &[PluginRequest<'_>], respond: &mut dyn FnMut(PluginResponse<'_>)) {
        let Some(first) = requests.first() else { return };
        let _detached = Mailbox::detach();
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
        for (index, outcome) in done {
            outcomes[index] = Some(outcome);
        }
        outcomes.into_iter().for_each(|outcome| respond_with(outcome, respond));
    }

    fn for_each(self: Arc<Self>, prefix: &str, scope: &CallScope, each: &mut dyn FnMut(&str, EntryView<'_>) -> bool) {
        self.pass_prefix(prefix, scope, each);
    }

    fn for_each_from(
        self: Arc<Self>,
        range: KeyRange<'_>,
        scope: &CallScope,
        each: &mut dyn FnMut(&str, EntryView<'_>) -> bool,
    ) {
        self.pass_range(range, scope, each);
    }

    fn sample(self: Arc<Self>, count: usize, scope: &CallScope, each: &mut dyn FnMut(&str, EntryView<'_>) -> bool) {
        self.pass_sample(count, scope, each);
    }

    fn on_quarantine(&self) {
        self.plugins.quarantine();
    }
}

/// Passes an outcome to the plugin that made the request. There is none if the host panicked, which was logged.
fn respond_with(outcome: Option<Outcome>, respond: &mut dyn FnMut(PluginResponse<'_>)) {
    let Some(outcome) = outcome else {
        return respond(PluginResponse::Refused(Cow::Owned(host_refusal(500, "the server failed; see its log"))));
    };
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

/// A plugin's request as one for the pipeline.
fn checked<S: Store>(engine: &Engine<S>, request: &PluginRequest<'_>) -> Result<Request, Refusal> {
    let PluginRequest { verb, key, value, content_type, .. } = *request;
    check_operation(verb, key, content_type, value)?;
    check_memory(value.len())?;
    let content_type = match verb {
        Verb::Get | Verb::Delete => "",
        Verb::Post | Verb::Put if content_type.is_empty() => DEFAULT_CONTENT_TYPE,
        Verb::Post | Verb::Put => content_type,
    };
    let headers = request.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    Ok(Request {
        verb,
        key: key.to_owned(),
        value: value.to_vec(),
        content_type: owned_content_type(content_type),
        query: request.query.to_owned(),
        conditions: Conditions {
            if_match: request.if_revision.map(|revision| Revisions::These(vec![revision])),
            if_none_match: None,
        },
        arrived: engine.revision(),
        depth: request.scope.depth,
        origin: Arc::new(PluginOrigin { plugin: request.scope.plugin, headers }),
    })
}
