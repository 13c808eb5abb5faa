//! Confirmations: all that wait share one linearizable read of `last`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout_at};

use crate::node::Node;
use crate::returning::{Returning, linger_after, most_of};

/// How long a confirmation is tried.
const TIME_LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);
/// A read for so few is not worth waiting for others.
const FEW: usize = 4;

/// The confirmations that wait.
#[derive(Default)]
pub(crate) struct Confirms {
    waiting: Mutex<Waiting>,
    /// Enough wait.
    enough: Notify,
}

#[derive(Default)]
struct Waiting {
    ids: Vec<u64>,
    /// A task asks, and will ask again for these.
    is_asked: bool,
    /// The task waits for this number of them, if any.
    awaited: Option<usize>,
    /// What to expect of the clients.
    returning: Returning,
}

impl Confirms {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one. Returns whether the caller has to start the task.
    fn add(&self, id: u64) -> bool {
        let mut waiting = self.waiting();
        waiting.ids.push(id);
        if waiting.awaited.is_some_and(|awaited| waiting.ids.len() >= awaited) {
            waiting.awaited = None;
            self.enough.notify_one();
        }
        !std::mem::replace(&mut waiting.is_asked, true)
    }

    /// Takes all that wait; if there are none, the task ends.
    fn take(&self) -> Vec<u64> {
        let mut waiting = self.waiting();
        waiting.awaited = None;
        waiting.is_asked = !waiting.ids.is_empty();
        std::mem::take(&mut waiting.ids)
    }

    /// Waits for the next confirmations of clients that have just got some. A read costs etcd much more than a confirmation.
    async fn gather(&self) {
        let until = self.waiting().wait();
        if let Some(until) = until {
            // At that time, those that have come are enough.
            let _ = timeout_at(until.into(), self.enough.notified()).await;
        }
    }
}

impl Waiting {
    /// Begins to wait until most of those that are expected have come. Returns when to stop; None if there is nothing to wait for.
    fn wait(&mut self) -> Option<Instant> {
        let expected = self.returning.expected(self.ids.len());
        if expected > FEW && self.ids.len() < most_of(expected) {
            self.awaited = Some(most_of(expected));
        }
        self.returning.until().filter(|_| self.awaited.is_some())
    }
}

impl Node {
    /// Queues a confirmation.
    pub(crate) fn confirm(self: &Arc<Self>, id: u64) {
        if self.confirms.add(id) {
            let node = Arc::clone(self);
            self.runtime.spawn(async move { node.answer().await });
        }
    }

    /// Answers confirmations. Those that come during a read wait for the next one, because that read may be older.
    async fn answer(&self) {
        loop {
            self.confirms.gather().await;
            let ids = self.confirms.take();
            if ids.is_empty() {
                return;
            }
            let began = Instant::now();
            let revision = loop {
                match self.last_revision(TIME_LIMIT.saturating_sub(began.elapsed())).await {
                    Err(_) if began.elapsed() + PAUSE < TIME_LIMIT => sleep(PAUSE).await,
                    result => break result.map_err(|error| error.reason(&self.keys)),
                }
            };
            let revision = revision.as_ref().copied().map_err(String::as_str);
            {
                let mut waiting = self.confirms.waiting();
                let open = ids.len() + waiting.ids.len();
                waiting.returning.expect(open, linger_after(began));
            }
            ids.into_iter().for_each(|id| self.sink.confirmed(id, revision));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_waits_for_most_of_the_clients_that_have_just_got_a_confirmation() {
        let long = Duration::from_secs(600);
        for (waiting, returning, within, awaited) in [
            (1, 0, long, None),
            (1, FEW, long, None),
            (1, 5, long, Some(5)),
            (0, 64, long, Some(56)),
            (55, 64, long, Some(56)),
            (56, 64, long, None),
            (80, 64, long, None),
            (1, 64, Duration::ZERO, None),
        ] {
            let mut state = Waiting { ids: (0..waiting).collect(), ..Waiting::default() };
            state.returning.expect(returning, within);
            let waits = state.wait().is_some();
            let case = format!("{waiting} wait, {returning} may return");
            assert_eq!((waits, state.awaited), (awaited.is_some(), awaited), "{case}");
        }
    }

    #[test]
    fn the_wait_ends_when_enough_have_come() {
        let confirms = Confirms::default();
        confirms.waiting().returning.expect(64, Duration::from_secs(600));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("it starts");
        runtime.block_on(async {
            let gathered = async {
                confirms.gather().await;
                confirms.waiting().ids.len()
            };
            let asking = async {
                for id in 0..56 {
                    assert!(confirms.waiting().awaited.is_some(), "the wait has ended after {id}");
                    confirms.add(id);
                }
            };
            assert_eq!(tokio::join!(gathered, asking).0, 56);
        });
        assert_eq!(confirms.take().len(), 56);
    }
}
