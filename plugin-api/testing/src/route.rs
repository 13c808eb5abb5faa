//! Requests to the routes of plugins.

use std::sync::{Arc, Mutex, PoisonError};

use crate::log::logged;
use crate::reply::Reply;
use crate::request::{CLIENT, Client};
use crate::test_host::TestHost;
use vkog_engine::{Outcome, host_refusal};
use vkog_plugin_api::abi::Verb;
use vkog_plugin_host::{Origin, Refusal, RouteCall, RouteClient, RouteExchange, RouteHead};

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

    /// Sends the request and waits for the reply. The hook runs on this thread. Its store calls may read and write all
    /// entries.
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
        if found.route(method).is_none() {
            let mut reply = fail(405, "Method not allowed");
            reply.headers.push(("Allow".to_owned(), found.allow()));
            return reply;
        }
        let parameters = match found.parameters() {
            Ok(parameters) => parameters,
            Err(error) => return fail(400, &error.to_string()),
        };
        let response = Response { parts_max, state: Mutex::default() };
        let call = RouteCall {
            path: found.path,
            parameters: &parameters,
            query,
            content_type,
            body: &body,
            arrived: host.engine().revision(),
            origin: &*origin,
            client: Arc::new(Unrestricted { key_prefix }),
            exchange: &response,
        };
        let served = logged(&host.dispatch, || chain.serve(found.member, &call));
        let State { head, mut body, .. } = response.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (head, served) {
            (Some(RouteHead { status, headers }), _) => {
                if method == "HEAD" {
                    body.clear();
                }
                Reply::with_body(shown, status, headers, body, host.log())
            }
            (None, Err(refusal)) => Reply::new(shown, Outcome::Refused(refusal), Vec::new(), host.log()),
            (None, Ok(())) => unreachable!("a hook that returns has responded"),
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
