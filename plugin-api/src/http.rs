//! Whole HTTP requests: what a plugin sees of each of them, and the routes that it serves.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::net::IpAddr;

use crate::abi::RawRoute;
use crate::call::{Entry, Request, View};

/// The permission of an access token that a route needs. Since 1.5.
#[repr(u32)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// None: also clients without a token.
    None = 0,
    /// Reading entries.
    Read = 1,
    /// Writing entries.
    Write = 2,
    /// Administration.
    Admin = 3,
}

/// A route that a plugin serves. Since 1.5.
#[derive(Copy, Clone, Debug)]
pub struct Route {
    method: &'static str,
    path: &'static str,
    permission: Permission,
    summary: &'static str,
    /// [`RawRoute::flags`].
    flags: u32,
}

impl Route {
    /// Creates a route. The path is below `/x/NAME`, begins with a slash, and may have parameters: `{name}` stands for one
    /// segment, `{*name}` at the end for the rest. The summary is one sentence for the description of the HTTP API.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// const ADD: Route = Route::new("POST", "/{*key}", Permission::Write, "Add to a counter.");
    /// ```
    pub const fn new(method: &'static str, path: &'static str, permission: Permission, summary: &'static str) -> Self {
        Self { method, path, permission, summary, flags: 0 }
    }

    /// Returns the route as one that [`ServeUpdate`](crate::ServeUpdate) serves.
    pub(crate) fn updating(&self) -> Self {
        Self { flags: RawRoute::UPDATES, ..*self }
    }

    pub(crate) fn raw(&self) -> RawRoute {
        RawRoute {
            method: self.method.into(),
            path: self.path.into(),
            summary: self.summary.into(),
            permission: self.permission as u32,
            flags: self.flags,
            reserved: [0; 2],
        }
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        pub struct $name<'a> {
            request: Request<'a>,
        }

        impl<'a> View<'a> for $name<'a> {
            fn new(request: Request<'a>) -> Self {
                Self { request }
            }
        }

        impl<'a> $name<'a> {
            /// Returns the HTTP method, in capital letters. A HEAD request has `HEAD`, also on a route of GET.
            pub fn method(&self) -> &'a str {
                // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it. So does the result.
                self.request.api.method().map_or("", |method| unsafe { method(self.request.call.cx) }.as_str())
            }

            /// Returns the query, without the question mark and still percent-encoded; empty if there is none.
            pub fn query(&self) -> &'a str {
                self.request.query()
            }

            /// Returns a parameter of the query, decoded as form data, as [`Request::query_parameter`] does: `None` if there is
            /// none, and empty if it has no value.
            ///
            /// # Errors
            ///
            /// 400 if the parameter is repeated, or is not percent-encoded UTF-8.
            pub fn query_parameter(&self, name: &str) -> Result<Option<Cow<'a, str>>, crate::Refusal> {
                self.request.query_parameter(name)
            }

            /// Returns the value of the first header with this name. The case of the name does not matter.
            pub fn header(&self, name: &str) -> Option<&'a [u8]> {
                self.request.header(name)
            }

            /// Returns all headers, name and value, in the order in which the client sent them.
            pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
                self.request.headers()
            }

            /// Returns the client's address, as [`Request::client`] does.
            pub fn client(&self) -> &'a str {
                self.request.client()
            }

            /// Returns the client's IP address, as [`Request::client_ip`] does.
            pub fn client_ip(&self) -> Option<IpAddr> {
                self.request.client_ip()
            }

            /// Returns the name of the access token, as [`Request::token`] does.
            pub fn token(&self) -> Option<&'a str> {
                self.request.token()
            }
        }
    )*};
}
requests! {
    /// The argument of [`BeforeRequest`](crate::BeforeRequest): an HTTP request of which nothing was run. Since 1.5.
    HttpRequest
    /// The argument of [`Serve`](crate::Serve): a request to a route of the plugin. Since 1.5.
    RouteRequest
    /// The argument of [`ServeUpdate`](crate::ServeUpdate): a request to a route that updates an entry, and that entry. Since
    /// 1.5.
    UpdateRequest
}

