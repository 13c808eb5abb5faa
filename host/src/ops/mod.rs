//! The operations on one entry, and on several in one step: the request's way through the chain and the store. Knows no status and no socket.

mod ask;
mod batch;
mod change;
mod condition;
mod get;
mod list;
mod watch;

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::Guard;

pub(crate) use ask::by_host;
pub use batch::{Batch, Failure, Operation, Outcome};
pub use condition::{Conditions, Revisions, Unmet};
pub use list::{Listing, Page, Viewer};
pub use watch::{Ended, Watcher};

use vkog_plugin_host::{
    Chain, Each, Entered, LoadError, Origin, Refusal, Registry, Seen, Services, SharedScan, Source, Subject, Taken,
    Verb,
};
use vkog_runtime::ThreadPool;
use vkog_store::{Entry, LocalStore, Store as _, StoreError};

/// The longest key, in bytes.
pub const KEY_MAX: usize = 1024;
/// The longest media type, in bytes.
pub const CONTENT_TYPE_MAX: usize = 255;

/// So many operations at most are done at a time of those whose plugins may wait.
const WAITING_MAX: usize = 256;

/// The store and the plugins around it.
pub struct Ops {
    store: LocalStore,
    plugins: Registry,
    /// For operations whose plugins may wait.
    waiting: Arc<ThreadPool>,
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
    pub content_type: Cow<'static, str>,
    /// The query, not decoded.
    pub query: String,
    /// What has to be true of the entry.
    pub conditions: Conditions,
    /// [`Ops::revision`] when the request arrived.
    pub arrived: u64,
    /// How deep in plugins' hooks it is asked: 0 for a client's.
    pub depth: u32,
    /// Headers and client.
    pub origin: Arc<dyn Origin>,
}

/// What a request comes to.
pub enum Answer {
    /// A read found this.
    Found(Entry),
    /// A create or update was done, with this revision.
    Written(u64),
    /// A removal was done, with this revision.
    Removed(u64),
    /// The key is absent.
    Absent,
    /// The entry is not as the request's conditions want it.
    Unexpected(Unmet),
    /// A plugin refused it, or failed.
    Refused(Refusal),
    /// The store cannot be written.
    Failed(Arc<StoreError>),
}

/// Header fields that plugins add to an answer.
pub type Added = Vec<(String, String)>;

impl Ops {
    /// Puts the plugins around the store, and tells them what it holds.
    ///
    /// # Errors
    ///
    /// A plugin that does not start.
    pub fn new(store: LocalStore, plugins: Registry) -> Result<Arc<Self>, LoadError> {
        let waiting = Arc::new(ThreadPool::bounded("waiting", WAITING_MAX));
        let ops = Arc::new(Self { store, plugins, waiting });
        ops.plugins.start(&ops.scan())?;
        let services: Arc<dyn Services> = Arc::<Self>::clone(&ops);
        ops.plugins.port().open(Arc::downgrade(&services));
        Ok(ops)
    }

    /// The last revision that was given.
    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    /// The store, for what concerns the whole of it.
    pub fn store(&self) -> &LocalStore {
        &self.store
    }

    /// The plugins, for what concerns all of them.
    pub fn plugins(&self) -> &Registry {
        &self.plugins
    }

    /// Takes in what has changed of the plugins: [`Registry::reload`].
    ///
    /// # Errors
    ///
    /// The folder cannot be read. Nothing has changed then.
    pub fn reload(self: &Arc<Self>, source: &Source) -> std::io::Result<Vec<Taken>> {
        self.plugins.reload(source, &self.scan())
    }

    /// Gives every entry to a function. No shard is locked meanwhile: a plugin is called, and may never return.
    fn scan(self: &Arc<Self>) -> SharedScan {
        let ops = Arc::clone(self);
        Arc::new(move |each: &mut Each<'_>| {
            ops.store.with_prefix("").for_each(|entry| each(entry.key(), seen(&entry)));
        })
    }

    /// Does what the request asks for. `finish` is called once, from this thread or another, now or later.
    pub fn run(self: &Arc<Self>, request: Request, finish: impl FnOnce(Answer, Added) + Send + 'static) {
        // Only who has to wait needs a share of this for it.
        match self.plugins.enter() {
            Some(chain) => self.begin(chain, request, finish),
            None => {
                let ops = Arc::clone(self);
                self.plugins.when_open(move |chain| ops.begin(chain, request, finish));
            }
        }
    }

    /// Does it on this thread, or, where plugins may wait, on another one.
    fn begin(self: &Arc<Self>, chain: Entered, request: Request, finish: impl FnOnce(Answer, Added) + Send + 'static) {
        match self.aside(&chain, &request) {
            None => self.run_in(chain, request, finish),
            Some(threads) => {
                let ops = Arc::clone(self);
                threads.run(move || ops.run_in(chain, request, finish));
            }
        }
    }

    /// The threads for an operation that may have to wait. What a plugin asks for is done on the thread that waits for it
    /// anyway: of a limited number all could wait for each other.
    fn aside(&self, chain: &Chain, request: &Request) -> Option<Arc<ThreadPool>> {
        (chain.blocks(request.verb) && request.depth == 0).then(|| Arc::clone(&self.waiting))
    }

    /// Does all that a batch asks for in one step, or nothing of it. `finish` is called as that of [`run`](Self::run).
    pub fn run_all(self: &Arc<Self>, batch: Batch, finish: impl FnOnce(Outcome) + Send + 'static) {
        let ops = Arc::clone(self);
        self.plugins.when_open(move |chain| {
            let blocks = batch.operations.iter().any(|operation| chain.blocks(operation.verb));
            let threads = blocks.then(|| Arc::clone(&ops.waiting));
            aside(threads.clone(), move || batch::run(ops, Guard::into_inner(chain), batch, threads, finish));
        });
    }

    fn run_in(self: &Arc<Self>, chain: Entered, request: Request, finish: impl FnOnce(Answer, Added) + Send + 'static) {
        match request.verb {
            Verb::Get => get::get(self, chain, request, finish),
            Verb::Post | Verb::Put | Verb::Delete => change::change(self, Guard::into_inner(chain), request, finish),
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
            depth: self.depth,
            origin: &*self.origin,
        }
    }
}

/// Does something here, or on other threads.
fn aside(threads: Option<Arc<ThreadPool>>, job: impl FnOnce() + Send + 'static) {
    match threads {
        None => job(),
        Some(threads) => threads.run(job),
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
