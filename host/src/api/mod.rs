//! The HTTP interface: routes a request by path and method, authorizes it, runs the operation and makes the response.
//! Status codes of the server itself come from here only.

mod accept;
mod access_log;
mod auth;
mod batch;
mod buckets;
mod cors;
mod deadlines;
mod entry;
mod etag;
mod export;
mod exposition;
mod front;
mod health;
mod json;
mod keys;
mod metrics;
mod openapi;
mod origin;
mod page;
mod path;
mod plugins;
mod prefix;
mod problem;
mod query;
mod range;
mod routes;
mod shared;
mod tickets;
mod watch;

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::Guard;

use crate::any_store::Engine;
use crate::config::{Permission, ROUTE_TIMEOUT};
use crate::http::{BodyFault, Budget, ConnectionCounts, Method, RequestHead, Responder, Response, Service};
use vkog_engine::{Conditions, Form, Request, Transforms, check_value};
use vkog_plugin_host::{CallStates, Cause, GuardOutput, Origin, ReloadReport, Route as PluginRoute, Verb};
use vkog_runtime::{ThreadPool, cores};
use vkog_store::{Reads, owned_content_type};

use access_log::{AccessLog, RequestSpan};
pub use auth::Authorizer;
use auth::{Credential, Rules, Scope};
use batch::{BatchRoute, Format};
use cors::Grant;
use deadlines::Deadlines;
use export::Exports;
use exposition::Exposition;
use front::Base;
pub use front::{Front, StartPhase, StartProgress};
use openapi::Methods;
use path::decode_key;
pub use plugins::ReloadError;
use problem::{ErrorFormat, Problem};
use range::Range;
use routes::Routes;
use shared::Limited;
use tickets::Tickets;

/// The HTTP interface of a store. A clone is the same one.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

impl Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The parts of an [`Api`].
pub struct Parts {
    engine: Arc<Engine>,
    value_max: u64,
    budget: &'static Budget,
    auth: Arc<Authorizer>,
    reload: Arc<Reload>,
    log: &'static AccessLog,
    connections: Arc<ConnectionCounts>,
    /// Encoded events, shared by watchers.
    encoded: Arc<watch::Encoded>,
    /// Runs what takes longer than an operation.
    threads: ThreadPool,
    /// Runs operations with large values, because copying those would block an event loop. Few threads, because each copy
    /// needs memory beyond the budget.
    large: Arc<ThreadPool>,
    /// Held by each request for keys that is in flight.
    listings: Arc<()>,
    tickets: Tickets,
    exports: Arc<Exports>,
    routes: Routes,
    /// Those of requests to a shared store.
    deadlines: Arc<Deadlines>,
    is_draining: Arc<AtomicBool>,
}

/// Reloads the configuration and the plugins.
pub type Reload = dyn Fn() -> Result<Vec<ReloadReport>, ReloadError> + Send + Sync;

/// An authorized request with its route, before its body is read.
pub struct RoutedRequest {
    head: Arc<RequestHead>,
    route: Route,
    ending: Ending,
}

/// The last steps of every response.
struct Ending {
    span: RequestSpan,
    grant: Grant,
}

impl Ending {
    /// Completes the response.
    #[inline]
    fn complete(self, mut reply: Response) -> Response {
        self.grant.add_to(&mut reply, self.span.head());
        self.span.end(&mut reply);
        reply
    }
}

/// Sends the response to a request.
///
/// One type for all stores, so that the compiler makes the functions that a request passes once, and inlines them.
enum Sender {
    /// At any time.
    Untimed(Responder, Ending),
    /// Unless its deadline has passed.
    Limited(Limited),
}

impl Sender {
    /// Completes and sends the response.
    #[inline]
    fn send(self, reply: Response) {
        match self {
            Self::Untimed(responder, ending) => responder.respond(ending.complete(reply)),
            Self::Limited(limited) => limited.send(reply),
        }
    }
}

/// The target of a request, by its path and method.
enum Target<'a> {
    /// A path of the server with its methods, and the query.
    Server { methods: &'static Methods, path: &'a str, query: &'a str },
    /// A route of a plugin.
    Plugin(PluginRoute),
}

