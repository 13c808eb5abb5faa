//! Watching: durable changes, as they are committed. Plugins see each of them as a get, by the watching client, of the entry
//! that was written or removed. A change that such a get would not be allowed to see is not delivered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::list::is_about_the_key;
use super::{Engine, RequestContext, host_refusal, offload, view};
use vkog_plugin_host::{Cause, Chain, Refusal, Verb};
use vkog_runtime::Oneshot;
use vkog_store::{Event, LocalStore, Store, Unwatchable, Watch};

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
    /// The changes that may be delivered, and the end of the watch after them.
    passed: VecDeque<Event>,
    end: Option<WatchEnd>,
    /// The revision up to which every change was delivered, left out, or is in `passed`.
    filtered_to: u64,
    /// Delivers the changes that plugins let pass, while they decide.
    filtering: Option<Arc<Oneshot<Passed>>>,
}

type Passed = (VecDeque<Event>, Option<WatchEnd>);

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
        Ok(Watcher { engine, client, watch, passed: VecDeque::new(), end: None, filtered_to, filtering: None })
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
                (self.passed, self.end) = ready!(filtering.poll(context));
                self.filtering = None;
                self.filtered_to = self.watch.revision();
                if self.passed.is_empty() && self.end.is_none() {
                    // There may be more, but other tasks must have their turn.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
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

    /// Lets plugins decide which of these changes the client may see: all, if no plugin has a hook for get.
    fn filter(&mut self, events: Vec<Event>) {
        if self.engine.plugins.acquire().is_some_and(|chain| chain.has_no_hooks(Verb::Get)) {
            self.passed = events.into();
            self.filtered_to = self.watch.revision();
            return;
        }
        let filtering = Arc::new(Oneshot::default());
        self.filtering = Some(Arc::clone(&filtering));
        let report = Report { filtering, passed: None };
        let (engine, client) = (Arc::clone(&self.engine), Arc::clone(&self.client));
        self.engine.plugins.when_available(move |chain| {
            let pool = if chain.blocks(Verb::Get) { engine.blocking_pool.clone() } else { None };
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
            (VecDeque::new(), Some(WatchEnd::Refused(refusal)))
        };
        self.filtering.send(self.passed.take().unwrap_or_else(failed));
    }
}

impl<S: Store> Engine<S> {
    /// The changes that a client may see, in their order, and the end of its watch if a plugin refuses the client.
    fn passing(self: &Arc<Self>, chain: &Arc<Chain>, events: Vec<Event>, client: &RequestContext) -> Passed {
        let mut passed = VecDeque::with_capacity(events.len());
        for event in events {
            match self.may_see(chain, &event, client) {
                Ok(true) => passed.push_back(event),
                Ok(false) => {}
                Err(refusal) => return (passed, Some(WatchEnd::Refused(refusal))),
            }
        }
        (passed, None)
    }

    /// Whether a client may see a change. A removal may also be seen where a get would find nothing, because that is what it
    /// reports.
    fn may_see(self: &Arc<Self>, chain: &Arc<Chain>, event: &Event, client: &RequestContext) -> Result<bool, Refusal> {
        let entry = event.entry();
        let request = client.get(entry.key(), self.revision(), Cause::Watch);
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
                // An event has no headers that plugins could add to.
                let _ = chain.after(&context, entry.revision(), seen, seen);
                Ok(true)
            }
            Ok(false) => Ok(event.is_removal()),
            Err(refusal) if is_about_the_key(&refusal) => Ok(event.is_removal() && refusal.status != 403),
            Err(refusal) => Err(refusal),
        }
    }
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
        let Poll::Ready((passed, Some(WatchEnd::Refused(refusal)))) = polled else { panic!("the watch continues") };
        assert_eq!((passed.len(), refusal.status), (0, 500));
    }
}
