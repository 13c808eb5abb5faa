//! The plugin against real etcd. Each test starts its own members on free ports of loopback; without etcd, it is skipped.
//! [`recorder::Recorder`] stands for the host.

#![cfg(unix)]

mod direct;
mod failures;
mod limits;
mod members;
mod proxy;
mod recorder;
mod security;
mod speed;
mod writes;