/// The handler of a request, with the parsed parameters.
enum Route {
    /// `/k/{key}`: an operation on one entry.
    Entry(EntryRoute),
    /// `/batch`: several operations in one step.
    Batch(BatchRoute),
    /// `/keys`: a listing of keys, their number, or their deletion.
    Keys { listing: keys::Query, query: String },
    /// `/watch`: a stream of changes.
    Watch { subscription: watch::Subscription, credential: Credential, query: String },
    /// `/export`: all entries as of one revision, or the changes after one.
    Export { since: Option<u64> },
    /// `/x/PLUGIN/…`: a route of a plugin.
    Plugin(PluginRoute),
    /// Found when plugins have decided about the request.
    Later,
    /// `/plugins`: the loaded plugins.
    Plugins,
    /// `/plugins/reload`: a reload of configuration and plugins.
    Reload,
}

/// The parameters of an operation on one entry.
struct EntryRoute {
    verb: Verb,
    /// The entry is written again with the value that it has (PATCH).
    touches: bool,
    key: String,
    query: String,
    content_type: Cow<'static, str>,
    conditions: Conditions,
    arrived: u64,
    /// The value of `Cache-Control` with a value.
    caching: Option<&'static str>,
}

impl Api {
    /// Makes the interface of a store that is loaded. `value_max` is the maximum length of a value, in bytes.
    pub fn new(engine: Arc<Engine>, value_max: u64, auth: Arc<Authorizer>, reload: Arc<Reload>) -> Self {
        Self::on(Base::new(auth, u64::MAX, ROUTE_TIMEOUT), engine, value_max, reload)
    }

    fn on(base: Base, engine: Arc<Engine>, value_max: u64, reload: Arc<Reload>) -> Self {
        let Base { auth, log, connections, budget, route_timeout, is_draining } = base;
        let (encoded, listings, threads) = (Arc::default(), Arc::default(), ThreadPool::new("admin"));
        let large = Arc::new(ThreadPool::bounded("large", cores()));
        let (tickets, exports, routes) = (Tickets::default(), Arc::default(), Routes::new(route_timeout));
        Self(Arc::new(Parts {
            engine,
            value_max,
            budget,
            auth,
            reload,
            log,
            connections,
            encoded,
            threads,
            large,
            listings,
            tickets,
            exports,
            routes,
            deadlines: Arc::default(),
            is_draining,
        }))
    }

    /// Returns the connection counters, for an engine to count in.
    pub fn connections(&self) -> Arc<ConnectionCounts> {
        Arc::clone(&self.connections)
    }

    /// Routes and authorizes a request, after plugins have decided about it. The error is the response of a request that needs no
    /// body.
    fn admitted(&self, head: &RequestHead, rules: &Rules) -> Result<Route, Response> {
        let target = self.target(head)?;
        match self.let_pass(head, rules)? {
            true => self.route(head, rules, target),
            false => Ok(Route::Later),
        }
    }

