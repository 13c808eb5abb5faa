//! The black-box tests: they start the program, send HTTP requests, and load libraries. One module per topic; `cargo
//! test -p vkog-tests access::` runs the tests of one.
//!
//! All modules are one program, so that it is linked once and the tests run in parallel. A test must not change the
//! environment or the current directory of the process. A test that measures, or that loads the machine so much that
//! others would measure it, holds [`vkog_tests::exclusive`].

mod access;
mod asking;
mod authoring;
mod blocking;
mod browsers;
mod building;
mod chromium;
mod chunked;
mod client_certificates;
mod clients;
mod command_line;
mod deployment;
mod disk_trouble;
mod dist;
mod documents;
mod durability;
mod every_condition;
mod examples;
mod exit_statuses;
mod expiry;
mod frozen;
mod generated_clients;
mod go_files;
mod health;
mod hostile;
mod http2;
mod hygiene;
mod keys;
mod limits;
mod lives;
mod loading;
mod log_reader;
mod memory;
mod memory_accounting;
mod memory_limit;
mod metrics;
mod name_index;
mod openapi;
mod order;
mod ownership;
mod packages;
mod page;
mod plugin_commands;
mod plugin_files;
mod plugin_model;
mod proxies;
mod quarantine;
mod ranges;
mod reference;
mod reload;
mod requests;
mod rows;
mod service;
mod shell;
mod statistics;
mod stopping;
mod store;
mod store_commands;
mod timelines;
mod tls;
mod top;
mod trust;
mod ttl;
mod unfinished_files;
mod watch;
mod watchers;
mod wording;

/// The tests in `both_engines/`, of servers that speak HTTP by hyper.
#[path = "both_engines"]
mod hyper {
    const ENGINE: &str = "hyper";

    mod accounting;
    mod backup;
    mod bad_input;
    mod batch;
    mod before_request;
    mod caching;
    mod client;
    mod codings;
    mod connections;
    mod cors;
    mod counters;
    mod delete_prefix;
    mod evicting;
    mod expiring;
    mod hooks;
    mod index;
    mod key_prefix;
    mod latency;
    mod listening;
    mod panics;
    mod preconditions;
    mod queries;
    mod races;
    mod refusals;
    mod route_attacks;
    mod routes;
    mod starting;
    mod table;
    mod tickets;
    mod transforms;
    mod values;
}

/// The tests in `both_engines/`, of servers that speak HTTP by tiny_http.
#[path = "both_engines"]
#[allow(clippy::duplicate_mod)] // The same tests for the other engine.
mod tiny {
    const ENGINE: &str = "tiny";

    mod accounting;
    mod backup;
    mod bad_input;
    mod batch;
    mod before_request;
    mod caching;
    mod client;
    mod codings;
    mod connections;
    mod cors;
    mod counters;
    mod delete_prefix;
    mod evicting;
    mod expiring;
    mod hooks;
    mod index;
    mod key_prefix;
    mod latency;
    mod listening;
    mod panics;
    mod preconditions;
    mod queries;
    mod races;
    mod refusals;
    mod route_attacks;
    mod routes;
    mod starting;
    mod table;
    mod tickets;
    mod transforms;
    mod values;
}

/// Those tests in `both_engines/` that do not write bytes of HTTP/1, of servers and clients that speak HTTP/2.
#[path = "both_engines"]
#[allow(clippy::duplicate_mod)] // The same tests over another version of HTTP.
mod h2 {
    const ENGINE: &str = "h2";

    mod before_request;
    mod hooks;
    mod key_prefix;
    mod preconditions;
    mod refusals;
    mod routes;
    mod table;
    mod values;
}
