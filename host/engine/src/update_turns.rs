//! Turns of updates on a shared store.
//!
//! There, an update that begins before another one of this host has ended reads an entry that is about to be replaced, and conflicts for
//! certain. So updates of one key take turns until their outcome, and conflict with those of other hosts only. On a store of this host
//! alone, [`UpdateLocks`](super::plugin_request::UpdateLocks) suffice: an entry can be read before it is durable.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use vkog_runtime::{Detached, Mailbox, ThreadPool};

/// The maximum time for which a thread waits for its turn. A hook of the update that has the turn may wait for this thread.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// The updates that wait for their turn, by key. A key that an update has the turn of is present.
#[derive(Default)]
pub(crate) struct UpdateTurns {
    waiting: Mutex<HashMap<Box<str>, VecDeque<Waiting>>>,
    /// Runs those that wait without a mailbox.
    pool: Option<Arc<ThreadPool>>,
}

/// An update that waits.
struct Waiting {
    mailbox: Option<Arc<Mailbox>>,
    begin: Box<dyn FnOnce(Turn) + Send>,
}

/// The turn of an update, which ends when this is dropped. An update is right without it: it may only have to be tried again.
pub(crate) struct Turn {
    turns: Arc<UpdateTurns>,
    key: Box<str>,
}

impl UpdateTurns {
    pub(crate) fn new(pool: Option<Arc<ThreadPool>>) -> Self {
        Self { waiting: Mutex::default(), pool }
    }

    /// Calls a function when it is the turn of an update of this key: now, or later on the mailbox of this thread or on another one.
    pub(crate) fn enter(self: &Arc<Self>, key: &str, begin: impl FnOnce(Turn) + Send + 'static) {
        {
            let mut waiting = self.waiting.lock();
            if let Some(queue) = waiting.get_mut(key) {
                return queue.push_back(Waiting { mailbox: Mailbox::current(), begin: Box::new(begin) });
            }
            waiting.insert(key.into(), VecDeque::new());
        }
        begin(Turn { turns: Arc::clone(self), key: key.into() });
    }

    /// Waits for the turn of an update of this key, on a thread that is detached from its mailbox. Returns none if that takes too long.
    pub(crate) fn wait(self: &Arc<Self>, key: &str, detached: &Detached) -> Option<Turn> {
        let (send, turn) = bounded(1);
        // Without a receiver, that ends the turn.
        self.enter(key, move |turn| _ = send.send(turn));
        if let Ok(turn) = turn.try_recv() {
            return Some(turn);
        }
        // What ends the turn of another update may be a job of this thread.
        detached.hand_over();
        turn.recv_timeout(WAIT_MAX).ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut waiting = self.turns.waiting.lock();
            let next = waiting.get_mut(&self.key).and_then(VecDeque::pop_front);
            if next.is_none() {
                waiting.remove(&self.key);
            }
            next
        };
        let Some(Waiting { mailbox, begin }) = next else { return };
        let turn = Self { turns: Arc::clone(&self.turns), key: std::mem::take(&mut self.key) };
        let begin = Box::new(move || begin(turn));
        let rest = match mailbox {
            Some(mailbox) => mailbox.send(begin),
            None => Some(begin as _),
        };
        match (rest, &self.turns.pool) {
            (Some(begin), Some(pool)) => pool.run(begin),
            (Some(begin), None) => begin(),
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_of_a_key_take_turns_in_the_order_of_their_arrival() {
        let turns = Arc::new(UpdateTurns::default());
        let (send, began) = bounded(8);
        for number in 0..3 {
            let send = send.clone();
            turns.enter("a", move |turn| send.send((number, turn)).unwrap_or_default());
        }
        turns.enter("b", |_| {});
        for expected in 0..3 {
            let (number, turn) = began.try_recv().expect("it is its turn");
            assert!(number == expected && began.is_empty(), "{number}");
            drop(turn);
        }
        assert!(turns.waiting.lock().is_empty());
    }

    #[test]
    fn a_thread_that_has_waited_too_long_takes_no_turn() {
        let (turns, detached) = (Arc::new(UpdateTurns::default()), Mailbox::detach());
        let first = turns.wait("a", &detached).expect("no other update waits");
        assert!(turns.wait("a", &detached).is_none());
        drop(first);
        assert!(turns.wait("a", &detached).is_some(), "the turn of the one that has gone is over");
    }
}