impl<'a> HttpRequest<'a> {
    /// Returns the path, as the client sent it.
    pub fn path(&self) -> &'a str {
        self.request.key()
    }

    /// Puts this prefix before all keys of the request, and takes it from all keys of the response: the client reads and
    /// writes, lists, counts, watches and deletes only entries whose keys begin with it, and does not learn the prefix.
    /// Hooks see whole keys. Access tokens permit or forbid whole keys. Store calls of routes get it as well. If several
    /// plugins set a prefix, that of the first one comes first. The maximum length of all together is 512 bytes; beyond it, the
    /// host refuses the request with 500.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn separate(request: &mut HttpRequest<'_>) -> Verdict {
    ///     let token = request.token().ok_or_else(|| Refusal::new(401, "a token is needed"))?;
    ///     request.set_key_prefix(&format!("{token}/"));
    ///     Ok(())
    /// }
    /// ```
    pub fn set_key_prefix(&mut self, prefix: &str) {
        if let Some(set) = self.request.api.set_key_prefix() {
            // SAFETY: as in `method`.
            unsafe { set(self.request.call.cx, prefix.into()) }
        }
    }
}

macro_rules! route_requests {
    ($($name:ident)*) => {$(
        impl<'a> $name<'a> {
            /// Returns the path behind `/x/NAME`, as the client sent it.
            pub fn path(&self) -> &'a str {
                self.request.key()
            }

            /// Returns a parameter of the route's path, percent-decoded.
            pub fn parameter(&self, name: &str) -> Option<&'a str> {
                // SAFETY: as in `method`.
                let parameter = unsafe { self.request.api.parameter()?(self.request.call.cx, name.into()) };
                parameter.into_option().map(|parameter| parameter.as_str())
            }

            /// Returns the body: at most as long as the host allows values to be.
            pub fn body(&self) -> &'a [u8] {
                self.request.value()
            }

            /// Returns the media type of the body; empty if the client sends none.
            pub fn content_type(&self) -> &'a str {
                self.request.content_type()
            }

            /// Adds a header to the response. Call it before the response. The host drops a header that is malformed or that
            /// belongs to the host, and logs a warning.
            pub fn add_header(&self, name: &str, value: &str) {
                // SAFETY: as in `method`.
                unsafe { self.request.api.refusal_header()(self.request.call.cx, name.into(), value.into()) }
            }

            fn begin(&self, status: u16, content_type: &str, body: &[u8], more: bool) -> bool {
                let respond = self.request.api.respond();
                respond.is_some_and(|respond| {
                    // SAFETY: as in `method`.
                    unsafe { respond(self.request.call.cx, status.into(), content_type.into(), body.into(), more) }
                })
            }
        }
    )*};
}
route_requests!(RouteRequest UpdateRequest);

impl RouteRequest<'_> {
    /// Sets the response: a status from 200 to 599, a media type and a body. The host sends it when the hook returns, or when the
    /// time for the response is over. Further responses are ignored.
    pub fn respond(&self, status: u16, content_type: &str, body: &[u8]) {
        self.begin(status, content_type, body, false);
    }

    /// Begins a response whose body [`send`](Self::send) adds, part by part, and which ends when the hook returns. If the hook
    /// refuses or panics after that, the client sees a body that was cut off. Returns whether the client still reads.
    pub fn start(&self, status: u16, content_type: &str) -> bool {
        self.begin(status, content_type, &[], true)
    }

    /// Sends a part of the body. Blocks while the client does not read. Returns whether it still reads; if not, return from
    /// the hook.
    pub fn send(&self, part: &[u8]) -> bool {
        // SAFETY: as in `method`.
        self.request.api.send_part().is_some_and(|send| unsafe { send(self.request.call.cx, part.into()) })
    }
}

impl<'a> UpdateRequest<'a> {
    /// Returns the key of the entry: the parameter `key`. The client does not see a [key prefix](HttpRequest::set_key_prefix),
    /// and neither does this.
    pub fn key(&self) -> &'a str {
        self.parameter("key").unwrap_or_default()
    }

    /// Returns the current entry, or `None` if the key is absent. Its value is as it was sent, also if plugins have
    /// [transformed](crate::ReadGet) it.
    pub fn entry(&self) -> Option<Entry<'a>> {
        self.request.call.before.map(|raw| Entry { raw })
    }

    /// Sets the media type of the value to write: a type and a subtype, with parameters or without. The default is
    /// `application/octet-stream`. The host refuses the request with 500 if it is malformed.
    pub fn set_value_type(&self, content_type: &str) {
        if let Some(replace) = self.request.api.replace_content_type() {
            // SAFETY: as in `method`.
            unsafe { replace(self.request.call.cx, content_type.into()) }
        }
    }

    /// Sets the response: a status from 200 to 599, a media type and a body. The host sends it when the write is durable.
    /// Further responses of the same call are ignored.
    pub fn respond(&self, status: u16, content_type: &str, body: &[u8]) {
        self.begin(status, content_type, body, false);
    }

    pub(crate) fn write(&self, value: &[u8]) {
        // SAFETY: as in `method`.
        unsafe { self.request.api.replace_value()(self.request.call.cx, value.into()) }
    }
}
