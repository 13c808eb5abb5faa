#![forbid(unsafe_code)]
//! Logs the arguments of its hooks, from the first stage of the chain.

mod witness;

use vkog_plugin_api::{Stage, export_plugin};

use witness::Witness;

const STAGE: Stage = Stage::Access;

export_plugin!(Witness);
