//! The plugins of a server: loads their libraries, calls their hooks in order, and replaces them while requests run (hot
//! reload). Knows nothing of HTTP or of the store.

#![allow(unsafe_code)]
#![deny(clippy::unwrap_used)]

mod chain;
mod chain_swap;
mod error;
mod glibc;
mod load;
mod preflight;
mod registry;
mod reload;
mod settings;
mod sha256;
mod ticker;
mod trust;

pub use chain::*;
pub use chain_swap::ChainGuard;
pub use error::{LoadError, LoadFault, Part, SKIPPED};
pub use glibc::GlibcVersion;
pub use load::{Library, Plugin, libraries, load, open};
pub use registry::{Registry, ReloadOutcome, ReloadReport, SharedScan, Source, unknown_in_order};
pub use settings::{
    HostSettings, SettingError, Settings, Table, is_called_after, is_no_plugin, is_pinned, is_required,
};
pub use sha256::{ParseSha256Error, Sha256};
pub use trust::{LIBRARY_MAX, VerifiedLibrary, check_folder};
pub use vkog_plugin_api::abi::Origin as Cause;
pub use vkog_plugin_api::backend;
pub use vkog_plugin_api::{Permission as RoutePermission, Verb};
