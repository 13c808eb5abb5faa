//! The thread that calls the `tick` hook of a plugin.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::chain::Member;

/// The ticking thread of a plugin.
pub(crate) struct Ticker {
    member: Arc<Member>,
    /// Dropping it ends the thread after the current tick.
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
            // Drop it before the end is visible, because the thread that waits for the end destroys the plugin.
            drop(ticking);
        });
        if let Err(error) = thread {
            tracing::error!(plugin = member.name(), "cannot start the thread of its tick hook: {error}");
        }
        Self { member, stop, ended }
    }

    /// Whether it belongs to this plugin.
    pub(crate) fn is_of(&self, member: &Arc<Member>) -> bool {
        Arc::ptr_eq(&self.member, member)
    }

    /// Ends tickers, and waits for running ticks until the deadline. Returns the names of the plugins whose ticks have not
    /// returned; each of those plugins is destroyed when its tick returns.
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
