//! Works around a stall in tiny_http. It passes a new connection to a waiting thread, and counts as waiting a thread that it
//! has just woken; so of many connections that arrive together, some stay in a queue until another connection ends. A
//! connection that hangs up at once, a nudge, frees them: no thread waits, so tiny_http starts one, which continues with the
//! queue. Hence each client that is seen for the first time causes one nudge. A connection that a nudge frees is itself seen
//! for the first time, so this continues until the queue is empty.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Maximum number of pending nudges.
const NUDGES_MAX: usize = 16;

/// The clients seen last, and the nudges that are pending for them.
pub(super) struct StallBreaker {
    seen: Box<[Row]>,
    nudge: Sender<()>,
    /// Receives once for each pending nudge.
    pub(super) nudges: Receiver<()>,
}

/// The last clients that share a row, by their hashes. With one client for each row, two that share it would replace each
/// other with every request, and both would always be new.
#[derive(Default)]
struct Row {
    clients: [AtomicU64; 7],
    /// The number of clients that were new.
    added: AtomicUsize,
}

impl StallBreaker {
    pub(super) fn new() -> Self {
        let (nudge, nudges) = bounded(NUDGES_MAX);
        Self { seen: (0..1 << 9).map(|_| Row::default()).collect(), nudge, nudges }
    }

    /// Notes a request of a client, and requests a nudge if the client is new.
    pub(super) fn note(&self, client: Option<&SocketAddr>) {
        // Clients of a Unix socket have no address: each request may be a new client's.
        if let Some(client) = client {
            let mut hasher = DefaultHasher::new();
            client.hash(&mut hasher);
            let hash = hasher.finish();
            let row = &self.seen[hash as usize % self.seen.len()];
            if row.clients.iter().any(|known| known.load(Ordering::Relaxed) == hash) {
                return;
            }
            let oldest = row.added.fetch_add(1, Ordering::Relaxed) % row.clients.len();
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
        let stall_breaker = StallBreaker::new();
        let new = || {
            (40_000..40_500u16)
                .filter(|&port| {
                    stall_breaker.note(Some(&([127, 0, 0, 1], port).into()));
                    stall_breaker.nudges.try_recv().is_ok()
                })
                .count()
        };
        assert_eq!(new(), 500);
        assert_eq!(new(), 0);
    }
}
