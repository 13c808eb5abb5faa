//! Plugins: opened, checked, ordered, called. Knows nothing of HTTP or of the store; the only unsafe code of the host.

mod call;
mod chain;
mod details;
mod error;
mod load;
mod preflight;

pub use call::{Origin, Seen, Subject};
pub use chain::{Chain, Refusal};
pub use error::{LoadError, LoadFault};
pub use load::{Library, Plugin, Settings, libraries, load};
pub use vkog_plugin_api::Verb;
