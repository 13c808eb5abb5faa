//! Many VKOG hosts on one etcd cluster, by etcd's v3 API. README.md says how to use it.
//!
//! | module | owns |
//! |---|---|
//! | `backend` | the start and the stop of everything else |
//! | `client`, `proto` | the connection to one member at a time, and the messages |
//! | `keys` | the names of the keys in etcd |
//! | `write`, `commit` | groups of writes, and their outcomes |
//! | `session` | leases, the fence, membership, the election of a leader |
//! | `watch`, `feed` | the state and the changes on their way to the host |
//! | `confirm` | linearizable reads of the last revision |
//! | `returning` | how many operations `commit` and `confirm` wait for, to send them together |
//! | `alive` | signs of life |
//! | `tls` | the files of the settings, and hints about them |

#![forbid(unsafe_code)]

mod alive;
mod backend;
mod client;
mod commit;
mod confirm;
mod feed;
mod history;
mod keys;
mod node;
mod proto;
mod returning;
mod session;
mod settings;
mod sink;
mod tls;
mod watch;
mod write;

use std::sync::{Arc, OnceLock};

use vkog_plugin_api::backend::{Feed, Status, Write};
use vkog_plugin_api::{Backend, CreateError, Host, Plugin, export_plugin};

pub use backend::EtcdStore;
pub use settings::{Settings, SettingsError};
pub use sink::Sink;
pub use tls::TlsFileError;

/// The plugin.
pub struct Etcd {
    host: Host,
    settings: Settings,
    store: OnceLock<EtcdStore>,
}

impl Plugin for Etcd {
    type Settings = Settings;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        settings.check().map_err(|error| error.to_string())?;
        Ok(Self { host, settings, store: OnceLock::new() })
    }
}

impl Backend for Etcd {
    const SCHEME: &'static str = "etcd";

    fn open(&self, url: &str, about: &str, feed: Feed) -> Result<(), CreateError> {
        let sink = Arc::new(sink::HostSink { host: self.host, feed });
        let store =
            EtcdStore::open(&self.settings, url, about, sink).map_err(|error| settings::Chain(&error).to_string())?;
        self.store.set(store).map_err(|_| "the store is open already".into())
    }

    fn commit(&self, write: &Write<'_>) {
        if let Some(store) = self.store.get() {
            store.commit(write);
        }
    }

    fn confirm(&self, id: u64) {
        if let Some(store) = self.store.get() {
            store.confirm(id);
        }
    }

    fn status(&self) -> Status {
        self.store.get().map(EtcdStore::status).unwrap_or_default()
    }

    fn announce(&self, about: &str) {
        if let Some(store) = self.store.get() {
            store.announce(about);
        }
    }

    fn close(&self) {
        if let Some(store) = self.store.get() {
            store.close();
        }
    }
}

export_plugin!(Etcd);
