//! This host among the others: the parts that its tasks share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::block_in_place;

use crate::client::Client;
use crate::commit::{self, Commits};
use crate::confirm::Confirms;
use crate::history::LastGroup;
use crate::keys::Keys;
use crate::settings::Settings;
use crate::sink::Sink;
use vkog_plugin_api::backend::{CommitOutcome, Member, Status, Write};

/// Returns the pause after a number of failures in a row: 20 ms, twice as long each time, at most a second.
pub(crate) fn pause_after(failures: u32) -> Duration {
    Duration::from_millis((20 << failures.min(6)).min(1000))
}

/// A host. Its sink may wait, such as for plugins that start, except in `confirmed`. So the runtime's threads call it in
/// `block_in_place`: other tasks, which keep leases alive, then continue.
pub(crate) struct Node {
    pub(crate) runtime: Handle,
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    pub(crate) settings: Settings,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) commits: Commits,
    pub(crate) confirms: Confirms,
    /// The revision up to which the sink has all changes; 0 before the first load.
    pub(crate) applied: watch::Sender<u64>,
    /// The last group of writes that was passed to the sink.
    seen: Mutex<Option<LastGroup>>,
    identity: Mutex<Identity>,
    cluster: Mutex<Cluster>,
    connected: AtomicBool,
    /// How often the loss of the connection was reported: the host then forgets the pages of a load. Held while that is
    /// reported, and while a load ends.
    losses: Mutex<u64>,
    session: Notify,
}

/// The identity of this host.
#[derive(Clone, Default)]
pub(crate) struct Identity {
    /// Its id; empty until it has the first lease.
    pub(crate) id: String,
    /// The lease of its membership.
    pub(crate) lease: i64,
    /// Until when that lease exists at least.
    pub(crate) alive_until: Option<Instant>,
    /// The lease of its slots, which outlives long interruptions.
    pub(crate) slots_lease: i64,
    pub(crate) about: String,
    /// The members know another `about`.
    pub(crate) about_is_new: bool,
}

impl Identity {
    /// Whether the host serves clients, and is no command.
    pub(crate) fn serves(&self) -> bool {
        !self.about.is_empty()
    }
}

/// The state of the cluster, as far as it is known.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    /// The id of the host that leads, and its lease.
    pub(crate) leader: Option<(String, i64)>,
    pub(crate) engine_version: String,
    pub(crate) size: u64,
    pub(crate) quota: u64,
    /// A member has raised the alarm that its database is full.
    pub(crate) has_no_space: bool,
}

impl Node {
    pub(crate) fn new(
        runtime: Handle,
        client: Client,
        (keys, commits): (Keys, Commits),
        settings: Settings,
        about: &str,
        sink: Arc<dyn Sink>,
    ) -> Self {
        Self {
            runtime,
            client,
            keys,
            settings,
            sink,
            commits,
            confirms: Confirms::default(),
            applied: watch::Sender::new(0),
            seen: Mutex::default(),
            identity: Mutex::new(Identity { about: about.to_owned(), ..Identity::default() }),
            cluster: Mutex::default(),
            connected: AtomicBool::new(false),
            losses: Mutex::new(0),
            session: Notify::new(),
        }
    }

    pub(crate) fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Option<LastGroup>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn losses(&self) -> MutexGuard<'_, u64> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn id(&self) -> String {
        self.identity().id.clone()
    }

    /// Makes the session's task look for what it has to do.
    pub(crate) fn wake_session(&self) {
        self.session.notify_one();
    }

    pub(crate) async fn session_woken(&self) {
        self.session.notified().await;
    }

    /// Logs what went wrong, and is tried again.
    pub(crate) fn note(&self, text: &dyn std::fmt::Display) {
        self.sink.log(&text.to_string());
    }

    /// Reports outcomes. No lock is held.
    pub(crate) fn report(&self, outcomes: Vec<(u64, CommitOutcome)>) {
        if !outcomes.is_empty() {
            block_in_place(|| outcomes.into_iter().for_each(|(id, outcome)| self.sink.outcome(id, outcome)));
        }
    }

    pub(crate) fn commit(self: &Arc<Self>, write: &Write<'_>) {
        match self.commits.add(write, &self.keys) {
            Ok(()) => commit::pump(self),
            Err(outcome) => self.sink.outcome(write.id(), outcome),
        }
    }

    /// Reports a sign of life.
    pub(crate) fn set_connected(&self) {
        if !self.connected.swap(true, Ordering::AcqRel) {
            self.commits.reopen();
        }
        block_in_place(|| self.sink.connected(Ok(())));
    }

    /// Reports that etcd cannot be reached. Writes that were not sent are dropped.
    pub(crate) fn set_disconnected(&self, reason: &str) {
        self.connected.store(false, Ordering::Release);
        // Before the report, so that no write is sent after it: in a cluster that went back, its outcome may remain unknown.
        self.commits.close(reason);
        block_in_place(|| {
            let mut losses = self.losses();
            *losses += 1;
            self.sink.connected(Err(reason));
        });
        self.drop_waiting(reason);
    }

    /// Drops the writes that wait and those that come.
    pub(crate) fn drop_waiting(&self, reason: &str) {
        self.commits.close(reason);
        self.report(self.commits.drop_waiting(&CommitOutcome::Dropped { message: reason.to_owned() }));
    }

    pub(crate) fn announce(&self, about: &str) {
        let mut identity = self.identity();
        about.clone_into(&mut identity.about);
        drop(identity);
        self.announce_again();
    }

    pub(crate) fn announce_again(&self) {
        self.identity().about_is_new = true;
        self.wake_session();
    }

    /// Whether this host leads: the leader's key has its lease, and that has not expired.
    fn leads(&self) -> bool {
        let identity = self.identity().clone();
        let lives = identity.alive_until.is_some_and(|until| Instant::now() < until);
        lives
            && self.cluster().leader.as_ref().is_some_and(|(id, lease)| *id == identity.id && *lease == identity.lease)
    }

    pub(crate) fn status(&self) -> Status {
        let (leads, id) = (self.leads(), self.id());
        let cluster = self.cluster();
        let mut status = Status::default();
        status.connected = self.connected.load(Ordering::Acquire);
        (status.leads, status.id) = (leads, id);
        "etcd".clone_into(&mut status.engine);
        status.engine_version.clone_from(&cluster.engine_version);
        (status.size, status.quota) = (cluster.size, cluster.quota);
        status.members.clone_from(&cluster.members);
        if cluster.has_no_space {
            commit::FULL.clone_into(&mut status.full);
        } else if let Some(refusal) = self.commits.refusal() {
            status.full = refusal;
        }
        self.keys.entry_prefix().clone_into(&mut status.entry_prefix);
        status
    }
}
