//! Plugins: opened, checked, taken in and exchanged. Knows nothing of HTTP or of the store; the only unsafe code of the
//! host. How they are ordered and called is in `vkog_plugin_host`, so that a plugin's own tests run in the same chain.

mod error;
mod exchange;
mod gate;
mod load;
mod preflight;
mod registry;
mod terms;
mod ticker;
mod trust;

pub use error::{LoadError, LoadFault, Part};
pub use gate::Entered;
pub use load::{Library, Plugin, libraries, load};
pub use registry::{Outcome, Registry, SharedScan, Source, Taken, unknown_in_order};
pub use terms::{Settings, Table, Terms, is_required};
pub use vkog_plugin_host::*;
