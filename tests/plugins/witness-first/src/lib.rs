#![forbid(unsafe_code)]
//! Logs what its hooks see, in the first stage of the chain.

mod witness;

use vkog_plugin_api::{Stage, export_plugin};

use witness::Witness;

const STAGE: Stage = Stage::Access;

export_plugin!(Witness);
