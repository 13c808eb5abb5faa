//! The keys of the writes in flight, each with a queue of the writes that want it: first come, first served.
//!
//! A write enters the queues of all its keys in one step. So of two writes that share keys, one is before the other in all of
//! those queues, and no two writes wait for each other.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::StoreError;

use super::waiting::Waiter;

/// The queue for each key of a write that has not left.
#[derive(Default)]
pub(super) struct KeyQueues(Mutex<Queues>);

#[derive(Default)]
struct Queues {
    by_key: HashMap<Box<str>, VecDeque<u64>>,
    /// The writes that are not at the head of all their queues: of how many they are not, and what to call when they are.
    waiting: HashMap<u64, (usize, Waiter)>,
}

impl KeyQueues {
    /// Puts a write with this number into the queues of its keys, which must differ. Returns the waiter if the write is at the head
    /// of all of them, and may begin. Otherwise the waiter is returned by [`leave`](Self::leave) of another write, unless
    /// `closed` has an error, for which the waiter is returned.
    pub(super) fn enter(
        &self,
        write: u64,
        keys: &[&str],
        waiter: Waiter,
        closed: impl FnOnce() -> Option<Arc<StoreError>>,
    ) -> Option<(Waiter, Result<(), Arc<StoreError>>)> {
        let mut queues = self.0.lock();
        let mut blocked = 0;
        for key in keys {
            match queues.by_key.get_mut(*key) {
                Some(queue) => {
                    queue.push_back(write);
                    blocked += 1;
                }
                None => _ = queues.by_key.insert((*key).into(), VecDeque::from([write])),
            }
        }
        if blocked == 0 {
            return Some((waiter, Ok(())));
        }
        // With the queues locked: `refuse_waiting` comes later, or it was closed before.
        if let Some(error) = closed() {
            return Some((waiter, Err(error)));
        }
        queues.waiting.insert(write, (blocked, waiter));
        None
    }

    /// Takes a write out of the queues of its keys. Returns the waiters of those that may begin now.
    pub(super) fn leave(&self, write: u64, keys: &[&str]) -> Vec<Waiter> {
        let mut queues = self.0.lock();
        let Queues { by_key, waiting } = &mut *queues;
        let mut due = Vec::new();
        for key in keys {
            let Some(queue) = by_key.get_mut(*key) else { continue };
            let Some(at) = queue.iter().position(|other| *other == write) else { continue };
            queue.remove(at);
            let Some(next) = queue.front().copied() else {
                by_key.remove(*key);
                continue;
            };
            if at > 0 {
                continue;
            }
            // One that was refused has no waiter any more, and is about to leave.
            let Some((blocked, _)) = waiting.get_mut(&next) else { continue };
            *blocked -= 1;
            if *blocked == 0 {
                due.extend(waiting.remove(&next).map(|(_, waiter)| waiter));
            }
        }
        due
    }

    /// Takes the waiters of all writes that have not begun, which must be refused and leave.
    pub(super) fn refuse_waiting(&self) -> Vec<Waiter> {
        let mut refused: Vec<_> = self.0.lock().waiting.drain().collect();
        refused.sort_unstable_by_key(|(write, _)| *write);
        refused.into_iter().map(|(_, (_, waiter))| waiter).collect()
    }
}