    /// Finds what a request is for. The error is the response of a request whose path or method does not exist.
    fn target<'a>(&self, head: &'a RequestHead) -> Result<Target<'a>, Response> {
        let (path, query) = head.path_and_query();
        let format = || ErrorFormat::of(head);
        origin::check_head(head).map_err(|problem| problem.reply(format()))?;
        if path.starts_with(routes::PREFIX) {
            return self.find_route(head).map(Target::Plugin);
        }
        // `OPTIONS *` is about the server as a whole (RFC 9110, section 9.3.7). An entry has all its methods.
        let described = if (head.method, path) == (Method::Options, "*") { "/k/" } else { path };
        let methods = Methods::of(described).map_err(|error| {
            tracing::error!("{error}");
            Response::internal_error()
        })?;
        let methods = methods.ok_or_else(|| no_path(format()))?;
        match head.method {
            method if !methods.include(method) => Err(not_allowed(methods, format())),
            Method::Options => Err(Response::new(204, &b""[..]).with_header("Allow", methods.allow.clone())),
            _ => Ok(Target::Server { methods, path, query }),
        }
    }

    /// Finds the route of a plugin for a request. Takes no lock, except during a reload.
    fn find_route(&self, head: &RequestHead) -> Result<PluginRoute, Response> {
        let plugins = self.engine.plugins();
        let chain = plugins.acquire().unwrap_or_else(|| Guard::from_inner(plugins.chain()));
        routes::find(&chain, head).map(|(_, route)| route)
    }

    /// Routes and authorizes a request whose path has its method. The error is the response of a request that needs no body.
    fn route(&self, head: &RequestHead, rules: &Rules, target: Target<'_>) -> Result<Route, Response> {
        let format = || ErrorFormat::of(head);
        let (methods, path, query) = match target {
            Target::Server { methods, path, query } => (methods, path, query),
            Target::Plugin(route) => {
                return routes::check(route.permission, head, rules).map(|()| Route::Plugin(route));
            }
        };
        if let Some(key) = path.strip_prefix("/k/") {
            return self.entry_route(head, rules, methods, key, query).map(Route::Entry);
        }
        match path {
            "/batch" => self.batch_route(head, rules, query).map(Route::Batch),
            "/keys" => {
                let (listing, permission) = match head.method {
                    Method::Delete => (keys::parse_deletion(head, query), Permission::Write),
                    _ => (keys::parse_query(query), Permission::Read),
                };
                let listing = listing.map_err(|problem| problem.reply(format()))?.whole(head);
                rules.check(head, permission, Scope::Prefix(listing.prefix()))?;
                Ok(Route::Keys { listing, query: query.to_owned() })
            }
            "/watch" => {
                let subscription = watch::parse_query(query, head).map_err(|problem| problem.reply(format()))?;
                let (ticket, prefix) = (subscription.ticket.as_deref(), subscription.prefix());
                let credential = self.tickets.credential(head, ticket, prefix);
                let credential = credential.map_err(|refusal| Problem::of(refusal).reply(format()))?;
                rules.check_as(head, &credential, Permission::Read, Scope::Prefix(prefix))?;
                let query = query::without(query, watch::TICKET);
                Ok(Route::Watch { subscription, credential, query })
            }
            "/watch/tickets" => {
                let prefix = tickets::parse_query(query).map_err(|problem| problem.reply(format()))?;
                let prefix = prefix::whole(head, prefix);
                let credential = rules.reader(head);
                rules.check_as(head, &credential, Permission::Read, Scope::Prefix(&prefix))?;
                Err(self.tickets.issue(credential, prefix, format()))
            }
            "/export" => {
                rules.check(head, Permission::Admin, Scope::All)?;
                let since = export::parse_query(query).map_err(|problem| problem.reply(format()))?;
                Ok(Route::Export { since })
            }
            "/plugins/reload" => rules.check(head, Permission::Admin, Scope::All).map(|()| Route::Reload),
            "/plugins" => rules.check(head, Permission::Read, Scope::All).map(|()| Route::Plugins),
            "/metrics" => {
                rules.check(head, Permission::Read, Scope::All)?;
                Err(metrics::text(&self.engine, self.log, &self.connections, &self.exports, Exposition::of(head)))
            }
            // These two need no token: they return no data, and health checks have no secrets.
            "/livez" => Err(health::ok()),
            "/readyz" if self.is_draining.load(Relaxed) => Err(health::draining(format())),
            "/readyz" => Err(health::ready(&self.engine, format())),
            // These two need no token either: they describe the interface.
            "/openapi.json" => {
                Err(openapi::document(&self.engine.plugins().chain(), self.engine.store().shared().is_some()))
            }
            "/" => Err(page::page()),
            _ => Err(no_path(format())),
        }
    }

    /// Parses and authorizes an operation on one entry.
    fn entry_route(
        &self,
        head: &RequestHead,
        rules: &Rules,
        methods: &Methods,
        key: &str,
        query: &str,
    ) -> Result<EntryRoute, Response> {
        let arrived = self.engine.revision();
        let format = || ErrorFormat::of(head);
        let verb = match head.method {
            Method::Get | Method::Head => Verb::Get,
            Method::Post => Verb::Post,
            Method::Put | Method::Patch => Verb::Put,
            Method::Delete => Verb::Delete,
            Method::Options | Method::Other => return Err(not_allowed(methods, format())),
        };
        let key = decode_key(key).and_then(|key| prefix::whole_key(head, key));
        let key = key.map_err(|problem| problem.reply(format()))?;
        let permission = if verb == Verb::Get { Permission::Read } else { Permission::Write };
        rules.check(head, permission, Scope::Key(&key))?;
        let sent = entry::content_type(head).map_err(|problem| problem.reply(format()))?;
        // It is that of a value, and nothing else has one.
        let touches = head.method == Method::Patch;
        let writes = matches!(verb, Verb::Post | Verb::Put) && !touches;
        if writes {
            entry::check_is_value(head).map_err(|problem| problem.reply(format()))?;
        } else if touches {
            entry::check_is_whole(head).map_err(|problem| problem.reply(format()))?;
        }
        let conditions = etag::conditions(head).map_err(|problem| problem.reply(format()))?;
        let content_type = if writes { owned_content_type(sent) } else { "".into() };
        let caching = (verb == Verb::Get).then(|| entry::caching(rules.is_open()));
        Ok(EntryRoute { verb, touches, key, query: query.to_owned(), content_type, conditions, arrived, caching })
    }

    /// Parses the head of a batch. Its operations are authorized one by one after the body has been received.
    fn batch_route(&self, head: &RequestHead, rules: &Rules, query: &str) -> Result<BatchRoute, Response> {
        let arrived = self.engine.revision();
        let format = || ErrorFormat::of(head);
        rules.check(head, Permission::Read, Scope::Later)?;
        entry::check_is_batch(head).map_err(|problem| problem.reply(format()))?;
        let request = Format::of_request(head).map_err(|problem| problem.reply(format()))?;
        Ok(BatchRoute { request, response: request.of_response(head), query: query.to_owned(), arrived })
    }
}

