//! The request pipeline of VKOG: get, write, batch, list, touch, deletion by prefix, watch, and the requests that plugins make.
//!
//! A request passes the before-hooks, then the guards under the lock of its entry, then the store, then the after-hooks. A
//! guard whose operation does not succeed is followed by its undo hook. The engine works with every [`Store`], and knows neither sockets nor
//! files.
//!
//! Operations report their outcome to a callback. As futures they would need a task each, because an operation that has begun
//! must complete even if its client disconnects: measured, a PUT then makes 7 allocations instead of 4.

mod added;
mod attempts;
mod backend;
mod batch;
mod before_request;
mod coding;
mod conditions;
mod current;
mod delete_page;
mod get;
mod list;
mod outcome;
mod plugin_list;
mod plugin_request;
mod step;
mod touch;
mod transforms;
mod update_turns;
mod validation;
mod watch;
mod write;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::Guard;

pub use backend::open_backend;
pub use batch::{Batch, BatchFailure, BatchOutcome, Operation};
pub use coding::{content_coding, is_coding, is_identity};
pub use conditions::{Conditions, PreconditionFailed, Revisions};
pub use delete_page::DeletedPage;
pub use list::{Listed, Listing, Page};
pub use outcome::{ExtraHeaders, Outcome, host_refusal};
pub use transforms::Form;
pub use validation::{
    CONTENT_TYPE_MAX, InvalidRequest, KEY_MAX, check_key, check_memory, check_operation, check_value, media_type,
};
pub use vkog_plugin_host::Transforms;
pub use vkog_store::Reads;
pub use watch::{WatchEnd, Watcher};

use plugin_request::UpdateLocks;
use update_turns::UpdateTurns;

use vkog_plugin_host::{
    AppliedChange, CallStates, Cause, Chain, ChainGuard, Each, EntryView, GuardOutput, LoadError, OpContext, Origin,
    Prepared, Registry, ReloadReport, SharedScan, Source, StoreAccess, Verb,
};
use vkog_runtime::ThreadPool;
use vkog_store::{Change, Entry, LocalStore, Store, owned_content_type};

/// The maximum number of threads that run blocking hooks.
const BLOCKING_THREADS_MAX: usize = 256;

/// A store, the plugins around it, and the operations that pass both.
pub struct Engine<S = LocalStore> {
    store: S,
    plugins: Registry,
    /// Runs operations whose hooks may block. Without it they run on the thread of the caller.
    blocking_pool: Option<Arc<ThreadPool>>,
    update_locks: UpdateLocks,
    update_turns: Arc<UpdateTurns>,
    /// See [`limit_plugin_requests`](Self::limit_plugin_requests).
    plugin_request_timeout: OnceLock<Duration>,
}

/// One operation, as a client or a plugin requests it.
pub struct Request {
    /// The operation.
    pub verb: Verb,
    /// The key of its entry.
    pub key: String,
    /// The value to write; empty for get and delete.
    pub value: Vec<u8>,
    /// The media type of that value.
    pub content_type: Cow<'static, str>,
    /// The query, still percent-encoded.
    pub query: String,
    /// The preconditions.
    pub conditions: Conditions,
    /// [`Engine::revision`] when the request arrived.
    pub arrived: u64,
    /// The number of plugin hooks that wait for it: 0 for a client's request.
    pub depth: u32,
    /// The reason for which the host runs it.
    pub cause: Cause,
    /// The headers, and the client's address.
    pub origin: Arc<dyn Origin>,
    /// The form in which a get returns the value.
    pub form: Form,
    /// How current a get is.
    pub reads: Reads,
    /// The plugins that have transformed the value to write. The engine sets it.
    pub transforms: Transforms,
    /// The states that plugins keep for it; none at first.
    pub states: CallStates,
    /// The output of its guards. The engine sets it.
    pub guarded: GuardOutput,
}

/// The client that lists, deletes by prefix, or watches. Plugins decide which entries it sees.
#[derive(Clone)]
pub struct RequestContext {
    /// The headers, and the client's address.
    pub origin: Arc<dyn Origin>,
    /// The query, still percent-encoded.
    pub query: String,
    /// How current the entries are that it sees. A watcher sees changes when this host has them.
    pub reads: Reads,
}

impl<S: Store> Engine<S> {
    /// Starts the plugins with what the store holds.
    ///
    /// # Errors
    ///
    /// A plugin does not start.
    pub fn new(store: S, plugins: Registry) -> Result<Arc<Self>, LoadError> {
        Self::start(store, plugins, Some(Arc::new(ThreadPool::bounded("blocking", BLOCKING_THREADS_MAX))))
    }

