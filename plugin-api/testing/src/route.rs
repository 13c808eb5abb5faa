//! Requests to the routes of plugins.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use crate::log::logged;
use crate::reply::Reply;
use crate::request::{CLIENT, Client};
use crate::test_host::TestHost;
use vkog_engine::{Outcome, host_refusal};
use vkog_plugin_api::abi::Verb;
use vkog_plugin_host::{Chain, EntryView, Member, Origin, Refusal, RouteCall, RouteClient, RouteExchange, RouteHead};

impl TestHost {
    /// Builds a request to a route of a plugin: `/x/PLUGIN/PATH?QUERY`. [`RouteRequest::send`] sends it.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// use vkog_plugin_testing::{Setup, plugin};
    ///
    /// # struct Hello;
    /// # impl Plugin for Hello { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Hello) } }
    /// impl Serve for Hello {
    ///     const ROUTES: &'static [Route] = &[Route::new("GET", "/{name}", Permission::None, "Greet.")];
    ///
    ///     fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
    ///         let name = request.parameter("name").unwrap_or_default();
    ///         request.respond(200, "text/plain", format!("hello {name}").as_bytes());
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let host = Setup::new().load_other(plugin!(Hello, "hello")).start();
    /// host.route("GET", "/x/hello/w%C3%B6rld").send().expect(200).is("hello wörld");
    /// host.route("GET", "/x/hello/").send().expect(404);
    /// host.route("PUT", "/x/hello/world").send().expect(405).has("Allow", "GET, HEAD, OPTIONS");
    /// ```
    pub fn route<'a>(&'a self, method: &'a str, path: &'a str) -> RouteRequest<'a> {
        let token = self.token.lock().clone();
        let client = Client { method: "", headers: Vec::new(), address: CLIENT.to_owned(), token };
        RouteRequest { host: self, method, path, content_type: "", body: Vec::new(), client, parts_max: usize::MAX }
    }
}

/// A request to a route in preparation: [`TestHost::route`].
pub struct RouteRequest<'a> {
    host: &'a TestHost,
    method: &'a str,
    path: &'a str,
    content_type: &'a str,
    body: Vec<u8>,
    client: Client,
    parts_max: usize,
}

impl<'a> RouteRequest<'a> {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.client.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// Sets the media type of the body, and the header `Content-Type`. The default is none.
    pub fn content_type(mut self, content_type: &'a str) -> Self {
        self.content_type = content_type;
        self.header("Content-Type", content_type)
    }

    /// Sets the client's address, `ip:port`. The default is `127.0.0.1:50000`.
    pub fn client(mut self, address: &str) -> Self {
        address.clone_into(&mut self.client.address);
        self
    }

    /// Lets the client leave after this number of parts of a streamed body: further calls of `send` return `false`.
    pub fn leave_after(mut self, parts: usize) -> Self {
        self.parts_max = parts;
        self
    }

    /// Sends the request and waits for the reply. The hook runs on this thread, and so do those of the entry that it updates.
    /// Its store calls may read and write all entries.
    pub fn send(self) -> Reply {
        let Self { host, method, path, content_type, body, client, parts_max } = self;
        let shown = format!("{method} {path} {:?}, {} bytes", client.headers, body.len());
        let fail = |status, text: &str| {
            let refusal = Outcome::Refused(host_refusal(status, text));
            Reply::new(shown.clone(), refusal, Vec::new(), host.log())
        };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let origin: Arc<dyn Origin> = Arc::new(RouteOrigin { client, method: method.to_owned() });
        let key_prefix = match host.before_request(path, query, &origin) {
            Ok(prefix) => prefix,
            Err(refusal) => return Reply::new(shown, Outcome::Refused(refusal), Vec::new(), host.log()),
        };
        let chain = host.engine().plugins().chain();
        let Some(found) = path.strip_prefix("/x/").and_then(|path| chain.routes_at(path)) else {
            return fail(404, "No plugin serves this path");
        };
        let Some(&route) = found.route(method) else {
            let mut reply = fail(405, "Method not allowed");
            reply.headers.push(("Allow".to_owned(), found.allow()));
            return reply;
        };
        let parameters = match found.parameters() {
            Ok(parameters) => parameters,
            Err(error) => return fail(400, &error.to_string()),
        };
        let path = found.path.to_owned();
        let sent =
            Sent { path, parameters, query: query.to_owned(), content_type: content_type.to_owned(), body, origin };
        let (member, arrived) = (Arc::clone(found.member), host.engine().revision());
        let served = logged(&host.dispatch, || match route.updates {
            true => sent.update(host, &member, &key_prefix, arrived),
            false => {
                let response = Response::new(parts_max);
                let client = Arc::new(Unrestricted { key_prefix });
                let served = chain.serve(&member, client, &sent.call(arrived, &response));
                // A response that has begun before the hook failed is sent.
                response.sent().ok_or_else(|| served.map_or_else(Outcome::Refused, |()| Outcome::Absent))
            }
        });
        match served {
            Ok((RouteHead { status, headers }, body)) => {
                let body = if method == "HEAD" { Vec::new() } else { body };
                Reply::with_body(shown, status, headers, body, host.log())
            }
            Err(outcome) => Reply::new(shown, outcome, Vec::new(), host.log()),
        }
    }
}

