#![forbid(unsafe_code)]
//! Version 2 of the plugin `versioned`, which adds its version to each response. Its crate has another name, but the name of a
//! plugin does not include `vkog-`.

#[path = "../../versioned-old/src/versioned.rs"]
mod versioned;

use vkog_plugin_api::export_plugin;

use versioned::Versioned;

const VERSION: &str = "new";

export_plugin!(Versioned);
