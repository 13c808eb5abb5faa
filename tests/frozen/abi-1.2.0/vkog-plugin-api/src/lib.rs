//! What a plugin of VKOG is written against: a struct, [`Plugin`], one small trait for each hook it wants, and one line,
//! [`export_plugin!`]. The crate needs no `unsafe` from its users and is the only dependency that a plugin has to have.
//!
//! ```
//! use vkog_plugin_api::*;
//!
//! /// Refuses values over 4 KiB.
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
//! Built as a `cdylib` and put into the plugin folder, that is a plugin. Its name is the name of its crate, without a
//! leading `vkog-`.
//!
//! # Phases
//!
//! | phase | when | may |
//! |---|---|---|
//! | `before_*` | the request is whole, nothing is decided, no lock is held | refuse; replace the value (post, put) or hide the entry (get) |
//! | `guard_*` | under the entry's lock, in one step with the write | refuse; hide the entry (get); set details (post, put); reserve something of the plugin's own |
//! | `undo_*` | the plugin's guard had passed, but the operation will not happen | give back what the guard reserved |
//! | `after_*` | the operation is done, its answer has not left | observe |
//!
//! # Threads, panics, memory
//!
//! Every hook takes `&self` and is called from many threads at once. A panic is caught at the boundary: it refuses the
//! request with 500 and the plugin's name, and the store stays as it was. What a view lends (`key()`, `value()`) lives
//! as long as the call. A library is never unloaded, so statics and threads keep their code, but a plugin has to end its
//! threads when it is dropped.

pub mod abi;
mod ask;
mod call;
#[doc(hidden)]
pub mod export;
mod hooks;
mod host;
mod metrics;
mod settings;

pub use abi::{Stage, Verb};
pub use ask::{Answer, Ask, Found};
pub use call::{
    After, Before, Delete, Entry, Get, Guard, Operation, Post, Put, Refusal, Request, Stored, Undo, Verdict, Write,
};
pub use hooks::{
    AfterDelete, AfterGet, AfterPost, AfterPut, BeforeDelete, BeforeGet, BeforePost, BeforePut, GuardDelete, GuardGet,
    GuardPost, GuardPut, Plugin, SettingsChanged, Start, Tick, UndoDelete, UndoGet, UndoPost, UndoPut,
};
pub use host::{Host, Level};
pub use metrics::{Counter, Gauge};
pub use settings::{CreateError, NoSettings};

pub use serde;
