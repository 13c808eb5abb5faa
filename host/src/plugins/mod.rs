//! Plugins: opened, checked, ordered, called. Knows nothing of HTTP or of the store; the only unsafe code of the host.

mod call;
mod chain;
mod details;
mod error;
mod load;
mod preflight;
mod terms;
mod trust;

pub use call::{Origin, Seen, Subject};
pub use chain::{Chain, Refusal};
pub use error::{LoadError, LoadFault, Part};
pub use load::{Library, Plugin, libraries, load};
pub use terms::{OnFailure, Settings, Table, Terms, is_required};
pub use trust::Sha256;
pub use vkog_plugin_api::Verb;
