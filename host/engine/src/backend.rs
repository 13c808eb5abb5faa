//! A plugin as the backend of a shared store: translates between the interface of vkog-store and that of plugins.

use std::sync::Arc;

use vkog_plugin_host::backend::{Change, CommitOutcome, Condition, Loaded, Write};
use vkog_plugin_host::{Backend, BackendError, BackendFeed, Member};
use vkog_store::{BackendChange, BackendMember, BackendStatus, BackendWrite, Feed, SharedOptions, SharedStore};

/// Opens the store at a URL through a plugin that is a backend, and begins to load its entries. `about` is what other hosts learn
/// of this one, as JSON.
///
/// # Errors
///
/// The plugin is no backend or has opened a store before, or it returned an error or panicked.
pub fn open_backend(
    plugin: &Arc<Member>,
    url: &str,
    about: &str,
    options: SharedOptions,
) -> Result<SharedStore, BackendError> {
    SharedStore::open(options, |feed| {
        let backend = Backend::open(plugin, url, about, Arc::new(StoreFeed(feed)))?;
        Ok(Arc::new(PluginBackend(backend)) as Arc<dyn vkog_store::Backend>)
    })
}

/// The backend as the store calls it.
struct PluginBackend(Backend);

impl vkog_store::Backend for PluginBackend {
    fn commit(&self, write: BackendWrite<'_>) {
        let conditions: Vec<_> =
            write.conditions.iter().map(|condition| Condition::new(condition.key, condition.revision)).collect();
        let changes: Vec<_> = write.changes.iter().map(change).collect();
        self.0.commit(&Write::new(write.id, &conditions, &changes));
    }

    fn confirm(&self, id: u64) {
        self.0.confirm(id);
    }

    fn status(&self) -> BackendStatus {
        let status = self.0.status();
        let known = |bytes: u64| (bytes > 0).then_some(bytes);
        let members = status.members.into_iter();
        BackendStatus {
            connected: status.connected,
            leads: status.leads,
            engine: status.engine,
            version: status.engine_version,
            full: Some(status.full).filter(|full| !full.is_empty()),
            entry_prefix: status.entry_prefix,
            id: status.id,
            database_bytes: known(status.size),
            database_bytes_max: known(status.quota),
            members: members.map(|member| BackendMember { id: member.id, about: member.about }).collect(),
        }
    }

    fn announce(&self, about: &str) {
        self.0.announce(about);
    }

    fn close(&self) {
        self.0.close();
    }
}

fn change<'a>(change: &BackendChange<'a>) -> Change<'a> {
    match change.record {
        Some(record) => Change::put(change.key, record),
        None => Change::delete(change.key, change.expired),
    }
}

/// The store as the backend calls it.
struct StoreFeed(Feed);

impl BackendFeed for StoreFeed {
    fn load(&self, page: &[Loaded<'_>]) {
        let page: Vec<_> = page
            .iter()
            .map(|entry| vkog_store::Loaded { key: entry.key(), record: entry.record(), revision: entry.revision() })
            .collect();
        self.0.load(&page);
    }

    fn loaded(&self, revision: u64) {
        self.0.loaded(revision);
    }

    fn apply(&self, revision: u64, own: bool, changes: &[Change<'_>]) {
        let changes: Vec<_> = changes
            .iter()
            .map(|change| BackendChange { key: change.key(), record: change.record(), expired: change.expired() })
            .collect();
        self.0.apply(revision, own, &changes);
    }

    fn outcome(&self, id: u64, outcome: CommitOutcome) {
        self.0.outcome(id, outcome_of(outcome));
    }

    fn confirmed(&self, id: u64, revision: Result<u64, String>) {
        self.0.confirmed(id, revision);
    }

    fn connected(&self, state: Result<(), String>) {
        self.0.connected(state);
    }
}

fn outcome_of(outcome: CommitOutcome) -> vkog_store::CommitOutcome {
    use vkog_store::CommitOutcome as Outcome;
    match outcome {
        CommitOutcome::Committed { revision } => Outcome::Committed { revision },
        CommitOutcome::Conflict { revision } => Outcome::Conflict { revision },
        CommitOutcome::Refused { status, message } => Outcome::Refused { status, message },
        CommitOutcome::Dropped { message } => Outcome::Dropped { message },
        CommitOutcome::Unknown { message } => Outcome::Unknown { message },
        other => Outcome::Unknown { message: format!("this host does not know the outcome {other:?}") },
    }
}
