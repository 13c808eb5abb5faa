//! `/x/PLUGIN/…`: the routes of plugins. Each call takes a thread of a pool, and a plugin has a limited number of calls at a time.

mod exchange;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;

use super::auth::{Authorizer, Rules, Scope};
use super::deadlines::Deadlines;
use super::prefix::seen_refusal;
use super::problem::{ErrorFormat, Problem};
use crate::any_store::Engine;
use crate::config::Permission;
use crate::http::{Budget, Method, RequestHead, Response};
use exchange::{Exchange, Respond};
use vkog_engine::media_type;
use vkog_plugin_host::{
    Chain, PathRoutes, ROUTE_CALLS_MAX, Refusal, RouteCall, RouteClient, RoutePermission, RoutePermit, Verb,
};
use vkog_runtime::ThreadPool;

/// The prefix of the paths.
pub(super) const PREFIX: &str = "/x/";

/// Finds the routes of the request's path, and the permission that the one for its method needs.
///
/// # Errors
///
/// The response to a request that calls no route.
pub(super) fn find<'a>(chain: &'a Chain, head: &'a RequestHead) -> Result<(PathRoutes<'a>, RoutePermission), Response> {
    let format = || ErrorFormat::of(head);
    let found = head.path().strip_prefix(PREFIX).and_then(|path| chain.routes_at(path));
    let found = found.ok_or_else(|| {
        Problem::new(404, "No plugin serves this path; see the routes in /openapi.json").reply(format())
    })?;
    if head.method == Method::Options {
        return Err(Response::new(204, &b""[..]).with_header("Allow", found.allow()));
    }
    let Some(route) = found.route(head.method.name()) else {
        return Err(Problem::new(405, "Method not allowed").reply(format()).with_header("Allow", found.allow()));
    };
    let permission = route.permission;
    Ok((found, permission))
}

/// Routes a request and checks that the client may call its route. Returns the permission of the route.
///
/// # Errors
///
/// The response to a request that calls no route.
pub(super) fn route(chain: &Chain, head: &RequestHead, rules: &Rules) -> Result<RoutePermission, Response> {
    let (_, permission) = find(chain, head)?;
    check(permission, head, rules)?;
    Ok(permission)
}

fn check(permission: RoutePermission, head: &RequestHead, rules: &Rules) -> Result<(), Response> {
    // The entries of a prefix are checked when the plugin reads or writes them.
    match permission {
        RoutePermission::None => rules.check_site(head),
        RoutePermission::Read => rules.check(head, Permission::Read, Scope::Later),
        RoutePermission::Write => rules.check(head, Permission::Write, Scope::Later),
        RoutePermission::Admin => rules.check(head, Permission::Admin, Scope::All),
    }
}

/// The problem of a body that is longer than the maximum, in bytes.
pub(super) fn too_large(length: Option<u64>, value_max: u64) -> Problem {
    let length = length.map(|length| format!(": {length} bytes")).unwrap_or_default();
    Problem::new(413, format!("Body too large{length}; the maximum is {value_max} (--max-value)"))
}

/// The state that all calls of routes share.
pub(super) struct Routes {
    /// Starts a thread for each call. The permits of the plugins limit their number.
    pool: Arc<ThreadPool>,
    deadlines: Deadlines,
    timeout: Duration,
}

impl Routes {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { pool: Arc::new(ThreadPool::new("routes")), deadlines: Deadlines::default(), timeout }
    }

    /// Calls a route. Does not block.
    pub(super) fn call(&self, call: Call, budget: &'static Budget, respond: Respond) {
        let plugin = call.head.path().strip_prefix(PREFIX).and_then(|path| path.split('/').next());
        let plugin = plugin.unwrap_or_default().to_owned();
        let format = ErrorFormat::of(&call.head);
        let exchange = Exchange::new(plugin, format, call.body.len() as u64, budget, respond);
        let deadline = self.deadlines.add(self.timeout, &exchange);
        let pool = Arc::clone(&self.pool);
        let engine = Arc::clone(&call.engine);
        engine.plugins().when_available(move |chain| {
            let chain = Guard::into_inner(chain);
            // The client already has a 504, because a reload took longer than the deadline.
            if exchange.has_ended() {
                return;
            }
            match call.permit(&chain) {
                Err(response) => exchange.refuse(response),
                Ok(permit) => pool.run(move || {
                    let served = call.run(&chain, &permit, &exchange);
                    // Before the end of the response: a client that has it can call the next route.
                    drop((permit, deadline));
                    exchange.finish(served);
                }),
            }
        });
    }
}

/// A request to a route, with its body.
pub(super) struct Call {
    pub(super) engine: Arc<Engine>,
    pub(super) auth: Arc<Authorizer>,
    pub(super) head: Arc<RequestHead>,
    /// The permission that was checked before the body was received.
    pub(super) permission: RoutePermission,
    pub(super) body: Vec<u8>,
}

impl Call {
    /// Returns the permit to call the plugin. A reload may have replaced it since the request was routed.
    ///
    /// # Errors
    ///
    /// The response to a request that no plugin of this chain serves, or that would be one too many.
    fn permit(&self, chain: &Chain) -> Result<RoutePermit, Response> {
        let (found, permission) = find(chain, &self.head)?;
        if permission != self.permission {
            check(permission, &self.head, &self.auth.rules())?;
        }
        RoutePermit::of(found.member).ok_or_else(|| {
            let name = found.member.name();
            let fact =
                format!("Plugin \"{name}\" serves {ROUTE_CALLS_MAX} requests, which is the maximum; try again later");
            Problem::busy(fact).reply(ErrorFormat::of(&self.head))
        })
    }

    /// Calls the plugin.
    fn run(&self, chain: &Arc<Chain>, permit: &RoutePermit, exchange: &Exchange) -> Result<(), Refusal> {
        let Self { engine, auth, head, body, .. } = self;
        let bad_request =
            |message: String| Refusal { plugin: String::new(), status: 400, message, headers: Vec::new() };
        let found = head.path().strip_prefix(PREFIX).and_then(|path| chain.routes_at(path));
        let Some(found) = found else { return Ok(()) };
        let content_type = head.headers.get("content-type").map_or(Ok(""), media_type);
        let content_type = content_type.map_err(|error| bad_request(error.to_string()))?;
        let parameters = found.parameters().map_err(|error| bad_request(error.to_string()))?;
        let client = Client { auth: Arc::clone(auth), head: Arc::clone(head) };
        let call = RouteCall {
            path: found.path,
            parameters: &parameters,
            query: head.path_and_query().1,
            content_type,
            body,
            arrived: engine.revision(),
            origin: &**head,
            client: Arc::new(client),
            exchange,
        };
        // The plugin has seen whole keys in the answers of the store.
        chain.serve(permit.member(), &call).map_err(|refusal| seen_refusal(head, refusal))
    }
}

/// The client of a route, whose permissions its store calls have.
struct Client {
    auth: Arc<Authorizer>,
    head: Arc<RequestHead>,
}

impl RouteClient for Client {
    fn may(&self, verb: Verb, key: &str) -> Result<(), Refusal> {
        let permission = if verb == Verb::Get { Permission::Read } else { Permission::Write };
        let checks = [(permission, Scope::Key(key))];
        self.auth.rules().check_all(&self.head, checks).map_err(|(_, refusal)| refusal)
    }

    fn may_read(&self, key: &str) -> bool {
        self.auth.rules().permits(&self.head, Permission::Read, Scope::Key(key))
    }

    fn key_prefix(&self) -> &str {
        self.head.key_prefix()
    }
}
