//! The calls of `serve` and `serve_update` hooks: requests to the routes of a plugin.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use vkog_plugin_api::abi::{HOOK_NAMES, Outcome, RawEntry, Verb};

use super::call::{CallOutput, EntryView, OpContext, Origin, call, raw_call};
use super::client_store::{self, RouteClient};
use super::guard_output::misused;
use super::member::Member;
use super::scope::{Lock, Scope};
use super::text::{is_media_type, may_be_sent};
use super::{Chain, Refusal, SERVE, SERVE_UPDATE};

/// The maximum number of calls of a plugin's `serve` hook at a time. Each takes a thread.
pub const ROUTE_CALLS_MAX: usize = 32;

/// The status and the header fields of a response, which were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteHead {
    /// The status, 200 to 599.
    pub status: u16,
    /// The header fields, with `Content-Type`, without those of the framing.
    pub headers: Vec<(String, String)>,
}

/// The way of a response to the client. The host and the test host of plugin authors implement it.
pub trait RouteExchange: Send + Sync {
    /// Begins the response. If `more` is set, [`send`](Self::send) adds to the body, until the hook returns. Returns whether
    /// the client still reads, and `false` if the response has begun before.
    fn respond(&self, head: RouteHead, body: &[u8], more: bool) -> bool;

    /// Sends a part of the body. Blocks while the client does not read. Returns whether it still reads.
    fn send(&self, part: &[u8]) -> bool;
}

/// A request to a route.
pub struct RouteCall<'a> {
    /// The path behind `/x/PLUGIN`, as the client sent it.
    pub path: &'a str,
    /// The parameters of the path, decoded.
    pub parameters: &'a [(String, String)],
    /// The query, without the question mark, not decoded.
    pub query: &'a str,
    /// The media type of the body; empty if the client sent none.
    pub content_type: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// The revision of the store when the request arrived.
    pub arrived: u64,
    /// The headers and the client of the request.
    pub origin: &'a dyn Origin,
    /// The way of the response.
    pub exchange: &'a dyn RouteExchange,
}

/// The permit for a call of a plugin's `serve` hook. It counts against [`ROUTE_CALLS_MAX`] until it is dropped.
pub struct RoutePermit(Arc<Member>);

impl RoutePermit {
    /// Returns a permit, or `None` if the plugin has none left.
    pub fn of(member: &Arc<Member>) -> Option<Self> {
        let permit = Self(Arc::clone(member));
        let before = member.route_calls().fetch_add(1, Relaxed);
        (before < ROUTE_CALLS_MAX).then_some(permit)
    }

    /// Returns the plugin.
    pub fn member(&self) -> &Arc<Member> {
        &self.0
    }
}

impl Drop for RoutePermit {
    fn drop(&mut self) {
        self.0.route_calls().fetch_sub(1, Relaxed);
    }
}

/// The value that a plugin makes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewValue {
    /// The value.
    pub value: Vec<u8>,
    /// Its media type; empty for the default.
    pub content_type: String,
}

impl Chain {
    /// Calls the `serve` hook of a plugin of this chain for a client, whose permissions its store calls have. It may block, so
    /// call it on a thread that may. A hook that does not respond gets a response with 204.
    ///
    /// # Errors
    ///
    /// The plugin refused the request, panicked, or is in quarantine. The response may have begun before.
    pub fn serve(
        self: &Arc<Self>,
        member: &Member,
        client: Arc<dyn RouteClient>,
        route: &RouteCall<'_>,
    ) -> Result<(), Refusal> {
        let _client = client_store::enter(client);
        let call = HookCall { id: SERVE, lock: Lock::Serving, entry: None };
        self.call_route(member, route, call).map(drop)
    }

    /// Calls the `serve_update` hook of a plugin of this chain with an entry. Returns the new value of the entry. A hook that does
    /// not respond gets a response with 204.
    ///
    /// # Errors
    ///
    /// The plugin refused the request, panicked, broke a rule of the interface, or is in quarantine.
    pub fn serve_update(
        self: &Arc<Self>,
        member: &Member,
        route: &RouteCall<'_>,
        entry: Option<EntryView<'_>>,
    ) -> Result<NewValue, Refusal> {
        let entry = entry.map(|entry| entry.raw(member.name()));
        let call = HookCall { id: SERVE_UPDATE, lock: Lock::Updating, entry: entry.as_ref() };
        let mut output = self.call_route(member, route, call)?;
        let value = output.take(|output| &mut output.value).unwrap_or_default();
        if value.is_empty() {
            return Err(misused(member.name(), "made an empty value, which cannot be stored"));
        }
        let content_type = output.take(|output| &mut output.content_type);
        if let Some(content_type) = content_type.as_ref().filter(|name| !is_media_type(name)) {
            let fact = format!("set the media type {content_type:?}; it must be a type and a subtype in ASCII");
            return Err(misused(member.name(), &fact));
        }
        Ok(NewValue { value, content_type: content_type.unwrap_or_default() })
    }

