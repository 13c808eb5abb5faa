#![forbid(unsafe_code)]
//! Adds the version of the plugin `versioned` to each response: this is the second. Its crate has another name, but a
//! plugin's name is without `vkog-`.

#[path = "../../versioned-old/src/versioned.rs"]
mod versioned;

use vkog_plugin_api::export_plugin;

use versioned::Versioned;

const VERSION: &str = "new";

export_plugin!(Versioned);
