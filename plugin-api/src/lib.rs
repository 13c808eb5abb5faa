//! The interface for plugins of VKOG, a small key-value server over HTTP.
//!
//! A plugin is a shared library that the server loads at its start or while it runs. The server calls the plugin's
//! *hooks* before, around and after each operation. A plugin consists of a type that implements [`Plugin`], one small
//! trait for each hook, and the line [`export_plugin!`]. It needs no `unsafe` code and no other dependency. The
//! items of this crate call the server the *host*.
//!
//! ```
//! use vkog_plugin_api::*;
//!
//! /// Rejects values over 4 KiB.
//! struct Short;
//!
//! impl Plugin for Short {
//!     type Settings = NoSettings;
//!
//!     fn create(_host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
//!         Ok(Short)
//!     }
//! }
//!
//! impl BeforePut for Short {
//!     fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
//!         if put.value().len() > 4096 {
//!             return Err(Refusal::new(413, "values are at most 4096 bytes here"));
//!         }
//!         Ok(())
//!     }
//! }
//!
//! export_plugin!(Short);
//! # fn main() {}
//! ```
//!
//! # How do I start?
//!
//! `vkog plugins new NAME` generates a crate with a plugin, its settings and a test. By hand, create a library crate
//! with `crate-type = ["cdylib"]` that depends on this crate. Then build it, check it, and start a server with it:
//!
//! ```console
//! $ cargo build --release
//! $ vkog plugins check target/release/libshort.so
//! $ vkog --plugin-dir target/release
//! ```
//!
//! The name of the plugin is the name of its crate without a leading `vkog-`. [`export_plugin!`] finds the hooks by the
//! traits that the type implements. A hook that a plugin does not implement costs nothing.
//!
//! # Which hook do I use?
//!
//! | you want to | implement |
//! |---|---|
//! | limit or authenticate clients, keep their entries apart | [`BeforeRequest`] |
//! | reject a request without looking at the stored entry | [`BeforeGet`], [`BeforePost`], [`BeforePut`], [`BeforeDelete`] |
//! | change the value before it is stored | [`BeforePost`], [`BeforePut`] with [`Before::replace_value`] |
//! | store the value in another form, such as compressed, and return it as it was sent | the same, and [`ReadGet`] |
//! | change its media type | [`BeforePost`], [`BeforePut`] with [`Before::replace_content_type`] |
//! | hide entries from clients | [`BeforeGet`] or [`GuardGet`] with `hide` |
//! | decide on the current entry, in one step with the write | [`GuardPost`], [`GuardPut`], [`GuardDelete`] |
//! | keep an account that stays exact | a guard, the [undo](UndoPut) of the same operation, and [`AfterPut`] |
//! | write other entries in the same step | [`GuardPost`], [`GuardPut`], [`GuardDelete`] with [`Guard::add`] |
//! | store a value that depends on the current entry | [`GuardPost`], [`GuardPut`] with [`Guard::replace_value`], or [`Host::update`] |
//! | store data with an entry | [`GuardPost`], [`GuardPut`] with [`Guard::set_details`] |
//! | react to a durable change, add a header to the response | [`AfterGet`], [`AfterPost`], [`AfterPut`], [`AfterDelete`] |
//! | learn what the store holds at the start | [`Start`] |
//! | work periodically | [`Tick`] |
//! | remove entries when another plugin finds no room | [`MakeRoom`] |
//! | go through entries in byte order, or draw some at random | [`Host::for_each_in`], [`Host::sample`] |
//! | serve your own requests under `/x/NAME/` | [`Serve`] |
//! | serve requests that change one entry, such as those of a counter | [`ServeUpdate`] |
//! | learn what other hosts of a shared store change | [`Applied`], and [`Host::leads`] for what is to be done once |
//! | be the engine behind the store of several hosts | [`Backend`] |
//! | apply changed settings without a new instance | [`SettingsChanged`] |
//!
//! An operation passes four phases. `before` and `guard` hooks run from the first plugin to the last, `after` and
//! `undo` hooks from the last to the first. [`Stage`] decides the order of the plugins. The server checks preconditions
//! such as `If-Match` between `before` and `guard`.
//!
//! | phase | when | lock | may |
//! |---|---|---|---|
//! | `before_*` | nothing is decided yet | none | reject; replace the value (post, put); hide the entry (get) |
//! | `guard_*` | in one step with the read or write | the entry's | reject; hide the entry (get); set details, replace the value (post, put); add writes; reserve |
//! | [`read_get`](ReadGet) | a value that this plugin has replaced was read; the guards have passed | none | reject; turn the value back |
//! | `undo_*` | this plugin's guard passed, but the operation does not happen | possibly the entry's | release what the guard reserved |
//! | `after_*` | the write is durable, or the read found an entry; the response is not sent yet | none | observe; add headers |
//!
//! # On which thread are hooks called? May they block?
//!
//! Every hook takes `&self`, and the server calls it from many threads at once. So protect mutable state with atomics
//! or a mutex.
//!
//! | hook | thread | may block |
//! |---|---|---|
//! | `before_*`, `read_get`, `after_*`, [`ServeUpdate`] | the event loop of the connection, a worker thread, or a completion thread of the store | no, unless the plugin sets [`Plugin::BLOCKS`] |
//! | the same, with [`Plugin::BLOCKS`] | a thread of the blocking pool | yes |
//! | `guard_*`, `undo_*` | as above | never: a lock is held that other keys share |
//! | [`MakeRoom`] | a thread of the blocking pool | yes |
//! | [`Applied`] | a thread of the backend, one change after the other | no |
//! | [`Serve`] | a thread for each call, up to 32 of a plugin | yes; the client gets 504 after the server's time limit |
//! | [`Plugin::create`], [`Start`] at the start | the thread that starts the server | yes |
//! | the same at a reload, and [`SettingsChanged`] | a separate thread | yes, up to 10 s |
//! | [`Tick`] | a separate thread for each plugin, never twice at a time | yes; a stop waits up to 12 s for it |
//! | `Drop` | a separate thread | yes; a stop waits up to 12 s for it |
//!
//! An event loop serves many clients. A `before` hook that computes for 10 ms delays all of them by 10 ms. Writes with a
//! value over 64 KiB run on other threads, so their hooks may compute for long.
//!
//! # How do I reject a request?
//!
//! Return `Err(Refusal::new(status, message))` with a status from 400 to 599 and one line of text. The client gets
//! both, and the plugin's name in the header `Vkog-Plugin`. [`Refusal::with_header`] adds headers. After a refusal no
//! further plugin is called, except to undo its guard.
//!
//! # Where do I keep state?
//!
//! - **In memory:** in the fields of the plugin. [`Start`] rebuilds it from the stored entries, and [`Applied`] reports changes of
//!   other hosts. A hot reload creates a
//!   new instance; nothing in memory passes to it.
//! - **For one operation:** with [`Request::set_state`], from one hook to the next; [`Request::state`] and
//!   [`Request::take_state`] return it.
//! - **With an entry:** as [details](Guard::set_details), up to 4,096 bytes that only this plugin sees.
//! - **As separate entries:** with [`Host::get`], [`Host::put`] and the other store calls; in one step with
//!   [`Host::update`] and [`Host::batch`], or with the write of a client by [`Guard::add`].
//!
//! A guard may run several times for one write, and the write may fail afterwards. For each guard that passed the
//! server calls exactly one of `undo` and `after`. So reserve in the guard, release in `undo`, and settle in `after`.
//!
//! # How do I read settings?
//!
//! [`Plugin::Settings`] is the type of the table `[plugins.NAME]` of the server's configuration. Derive `Deserialize`
//! from the re-exported [`serde`]. An unknown key is an error that lists the known keys. [`Plugin::create`] checks the
//! values.
//!
//! # How do I publish metrics and log?
//!
//! [`Host::counter`] and [`Host::gauge`] return metrics that `/metrics` and `/plugins` show; change them with
//! [`Counter::add`] and [`Gauge::set`]. [`Host::log`] writes a line to the server's log. Do not print: `println!` can
//! block.
//!
//! # How do I test it?
//!
//! The crate `vkog-plugin-testing` runs a plugin under `cargo test`: in the server's engine, with a store in memory,
//! and with a clock that the test moves. In a plugin use [`Host::now`] instead of the system's clock.
//!
//! # What happens if it panics?
//!
//! The server catches the panic. A panic in a `before` or `guard` hook rejects the request with 500, and the store does
//! not change. Five panics within a minute put the plugin into quarantine. A library built with `panic = "abort"` does
//! not load. A segmentation fault ends the server; durable writes are safe.
//!
//! # Which compiler do I need?
//!
//! | to build | Rust |
//! |---|---|
//! | a plugin | 1.85 or newer |
//! | its tests with `vkog-plugin-testing` | 1.89 or newer |
//! | the server | 1.95 or newer |
//!
//! Plugin and server may be built with different compilers: every type that crosses the boundary has a stable layout.
//!
//! # Which servers load it?
//!
//! A server loads each plugin that was built with the same major version of this crate, older or newer. It ignores
//! hooks that it does not know, unless the plugin [requires](export_plugin!) them. A function that an older server
//! lacks returns 501 or works without the server; each function says which.
//!
//! # How do I ship it?
//!
//! Build the library for each system and publish it with its SHA-256, so that operators can pin it. State the required
//! version of this crate, the settings, and what the plugin reads, writes and connects to. Operators copy the library
//! into the plugin folder and reload. A library is never unloaded, so each reload keeps some memory, and a thread that
//! the plugin started must end when the plugin is dropped.

