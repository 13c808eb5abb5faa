#![forbid(unsafe_code)]
//! Logs what its hooks see, in the last stage of the chain.

#[path = "../../witness-first/src/witness.rs"]
mod witness;

use vkog_plugin_api::{Stage, export_plugin};

use witness::Witness;

const STAGE: Stage = Stage::Observe;

export_plugin!(Witness);
