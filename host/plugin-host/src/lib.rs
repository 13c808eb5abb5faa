//! Plugins in the host: their order, and how their hooks are called. Knows nothing of HTTP or of the store.

mod chain;

pub use chain::*;
pub use vkog_plugin_api::Verb;
