//! The harness of the black-box tests: builds the program and the plugins once, starts servers, sends HTTP requests,
//! and makes libraries with deliberate faults. It imports nothing of the host.
//!
//! Every wait has a deadline ([`DEADLINE`]), every server its own folder and port. A failed assertion prints the
//! request, the response and the server's log.

mod admin;
mod amounts;
mod answering;
mod artefacts;
mod background;
mod barrier;
mod browser;
mod certificate;
mod client;
mod described;
mod descriptors;
mod etcd;
mod faults;
mod frozen;
mod http2;
mod links;
mod network;
#[cfg(target_os = "linux")]
mod paused;
mod process;
mod proxy;
mod random;
mod revisions;
mod server;
#[cfg(unix)]
mod terminal;
mod watching;
mod windows;
mod wire;

use std::time::{Duration, Instant};

pub use admin::{TOKEN, administered, put_in_place};
pub use amounts::{amount, exclusive};
pub use answering::{always_answering, answer, answering};
pub use artefacts::{Artefacts, artefacts, build, built, built_by_cargo, etcd_plugin, target_folder, workspace};
pub use background::with_background;
pub use barrier::Barrier;
pub use browser::{Browser, Tab};
pub use certificate::{Authority, Certificate, ClientCertificate};
pub use client::{Client, Reply, Request, encode};
pub use described::description;
pub use descriptors::raise_descriptors;
pub use etcd::{Etcd, free_port};
pub use faults::{Faults, aborts, copy_out, damaged, faults, nowhere, rejected_plugin, small_plugin, written_plugin};
pub use frozen::{Frozen, frozen, frozen_1_2};
pub use http2::{
    Exchange, Frame, HTTP2_START, Http2, connect_raw, frame, get_frame, next_piece, put_frame, read_frame,
};
pub use links::{dead_links, dead_links_of_site, markdown, prose};
pub use network::Network;
#[cfg(target_os = "linux")]
pub use paused::Paused;
pub use process::{Exit, Running};
pub use proxy::Proxy;
pub use random::Random;
pub use revisions::{assert_one_step, assert_successive, guard_runs};
pub use server::{ENGINES, Server, Setup, bytes, conflict, on_etcd, only_ours, ttl};
#[cfg(unix)]
pub use terminal::on_terminal;
pub use watching::{Event, Watching};
pub use windows::{as_library, on_windows, program};
pub use wire::Wire;

/// The timeout of every wait. It is long, because it only ends tests that hang.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until a condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the median of several times; of an even number the later of the two in the middle.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Returns a value in which neighbouring bytes differ, so that its parts cannot be confused.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) >> 3) as u8 ^ at as u8).collect()
}
