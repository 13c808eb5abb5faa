//! The harness of the black-box tests: builds the program and the plugins once, starts servers, speaks HTTP with them,
//! and makes libraries that are wrong on purpose. It imports nothing of the host.
//!
//! Every wait has a deadline ([`DEADLINE`]), every server a folder and a port of its own, and whatever fails prints the
//! request, the reply and the server's log.

mod admin;
mod amounts;
mod artefacts;
mod background;
mod barrier;
mod browser;
mod certificate;
mod client;
mod described;
mod descriptors;
mod faults;
mod frozen;
mod links;
mod process;
mod proxy;
mod server;
mod watching;
mod windows;
mod wire;

use std::time::Duration;

pub use admin::{TOKEN, administered, put_in_place};
pub use amounts::{amount, exclusive};
pub use artefacts::{Artefacts, artefacts, build, built, built_by_cargo, target_folder, workspace};
pub use background::with_background;
pub use barrier::Barrier;
pub use browser::{Browser, Tab};
pub use certificate::Certificate;
pub use client::{Client, Reply, Request, encode};
pub use described::description;
pub use descriptors::raise_descriptors;
pub use faults::{Faults, aborts, copy_out, damaged, faults, nowhere, rejected_plugin, small_plugin, written_plugin};
pub use frozen::{Frozen, frozen, frozen_1_2};
pub use links::{dead_links, markdown, prose};
pub use process::{Exit, Running};
pub use proxy::Proxy;
pub use server::{ENGINES, Server, Setup, bytes, conflict, only_ours, ttl};
pub use watching::{Event, Watching};
pub use windows::{as_library, on_windows, program};
pub use wire::Wire;

/// How long anything may take that should take moments. Long, because it only ends what hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The time in the middle of several; of an even number the later of two.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The bytes of a value that differs in every byte from its neighbours, so that no part can be mistaken for another.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) >> 3) as u8 ^ at as u8).collect()
}
