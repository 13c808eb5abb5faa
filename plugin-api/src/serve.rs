//! The hooks that serve requests to the routes of a plugin.

#![allow(unsafe_code)]

use crate::abi::{HookEntry, HookFn, Outcome, RawCall};
use crate::call::{Refusal, Verdict};
use crate::export::Probe;
use crate::hooks::{Plugin, enter};
use crate::http::{Route, RouteRequest, UpdateRequest};

/// Serves requests under `/x/NAME/`, where NAME is the plugin's name. The host checks the permission of the route and reads
/// the body before it calls the plugin.
///
/// It runs on a pool of threads for routes, with no lock held. It may block and may call the store; such calls have the
/// permissions of the client's token, and see the keys that the client sees. A request that gets no response within the
/// time that the host allows gets 504. For a route that only changes one entry, [`ServeUpdate`] is faster. Since 1.5.
///
/// ```
/// # use vkog_plugin_api::*;
/// # struct Mine { host: Host }
/// # impl Plugin for Mine { type Settings = NoSettings; fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { host }) } }
/// impl Serve for Mine {
///     const ROUTES: &'static [Route] =
///         &[Route::new("GET", "/length/{*key}", Permission::Read, "Return the length of a value in bytes.")];
///
///     fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
///         let found = self.host.get(request.parameter("key").unwrap_or_default())?;
///         let found = found.ok_or_else(|| Refusal::new(404, "Key not found"))?;
///         request.respond(200, "text/plain", found.value.len().to_string().as_bytes());
///         Ok(())
///     }
/// }
/// ```
pub trait Serve: Plugin {
    /// The routes. A host refuses to load a plugin with a malformed one.
    const ROUTES: &'static [Route];

    /// Called as [`Serve`] describes, for each request to one of the routes. A refusal is the response if the hook has not
    /// responded yet. A hook that returns `Ok` without a response sends 204.
    fn serve(&self, request: &RouteRequest<'_>) -> Verdict;
}

impl<P: Serve> Probe<P> {
    #[doc(hidden)]
    pub const SERVE: Option<HookEntry> = {
        unsafe extern "C" fn serve<P: Serve>(instance: *const (), call: &RawCall<'_>) -> Outcome {
            // SAFETY: as in `hooks!`.
            unsafe { enter(instance, call, |plugin: &P, request: &mut RouteRequest<'_>| plugin.serve(request)) }
        }
        Some(HookEntry { id: 22, flags: 0, hook: HookFn { call: serve::<P> } })
    };
    #[doc(hidden)]
    pub const ROUTES: &'static [Route] = P::ROUTES;
}

/// Serves requests that change one entry in one step, such as those of a counter: the host reads the entry, the plugin returns
/// the new value and the response, and the host writes the value and sends the response when the write is durable. No other
/// write of the entry comes between. Such a request costs about as much as a PUT, because it needs no thread.
///
/// The path of each route has the parameter `key`, which names the entry. The client's token must permit reading and writing
/// it. The write is a put that creates or replaces the entry, with the hooks of [a store call](crate::Host::ask) of this
/// plugin. The hooks of get are not called.
///
/// No lock is held. Thread and blocking: as [`BeforePut`](crate::BeforePut); for bodies and stored values over 64 KiB a thread that
/// may compute for long. Store calls are refused with 508. Since 1.5.
///
/// ```
/// # use vkog_plugin_api::*;
/// # struct Mine;
/// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
/// impl ServeUpdate for Mine {
///     const ROUTES: &'static [Route] =
///         &[Route::new("POST", "/append/{*key}", Permission::Write, "Append to a value, and return its length.")];
///
///     fn serve_update(&self, request: &UpdateRequest<'_>) -> Result<Vec<u8>, Refusal> {
///         let before = request.entry().map_or(&[][..], |entry| entry.value());
///         let value = [before, request.body()].concat();
///         request.respond(200, "text/plain", value.len().to_string().as_bytes());
///         Ok(value)
///     }
/// }
/// ```
pub trait ServeUpdate: Plugin {
    /// The routes. A host refuses to load a plugin with a malformed one.
    const ROUTES: &'static [Route];

    /// Called as [`ServeUpdate`] describes, for each request to one of the routes. Returns the new value, which must not be
    /// empty. Without a response, the host sends 204. A refusal is the response, and leaves the entry as it is.
    ///
    /// It is called again, up to 64 times, if the entry has changed before it could be written; then the client gets 409. Only
    /// the last call counts, so do not count calls. If the write cannot become durable, the client gets 503 or 507 instead of
    /// the response.
    fn serve_update(&self, request: &UpdateRequest<'_>) -> Result<Vec<u8>, Refusal>;
}

impl<P: ServeUpdate> Probe<P> {
    #[doc(hidden)]
    pub const SERVE_UPDATE: Option<HookEntry> = {
        unsafe extern "C" fn serve_update<P: ServeUpdate>(instance: *const (), call: &RawCall<'_>) -> Outcome {
            let update = |plugin: &P, request: &mut UpdateRequest<'_>| -> Verdict {
                request.write(&plugin.serve_update(request)?);
                Ok(())
            };
            // SAFETY: as in `hooks!`.
            unsafe { enter(instance, call, update) }
        }
        Some(HookEntry { id: 23, flags: 0, hook: HookFn { call: serve_update::<P> } })
    };
    #[doc(hidden)]
    pub const UPDATE_ROUTES: &'static [Route] = P::ROUTES;
}
