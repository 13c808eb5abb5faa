//! Runs a plugin of VKOG under `cargo test`: in the server's engine, with a store in memory, without a server or a
//! socket.
//!
//! ```
//! use vkog_plugin_api::*;
//!
//! struct Short;
//!
//! impl Plugin for Short {
//!     type Settings = NoSettings;
//!
//!     fn create(_host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
//!         Ok(Short)
//!     }
//! }
//!
//! impl BeforePut for Short {
//!     fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
//!         if put.value().len() > 5 { Err(Refusal::new(413, "at most 5 bytes")) } else { Ok(()) }
//!     }
//! }
//!
//! export_plugin!(Short);
//!
//! # fn main() { a_value_over_5_bytes_is_refused() }
//! # /*
//! #[test]
//! # */
//! fn a_value_over_5_bytes_is_refused() {
//!     use vkog_plugin_testing::Setup;
//!
//!     let host = Setup::new().load::<Short>().start();
//!     host.put("a", "short").expect(200);
//!     host.put("a", "much too long").refused(413, "at most 5 bytes");
//!     host.get("a").expect(200).is("short");
//! }
//! ```
//!
//! Add it to the `[dev-dependencies]`. A crate that `vkog plugins new` generated has a copy in its folder `vendor`:
//!
//! ```toml
//! [dev-dependencies]
//! vkog-plugin-testing = { path = "vendor/vkog/plugin-api/testing" }
//! ```
//!
//! It needs Rust 1.89 or newer; the plugin itself needs 1.85.
//!
//! # How do I use it?
//!
//! 1. [`Setup`] collects the plugins, their settings and order, and the time at which the test starts.
//! 2. [`Setup::start`] returns a [`TestHost`], which takes requests: [`get`](TestHost::get), [`put`](TestHost::put),
//!    [`request`](TestHost::request), [`batch`](TestHost::batch), [`keys`](TestHost::keys), [`watch`](TestHost::watch), [`route`](TestHost::route).
//! 3. A [`Reply`] has assertions that can be chained. A failed assertion prints the request, the reply and the log.
//!
//! # What is the same as in a server?
//!
//! The hook chain, preconditions, batches, listings, watches, quarantine, store calls of plugins, details, metrics,
//! statuses and messages. The test host runs the same code.
//!
//! # What differs?
//!
//! | in a server | in a test |
//! |---|---|
//! | several hosts may share a store | [`TestHost::apply`] reports a change of another host, [`TestHost::set_leads`] sets whether this one leads |
//! | entries are in memory and on disk | entries are in memory; [`TestHost::fail_writes`] simulates a failed disk |
//! | hooks run on many threads; `Plugin::BLOCKS` selects the blocking pool | hooks run on the thread that sends the request; `BLOCKS` has no effect |
//! | each `tick` has a thread | [`TestHost::advance`] calls `tick` on the thread of the test |
//! | the clock runs | the clock stands still until [`TestHost::advance`] or [`TestHost::set_time`] |
//! | tokens, limits and headers such as `If-Match` are checked | they are not; use [`Request::if_revision`] for `If-Match` |
//! | routes have a deadline, a limit and permissions | they have none; store calls of a route may read and write all entries |
//! | the configuration sets `on_failure` and `budget` | they have their defaults: `refuse`, and no budget |
//! | the library is checked and loaded | the plugin is part of the test; load the library into a server once, too |

mod log;
mod reply;
mod request;
mod route;
mod setup;
mod test_host;

pub use reply::{BatchReply, Reply};
pub use request::{Change, Request, Watch};
pub use route::RouteRequest;
pub use setup::{Candidate, Setup, StartError};
pub use test_host::TestHost;

/// Makes a plugin that this crate does not export available to a [`Setup`], under a name that you choose. Use it to
/// test how plugins work together.
///
/// ```
/// # use vkog_plugin_api::*;
/// use vkog_plugin_testing::{Setup, plugin};
///
/// struct ReadOnly;
///
/// impl Plugin for ReadOnly {
///     type Settings = NoSettings;
///
///     fn create(_host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
///         Ok(ReadOnly)
///     }
/// }
///
/// impl GuardDelete for ReadOnly {
///     fn guard_delete(&self, _: &mut Guard<'_, Delete>) -> Verdict {
///         Err(Refusal::new(403, "nothing is removed here"))
///     }
/// }
///
/// let host = Setup::new().load_other(plugin!(ReadOnly, "read-only")).start();
/// host.post("a", "1").expect(200);
/// host.delete("a").refused(403, "nothing is removed").has("Vkog-Plugin", "read-only");
/// ```
#[macro_export]
macro_rules! plugin {
    ($plugin:ty, $name:literal $(,)?) => {
        $crate::Candidate::new($crate::vkog_plugin_api::export::module_with_backend::<$plugin>(
            $name,
            "0.0.0",
            true,
            &$crate::vkog_plugin_api::__hooks!($plugin),
            $crate::vkog_plugin_api::__routes!($plugin),
            $crate::vkog_plugin_api::__backend!($plugin),
        ))
    };
}

/// For the macro: the crate that uses it may have vkog-plugin-api under another name.
#[doc(hidden)]
pub use vkog_plugin_api;
