//! Follows the store: loads it at one revision, then watches from the next one.

use std::convert::Infallible;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use crate::client::{CallError, RANGE, Watch, cause};
use crate::feed::Step;
use crate::node::{Node, pause_after};
use crate::proto::{Event, RangeRequest, RangeResponse, WatchCreateRequest};

/// etcd counts all remaining keys for each page, so pages are large.
const PAGE_BYTES: usize = 16 << 20;
const PAGE_KEYS_MAX: i64 = 200_000;
const FIRST_PAGE_KEYS: i64 = 1000;
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the changes stop.
#[derive(Debug, thiserror::Error)]
enum Gap {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the watch ended: {}", cause(.0))]
    Watch(Box<tonic::Status>),
    #[error("etcd ended the watch: {reason}")]
    Canceled { reason: String },
    /// etcd has compacted the changes that come next.
    #[error("etcd has compacted revision {revision}; all entries are loaded again")]
    Compacted { revision: i64 },
    /// The other end of the channel is gone: this host stops.
    #[error("this host is stopping")]
    Closed,
}

impl Gap {
    fn is_compaction(&self) -> bool {
        match self {
            Self::Compacted { .. } => true,
            Self::Call(error) => error.is_compacted(),
            _ => false,
        }
    }
}

/// Where this is.
enum Position {
    /// A load has to begin.
    Start,
    /// All keys before `key` have been loaded, at a revision; 0: at the revision of the first page.
    Loading { key: Bytes, revision: i64, keys: i64 },
    /// All changes before this revision have been passed on.
    Watching(i64),
}

/// Passes on the state and all changes, in order. Ends when the receiver does.
pub(crate) async fn run(node: &Node, steps: mpsc::Sender<Step>) {
    let mut position = Position::Start;
    let mut failures = 0;
    loop {
        let result = match &mut position {
            Position::Start => begin(node, &steps).await,
            Position::Loading { key, revision, keys } => load(node, &steps, key, revision, keys).await,
            Position::Watching(next) => watch(node, &steps, next, &mut failures).await.map(|never| match never {}),
        };
        match result {
            Ok(next) => {
                position = next;
                failures = 0;
            }
            Err(Gap::Closed) => return,
            Err(gap) => {
                // The first one in a row; `alive` reports an etcd that is gone.
                if failures == 0 {
                    node.note(&format!("cannot follow the entries in etcd: {gap}"));
                }
                if gap.is_compaction() {
                    position = Position::Start;
                }
                if let Gap::Call(error) = &gap
                    && error.is_loss()
                {
                    // To `alive`, the connection works.
                    node.set_disconnected(&error.reason(&node.keys));
                }
                sleep(pause_after(failures)).await;
                failures += 1;
            }
        }
    }
}

async fn begin(node: &Node, steps: &mpsc::Sender<Step>) -> Result<Position, Gap> {
    steps.send(Step::Begin).await.map_err(|_| Gap::Closed)?;
    Ok(Position::Loading { key: node.keys.watched().0, revision: 0, keys: FIRST_PAGE_KEYS })
}

/// Loads the rest of the state. Returns the next position. After a failure, it continues at the key.
async fn load(
    node: &Node,
    steps: &mpsc::Sender<Step>,
    key: &mut Bytes,
    revision: &mut i64,
    keys: &mut i64,
) -> Result<Position, Gap> {
    loop {
        let (_, range_end) = node.keys.watched();
        let request = RangeRequest { key: key.clone(), range_end, limit: *keys, revision: *revision };
        let page: RangeResponse = match node.client.call(RANGE, request, PAGE_TIMEOUT).await {
            Err(error) if error.is_large_response() && *keys > 1 => {
                *keys = i64::max(*keys / 8, 1);
                continue;
            }
            page => page?,
        };
        if *revision == 0 {
            *revision = page.header.as_ref().map_or(0, |header| header.revision);
        }
        if let Some(last) = page.kvs.last() {
            let mut next = BytesMut::with_capacity(last.key.len() + 1);
            next.extend_from_slice(&last.key);
            next.put_u8(0);
            *key = next.freeze();
            *keys = page_keys(page.encoded_len(), page.kvs.len());
        }
        let more = page.more;
        node.see_keys(page.kvs.iter());
        steps.send(Step::Page(page.kvs)).await.map_err(|_| Gap::Closed)?;
        if !more {
            let (answer, counts) = oneshot::channel();
            steps.send(Step::Loaded(*revision, answer)).await.map_err(|_| Gap::Closed)?;
            let counts = counts.await.map_err(|_| Gap::Closed)?;
            return Ok(if counts { Position::Watching(*revision + 1) } else { Position::Start });
        }
    }
}

/// Returns the number of keys of the next page from the size of this one.
fn page_keys(bytes: usize, count: usize) -> i64 {
    let each = bytes / count.max(1) + 1;
    i64::try_from(PAGE_BYTES / each).unwrap_or(PAGE_KEYS_MAX).clamp(1, PAGE_KEYS_MAX)
}

/// Passes on changes until the watch fails.
async fn watch(node: &Node, steps: &mpsc::Sender<Step>, next: &mut i64, failures: &mut u32) -> Result<Infallible, Gap> {
    let (key, range_end) = node.keys.watched();
    let create = WatchCreateRequest { key, range_end, start_revision: *next, fragment: true };
    node.check_history(WATCH_TIMEOUT).await?;
    let mut watch: Watch = node.client.watch(create, WATCH_TIMEOUT).await?;
    let mut pending: Vec<Event> = Vec::new();
    loop {
        let response = watch.next().await.map_err(|status| Gap::Watch(Box::new(status)))?;
        if response.compact_revision > 0 {
            return Err(Gap::Compacted { revision: *next });
        }
        if response.canceled {
            return Err(Gap::Canceled { reason: response.cancel_reason });
        }
        *failures = 0;
        pending.extend(response.events);
        // A fragment may end within a revision.
        let open = if response.fragment { pending.last().map(revision_of) } else { None };
        let complete = open.map_or(pending.len(), |open| pending.partition_point(|event| revision_of(event) < open));
        let rest = pending.split_off(complete);
        let events = std::mem::replace(&mut pending, rest);
        if let Some(last) = events.last() {
            let after = revision_of(last) + 1;
            node.see_events(&events);
            steps.send(Step::Events(events)).await.map_err(|_| Gap::Closed)?;
            *next = after;
        }
    }
}

pub(crate) fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_as_many_keys_as_fit() {
        for (bytes, count, keys) in
            [(1000, 0, 16_760), (100_000, 1000, 166_111), (0, 1000, PAGE_KEYS_MAX), (64 << 20, 2, 1)]
        {
            assert_eq!(page_keys(bytes, count), keys, "{bytes} bytes, {count} keys");
        }
    }
}
