//! The backend: starts and stops what runs for a store.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::client::Client;
use crate::commit::Commits;
use crate::keys::Keys;
use crate::node::Node;
use crate::settings::{Settings, SettingsError, StoreUrl};
use crate::sink::Sink;
use crate::write::Limits;
use crate::{alive, feed, session, watch};
use vkog_plugin_api::backend::{Status, Write};

/// Steps that wait for the host. Each is a page or a response of the watch.
const STEPS_AHEAD: usize = 2;
/// How long the end of the session may take.
const END_TIMEOUT: Duration = Duration::from_secs(4);

struct Running {
    runtime: Runtime,
    session: AbortHandle,
    /// The thread of the feed.
    thread: JoinHandle<()>,
}

/// A store on etcd, from its opening to its close.
pub struct EtcdStore {
    node: Arc<Node>,
    /// Taken by the close.
    running: Mutex<Option<Running>>,
}

impl EtcdStore {
    /// Begins to connect and to load.
    ///
    /// # Errors
    ///
    /// The URL or the settings are wrong, or threads cannot be started. An etcd that cannot be reached is no error.
    pub fn open(settings: &Settings, url: &str, about: &str, sink: Arc<dyn Sink>) -> Result<Self, SettingsError> {
        settings.check()?;
        let StoreUrl { endpoints, prefix } = StoreUrl::parse(url)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(SettingsError::Threads)?;
        let client = {
            let _context = runtime.enter();
            Client::new(&endpoints, settings)?
        };
        let keys = Keys::new(&prefix);
        let commits = Commits::new(Limits::new(settings, &prefix), settings.groups_in_flight);
        let handle = runtime.handle().clone();
        let node = Arc::new(Node::new(handle, client, (keys, commits), settings.clone(), about, sink));

        let (sender, receiver) = mpsc::channel(STEPS_AHEAD);
        let feeding = Arc::clone(&node);
        let thread = std::thread::Builder::new()
            .name("etcd-feed".to_owned())
            .spawn(move || feed::run(&feeding, receiver))
            .map_err(SettingsError::Threads)?;
        let following = Arc::clone(&node);
        runtime.spawn(async move { watch::run(&following, sender).await });
        let holding = Arc::clone(&node);
        let session = runtime.spawn(async move { session::run(&holding).await }).abort_handle();
        let checking = Arc::clone(&node);
        runtime.spawn(async move { alive::run(&checking).await });
        Ok(Self { node, running: Mutex::new(Some(Running { runtime, session, thread })) })
    }

    /// Queues a write.
    pub fn commit(&self, write: &Write<'_>) {
        self.node.commit(write);
    }

    /// Queues a confirmation.
    pub fn confirm(&self, id: u64) {
        self.node.confirm(id);
    }

    /// Returns the status.
    pub fn status(&self) -> Status {
        self.node.status()
    }

    /// Replaces what the other hosts learn of this one.
    pub fn announce(&self, about: &str) {
        self.node.announce(about);
    }

    /// Ends leadership and membership, and stops. The sink is not called afterwards. May be called several times.
    pub fn close(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { runtime, session, thread }) = running else { return };
        let (sender, receiver) = sync_channel(1);
        let ending = Arc::clone(&self.node);
        runtime.spawn(async move {
            session::end(&ending, &session).await;
            let _ = sender.send(());
        });
        if let Err(RecvTimeoutError::Timeout) = receiver.recv_timeout(END_TIMEOUT) {
            self.node.note(&"cannot end the membership of this server in etcd in time, so its lease expires");
        }
        // Ends all tasks, and with them the sender to the thread.
        runtime.shutdown_timeout(Duration::from_millis(500));
        if thread.join().is_err() {
            self.node.note(&"the thread of the feed panicked");
        }
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.close();
    }
}
