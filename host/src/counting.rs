//! Numbers that many threads count up and record. plugin-api has them for its chain.

pub use vkog_plugin_api::chain::{Counts, Histogram};
