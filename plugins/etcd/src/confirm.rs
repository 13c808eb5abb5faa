//! Confirmations: all that wait share one linearizable read of `last`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use crate::client::{CallError, RANGE};
use crate::node::Node;
use crate::proto::{RangeRequest, RangeResponse};

/// How long a confirmation is tried.
const TIME_LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// The confirmations that wait.
#[derive(Default)]
pub(crate) struct Confirms(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    ids: Vec<u64>,
    /// A task asks, and will ask again for these.
    is_asked: bool,
}

impl Confirms {
    /// Adds one. Returns whether the caller has to start the task.
    fn add(&self, id: u64) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.ids.push(id);
        !std::mem::replace(&mut waiting.is_asked, true)
    }

    /// Takes all that wait; if there are none, the task ends.
    fn take(&self) -> Vec<u64> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.is_asked = !waiting.ids.is_empty();
        std::mem::take(&mut waiting.ids)
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
            let ids = self.confirms.take();
            if ids.is_empty() {
                return;
            }
            let began = Instant::now();
            let revision = loop {
                match self.last_revision(TIME_LIMIT.saturating_sub(began.elapsed())).await {
                    Err(_) if began.elapsed() + PAUSE < TIME_LIMIT => tokio::time::sleep(PAUSE).await,
                    result => break result.map_err(|error| error.reason()),
                }
            };
            let revision = revision.as_ref().copied().map_err(String::as_str);
            block_in_place(|| ids.into_iter().for_each(|id| self.sink.confirmed(id, revision)));
        }
    }

    /// Reads the revision of the last group of any host; 0 if there was none.
    pub(crate) async fn last_revision(&self, limit: Duration) -> Result<u64, CallError> {
        let request = RangeRequest { key: self.keys.last(), ..RangeRequest::default() };
        let response: RangeResponse = self.client.call(RANGE, request, limit).await?;
        Ok(response.kvs.first().and_then(|last| u64::try_from(last.mod_revision).ok()).unwrap_or(0))
    }
}
