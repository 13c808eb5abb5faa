//! The hook that serves requests to the routes of a plugin.

#![allow(unsafe_code)]

use crate::abi::{HookEntry, HookFn, Outcome, RawCall};
use crate::call::Verdict;
use crate::export::Probe;
use crate::hooks::{Plugin, enter};
use crate::http::{Route, RouteRequest};

/// Serves requests under `/x/NAME/`, where NAME is the plugin's name. The host checks the permission of the route and reads
/// the body before it calls the plugin.
///
/// It runs on a pool of threads for routes, with no lock held. It may block and may call the store; such calls have the
/// permissions of the client's token, and see the keys that the client sees. A request that gets no response within the
/// time that the host allows gets 504. Since 1.5.
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