/// The response for a path that does not exist.
fn no_path(format: ErrorFormat) -> Response {
    Problem::new(404, "Invalid path. Use /k/<keyname>").reply(format)
}

/// The response for a method that the path does not have.
fn not_allowed(methods: &Methods, format: ErrorFormat) -> Response {
    Problem::new(405, "Method not allowed").reply(format).with_header("Allow", methods.allow.clone())
}

impl Service for Api {
    type Admitted = RoutedRequest;

    fn admit(&self, head: Arc<RequestHead>) -> Result<RoutedRequest, Response> {
        let rules = self.auth.rules();
        let ending = Ending { span: self.log.start(&head), grant: rules.identify_client(&head) };
        match self.admitted(&head, &rules) {
            Ok(route) => Ok(RoutedRequest { head, route, ending }),
            Err(reply) => Err(ending.complete(reply)),
        }
    }

    fn budget(&self) -> &'static Budget {
        self.budget
    }

    fn body_max(&self, request: &RoutedRequest) -> u64 {
        match request.route {
            Route::Batch(_) => batch::body_max(self.value_max),
            Route::Later if request.head.path() == "/batch" => batch::body_max(self.value_max),
            _ => self.value_max,
        }
    }

    fn refuse_body(&self, request: RoutedRequest, fault: BodyFault) -> Response {
        let problem = match fault {
            BodyFault::Encoded => {
                Problem::new(501, "Transfer-Encoding is not supported; send chunked or Content-Length")
            }
            BodyFault::BadLength => Problem::new(400, "Content-Length must be one number"),
            BodyFault::NotChunked => {
                Problem::new(400, "Transfer-Encoding must end with chunked; send chunked or Content-Length")
            }
            BodyFault::TwoLengths => {
                Problem::new(400, "Content-Length and Transfer-Encoding exclude each other; send one of them")
            }
            BodyFault::TooLarge { declared } => match request.route {
                Route::Batch(_) => batch::too_large(declared, self.value_max),
                Route::Plugin(_) => routes::too_large(declared, self.value_max),
                _ => entry::too_large(declared, self.value_max),
            },
            BodyFault::CutOff { received, declared } => {
                let of = declared.map(|declared| format!(" of {declared}")).unwrap_or_default();
                Problem::new(400, format!("Body cut off: {received}{of} bytes arrived; nothing was written"))
            }
            BodyFault::BadChunk => Problem::new(400, "Body is not chunked correctly; nothing was written"),
            BodyFault::NoMemory => {
                let fact = "Not enough memory for this body; try again later";
                Problem::busy(fact)
            }
            BodyFault::TooSlow => Problem::new(408, "Body too slow: send at least 1 KiB per second"),
        };
        request.ending.complete(problem.reply(ErrorFormat::of(&request.head)))
    }

    fn serve(&self, request: RoutedRequest, body: Vec<u8>, responder: Responder) {
        let RoutedRequest { head, route: Route::Later, ending } = request else {
            return self.serve_routed(request, body, responder);
        };
        let api = self.clone();
        self.let_pass_later(&Arc::clone(&head), move |passed| {
            let routed = passed.and_then(|()| api.route(&head, &api.auth.rules(), api.target(&head)?));
            match routed {
                Ok(route) => api.serve_routed(RoutedRequest { head, route, ending }, body, responder),
                Err(reply) => responder.respond(ending.complete(reply)),
            }
        });
    }
}

impl Api {
    fn serve_routed(&self, RoutedRequest { head, route, ending }: RoutedRequest, body: Vec<u8>, responder: Responder) {
        let sender = Sender::Untimed(responder, ending);
        match self.engine.store().shared() {
            None => self.run(head, route, body, Reads::Linearizable, sender),
            Some(shared) => self.serve_shared(shared, head, route, body, sender),
        }
    }