pub mod abi;
mod applied;
mod ask;
mod atomic;
pub mod backend;
mod call;
#[doc(hidden)]
pub mod export;
mod hooks;
mod host;
mod http;
mod metrics;
mod query;
mod read;
mod serve;
mod settings;
mod state;
mod stored;

pub use abi::{Origin, Stage, Verb};
pub use applied::{Applied, AppliedChange};
pub use ask::{Answer, Ask, Found, KeyRange};
pub use atomic::BatchFailure;
pub use backend::Backend;
pub use call::{
    After, Before, Change, Delete, Entry, Get, Guard, Operation, Post, Put, Refusal, Request, Undo, Verdict, Write,
};
pub use hooks::{
    AfterDelete, AfterGet, AfterPost, AfterPut, BeforeDelete, BeforeGet, BeforePost, BeforePut, BeforeRequest,
    GuardDelete, GuardGet, GuardPost, GuardPut, MakeRoom, Plugin, ReadGet, SettingsChanged, Start, Tick, UndoDelete,
    UndoGet, UndoPost, UndoPut,
};
pub use host::{Host, Level};
pub use http::{HttpRequest, Permission, Route, RouteRequest, UpdateRequest};
pub use metrics::{Counter, Gauge};
pub use read::Read;
pub use serve::{Serve, ServeUpdate};
pub use settings::{CreateError, NoSettings};
pub use stored::Stored;

pub use serde;
