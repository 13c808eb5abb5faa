//! `/x/PLUGIN/…`: the routes of plugins. A call of one takes a thread of a pool, and a plugin has a limited number of calls at a
//! time. Routes that update an entry (update.rs) need no thread.

mod exchange;
mod update;

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
use vkog_engine::{InvalidRequest, host_refusal, media_type};
use vkog_plugin_host::{
    Chain, PathRoutes, ROUTE_CALLS_MAX, Refusal, Route, RouteCall, RouteClient, RouteExchange, RoutePermission,
    RoutePermit, Verb,
};
use vkog_runtime::ThreadPool;

/// The prefix of the paths.
pub(super) const PREFIX: &str = "/x/";

/// Finds the routes of the request's path, and the one for its method.
///
/// # Errors
///
/// The response to a request that calls no route.
pub(super) fn find<'a>(chain: &'a Chain, head: &'a RequestHead) -> Result<(PathRoutes<'a>, Route), Response> {
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
    let route = *route;
    Ok((found, route))
}

/// Checks that the client of a request has the permission of a route.
///
/// # Errors
///
/// The response to a client that may not call the route.
pub(super) fn check(permission: RoutePermission, head: &RequestHead, rules: &Rules) -> Result<(), Response> {
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

    /// Calls a route that does not update an entry. Does not block.
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
    /// The route, whose permission was checked before the body was received.
    pub(super) route: Route,
    pub(super) body: Vec<u8>,
}

/// The arguments of the hook that are computed from the request.
struct Arguments {
    /// The parameters of the path.
    parameters: Vec<(String, String)>,
    /// The position in the path of the request from which on the plugin sees it.
    path_at: usize,
}

impl Arguments {
    /// Decodes the parameters and checks the media type of the body.
    fn of(call: &Call, found: &PathRoutes<'_>) -> Result<Self, Refusal> {
        call.content_type()?;
        let parameters = found.parameters().map_err(|error| host_refusal(400, error.to_string()))?;
        Ok(Self { parameters, path_at: call.head.path().len() - found.path.len() })
    }
}

impl Call {
    /// Finds the routes of the plugin in this chain. A reload may have replaced it since the request was routed.
    ///
    /// # Errors
    ///
    /// The response to a request that no plugin of this chain serves.
    fn found<'a>(&'a self, chain: &'a Chain) -> Result<PathRoutes<'a>, Response> {
        let (found, route) = find(chain, &self.head)?;
        if route.permission != self.route.permission {
            check(route.permission, &self.head, &self.auth.rules())?;
        }
        if route.updates != self.route.updates {
            let fact = "The plugin was replaced while the request arrived; send it again";
            return Err(Problem::busy(fact).reply(ErrorFormat::of(&self.head)));
        }
        Ok(found)
    }

    /// Returns the permit to call the plugin.
    ///
    /// # Errors
    ///
    /// The response to a request that no plugin of this chain serves, or that would be one too many.
    fn permit(&self, chain: &Chain) -> Result<RoutePermit, Response> {
        let found = self.found(chain)?;
        RoutePermit::of(found.member).ok_or_else(|| {
            let name = found.member.name();
            let fact =
                format!("Plugin \"{name}\" serves {ROUTE_CALLS_MAX} requests, which is the maximum; try again later");
            Problem::busy(fact).reply(ErrorFormat::of(&self.head))
        })
    }

    /// Returns the media type of the body; empty if the client sent none.
    fn content_type(&self) -> Result<&str, InvalidRequest> {
        self.head.headers.get("content-type").map_or(Ok(""), media_type)
    }

    /// Returns the call as the chain takes it.
    fn route_call<'a>(&'a self, arguments: &'a Arguments, exchange: &'a dyn RouteExchange) -> RouteCall<'a> {
        RouteCall {
            path: &self.head.path()[arguments.path_at..],
            parameters: &arguments.parameters,
            query: self.head.path_and_query().1,
            content_type: self.content_type().unwrap_or_default(),
            body: &self.body,
            arrived: self.engine.revision(),
            origin: &*self.head,
            exchange,
        }
    }

    /// Calls the plugin.
    fn run(&self, chain: &Arc<Chain>, permit: &RoutePermit, exchange: &Exchange) -> Result<(), Refusal> {
        let found = self.head.path().strip_prefix(PREFIX).and_then(|path| chain.routes_at(path));
        let Some(found) = found else { return Ok(()) };
        let arguments = Arguments::of(self, &found)?;
        let client = Client { auth: Arc::clone(&self.auth), head: Arc::clone(&self.head) };
        let served = chain.serve(permit.member(), Arc::new(client), &self.route_call(&arguments, exchange));
        // The plugin has seen whole keys in the answers of the store.
        served.map_err(|refusal| seen_refusal(&self.head, refusal))
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
