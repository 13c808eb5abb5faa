//! The black-box tests: start the program, speak HTTP, load libraries. A module a topic; `cargo test -p vkog-tests access::` runs
//! those of one.
//!
//! All of them are one program, so that it is linked once and they run side by side. A test must not change what belongs to
//! the whole process (its environment, its current directory), and one that measures, or that loads the machine so that
//! others would measure that, holds [`vkog_tests::exclusive`] meanwhile.

mod access;
mod asking;
mod authoring;
mod blocking;
mod browsers;
mod building;
mod chromium;
mod chunked;
mod clients;
mod command_line;
mod disk_trouble;
mod dist;
mod documents;
mod durability;
mod every_condition;
mod examples;
mod expiry;
mod frozen;
mod hostile;
mod hygiene;
mod keys;
mod limits;
mod lives;
mod loading;
mod log_reader;
mod memory;
mod memory_limit;
mod metrics;
mod openapi;
mod order;
mod ownership;
mod page;
mod plugin_files;
mod proxies;
mod quarantine;
mod ranges;
mod reference;
mod reload;
mod requests;
mod rows;
mod service;
mod statistics;
mod stopping;
mod store;
mod store_commands;
mod tls;
mod trust;
mod ttl;
mod watch;
mod watchers;

/// The tests in `both_engines/`, of servers that speak HTTP by hyper.
#[path = "both_engines"]
mod hyper {
    const ENGINE: &str = "hyper";

    mod accounting;
    mod bad_input;
    mod batch;
    mod client;
    mod connections;
    mod hooks;
    mod latency;
    mod panics;
    mod preconditions;
    mod races;
    mod refusals;
    mod table;
    mod values;
}

/// The tests in `both_engines/`, of servers that speak HTTP by tiny_http.
#[path = "both_engines"]
#[allow(clippy::duplicate_mod)] // The same tests for the other engine.
mod tiny {
    const ENGINE: &str = "tiny";

    mod accounting;
    mod bad_input;
    mod batch;
    mod client;
    mod connections;
    mod hooks;
    mod latency;
    mod panics;
    mod preconditions;
    mod races;
    mod refusals;
    mod table;
    mod values;
}
