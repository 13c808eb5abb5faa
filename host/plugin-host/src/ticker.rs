//! The thread on which a plugin ticks.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::Member;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// A plugin that ticks.
pub(crate) struct Ticker {
    member: Arc<Member>,
    /// Dropped to end the thread.
    stop: Sender<Infallible>,
    /// Disconnected when the thread has ended.
    ended: Receiver<Infallible>,
}

impl Ticker {
    pub(crate) fn new(member: Arc<Member>) -> Self {
        let (stop, stopped) = bounded(0);
        let (ending, ended) = bounded(0);
        let ticking = Arc::clone(&member);
        let thread = thread::Builder::new().name(format!("tick {}", member.name())).spawn(move || {
            let _ending: Sender<Infallible> = ending;
            while let Some(pause) = ticking.tick() {
                if stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
            // Before the end is known: who waits for it destroys the plugin.
            drop(ticking);
        });
        if let Err(error) = thread {
            tracing::error!(plugin = member.name(), "it does not tick: no further thread: {error}");
        }
        Self { member, stop, ended }
    }

    /// Whether it is this plugin that ticks.
    pub(crate) fn is_of(&self, member: &Arc<Member>) -> bool {
        Arc::ptr_eq(&self.member, member)
    }

    /// Ends tickers, and waits until the deadline for ticks that are under way. A plugin whose tick does not return is
    /// destroyed when it does. Returns their names.
    pub(crate) fn end(tickers: Vec<Self>, deadline: Instant) -> Vec<&'static str> {
        let mut ended = Vec::with_capacity(tickers.len());
        for Self { member, stop, ended: end } in tickers {
            drop(stop);
            ended.push((member.name(), end));
        }
        ended.retain(|(_, end)| end.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout));
        ended.into_iter().map(|(name, _)| name).collect()
    }
}
