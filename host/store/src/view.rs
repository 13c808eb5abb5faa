//! Views: all entries as they are at one revision, read shard by shard while other threads write.
//!
//! A view begins with a revision, under the lock in which changes get theirs (the queue; in a shared store, the lock in which they
//! are applied), so that every later change has a higher one. From then on a
//! writer that replaces or removes an entry of the view retains the old entry with its shard, until the view has read that shard.
//! No writer waits: a reader that is too slow loses its view once the retained entries exceed their limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::commit::ReadTicket;
use crate::entry::Entry;
use crate::map::{Map, SHARDS, Shard};
use crate::shared::Shared;
use crate::store::RolledBack;

/// The revision while there is no view: no change is later.
const NONE: u64 = u64::MAX;
/// The memory of a retained entry beside its bytes: its header, its allocation and its slot, in bytes.
const OVERHEAD: u64 = 64;

/// Why a view cannot begin, or cannot continue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Unviewable {
    /// Another view is being read. There is one at a time.
    Busy,
    /// Writers replaced more entries than may be retained for the view, in bytes.
    Lost(u64),
}

/// The state of a view that writers see.
pub(crate) struct ViewState {
    /// The revision of the view; [`NONE`] if there is none.
    revision: AtomicU64,
    /// The number of the view.
    number: AtomicU64,
    /// The size of the retained entries, in bytes.
    retained_bytes: AtomicU64,
    /// The maximum size of the retained entries, in bytes.
    retained_max: AtomicU64,
    /// A view is open.
    taken: AtomicBool,
}

/// The entries that a shard retains for the view.
#[derive(Default)]
pub(crate) struct Retained {
    /// The number of the last view that has read this shard.
    read: u64,
    /// The entries of the view that were replaced or removed before it read this shard.
    entries: Vec<Entry>,
}

impl Default for ViewState {
    fn default() -> Self {
        Self {
            revision: AtomicU64::new(NONE),
            number: AtomicU64::new(0),
            retained_bytes: AtomicU64::new(0),
            retained_max: AtomicU64::new(0),
            taken: AtomicBool::new(false),
        }
    }
}

impl ViewState {
    /// Lets a view begin at a revision. The caller holds a lock without which no change gets a later one.
    pub(crate) fn begin_at(&self, revision: u64) {
        self.revision.store(revision, Ordering::Release);
    }

    /// Retains an entry for the view, if it belongs to it. The change with this revision has replaced or removed the entry, whose
    /// shard the caller has locked for writing.
    #[inline]
    pub(crate) fn retain(&self, shard: &Shard, replaced: Entry, revision: u64) {
        if revision > self.revision.load(Ordering::Acquire) {
            self.retain_for_view(shard, replaced);
        }
    }

    #[cold]
    fn retain_for_view(&self, shard: &Shard, replaced: Entry) {
        if replaced.revision() > self.revision.load(Ordering::Acquire) {
            return;
        }
        let mut retained = shard.retained().lock();
        if retained.read == self.number.load(Ordering::Acquire) {
            return;
        }
        let cost = cost(&replaced);
        if self.retained_bytes.fetch_add(cost, Ordering::Relaxed) + cost > self.retained_max.load(Ordering::Relaxed) {
            // From now on writers retain nothing. The reader frees what is retained.
            self.revision.store(NONE, Ordering::Release);
            return;
        }
        retained.entries.push(replaced);
    }
}

/// Distinguishes an entry from all others. In a shared store, entries of several keys have the same revision.
fn id(entry: &Entry) -> (u64, &[u8]) {
    (entry.revision(), entry.key_bytes())
}

fn cost(entry: &Entry) -> u64 {
    entry.len() as u64 + OVERHEAD
}

/// A store that has views.
pub(crate) trait Viewed: Send + Sync {
    /// The entries.
    fn map(&self) -> &Map;
}

impl Viewed for Shared {
    fn map(&self) -> &Map {
        &self.map
    }
}

/// All entries of a store as they are at one revision. Dropping it frees the entries that were retained for it.
pub struct View {
    viewed: Arc<dyn Viewed>,
    revision: u64,
    number: u64,
    /// The next shard to read.
    next: usize,
}

impl View {
    /// Begins a view of the durable state of a local store. Blocks until its revision is durable.
    pub(crate) fn of_durable(shared: &Arc<Shared>) -> Result<Self, Unviewable> {
        loop {
            let rollback_epoch = shared.commit.rollback_epoch();
            let view = Self::new(Arc::<Shared>::clone(shared), shared.options.history_max, |state| {
                shared.commit.cut(|last_assigned| state.begin_at(last_assigned))
            })?;
            let ticket = ReadTicket { revision: view.revision, rollback_epoch };
            // Changes up to the revision that are durable cannot be rolled back any more.
            if !matches!(shared.outcome(ticket), Ok(Err(RolledBack))) {
                return Ok(view);
            }
        }
    }

    /// Begins a view for which up to `retained_max` bytes are retained. `begin` calls [`ViewState::begin_at`], and returns that
    /// revision.
    pub(crate) fn new(
        viewed: Arc<dyn Viewed>,
        retained_max: u64,
        begin: impl FnOnce(&ViewState) -> u64,
    ) -> Result<Self, Unviewable> {
        let state = &viewed.map().view;
        if state.taken.swap(true, Ordering::Acquire) {
            return Err(Unviewable::Busy);
        }
        let number = state.number.fetch_add(1, Ordering::AcqRel) + 1;
        state.retained_bytes.store(0, Ordering::Relaxed);
        state.retained_max.store(retained_max, Ordering::Relaxed);
        let revision = begin(state);
        Ok(Self { viewed, revision, number, next: 0 })
    }

    /// The revision: the view has all changes up to it, and no later one.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns the entries of the next shard, in no order; `None` after the last shard.
    ///
    /// # Errors
    ///
    /// Writers replaced more entries than may be retained.
    pub fn next_shard(&mut self) -> Result<Option<Vec<Entry>>, Unviewable> {
        if self.next == SHARDS {
            return Ok(None);
        }
        let map = self.viewed.map();
        let state = &map.view;
        // No writer changes the shard meanwhile.
        let shard = map.read(self.next);
        let mut retained = shard.retained().lock();
        if state.revision.load(Ordering::Acquire) != self.revision {
            return Err(Unviewable::Lost(state.retained_max.load(Ordering::Relaxed)));
        }
        retained.read = self.number;
        let replaced = std::mem::take(&mut retained.entries);
        let mut entries: Vec<Entry> = shard.iter().cloned().collect();
        drop(retained);
        drop(shard);
        state.retained_bytes.fetch_sub(replaced.iter().map(cost).sum(), Ordering::Relaxed);
        self.next += 1;
        entries.retain(|entry| entry.revision() <= self.revision);
        if !replaced.is_empty() {
            entries.extend(replaced);
            // A rollback puts a replaced entry back into the map.
            entries.sort_unstable_by(|one, other| id(one).cmp(&id(other)));
            entries.dedup_by(|one, other| id(one) == id(other));
        }
        Ok(Some(entries))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let map = self.viewed.map();
        let state = &map.view;
        state.revision.store(NONE, Ordering::Release);
        // A writer that has not noticed yet has its shard locked, so nothing is retained there after this.
        for shard in 0..SHARDS {
            let shard = map.read(shard);
            let replaced = std::mem::take(&mut shard.retained().lock().entries);
            drop(shard);
            drop(replaced);
        }
        state.taken.store(false, Ordering::Release);
    }
}