    /// Like [`new`](Self::new), but every hook runs on the thread that calls the engine, even if it blocks. For tests of
    /// plugins, and for stores that call their completions on that thread as well.
    ///
    /// # Errors
    ///
    /// A plugin does not start.
    pub fn single_threaded(store: S, plugins: Registry) -> Result<Arc<Self>, LoadError> {
        Self::start(store, plugins, None)
    }

    fn start(store: S, plugins: Registry, blocking_pool: Option<Arc<ThreadPool>>) -> Result<Arc<Self>, LoadError> {
        let update_turns = Arc::new(UpdateTurns::new(blocking_pool.clone()));
        let (update_locks, plugin_request_timeout) = (UpdateLocks::default(), OnceLock::new());
        let engine =
            Arc::new(Self { store, plugins, blocking_pool, update_locks, update_turns, plugin_request_timeout });
        let observer = Arc::downgrade(&engine);
        engine.store.observe(move |change, key| {
            if let Some(engine) = observer.upgrade() {
                engine.plugins.applied(&applied(change, key));
            }
        });
        engine.plugins.start(&engine.scan())?;
        let access: Arc<dyn StoreAccess> = Arc::<Self>::clone(&engine);
        engine.plugins.context().open(Arc::downgrade(&access));
        Ok(engine)
    }

    /// Limits the time that a plugin waits for the outcome of a request that it makes. For a store behind which other machines
    /// are. The operation continues after that; the plugin gets a refusal with the status 504. Only the first call has an effect.
    pub fn limit_plugin_requests(&self, timeout: Duration) {
        let _ = self.plugin_request_timeout.set(timeout);
    }

    /// The last revision that was assigned.
    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The plugins.
    pub fn plugins(&self) -> &Registry {
        &self.plugins
    }

    /// Reloads the plugins that have changed: see [`Registry::reload`].
    ///
    /// # Errors
    ///
    /// The plugin folder cannot be read. Nothing has changed then.
    pub fn reload(self: &Arc<Self>, source: &Source) -> std::io::Result<Vec<ReloadReport>> {
        self.plugins.reload(source, &self.scan())
    }

    /// A function that passes every entry to another one. It holds no lock meanwhile: it calls plugins, which may not return.
    pub fn scan(self: &Arc<Self>) -> SharedScan {
        let engine = Arc::clone(self);
        Arc::new(move |each: &mut Each<'_>| {
            engine.store.with_prefix("").for_each(|entry| each(entry.key(), view(&entry)));
        })
    }

    /// Runs a request, whose key, media type and value have been [checked](check_operation). Calls `on_done` once: on this
    /// thread or another one, before it returns or later.
    pub fn run(self: &Arc<Self>, request: Request, on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static) {
        if let Err(refusal) = check_memory(request.value.len()) {
            return on_done(Outcome::Refused(refusal), Vec::new());
        }
        if request.verb == Verb::Get && !self.store.is_current(request.reads) {
            return self.run_when_current(request, on_done);
        }
        self.begin(request, on_done);
    }

    /// Runs a request in the chain, now or after a reload.
    #[inline(always)]
    fn begin(self: &Arc<Self>, request: Request, on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static) {
        // Only a request that waits needs a reference of its own.
        match self.plugins.acquire() {
            Some(chain) => self.dispatch(chain, request, on_done),
            None => {
                let engine = Arc::clone(self);
                self.plugins.when_available(move |chain| engine.dispatch(chain, request, on_done));
            }
        }
    }

    /// Runs a request on this thread, or on the blocking pool if its hooks may block.
    // Inlined, as the steps after it: each call would copy the request.
    #[inline(always)]
    fn dispatch(
        self: &Arc<Self>,
        chain: ChainGuard,
        request: Request,
        on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
    ) {
        match self.pool_for(&chain, &request) {
            None => self.run_in(chain, request, on_done),
            Some(pool) => {
                let engine = Arc::clone(self);
                pool.run(move || engine.run_in(chain, request, on_done));
            }
        }
    }

    /// The pool for a request whose hooks may block. A plugin's request runs on the thread of that plugin, which waits for it
    /// anyway: the threads of a pool could all wait for each other.
    fn pool_for(&self, chain: &Chain, request: &Request) -> Option<Arc<ThreadPool>> {
        if chain.blocks(request.verb) && request.depth == 0 { self.blocking_pool.clone() } else { None }
    }

    /// Runs all operations of a batch, or none. Calls `on_done` as [`run`](Self::run) does. Touches copy the values of their entries,
    /// so do not call it with one on an event loop.
    pub fn run_batch(self: &Arc<Self>, batch: Batch, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        if batch.operations.iter().any(|operation| operation.touches) {
            batch::touches::run(self, batch, on_done);
        } else {
            self.dispatch_batch(batch, on_done);
        }
    }

    /// Runs a batch whose operations are gets and writes with values, on this thread, or on the blocking pool if its hooks may block.
    fn dispatch_batch(self: &Arc<Self>, batch: Batch, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        let only_reads = || batch.operations.iter().all(|operation| operation.verb == Verb::Get);
        if !self.store.is_current(batch.reads) && only_reads() {
            return self.run_batch_when_current(batch, on_done);
        }
        self.begin_batch(batch, on_done);
    }

    /// Runs a batch in the chain, now or after a reload.
    fn begin_batch(self: &Arc<Self>, batch: Batch, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        let engine = Arc::clone(self);
        self.plugins.when_available(move |chain| {
            let blocks = batch.operations.iter().any(|operation| chain.blocks(operation.verb));
            let pool = if blocks { engine.blocking_pool.clone() } else { None };
            offload(pool.clone(), move || batch::run(engine, Guard::into_inner(chain), batch, pool, on_done));
        });
    }

    #[inline(always)]
    fn run_in(
        self: &Arc<Self>,
        chain: ChainGuard,
        request: Request,
        on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
    ) {
        match request.verb {
            Verb::Get => get::get(self, chain, request, on_done),
            Verb::Post | Verb::Put | Verb::Delete => write::write(self, Guard::into_inner(chain), request, on_done),
        }
    }
}

