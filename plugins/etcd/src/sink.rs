//! The receiver of what a store on etcd reports: the host, or a test.

use vkog_plugin_api::backend::{Change, CommitOutcome, Feed, Loaded};
use vkog_plugin_api::{Host, Level};

/// The functions of [`Feed`], and a log. `load`, `loaded` and `apply` are called by one thread.
pub trait Sink: Send + Sync + 'static {
    /// See [`Feed::load`]. An empty page begins the load again.
    fn load(&self, page: &[Loaded<'_>]);
    /// See [`Feed::loaded`].
    fn loaded(&self, revision: u64);
    /// See [`Feed::apply`].
    fn apply(&self, revision: u64, own: bool, changes: &[Change<'_>]);
    /// See [`Feed::outcome`].
    fn outcome(&self, id: u64, outcome: CommitOutcome);
    /// See [`Feed::confirmed`].
    fn confirmed(&self, id: u64, revision: Result<u64, &str>);
    /// See [`Feed::connected`].
    fn connected(&self, state: Result<(), &str>);
    /// Logs what went wrong and is tried again.
    fn log(&self, text: &str);
}

/// The host's store.
pub(crate) struct HostSink {
    pub(crate) host: Host,
    pub(crate) feed: Feed,
}

impl Sink for HostSink {
    fn load(&self, page: &[Loaded<'_>]) {
        self.feed.load(page);
    }

    fn loaded(&self, revision: u64) {
        self.feed.loaded(revision);
    }

    fn apply(&self, revision: u64, own: bool, changes: &[Change<'_>]) {
        self.feed.apply(revision, own, changes);
    }

    fn outcome(&self, id: u64, outcome: CommitOutcome) {
        self.feed.outcome(id, outcome);
    }

    fn confirmed(&self, id: u64, revision: Result<u64, &str>) {
        self.feed.confirmed(id, revision);
    }

    fn connected(&self, state: Result<(), &str>) {
        self.feed.connected(state);
    }

    fn log(&self, text: &str) {
        self.host.log(Level::Warn, text);
    }
}
