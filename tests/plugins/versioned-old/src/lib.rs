#![forbid(unsafe_code)]
//! Adds the version of the plugin `versioned` to each response: this is the first.

mod versioned;

use vkog_plugin_api::export_plugin;

use versioned::Versioned;

const VERSION: &str = "old";

export_plugin!(Versioned);
