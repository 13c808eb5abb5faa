//! The VKOG key-value server. A library for its own program, tests and benchmarks only: nothing of it is promised to
//! others. Plugins are written against `vkog-plugin-api`.

pub mod api;
pub mod cli;
pub mod commands;
pub mod config;
pub mod http;
pub mod listen;
pub mod logging;
pub mod notify;
pub mod ops;
pub mod progress;
pub mod serve;
pub mod signals;