    fn run(&self, head: Arc<RequestHead>, route: Route, body: Vec<u8>, reads: Reads, sender: Sender) {
        let format = ErrorFormat::of(&head);
        match route {
            Route::Entry(route) => self.serve_entry(head, route, body, reads, format, sender),
            Route::Batch(route) => self.serve_batch(head, route, body, reads, sender),
            Route::Keys { listing, query } => {
                if let Err(problem) = keys::check_no_body(&listing, &body) {
                    return sender.send(problem.reply(format));
                }
                let (engine, in_flight) = (Arc::clone(&self.engine), Arc::clone(&self.listings));
                if Arc::strong_count(&in_flight) > keys::CONCURRENT_MAX + 1 {
                    return sender.send(keys::too_many(format));
                }
                let budget = self.budget;
                self.threads.run(move || {
                    let reply = keys::list(&engine, &listing, query, head, reads, budget, format);
                    // Before the response is sent: a client that reads slowly must not count as a listing in flight.
                    drop(in_flight);
                    sender.send(reply);
                });
            }
            Route::Watch { subscription, credential, query } => {
                let (engine, auth, encoded) = (&self.engine, &self.auth, &self.encoded);
                sender.send(watch::stream(engine, auth, encoded, subscription, credential, query, head));
            }
            // Waits until the revision is durable.
            Route::Export { since } => {
                let (engine, exports) = (Arc::clone(&self.engine), Arc::clone(&self.exports));
                let prefix = head.key_prefix().to_owned();
                self.threads.run(move || sender.send(export::begin(&engine, &exports, since, prefix, format)));
            }
            Route::Plugin(route) => {
                let (engine, auth, budget) = (Arc::clone(&self.engine), Arc::clone(&self.auth), self.budget);
                let is_large = body.len() > batch::LARGE;
                let call = routes::Call { engine, auth, head, route, body };
                let respond = move |reply| sender.send(reply);
                match route.updates {
                    false => self.routes.call(call, budget, Box::new(respond)),
                    true if is_large => self.large.run(move || call.update(budget, respond)),
                    true => call.update(budget, respond),
                }
            }
            // `serve` has found its route.
            Route::Later => sender.send(Response::internal_error()),
            // Waits while a reload replaces plugins, which the thread of an engine must not do.
            Route::Plugins => {
                let engine = Arc::clone(&self.engine);
                self.threads.run(move || sender.send(plugins::list(&engine)));
            }
            Route::Reload => {
                let reload = Arc::clone(&self.reload);
                self.threads.run(move || sender.send(plugins::reloaded(reload(), format)));
            }
        }
    }

    /// Runs an operation on one entry, on another thread if its value is large.
    fn serve_entry(
        &self,
        head: Arc<RequestHead>,
        EntryRoute { verb, touches, key, query, content_type, conditions, arrived, caching }: EntryRoute,
        value: Vec<u8>,
        reads: Reads,
        format: ErrorFormat,
        sender: Sender,
    ) {
        let checked =
            if touches { entry::check_no_value(&value) } else { check_value(verb, &value).map_err(Problem::from) };
        if let Err(problem) = checked {
            return sender.send(problem.reply(format));
        }
        let range = Range::of(&head);
        let (form, transforms) = (Form::Sent, Transforms::default());
        let (cause, states, client) = (Cause::Request, CallStates::default(), Arc::clone(&head));
        let request = Request {
            verb,
            key,
            value,
            content_type,
            query,
            conditions,
            arrived,
            depth: 0,
            cause,
            origin: head,
            states,
            guarded: GuardOutput::default(),
            form,
            reads,
            transforms,
        };
        let finish = move |done, added| {
            let (done, added) = (prefix::seen_outcome(&client, done), prefix::seen_headers(&client, added));
            sender.send(entry::reply(done, added, verb == Verb::Get, range, caching, format));
        };
        if touches {
            let engine = Arc::clone(&self.engine);
            self.large.run(move || engine.touch(request, finish));
        } else if request.value.len() <= batch::LARGE {
            self.engine.run(request, finish);
        } else {
            let engine = Arc::clone(&self.engine);
            self.large.run(move || engine.run(request, finish));
        }
    }
}

impl Origin for RequestHead {
    fn method(&self) -> &str {
        self.method.name()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name)
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.headers.at(index)
    }

    fn client(&self) -> &str {
        self.client_text()
    }

    fn token(&self) -> &str {
        self.token()
    }
}
