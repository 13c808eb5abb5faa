//! Several hosts on one etcd cluster: what clients of all of them see together, while hosts and members fail.

mod client;
mod cluster;
mod history;
mod limits;
mod linearizability;
mod members;
mod plugins;
mod watching;
