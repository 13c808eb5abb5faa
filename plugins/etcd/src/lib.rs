//! Many VKOG hosts on one etcd cluster, by etcd's v3 API.

#![forbid(unsafe_code)]

pub mod api;
mod alive;
mod backend;
mod client;
mod commit;
mod confirm;
mod feed;
mod keys;
mod node;
mod proto;
mod session;
mod settings;
mod sink;
mod watch;
mod write;

pub use backend::EtcdStore;
pub use settings::{Settings, SettingsError};
pub use sink::Sink;