impl Request {
    #[inline]
    fn op_context(&self) -> OpContext<'_> {
        OpContext {
            verb: self.verb,
            key: &self.key,
            value: &self.value,
            content_type: &self.content_type,
            query: &self.query,
            arrived: self.arrived,
            depth: self.depth,
            cause: self.cause,
            origin: &*self.origin,
            states: Some(&self.states),
            guarded: &self.guarded,
        }
    }

    /// Takes over what the before-hooks have replaced. Returns whether they hide the entry.
    fn take_over(&mut self, prepared: Prepared) -> bool {
        if let Some(value) = prepared.value {
            self.value = value;
            self.transforms = prepared.transforms;
        }
        if let Some(content_type) = prepared.content_type {
            self.content_type = owned_content_type(&content_type);
        }
        prepared.hidden
    }

    /// Ends the request: drops what plugins keep for it, and reports the outcome.
    #[inline]
    fn end(&self, outcome: Outcome, headers: ExtraHeaders, on_done: impl FnOnce(Outcome, ExtraHeaders)) {
        self.states.clear();
        on_done(outcome, headers);
    }
}

impl RequestContext {
    /// A get of a key by this client.
    fn get(&self, key: &str, arrived: u64, form: Form, cause: Cause) -> Request {
        Request { form, ..self.request(Verb::Get, key, arrived, cause) }
    }

    /// A get or a delete of a key by this client.
    fn request(&self, verb: Verb, key: &str, arrived: u64, cause: Cause) -> Request {
        Request {
            verb,
            key: key.to_owned(),
            value: Vec::new(),
            content_type: "".into(),
            query: self.query.clone(),
            conditions: Conditions::default(),
            arrived,
            depth: 0,
            cause,
            origin: Arc::clone(&self.origin),
            form: Form::Sent,
            reads: self.reads,
            transforms: Transforms::default(),
            states: CallStates::default(),
            guarded: GuardOutput::default(),
        }
    }
}

/// Runs a job on a pool, or on this thread if there is none.
fn offload(pool: Option<Arc<ThreadPool>>, job: impl FnOnce() + Send + 'static) {
    match pool {
        None => job(),
        Some(pool) => pool.run(job),
    }
}

/// A change of another host as plugins see it.
fn applied<'a>(change: &'a Change, key: &'a str) -> AppliedChange<'a> {
    let Change { before, after, revision, expired } = change;
    let (before, after) = (before.as_ref().map(view), after.as_ref().map(view));
    AppliedChange { key, before, after, revision: *revision, expired: *expired }
}

/// An entry as plugins see it.
#[inline]
fn view(entry: &Entry) -> EntryView<'_> {
    EntryView {
        value: entry.value(),
        content_type: entry.content_type(),
        details: entry.details(),
        revision: entry.revision(),
    }
}