    /// Calls a hook for a request to a route. Returns what it has set beside the response.
    fn call_route<'a>(
        self: &Arc<Self>,
        member: &Member,
        route: &'a RouteCall<'a>,
        HookCall { id, lock, entry }: HookCall<'_>,
    ) -> Result<CallOutput<'a>, Refusal> {
        let plugin = member.name();
        let refuse = |status, message| Refusal { plugin: plugin.to_owned(), status, message, headers: Vec::new() };
        if member.is_quarantined() {
            let message = format!("plugin \"{plugin}\" is in quarantine after it failed again and again");
            return Err(refuse(503, message));
        }
        let Some((hook, stats)) = member.hook(id) else {
            return Err(refuse(404, format!("plugin \"{plugin}\" has no routes")));
        };
        let op = OpContext {
            verb: Verb::Get,
            key: route.path,
            value: route.body,
            content_type: route.content_type,
            query: route.query,
            arrived: route.arrived,
            origin: route.origin,
            ..OpContext::none()
        };
        let _scope = Scope { depth: 0, lock, chain: Arc::as_ptr(self) }.enter();
        let mut output = CallOutput::new(&op);
        (output.plugin, output.route) = (plugin, Some(route));
        let mut raw = raw_call(&op, [entry, None], 0);
        let begun = Instant::now();
        // SAFETY: the caller of `Member::create` promised that the module is sound; the chain keeps the instance alive.
        let outcome = unsafe { call(*hook, member.instance(), &mut raw, &mut output) };
        match id {
            // It may wait for its client, so it has no time budget.
            SERVE => stats.times.record(begun.elapsed()),
            _ => member.record_time(id, stats, begun.elapsed()),
        }
        stats.calls.fetch_add(1, Relaxed);
        let message = output.take(|output| &mut output.message).unwrap_or_default();
        let headers = sent_headers(output.take(|output| &mut output.headers), plugin);
        match outcome.kind {
            Outcome::GO_ON => {
                route.exchange.respond(RouteHead { status: 204, headers }, &[], false);
                Ok(output)
            }
            Outcome::PANICKED => {
                member.record_panic(id, stats, &message);
                Err(refuse(500, format!("plugin \"{plugin}\" failed in {}", HOOK_NAMES[id])))
            }
            _ => {
                stats.refusals.fetch_add(1, Relaxed);
                Err(Refusal { headers, ..refuse(checked_status(outcome.status.into(), 400, plugin), message) })
            }
        }
    }
}

/// The hook to call for a request to a route.
struct HookCall<'a> {
    id: usize,
    lock: Lock,
    entry: Option<&'a RawEntry<'a>>,
}

/// Checks what a plugin responds with. `headers` are those that it has added before.
pub(super) fn checked_head(plugin: &str, status: u32, content_type: &str, headers: Vec<(String, String)>) -> RouteHead {
    let mut headers = sent_headers(headers, plugin);
    if !content_type.is_empty() {
        headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
        let field = ("Content-Type".to_owned(), content_type.to_owned());
        headers.extend(Some(field).filter(|field| may_be_sent(field, plugin, SERVE)));
    }
    RouteHead { status: checked_status(status, 200, plugin), headers }
}

fn sent_headers(mut headers: Vec<(String, String)>, plugin: &str) -> Vec<(String, String)> {
    headers.retain(|header| may_be_sent(header, plugin, SERVE));
    headers
}

/// Returns the status if it is at least `min` and one of HTTP, and 500 otherwise.
fn checked_status(status: u32, min: u16, plugin: &str) -> u16 {
    match u16::try_from(status) {
        Ok(status) if (min..=599).contains(&status) => status,
        _ => {
            let hook = HOOK_NAMES[SERVE];
            tracing::warn!(
                plugin,
                hook,
                status,
                "responded with a status that is not from {min} to 599; 500 is sent instead"
            );
            500
        }
    }
}
