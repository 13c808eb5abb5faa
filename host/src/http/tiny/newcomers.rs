//! Clients of tiny_http that were not seen before. tiny_http hands a new connection to a thread that waits, counting as
//! waiting one that it has just woken; of many connections that come at once some are so left in a queue until another
//! connection ends. A connection that hangs up at once, a nudge, is what gets them out: there being no thread that waits,
//! it gets a new one, and that thread goes on with the queue. So for every client that is seen for the first time there is
//! one nudge; a connection that a nudge frees is itself seen for the first time, so that they go on until the queue is
//! empty.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

/// The most nudges that are due at a time.
const NUDGES_MAX: usize = 16;

/// The clients seen last, and the nudges that are due for them.
pub(super) struct Newcomers {
    seen: Box<[Row]>,
    nudge: Sender<()>,
    pub(super) nudges: Receiver<()>,
}

/// The last clients, by their hashes, of those that share a row. A single one would make way for another with each of its
/// requests, so that both were always new.
#[derive(Default)]
struct Row {
    clients: [AtomicU64; 7],
    /// How many were new.
    come: AtomicUsize,
}

impl Newcomers {
    pub(super) fn new() -> Self {
        let (nudge, nudges) = bounded(NUDGES_MAX);
        Self { seen: (0..1 << 9).map(|_| Row::default()).collect(), nudge, nudges }
    }

    /// A client asks something.
    pub(super) fn note(&self, client: Option<&SocketAddr>) {
        // A Unix socket's clients have no address: each request may be a new one's.
        if let Some(client) = client {
            let mut hasher = DefaultHasher::new();
            client.hash(&mut hasher);
            let hash = hasher.finish();
            let row = &self.seen[hash as usize % self.seen.len()];
            if row.clients.iter().any(|known| known.load(Ordering::Relaxed) == hash) {
                return;
            }
            let oldest = row.come.fetch_add(1, Ordering::Relaxed) % row.clients.len();
            row.clients[oldest].store(hash, Ordering::Relaxed);
        }
        let _ = self.nudge.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_many_clients_is_new_once() {
        let newcomers = Newcomers::new();
        let new = || {
            (40_000..40_500u16)
                .filter(|&port| {
                    newcomers.note(Some(&([127, 0, 0, 1], port).into()));
                    newcomers.nudges.try_recv().is_ok()
                })
                .count()
        };
        assert_eq!(new(), 500);
        assert_eq!(new(), 0);
    }
}
