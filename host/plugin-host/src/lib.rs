//! The plugins of a server: loads their libraries, calls their hooks in order, and replaces them while requests run (hot
//! reload). Knows nothing of HTTP or of the store.

mod chain;
mod error;
mod exchange;
mod gate;
mod load;
mod preflight;
mod registry;
mod sha256;
mod terms;
mod ticker;
mod trust;

pub use chain::*;
pub use error::{LoadError, LoadFault, Part};
pub use gate::Entered;
pub use load::{Library, Plugin, libraries, load};
pub use registry::{Outcome, Registry, SharedScan, Source, Taken, unknown_in_order};
pub use sha256::Sha256;
pub use terms::{Settings, Table, Terms, is_required};
pub use vkog_plugin_api::Verb;
