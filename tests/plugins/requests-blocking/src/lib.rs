#![forbid(unsafe_code)]
//! Does with each HTTP request what its headers say, on the blocking pool.

#[path = "../../requests/src/requests.rs"]
mod requests;

use vkog_plugin_api::export_plugin;

use requests::Requests;

const BLOCKS: bool = true;

export_plugin!(Requests, required: [before_request]);
