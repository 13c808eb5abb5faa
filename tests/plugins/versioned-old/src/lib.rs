#![forbid(unsafe_code)]
//! Version 1 of the plugin `versioned`, which adds its version to each response.

mod versioned;

use vkog_plugin_api::export_plugin;

use versioned::Versioned;

const VERSION: &str = "old";

export_plugin!(Versioned);