/// A request to a route, as the plugin gets it.
struct Sent {
    path: String,
    parameters: Vec<(String, String)>,
    query: String,
    content_type: String,
    body: Vec<u8>,
    origin: Arc<dyn Origin>,
}

impl Sent {
    /// Lets the plugin update the entry that the path names.
    fn update(
        self,
        host: &TestHost,
        member: &Arc<Member>,
        key_prefix: &str,
        arrived: u64,
    ) -> Result<(RouteHead, Vec<u8>), Outcome> {
        let key = self.parameters.iter().find(|(name, _)| name == "key").map_or("", |(_, key)| key);
        let key = format!("{key_prefix}{key}");
        let (own, (send, done)) = (Arc::clone(member), channel());
        let value_of = move |chain: &Arc<Chain>, entry: Option<EntryView<'_>>| {
            let response = Response::new(0);
            let value = chain.serve_update(&own, &self.call(arrived, &response), entry)?;
            Ok((value, response.sent()))
        };
        let chain = host.engine().plugins().acquire_blocking();
        host.engine().update_entry(chain, member, key, value_of, move |done| _ = send.send(done));
        // The host has panicked if nothing comes.
        let done = done.recv().unwrap_or(Ok(None))?;
        done.ok_or_else(|| Outcome::Refused(host_refusal(500, "Internal error")))
    }

    fn call<'a>(&'a self, arrived: u64, exchange: &'a dyn RouteExchange) -> RouteCall<'a> {
        RouteCall {
            path: &self.path,
            parameters: &self.parameters,
            query: &self.query,
            content_type: &self.content_type,
            body: &self.body,
            arrived,
            origin: &*self.origin,
            exchange,
        }
    }
}

/// The response that a hook has sent.
struct Response {
    parts_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    head: Option<RouteHead>,
    body: Vec<u8>,
    parts: usize,
    is_open: bool,
}

impl Response {
    fn new(parts_max: usize) -> Self {
        Self { parts_max, state: Mutex::default() }
    }

    /// Returns the head and the body, if the hook has responded.
    fn sent(self) -> Option<(RouteHead, Vec<u8>)> {
        let State { head, body, .. } = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        head.map(|head| (head, body))
    }
}

impl RouteExchange for Response {
    fn respond(&self, head: RouteHead, body: &[u8], more: bool) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.head.is_some() {
            return false;
        }
        (state.head, state.is_open) = (Some(head), more);
        state.body.extend_from_slice(body);
        true
    }

    fn send(&self, part: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.is_open || state.parts == self.parts_max {
            return false;
        }
        state.parts += 1;
        state.body.extend_from_slice(part);
        true
    }
}

/// A client with all permissions.
struct Unrestricted {
    key_prefix: String,
}

impl RouteClient for Unrestricted {
    fn may(&self, _: Verb, _: &str) -> Result<(), Refusal> {
        Ok(())
    }

    fn may_read(&self, _: &str) -> bool {
        true
    }

    fn key_prefix(&self) -> &str {
        &self.key_prefix
    }
}

/// The client of a request, with the method.
struct RouteOrigin {
    client: Client,
    method: String,
}

impl Origin for RouteOrigin {
    fn method(&self) -> &str {
        &self.method
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.client.header(name)
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.client.header_at(index)
    }

    fn client(&self) -> &str {
        self.client.client()
    }

    fn token(&self) -> &str {
        self.client.token()
    }
}
