#![forbid(unsafe_code)]
//! Does with each HTTP request what its headers say, on the thread of the HTTP engine.

mod requests;

use vkog_plugin_api::export_plugin;

use requests::Requests;

const BLOCKS: bool = false;

export_plugin!(Requests, required: [before_request]);
