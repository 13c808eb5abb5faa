//! A plugin in `cargo test`: the real chain around a store in memory, without a server and without a socket.
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
//!     let bench = Setup::new().load::<Short>().start();
//!     bench.put("a", "short").expect(200);
//!     bench.put("a", "much too long").refused(413, "at most 5 bytes");
//!     bench.get("a").expect(200).is("short");
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
//! What is the same as in a server: the order of plugins, the phases, the lock that a guard runs under, undo, details,
//! panics and quarantine, and what plugins ask of the store. What is not: entries live in memory, nothing happens on
//! another thread unless the test or the plugin makes one, and time stands still until [`Bench::advance`] or
//! [`Bench::set_time`].

mod bench;
mod log;
mod store;

pub use bench::{Bench, Candidate, Reply, Request, Setup};

/// A plugin that this crate does not export, under a name of its own: one more for a [`Setup`], to have something to get
/// along with.
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
/// let bench = Setup::new().load_other(plugin!(ReadOnly, "read-only")).start();
/// bench.post("a", "1").expect(200);
/// bench.delete("a").refused(403, "nothing is removed").has("Vkog-Plugin", "read-only");
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
