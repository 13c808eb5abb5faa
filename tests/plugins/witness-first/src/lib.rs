#![forbid(unsafe_code)]
//! Tells what its hooks are shown, from the first stage of the chain.

mod witness;

use vkog_plugin_api::{Stage, export_plugin};

use witness::Witness;

const STAGE: Stage = Stage::Access;

export_plugin!(Witness);
