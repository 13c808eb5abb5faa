//! Rollback: after a failed write or sync, the map and the log return to the durable state.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::completion::Completion;
use super::{Commit, Gathered, Pending};
use crate::error::{StoreError, is_lack_of_space};
use crate::map::Map;
use crate::store::RolledBack;
use crate::update::Change;
use crate::writer::Writer;

impl Commit {
    /// Rolls back everything that is not durable: in the map, and in the log, behind whose records `attempted` bytes may have
    /// been written. Completes all waiting updates and reads. Returns the error with which they complete.
    ///
    /// A full disk heals when it has free disk space again. Every other error is final, a failed sync above all: the operating system
    /// may have dropped what it could not write, and a later sync that succeeds would prove nothing.
    pub(super) fn fail(
        &self,
        map: &Map,
        writer: &mut Writer,
        mut pending: Gathered<Pending>,
        error: io::Error,
        in_sync: bool,
        attempted: u64,
    ) -> Arc<StoreError> {
        let path = writer.path.clone();
        let is_full = is_lack_of_space(&error) && !in_sync;
        let source = Arc::new(error);
        let mut error = Arc::new(if is_full {
            StoreError::Full { path: path.clone() }
        } else {
            StoreError::Failed { path: path.clone(), source: Arc::clone(&source), then: None }
        });
        tracing::error!("{error}");
        let written = pending.len();
        let (closed, readers) = {
            let mut queue = self.queue.lock();
            // From here on only the rollback changes the map.
            let closed = queue.closed.replace(Arc::clone(&error));
            pending.append(&mut queue.pending);
            (closed, std::mem::take(&mut queue.readers))
        };
        let committed = self.committed.load(Ordering::Acquire);
        for change in pending.iter().rev().flat_map(|pending| pending.changes().rev()) {
            roll_back(map, change, committed);
        }
        // For the writes that may be in the log. Those that only queued are rolled back for certain.
        let mut unknown = None;
        if let Err(then) = writer.invalidate(attempted, &self.syncs) {
            let then = Arc::new(then);
            let outcome =
                StoreError::Unknown { path: path.clone(), source: Arc::clone(&source), then: Arc::clone(&then) };
            tracing::error!(writes = written, "{outcome}");
            unknown = Some(Arc::new(outcome));
            if is_full {
                error = Arc::new(StoreError::Failed { path, source, then: Some(then) });
                tracing::error!("{error}");
            }
        } else if is_full {
            writer.synced = writer.at;
        }
        self.end_rollback(closed, &error, attempted);
        let readers =
            readers.into_iter().map(|(_, reader, mailbox)| Completion::Read(reader, Err(RolledBack), mailbox));
        let updates = pending.into_iter().enumerate().map(|(index, pending)| {
            let error = unknown.as_ref().filter(|_| index < written).unwrap_or(&error);
            Completion::Update(pending, Err(Arc::clone(error)))
        });
        self.dispatch(updates.chain(readers).collect());
        error
    }

    /// Ends a rollback whose map and log are in the durable state. The queue is as it was before, `closed`, if the disk was
    /// full; otherwise it accepts no further updates.
    fn end_rollback(&self, closed: Option<Arc<StoreError>>, error: &Arc<StoreError>, attempted: u64) {
        let mut queue = self.queue.lock();
        queue.closed = if error.is_full() { closed } else { Some(Arc::clone(error)) };
        let unwritten = queue.space.unwritten();
        queue.space.written(unwritten);
        if error.is_full() {
            queue.space.refused(error, attempted);
            self.stale.store(true, Ordering::Relaxed);
            let _ = self.wanted.try_send(());
        }
        self.rollback_epoch.fetch_add(1, Ordering::AcqRel);
        // After the line above: a reader of what was rolled back must not find it durable. Every assigned revision is now one
        // or the other, and nobody has to wait for it.
        self.committed.store(self.last_assigned(), Ordering::Release);
    }
}

/// Puts the entry from before a change back into the map. `committed` is the last durable revision.
fn roll_back(map: &Map, change: &Change, committed: u64) {
    let Some(entry) = change.before.as_ref().or(change.after.as_ref()) else { return };
    let hashed = map.hash(entry.key_bytes());
    let mut shard = map.write(map.shard_of(hashed));
    match &change.before {
        Some(before) => drop(map.insert(&mut shard, hashed, before.clone())),
        None => drop(shard.remove(hashed, committed)),
    }
    shard.forget_removals_after(committed);
}
