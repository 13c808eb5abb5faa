//! Watchers that move between the hosts with the last revision that they have got: each gets every change once and in order,
//! except between two revisions where the store reports that it dropped the changes.

use std::task::{Context, Poll, Waker};

use vkog_store::{Event, SharedStore, Store as _, Unwatchable, Watch};

use crate::truth::Truth;

pub(crate) struct Watcher {
    prefix: &'static str,
    watch: Option<Watch>,
    /// The revision up to which it has got all changes; `None` if it has to list the entries first.
    position: Option<u64>,
    pub(crate) events: u64,
    pub(crate) moves: u64,
    pub(crate) gaps: u64,
}

impl Watcher {
    pub(crate) fn new(prefix: &'static str) -> Self {
        Self { prefix, watch: None, position: None, events: 0, moves: 0, gaps: 0 }
    }

    /// Watches this host from now on. Returns false if the host has to ask first how far the store is.
    pub(crate) fn open(&mut self, store: &SharedStore, is_confirmed: bool) -> bool {
        match store.watch(self.prefix.to_owned(), self.position) {
            Ok(watch) => {
                if self.position.is_none() {
                    self.position = Some(watch.revision());
                }
                self.watch = Some(watch);
                self.moves += 1;
            }
            Err(Unwatchable::Ahead(_)) if !is_confirmed => return false,
            Err(Unwatchable::Forgotten(_)) => {
                self.position = None;
                self.gaps += 1;
                return self.open(store, is_confirmed);
            }
            Err(error) => panic!("a watch cannot continue after {:?}: {error:?}", self.position),
        }
        true
    }

    pub(crate) fn close(&mut self) {
        self.watch = None;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.watch.is_some()
    }

    /// Takes the next changes, and compares them with what has happened.
    pub(crate) fn poll(&mut self, truth: &Truth) {
        let Some(watch) = &mut self.watch else { return };
        let events = match watch.poll(&Context::from_waker(Waker::noop())) {
            Poll::Pending => Vec::new(),
            Poll::Ready(Ok(events)) if events.is_empty() => return self.close(),
            Poll::Ready(Ok(events)) => events,
            Poll::Ready(Err(Unwatchable::Forgotten(_))) => {
                (self.watch, self.position) = (None, None);
                self.gaps += 1;
                return;
            }
            Poll::Ready(Err(error)) => panic!("a watch ends: {error:?}"),
        };
        let (Some(from), to) = (self.position, watch.revision()) else { return };
        let found: Vec<_> = events
            .iter()
            .map(|event: &Event| (event.revision(), event.entry().key(), event.is_removal(), event.is_expiry()))
            .collect();
        let changes = truth.between(from, to).iter().flat_map(|committed| {
            let of = |changed| (committed.revision, changed);
            committed.changes.iter().map(of)
        });
        let expected: Vec<_> = changes
            .filter(|(_, changed)| changed.key.starts_with(self.prefix))
            .map(|(revision, changed)| (revision, changed.key.as_str(), changed.record.is_none(), changed.expired))
            .collect();
        assert_eq!(found, expected, "the changes of {:?} after {from} up to {to}", self.prefix);
        self.events += found.len() as u64;
        self.position = Some(to);
    }

    /// The number of changes after a revision that it should get.
    pub(crate) fn missing(&self, truth: &Truth, after: u64) -> usize {
        let changes = truth.between(after, u64::MAX).iter().flat_map(|committed| &committed.changes);
        changes.filter(|changed| changed.key.starts_with(self.prefix)).count()
    }

    /// The revision up to which it has got all changes.
    pub(crate) fn position(&self) -> Option<u64> {
        self.position
    }
}
