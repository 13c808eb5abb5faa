//! The call of a `serve` hook: a request to a route of a plugin.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use vkog_plugin_api::abi::{HOOK_NAMES, Outcome, Verb};

use super::call::{CallOutput, OpContext, Origin, call, raw_call};
use super::client_store::{self, RouteClient};
use super::guard_output::GuardOutput;
use super::member::Member;
use super::scope::{Lock, Scope};
use super::text::may_be_sent;
use super::{Chain, Refusal, SERVE};

/// The maximum number of calls of a plugin's routes at a time. Each takes a thread.
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
    /// The permissions of the client, for store calls.
    pub client: Arc<dyn RouteClient>,
    /// The way of the response.
    pub exchange: &'a dyn RouteExchange,
}

/// The permit for a call of a plugin's routes. It counts against [`ROUTE_CALLS_MAX`] until it is dropped.
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

impl Chain {
    /// Calls the `serve` hook of a plugin of this chain. It may block, so call it on a thread that may. A hook that does not
    /// respond gets a response with 204.
    ///
    /// # Errors
    ///
    /// The plugin refused the request, panicked, or is in quarantine. The response may have begun before.
    pub fn serve(self: &Arc<Self>, member: &Member, route: &RouteCall<'_>) -> Result<(), Refusal> {
        let plugin = member.name();
        let refuse = |status, message| Refusal { plugin: plugin.to_owned(), status, message, headers: Vec::new() };
        if member.is_quarantined() {
            let message = format!("plugin \"{plugin}\" is in quarantine after it failed again and again");
            return Err(refuse(503, message));
        }
        let Some((hook, stats)) = member.hook(SERVE) else {
            return Err(refuse(404, format!("plugin \"{plugin}\" has no routes")));
        };
        let guarded = GuardOutput::default();
        let op = OpContext {
            verb: Verb::Get,
            key: route.path,
            value: route.body,
            content_type: route.content_type,
            query: route.query,
            arrived: route.arrived,
            depth: 0,
            origin: route.origin,
            guarded: &guarded,
        };
        let _client = client_store::enter(Arc::clone(&route.client));
        let _scope = Scope { depth: 0, lock: Lock::Serving, chain: Arc::as_ptr(self) }.enter();
        let mut output = CallOutput::new(route.origin);
        (output.plugin, output.route) = (plugin, Some(route));
        let mut raw = raw_call(&op, [None, None], 0);
        let begun = Instant::now();
        // SAFETY: the caller of `Member::create` promised that the module is sound; the chain keeps the instance alive.
        let outcome = unsafe { call(*hook, member.instance(), &mut raw, &mut output) };
        stats.times.record(begun.elapsed());
        stats.calls.fetch_add(1, Relaxed);
        let message = output.take(|output| &mut output.message).unwrap_or_default();
        let headers = sent_headers(output.take(|output| &mut output.headers), plugin);
        match outcome.kind {
            Outcome::GO_ON => {
                route.exchange.respond(RouteHead { status: 204, headers }, &[], false);
                Ok(())
            }
            Outcome::PANICKED => {
                member.record_panic(SERVE, stats, &message);
                Err(refuse(500, format!("plugin \"{plugin}\" failed in {}", HOOK_NAMES[SERVE])))
            }
            _ => {
                stats.refusals.fetch_add(1, Relaxed);
                Err(Refusal { headers, ..refuse(checked_status(outcome.status.into(), 400, plugin), message) })
            }
        }
    }
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
