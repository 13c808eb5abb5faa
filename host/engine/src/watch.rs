//! Watching: durable changes, as they are committed. Plugins see each of them as a get, by the watching client, of the entry
//! that was written or removed. A change that such a get would not be allowed to see is not delivered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::list::is_about_the_key;
use super::transforms::{self, is_transformed};
use super::{Engine, Form, RequestContext, host_refusal, offload, view};
use vkog_plugin_host::{Cause, Chain, Refusal, Verb};
use vkog_runtime::Oneshot;
use vkog_store::{Entry, Event, LocalStore, Store, Unwatchable, Watch};

/// Values that are turned back are collected for delivery up to this sum of their sizes, in bytes.
const RESTORED_MAX: usize = 1 << 20;

/// Why a watch ends.
pub enum WatchEnd {
    /// The change feed no longer has the next change.
    Unwatchable(Unwatchable),
    /// A plugin refused to let the client see a change, and not because of its key: it does not know the client, or it failed.
    Refused(Refusal),
    /// The server stops.
    Stopped,
}

/// A client that watches.
pub struct Watcher<S = LocalStore> {
    engine: Arc<Engine<S>>,
    client: Arc<RequestContext>,
    watch: Watch,
    /// The changes that may be delivered, those behind them that plugins have not seen yet, and the end of the watch.
    passed: VecDeque<Event>,
    rest: Vec<Event>,
    end: Option<WatchEnd>,
    /// The revision up to which every change was delivered, left out, or is in `passed`.
    filtered_to: u64,
    /// Delivers the changes that plugins let pass, while they decide.
    filtering: Option<Arc<Oneshot<Passed>>>,
}

/// The changes that pass, those for which there was no room, and the end of the watch.
type Passed = (VecDeque<Event>, Vec<Event>, Option<WatchEnd>);

impl<S: Store> Engine<S> {
    /// Watches the changes of keys that start with a prefix: those after a revision, or those from now on.
    ///
    /// # Errors
    ///
    /// The change feed no longer has the changes after `since`, or that revision was never assigned.
    pub fn watch(
        self: &Arc<Self>,
        prefix: String,
        since: Option<u64>,
        client: RequestContext,
    ) -> Result<Watcher<S>, Unwatchable> {
        let watch = self.store.watch(prefix, since)?;
        let filtered_to = watch.revision();
        let (engine, client) = (Arc::clone(self), Arc::new(client));
        let (passed, rest) = (VecDeque::new(), Vec::new());
        Ok(Watcher { engine, client, watch, passed, rest, end: None, filtered_to, filtering: None })
    }
}

impl<S: Store> Watcher<S> {
    /// The revision up to which all changes were delivered or left out.
    pub fn revision(&self) -> u64 {
        self.passed.front().map_or(self.filtered_to, |next| next.revision() - 1)
    }

