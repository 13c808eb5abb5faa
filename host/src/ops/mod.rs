//! The operations on one entry: the request's way through the chain and the store. Knows no status and no socket.

mod change;
mod condition;
mod get;

use std::sync::Arc;

pub use condition::{Conditions, Revisions, Unmet};

use crate::plugins::{Chain, LoadError, Origin, Refusal, Seen, Subject, Verb};
use crate::store::{Entry, Store, StoreError};

/// The store and the plugins around it.
pub struct Ops {
    store: Store,
    chain: Chain,
}

/// What a client asked for.
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// With which entry.
    pub key: String,
    /// The value to be written.
    pub value: Vec<u8>,
    /// Its media type.
    pub content_type: String,
    /// The query, not decoded.
    pub query: String,
    /// What has to be true of the entry.
    pub conditions: Conditions,
    /// [`Ops::revision`] when the request arrived.
    pub arrived: u64,
    /// Headers and client.
    pub origin: Box<dyn Origin>,
}

/// What a request comes to.
pub enum Answer {
    /// A read found this.
    Found(Entry),
    /// A create or update was done, with this revision.
    Written(u64),
    /// A removal was done.
    Removed,
    /// The key is absent.
    Absent,
    /// The entry is not as the request's conditions want it.
    Unexpected(Unmet),
    /// A plugin refused it, or failed.
    Refused(Refusal),
    /// The store cannot be written.
    Failed(Arc<StoreError>),
}

impl Ops {
    /// Puts the plugins around the store, and tells them what it holds.
    ///
    /// # Errors
    ///
    /// A plugin that does not start.
    pub fn new(store: Store, chain: Chain) -> Result<Self, LoadError> {
        chain.start(&|each| store.for_each(|entry| each(entry.key(), seen(entry))))?;
        Ok(Self { store, chain })
    }

    /// The last revision that was given.
    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    /// The store, for what concerns the whole of it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Does what the request asks for. `finish` is called once, from this thread or another, now or later.
    pub fn run(self: &Arc<Self>, request: Request, finish: impl FnOnce(Answer) + Send + 'static) {
        match request.verb {
            Verb::Get => get::get(self, request, finish),
            Verb::Post | Verb::Put | Verb::Delete => change::change(self, request, finish),
        }
    }
}

impl Request {
    fn subject(&self) -> Subject<'_> {
        Subject {
            verb: self.verb,
            key: &self.key,
            value: &self.value,
            content_type: &self.content_type,
            query: &self.query,
            arrived: self.arrived,
            origin: &*self.origin,
        }
    }
}

/// An entry as the plugins see it.
fn seen(entry: &Entry) -> Seen<'_> {
    Seen {
        value: entry.value(),
        content_type: entry.content_type(),
        details: entry.details(),
        revision: entry.revision(),
    }
}
