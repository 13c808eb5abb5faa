//! What is kept, as it is kept. For plugins each change is a GET of the entry that was written, or was removed, by whoever
//! watches: what that would not be allowed to see is not told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;

use super::list::is_about_the_key;
use super::{Ops, Viewer, seen};
use vkog_plugin_host::{Chain, Refusal, Verb};
use vkog_store::{Event, Store as _, Unwatchable, Watch};

/// Why a watch ends.
pub enum Ended {
    /// What comes next is forgotten, or was never there.
    Unwatchable(Unwatchable),
    /// A plugin refused to let a change be told, and not because of its key: who watches is not known, or the plugin
    /// failed.
    Refused(Refusal),
    /// The server stops.
    Stopped,
}

/// Somebody who watches.
pub struct Watcher {
    ops: Arc<Ops>,
    viewer: Arc<Viewer>,
    watch: Watch,
    /// What may be told, and what ends it then.
    passed: VecDeque<Event>,
    ended: Option<Ended>,
    /// To where all was told, or is in `passed`.
    asked_to: u64,
    asks: Option<Arc<Asked>>,
}

/// What came of asking the plugins, and who waits for that.
#[derive(Default)]
struct Asked(Mutex<(Option<Passed>, Option<Waker>)>);

type Passed = (VecDeque<Event>, Option<Ended>);

impl Ops {
    /// Watches changes of the keys that begin so, after a revision or from now on.
    ///
    /// # Errors
    ///
    /// What came next is forgotten, or the revision was never given.
    pub fn watch(self: &Arc<Self>, prefix: String, since: Option<u64>, viewer: Viewer) -> Result<Watcher, Unwatchable> {
        let watch = self.store.watch(prefix, since)?;
        let asked_to = watch.revision();
        let (ops, viewer) = (Arc::clone(self), Arc::new(viewer));
        Ok(Watcher { ops, viewer, watch, passed: VecDeque::new(), ended: None, asked_to, asks: None })
    }
}

impl Watcher {
    /// To where all that may be told was given.
    pub fn revision(&self) -> u64 {
        self.passed.front().map_or(self.asked_to, |next| next.revision() - 1)
    }

    /// The change that comes next. Where there is none yet, the waker is woken when it is worth to look again. Waits for
    /// nobody: plugins are asked here, or, while they are exchanged, elsewhere.
    ///
    /// # Errors
    ///
    /// There will be no more.
    pub fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Event, Ended>> {
        loop {
            if let Some(event) = self.passed.pop_front() {
                return Poll::Ready(Ok(event));
            }
            if let Some(ended) = self.ended.take() {
                return Poll::Ready(Err(ended));
            }
            if let Some(asked) = &self.asks {
                (self.passed, self.ended) = ready!(asked.poll(context));
                self.asks = None;
                self.asked_to = self.watch.revision();
                if self.passed.is_empty() && self.ended.is_none() {
                    // There may be more, but others have to have their turn.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                continue;
            }
            let polled = self.watch.poll(context);
            if polled.is_pending() {
                self.asked_to = self.watch.revision();
            }
            match ready!(polled) {
                Err(unwatchable) => return Poll::Ready(Err(Ended::Unwatchable(unwatchable))),
                Ok(events) if events.is_empty() => return Poll::Ready(Err(Ended::Stopped)),
                Ok(events) => self.ask(events),
            }
        }
    }

    /// Asks the plugins which of these may be told. Where none has a hook for that, all may.
    fn ask(&mut self, events: Vec<Event>) {
        if self.ops.plugins.enter().is_some_and(|chain| chain.is_unasked(Verb::Get)) {
            self.passed = events.into();
            self.asked_to = self.watch.revision();
            return;
        }
        let asked = Arc::new(Asked::default());
        self.asks = Some(Arc::clone(&asked));
        let (ops, viewer) = (Arc::clone(&self.ops), Arc::clone(&self.viewer));
        self.ops.plugins.when_open(move |chain| {
            let mut passed = VecDeque::with_capacity(events.len());
            let mut ended = None;
            for event in events {
                match ops.may_be_told(&chain, &event, &viewer) {
                    Ok(true) => passed.push_back(event),
                    Ok(false) => {}
                    Err(refusal) => {
                        ended = Some(Ended::Refused(refusal));
                        break;
                    }
                }
            }
            // Nobody who exchanges plugins is to wait for a watcher.
            drop(chain);
            asked.fill((passed, ended));
        });
    }
}

impl Asked {
    fn fill(&self, passed: Passed) {
        let mut state = self.0.lock();
        state.0 = Some(passed);
        let waker = state.1.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Passed> {
        let mut state = self.0.lock();
        match state.0.take() {
            Some(passed) => Poll::Ready(passed),
            None => {
                state.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Ops {
    /// Whether a GET would be allowed to see what was written. That something is gone may be told where a GET would find
    /// nothing, too: that is what it says.
    fn may_be_told(self: &Arc<Self>, chain: &Arc<Chain>, event: &Event, viewer: &Viewer) -> Result<bool, Refusal> {
        let entry = event.entry();
        let request = viewer.get(entry.key(), self.revision());
        let subject = request.subject();
        let seen = Some(seen(entry));
        let found = chain.before(&subject).and_then(|prepared| {
            if prepared.hidden {
                return Ok(false);
            }
            // With the lock that a guard relies on, whatever is there now.
            let (passed, _) = self.store.read(entry.key(), |_| chain.guard(&subject, seen));
            Ok(!passed?.hidden)
        });
        match found {
            Ok(true) => {
                // What it adds to an answer has no place here.
                let _ = chain.after(&subject, entry.revision(), seen, seen);
                Ok(true)
            }
            Ok(false) => Ok(event.is_removal()),
            Err(refusal) if is_about_the_key(&refusal) => Ok(event.is_removal() && refusal.status != 403),
            Err(refusal) => Err(refusal),
        }
    }
}
