#![forbid(unsafe_code)]
//! Tells with each answer which version of the plugin `versioned` runs: this is the first.

mod versioned;

use vkog_plugin_api::export_plugin;

use versioned::Versioned;

const VERSION: &str = "old";

export_plugin!(Versioned);
