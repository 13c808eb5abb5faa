//! A plugin in `cargo test`: the server's engine with a store in memory, without a server and without a socket.
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
//! It belongs under `[dev-dependencies]`:
//!
//! ```toml
//! [dev-dependencies]
//! vkog-plugin-testing = { path = "../vkog/plugin-api/testing" }
//! ```
//!
//! A [`TestHost`] runs the code of the server: the chain of plugins, conditions, batches, listings, watches, quarantine, and
//! the requests that plugins make. It differs in three ways: entries live in memory; hooks run on the thread of the test,
//! unless a plugin starts threads of its own; and time stands still until [`TestHost::advance`] or [`TestHost::set_time`].

mod log;
mod reply;
mod request;
mod setup;
mod test_host;

pub use reply::{BatchReply, Reply};
pub use request::{Change, Request, Watch};
pub use setup::{Candidate, Setup, StartError};
pub use test_host::TestHost;

/// A plugin that this crate does not export, under a name of its own: one more for a [`Setup`], to test how plugins work
/// together.
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
        $crate::Candidate::new($crate::vkog_plugin_api::export::module::<$plugin>(
            $name,
            "0.0.0",
            true,
            &$crate::vkog_plugin_api::__hooks!($plugin),
        ))
    };
}

/// For the macro, whose user may know this crate by another name.
#[doc(hidden)]
pub use vkog_plugin_api;