    /// Returns the next change, or wakes the task when there may be one. Does not block: plugins are called on this thread,
    /// on the blocking pool if their hooks for get may block, or, during a reload, later on another thread.
    ///
    /// # Errors
    ///
    /// The watch has ended.
    pub fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Event, WatchEnd>> {
        loop {
            if let Some(event) = self.passed.pop_front() {
                return Poll::Ready(Ok(event));
            }
            if let Some(end) = self.end.take() {
                return Poll::Ready(Err(end));
            }
            if let Some(filtering) = &self.filtering {
                (self.passed, self.rest, self.end) = ready!(filtering.poll(context));
                self.filtering = None;
                self.filtered_to = self.rest.first().map_or(self.watch.revision(), |next| next.revision() - 1);
                if self.passed.is_empty() && self.end.is_none() {
                    // There may be more, but other tasks must have their turn.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                continue;
            }
            if !self.rest.is_empty() {
                let rest = std::mem::take(&mut self.rest);
                self.filter(rest);
                continue;
            }
            let polled = self.watch.poll(context);
            if polled.is_pending() {
                self.filtered_to = self.watch.revision();
            }
            match ready!(polled) {
                Err(unwatchable) => return Poll::Ready(Err(WatchEnd::Unwatchable(unwatchable))),
                Ok(events) if events.is_empty() => return Poll::Ready(Err(WatchEnd::Stopped)),
                Ok(events) => self.filter(events),
            }
        }
    }

    /// Lets plugins decide which of these changes the client may see, and turn their values back: all as they are, if no plugin
    /// has a hook for get and none has transformed a value.
    fn filter(&mut self, events: Vec<Event>) {
        let transformed: usize = events.iter().map(Event::entry).filter(|entry| is_transformed(entry)).map(size).sum();
        if transformed == 0 && self.engine.plugins.acquire().is_some_and(|chain| chain.has_no_hooks(Verb::Get)) {
            self.passed = events.into();
            self.filtered_to = self.watch.revision();
            return;
        }
        let filtering = Arc::new(Oneshot::default());
        self.filtering = Some(Arc::clone(&filtering));
        let report = Report { filtering, passed: None };
        let (engine, client) = (Arc::clone(&self.engine), Arc::clone(&self.client));
        self.engine.plugins.when_available(move |chain| {
            let takes_long = chain.blocks(Verb::Get) || transformed > transforms::LARGE;
            let pool = if takes_long { engine.blocking_pool.clone() } else { None };
            offload(pool, move || {
                let passed = engine.passing(&chain, events, &client);
                // A reload must not wait for a watcher.
                drop(chain);
                report.send(passed);
            });
        });
    }
}

/// Reports which changes pass. If the job that decides it panics or is dropped, the watch ends with an error: otherwise its
/// client would wait forever.
struct Report {
    filtering: Arc<Oneshot<Passed>>,
    passed: Option<Passed>,
}

impl Report {
    fn send(mut self, passed: Passed) {
        self.passed = Some(passed);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let failed = || {
            let refusal = host_refusal(500, "Internal error; see the log of the server");
            (VecDeque::new(), Vec::new(), Some(WatchEnd::Refused(refusal)))
        };
        self.filtering.send(self.passed.take().unwrap_or_else(failed));
    }
}

impl<S: Store> Engine<S> {
    /// The changes that a client may see, in their order, and the end of its watch if a plugin refuses the client.
    fn passing(self: &Arc<Self>, chain: &Arc<Chain>, events: Vec<Event>, client: &RequestContext) -> Passed {
        let (mut passed, mut events) = (VecDeque::with_capacity(events.len()), events.into_iter());
        let mut restored = 0;
        while restored <= RESTORED_MAX
            && let Some(event) = events.next()
        {
            match self.shown_event(chain, event, client) {
                Ok(Some(event)) => {
                    if is_transformed(event.entry()) {
                        restored += size(event.entry());
                    }
                    passed.push_back(event);
                }
                Ok(None) => {}
                Err(refusal) => return (passed, Vec::new(), Some(WatchEnd::Refused(refusal))),
            }
        }
        (passed, events.collect(), None)
    }

    /// A change as a client may see it, if it may. A removal may also be seen where a get would find nothing, because that is what
    /// it reports.
    fn shown_event(
        self: &Arc<Self>,
        chain: &Arc<Chain>,
        event: Event,
        client: &RequestContext,
    ) -> Result<Option<Event>, Refusal> {
        let entry = event.entry();
        let request = client.get(entry.key(), self.revision(), Form::Sent, Cause::Watch);
        let context = request.op_context();
        let seen = Some(view(entry));
        let found = chain.before(&context).and_then(|prepared| {
            if prepared.hidden {
                return Ok(false);
            }
            // Under the lock that guards rely on; the current entry does not matter.
            let (passed, _) = self.store.read(entry.key(), |_| chain.guard(&context, seen));
            Ok(!passed?.hidden)
        });
        match found {
            Ok(true) => {
                // A removal shows no value.
                let sent = if event.is_removal() { Ok(None) } else { transforms::sent(chain, &context, entry) };
                let sent = match sent {
                    Ok(sent) => sent,
                    Err(refusal) => {
                        chain.undo(&context, seen, &[]);
                        return if is_about_the_key(&refusal) { Ok(None) } else { Err(refusal.at_key(entry.key())) };
                    }
                };
                // An event has no headers that plugins could add to.
                let _ = chain.after(&context, entry.revision(), seen, seen);
                Ok(Some(match sent {
                    Some((entry, _)) => event.with_entry(entry),
                    None => event,
                }))
            }
            Ok(false) => Ok(Some(event).filter(Event::is_removal)),
            Err(refusal) if is_about_the_key(&refusal) => {
                Ok(Some(event).filter(|event| event.is_removal() && refusal.status != 403))
            }
            Err(refusal) => Err(refusal.at_key(entry.key())),
        }
    }
}

fn size(entry: &Entry) -> usize {
    entry.value().len()
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_watch_whose_changes_nothing_decides_ends_with_an_error() {
        let filtering = Arc::new(Oneshot::default());
        drop(Report { filtering: Arc::clone(&filtering), passed: None });
        let polled = filtering.poll(&Context::from_waker(Waker::noop()));
        let Poll::Ready((passed, _, Some(WatchEnd::Refused(refusal)))) = polled else { panic!("the watch continues") };
        assert_eq!((passed.len(), refusal.status), (0, 500));
    }
}
