//! The VKOG key-value server. A library for its own program, tests and benchmarks only: nothing of it is promised to
//! others. Plugins are written against `vkog-plugin-api`.

#![deny(clippy::unwrap_used)]

pub mod any_store;
pub mod api;
pub mod cli;
pub mod commands;
pub mod config;
pub mod failure;
pub mod http;
pub mod listen;
pub mod logging;
pub mod members;
pub mod progress;
pub mod schema;
pub mod sd_notify;
pub mod serve;
pub mod shared_store;
pub mod signals;
pub mod suggest;
pub mod urls;
