//! The hooks: one trait for each, and the `extern "C"` function through which the host calls it.

#![allow(unsafe_code)]

use std::time::Duration;

use crate::abi::{BackendModuleRef, HookEntry, HookFn, Outcome, RawCall, Stage};
use crate::call::{After, Before, Delete, Get, Guard, Post, Put, Refusal, Request, Undo, Verdict, View};
use crate::export::{Instance, Probe, caught};
use crate::host::Host;
use crate::http::{HttpRequest, Route};
use crate::read::Read;
use crate::settings::{CreateError, FromTable};
use crate::stored::Stored;

/// A plugin. The host creates one instance when it starts, calls its hooks from many threads, and drops it when it
/// stops. At a reload with a changed library or changed settings, a new instance replaces the old one.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use vkog_plugin_api::serde::Deserialize;
/// use vkog_plugin_api::*;
///
/// #[derive(Deserialize)]
/// #[serde(crate = "vkog_plugin_api::serde")]
/// struct Settings {
///     every: u64,
/// }
///
/// struct Sample {
///     host: Host,
///     every: u64,
///     seen: AtomicU64,
/// }
///
/// impl Plugin for Sample {
///     type Settings = Settings;
///     const STAGE: Stage = Stage::Observe;
///
///     fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
///         if settings.every == 0 {
///             return Err("every is 0; give 1 or more".into());
///         }
///         Ok(Sample { host, every: settings.every, seen: AtomicU64::new(0) })
///     }
/// }
///
/// impl AfterGet for Sample {
///     fn after_get(&self, get: &After<'_, Get>) {
///         if self.seen.fetch_add(1, Ordering::Relaxed) % self.every == 0 {
///             self.host.log(Level::Info, get.key());
///         }
///     }
/// }
///
/// export_plugin!(Sample);
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a plugin",
    note = "write `impl Plugin for {Self}`, with `type Settings` and `fn create`"
)]
pub trait Plugin: Send + Sync + Sized + 'static {
    /// The type of the plugin's table in the configuration, `[plugins.NAME]`: any owned type that derives `Deserialize`
    /// of [`serde`]. An unknown key is an error that lists the known keys. Use
    /// [`NoSettings`](crate::NoSettings) for a plugin without settings.
    type Settings: FromTable;

    /// The position of the plugin in the chain. The default is [`Stage::Policy`].
    const STAGE: Stage = Stage::Policy;

    /// Whether its `before` and `after` hooks may block: on a file, another machine, a store call, or a lock that is
    /// held for long. The default is `false`.
    ///
    /// With `true`, the host runs each operation for which the plugin has a hook on a blocking pool of up to 256
    /// threads. That costs such an operation a change of threads, and other clients do not wait. Watch events are
    /// operations in this sense: they call the hooks of get. A guard must not block in any case, because it holds the
    /// lock of an entry.
    ///
    /// Since 1.2. An older host ignores the value, and a hook that blocks delays other clients there.
    const BLOCKS: bool = false;

    /// Creates the plugin. The host calls it once for each instance: at its start before [`Start`] and before the first
    /// request, and at a reload on a separate thread, with a timeout of 10 s. No lock is held. It may block, but it
    /// cannot call the store yet (508).
    ///
    /// `vkog plugins check` calls it, too. So `drop` must close what it opens.
    ///
    /// # Errors
    ///
    /// At the start of the host, an error or a panic stops the start. At a reload, the old instance continues. The host
    /// logs the error with the plugin's name.
    fn create(host: Host, settings: Self::Settings) -> Result<Self, CreateError>;
}

/// The return type of a hook. The type decides whether the hook can refuse the operation.
pub(crate) trait IntoOutcome {
    fn into_outcome(self, request: &Request<'_>, bits: u32) -> Outcome;
}

impl IntoOutcome for Verdict {
    #[inline(always)]
    fn into_outcome(self, request: &Request<'_>, bits: u32) -> Outcome {
        request.answer(self, bits)
    }
}

impl IntoOutcome for () {
    fn into_outcome(self, _request: &Request<'_>, bits: u32) -> Outcome {
        Outcome::go_on(bits)
    }
}

impl IntoOutcome for Result<(), String> {
    fn into_outcome(self, request: &Request<'_>, bits: u32) -> Outcome {
        request.answer(self.map_err(|message| Refusal::new(500, message)), bits)
    }
}

impl IntoOutcome for bool {
    fn into_outcome(self, _request: &Request<'_>, _bits: u32) -> Outcome {
        Outcome::go_on(self.into())
    }
}

impl IntoOutcome for Duration {
    fn into_outcome(self, _request: &Request<'_>, _bits: u32) -> Outcome {
        Outcome::go_on(u32::try_from(self.as_millis()).unwrap_or(u32::MAX))
    }
}

/// Calls a hook with its view of the call, and catches a panic.
///
/// # Safety
///
/// `instance` was created by `create` of export.rs for this plugin, and is not destroyed.
#[inline(always)]
pub(crate) unsafe fn enter<'a, P: Plugin, V: View<'a>, R: IntoOutcome>(
    instance: *const (),
    call: &'a RawCall<'a>,
    hook: impl FnOnce(&P, &mut V) -> R,
) -> Outcome {
    // SAFETY: the caller's promise.
    let instance = unsafe { &*instance.cast::<Instance<P>>() };
    let request = Request::new(call, instance.host.api());
    let answered = caught(|| {
        let mut view = V::new(request);
        hook(&instance.plugin, &mut view).into_outcome(&request, view.bits())
    });
    answered.unwrap_or_else(|panic| request.panicked(&panic.0))
}

macro_rules! hooks {
    ($($(#[$doc:meta])* $id:literal $constant:ident $hook:ident: $super:ident, $method:ident(
        $arg:ident: $view:ty $(, $mutable:ident)?
    ) -> $result:ty;)* and $($other:ident)*) => {
        $(
            $(#[$doc])*
            #[diagnostic::on_unimplemented(
                note = "an undo hook gives back what the guard of the same operation took: implement that guard as well"
            )]
            pub trait $hook: $super {
                #[doc = concat!("See [`", stringify!($hook), "`].")]
                fn $method(&self, $arg: hooks!(@reference $view $(, $mutable)?)) -> $result;
            }

            impl<P: $hook> Probe<P> {
                #[doc(hidden)]
                pub const $constant: Option<HookEntry> = {
                    unsafe extern "C" fn $method<P: $hook>(instance: *const (), call: &RawCall<'_>) -> Outcome {
                        // SAFETY: the host passes only an instance that the same module created.
                        unsafe { enter(instance, call, |plugin: &P, view: &mut $view| plugin.$method(view)) }
                    }
                    Some(HookEntry { id: $id, flags: 0, hook: HookFn { call: $method::<P> } })
                };
            }
        )*

        /// The entry of each hook whose trait the plugin does not implement: `None`. An inherent constant of [`Probe`]
        /// takes precedence, and exists only if the trait is implemented.
        #[doc(hidden)]
        pub trait NoHooks {
            $(const $constant: Option<HookEntry> = None;)*
            $(const $other: Option<HookEntry> = None;)*
            const ROUTES: &'static [Route] = &[];
            const UPDATE_ROUTES: &'static [Route] = &[];
            const BACKEND: Option<fn() -> BackendModuleRef> = None;
        }

        /// Returns the hooks of a type; `None` if the trait is not implemented.
        #[doc(hidden)]
        #[macro_export]
        macro_rules! __hooks {
            ($plugin:ty) => {{
                #[allow(unused_imports)]
                use $crate::export::{NoHooks as _, Probe};
                [$(Probe::<$plugin>::$constant,)* $(Probe::<$plugin>::$other),*]
            }};
        }

        /// Returns the routes of a type, those of `Serve` and those of `ServeUpdate`; none if it serves none.
        #[doc(hidden)]
        #[macro_export]
        macro_rules! __routes {
            ($plugin:ty) => {{
                #[allow(unused_imports)]
                use $crate::export::{NoHooks as _, Probe};
                $crate::export::routes(Probe::<$plugin>::ROUTES, Probe::<$plugin>::UPDATE_ROUTES)
            }};
        }

        /// Returns the function that makes the table of the backend that a type is; `None` if it is none.
        #[doc(hidden)]
        #[macro_export]
        macro_rules! __backend {
            ($plugin:ty) => {{
                #[allow(unused_imports)]
                use $crate::export::{NoHooks as _, Probe};
                Probe::<$plugin>::BACKEND
            }};
        }
    };
    (@reference $view:ty, mutable) => { &mut $view };
    (@reference $view:ty) => { &$view };
}

impl<P> NoHooks for Probe<P> {}

// For get and delete, `guard`, `undo` and `after` run only if the entry exists. Otherwise there is nothing to return or
// to remove.
hooks! {
    /// Called before a read. May refuse it, or hide the entry.
    ///
    /// HEAD requests, key listings, counts and watch events call the hooks of get, too. Threads: see
    /// [the table](crate#on-which-thread-are-hooks-called-may-they-block). No lock is held. Must not block, unless the
    /// plugin sets [`Plugin::BLOCKS`].
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # struct Mine;
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
    /// impl BeforeGet for Mine {
    ///     fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
    ///         if get.key().starts_with("private/") { Err(Refusal::new(403, "private")) } else { Ok(()) }
    ///     }
    /// }
    /// ```
    0 BEFORE_GET BeforeGet: Plugin, before_get(get: Before<'_, Get>, mutable) -> Verdict;

    /// Called before a create (POST), when nothing is decided. May refuse it, or replace the value. Thread, lock and
    /// blocking: as [`BeforeGet`]; with a value over 64 KiB, it runs on a thread that may compute for long.
    1 BEFORE_POST BeforePost: Plugin, before_post(post: Before<'_, Post>, mutable) -> Verdict;

    /// Called before an update (PUT), when nothing is decided. May refuse it, or replace the value. Thread, lock and
    /// blocking: as [`BeforePost`]. A PATCH calls it with the value as it is stored, perhaps compressed, and ignores what it
    /// replaces ([`Origin::Touch`](crate::Origin::Touch)).
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # struct Mine;
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
    /// impl BeforePut for Mine {
    ///     fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
    ///         put.replace_value(put.value().trim_ascii());
    ///         Ok(())
    ///     }
    /// }
    /// ```
    2 BEFORE_PUT BeforePut: Plugin, before_put(put: Before<'_, Put>, mutable) -> Verdict;

    /// Called before a removal (DELETE). May refuse it. Thread, lock and blocking: as [`BeforeGet`].
    3 BEFORE_DELETE BeforeDelete: Plugin, before_delete(delete: Before<'_, Delete>, mutable) -> Verdict;

    /// Called with a read, under the entry's lock, if the entry exists. May refuse the read, or hide the entry. Must be
    /// short and must not block: other keys share the lock. Cannot call the store (508).
    4 GUARD_GET GuardGet: Plugin, guard_get(get: Guard<'_, Get>, mutable) -> Verdict;

    /// Called with a create, in one step with the write, under the entry's lock, whether the entry exists or not. May
    /// refuse the write, set details, and reserve. Must be short and must not block: other keys share the lock. Cannot
    /// call the store (508). It sees values as they are stored: what [`BeforePost`] has found in the value that the client sent
    /// is in the [state](crate::Request::state).
    ///
    /// The host may call it several times for one write. After each call that passed, it calls either [`UndoPost`],
    /// because the write does not happen, or [`AfterPost`]. Release in [`UndoPost`] what the guard reserved.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # struct Mine;
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
    /// impl GuardPost for Mine {
    ///     fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
    ///         if post.entry().is_some() { Err(Refusal::new(409, "it exists")) } else { Ok(()) }
    ///     }
    /// }
    /// ```
    5 GUARD_POST GuardPost: Plugin, guard_post(post: Guard<'_, Post>, mutable) -> Verdict;

    /// Called with an update, in one step with the write, under the entry's lock. As [`GuardPost`].
    6 GUARD_PUT GuardPut: Plugin, guard_put(put: Guard<'_, Put>, mutable) -> Verdict;

    /// Called with a removal, in one step with it, under the entry's lock, if the entry exists. May refuse the removal,
    /// and reserve. As [`GuardPost`].
    7 GUARD_DELETE GuardDelete: Plugin, guard_delete(delete: Guard<'_, Delete>, mutable) -> Verdict;

    /// Called after a read that found an entry, before the response is sent. May add headers. No lock is held. Must not
    /// block, unless the plugin sets [`Plugin::BLOCKS`].
    8 AFTER_GET AfterGet: Plugin, after_get(get: After<'_, Get>) -> ();

    /// Called after a create, when the write is durable and before the response is sent. As [`AfterPut`].
    9 AFTER_POST AfterPost: Plugin, after_post(post: After<'_, Post>) -> ();

    /// Called after an update, when the write is durable and before the response is sent. May add headers, and cannot
    /// fail the write any more. The thread may be another than that of the guard. No lock is held, so calls for one key
    /// may overlap and may come in another order than their [revisions](After::revision). Must not block, unless the
    /// plugin sets [`Plugin::BLOCKS`].
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # struct Mine { host: Host }
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { host }) } }
    /// impl AfterPut for Mine {
    ///     fn after_put(&self, put: &After<'_, Put>) {
    ///         let grown = put.value().len() > put.entry_before().map_or(0, |entry| entry.value().len());
    ///         if grown { self.host.log(Level::Info, put.key()); }
    ///     }
    /// }
    /// ```
    10 AFTER_PUT AfterPut: Plugin, after_put(put: After<'_, Put>) -> ();

    /// Called after a removal, when it is durable and before the response is sent. As [`AfterPut`].
    11 AFTER_DELETE AfterDelete: Plugin, after_delete(delete: After<'_, Delete>) -> ();

    /// Called if this plugin's [`GuardGet`] passed and the read does not happen: a later plugin refused it or hid the
    /// entry.
    12 UNDO_GET UndoGet: GuardGet, undo_get(get: Undo<'_, Get>) -> ();

    /// Called if this plugin's [`GuardPost`] passed and the write does not happen: a later plugin refused it or
    /// panicked, another operation of the batch failed, or the store could not write. The host calls it at most once
    /// for a guard that passed, and then no [`AfterPost`] follows. The entry's lock may be held: must be short, must
    /// not block, and cannot call the store (508).
    13 UNDO_POST UndoPost: GuardPost, undo_post(post: Undo<'_, Post>) -> ();

    /// Called if this plugin's [`GuardPut`] passed and the write does not happen. As [`UndoPost`].
    ///
    /// A plugin that counts the bytes of all values, without a limit:
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
    /// # struct Mine { bytes: AtomicI64 }
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { bytes: 0.into() }) } }
    /// fn growth(value: &[u8], entry: Option<Entry<'_>>) -> i64 {
    ///     value.len() as i64 - entry.map_or(0, |entry| entry.value().len()) as i64
    /// }
    ///
    /// impl GuardPut for Mine {
    ///     fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
    ///         self.bytes.fetch_add(growth(put.value(), put.entry()), Relaxed);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// impl UndoPut for Mine {
    ///     fn undo_put(&self, put: &Undo<'_, Put>) {
    ///         self.bytes.fetch_sub(growth(put.value(), put.entry()), Relaxed);
    ///     }
    /// }
    /// ```
    14 UNDO_PUT UndoPut: GuardPut, undo_put(put: Undo<'_, Put>) -> ();

    /// Called if this plugin's [`GuardDelete`] passed and the removal does not happen. As [`UndoPost`].
    15 UNDO_DELETE UndoDelete: GuardDelete, undo_delete(delete: Undo<'_, Delete>) -> ();

    /// Called once for each instance after `create`, when the store is loaded. Reads all entries, for example to count
    /// them. No request is in flight during the call, so the entries do not change. No lock is held. It may block, but
    /// cannot call the store (508).
    ///
    /// At the start of the host it runs before the first request, without a timeout; an error or a panic stops the
    /// start. At a reload it runs on a separate thread, with a timeout of 10 s. Requests wait meanwhile, and after an
    /// error the old instance continues.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # struct Mine { host: Host }
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { host }) } }
    /// impl Start for Mine {
    ///     fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
    ///         let mut entries = 0;
    ///         stored.for_each(|_key, _entry| entries += 1);
    ///         self.host.log(Level::Info, &format!("{entries} entries"));
    ///         Ok(())
    ///     }
    /// }
    /// ```
    16 START Start: Plugin, start(stored: Stored<'_>) -> Result<(), String>;

    /// Called with a value that was read and that this plugin had replaced when it was written, to turn it back: for
    /// compression and encryption. The host records with each entry which plugins have replaced its value in
    /// [`BeforePut`] or [`BeforePost`] and have this hook. It calls them in the reverse order, also after the chain has changed.
    ///
    /// It runs for everything that returns the value to a client or a plugin: GET, HEAD, ranges, batches, listings that
    /// show sizes, watches with values, [`Host::get`] and [`Host::for_each`]. Hooks of other plugins see entries as they are
    /// stored. The result must depend on the stored entry and the settings only, because the entity tag is that of the
    /// entry. Keep in the value what the hook needs: a touch writes the stored value again, but guards set details again.
    ///
    /// A refusal refuses the read. Listings and watches leave a key out if the status is 403, 404 or 410, and end with an
    /// error otherwise, because they would look complete. No lock is held. Thread and blocking: as [`BeforeGet`]. Stored
    /// values over 64 KiB are turned back on a thread that may compute for long.
    ///
    /// Since 1.5. Name it as [required](crate::export_plugin), because an older host would return the stored value.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # struct Mine;
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
    /// fn flip(value: &[u8]) -> Vec<u8> {
    ///     value.iter().map(|byte| !byte).collect()
    /// }
    ///
    /// impl BeforePut for Mine {
    ///     fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
    ///         put.replace_value(&flip(put.value()));
    ///         Ok(())
    ///     }
    /// }
    ///
    /// impl ReadGet for Mine {
    ///     fn read_get(&self, read: &mut Read<'_>) -> Verdict {
    ///         read.replace_value(&flip(read.value()));
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// [`Host::get`]: crate::Host::get
    /// [`Host::for_each`]: crate::Host::for_each
    20 READ_GET ReadGet: Plugin, read_get(read: Read<'_>, mutable) -> Verdict;

    /// Called once for each HTTP request for entries or for routes of plugins, after the client's token was recognised and
    /// before anything else: for limits, for authentication, and to keep the entries of clients apart
    /// ([`HttpRequest::set_key_prefix`]). May refuse the request. A batch, a listing or a watch is one request.
    ///
    /// No lock is held. Thread and blocking: as [`BeforeGet`]. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # struct Mine;
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
    /// impl BeforeRequest for Mine {
    ///     fn before_request(&self, request: &mut HttpRequest<'_>) -> Verdict {
    ///         match request.header("user-agent") {
    ///             Some(_) => Ok(()),
    ///             None => Err(Refusal::new(400, "a User-Agent is needed")),
    ///         }
    ///     }
    /// }
    /// ```
    21 BEFORE_REQUEST BeforeRequest: Plugin, before_request(request: HttpRequest<'_>, mutable) -> Verdict;

    and TICK SETTINGS_CHANGED MAKE_ROOM SERVE SERVE_UPDATE APPLIED
}

/// Work in the background. The host calls it when it starts to serve, and again after the duration that each call
/// returns. It runs on a separate thread for each plugin, never twice at a time, with no lock held. It may block and
/// may call the store. The host ends the thread before it drops the plugin. It waits up to 10 s for a running tick at a
/// reload, and up to 12 s at a stop; then it abandons the tick.
///
/// Since 1.1.
///
/// ```
/// # use vkog_plugin_api::*;
/// # use std::time::Duration;
/// # struct Mine { host: Host }
/// # impl Plugin for Mine { type Settings = NoSettings; fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { host }) } }
/// impl Tick for Mine {
///     fn tick(&self) -> Duration {
///         if let Err(refusal) = self.host.delete("scratch") {
///             self.host.log(Level::Warn, refusal.message());
///         }
///         Duration::from_secs(60)
///     }
/// }
/// ```
pub trait Tick: Plugin {
    /// Called as [`Tick`] describes. Returns the time until the next call, from 1 ms to 49 days. After a panic it is 1
    /// s.
    fn tick(&self) -> Duration;
}

impl<P: Tick> Probe<P> {
    #[doc(hidden)]
    pub const TICK: Option<HookEntry> = {
        unsafe extern "C" fn tick<P: Tick>(instance: *const (), call: &RawCall<'_>) -> Outcome {
            // SAFETY: as in `hooks!`.
            unsafe { enter(instance, call, |plugin: &P, _: &mut Request<'_>| plugin.tick()) }
        }
        Some(HookEntry { id: 17, flags: 0, hook: HookFn { call: tick::<P> } })
    };
}

/// Applies new settings at a reload, if the plugin's table in the configuration changed and its library did not.
/// Without this hook, a new instance with the new settings replaces this one.
///
/// Since 1.1.
///
/// ```
/// # use vkog_plugin_api::*;
/// # use std::sync::atomic::{AtomicU64, Ordering};
/// # #[derive(serde::Deserialize)]
/// # #[serde(crate = "vkog_plugin_api::serde")]
/// # struct Settings { limit: u64 }
/// # struct Mine { limit: AtomicU64 }
/// # impl Plugin for Mine { type Settings = Settings; fn create(_: Host, s: Settings) -> Result<Self, CreateError> { Ok(Mine { limit: s.limit.into() }) } }
/// impl SettingsChanged for Mine {
///     fn settings_changed(&self, settings: Settings) -> Result<(), String> {
///         if settings.limit == 0 {
///             return Err("limit is 0; give 1 or more".into());
///         }
///         self.limit.store(settings.limit, Ordering::Relaxed);
///         Ok(())
///     }
/// }
/// ```
pub trait SettingsChanged: Plugin {
    /// Called with the new settings, on a separate thread, with a timeout of 10 s. Other hooks run at the same time,
    /// and no lock is held. It may block and may call the store.
    ///
    /// # Errors
    ///
    /// The plugin rejects the settings and continues with the old ones. The report of the reload has the error.
    fn settings_changed(&self, settings: Self::Settings) -> Result<(), String>;
}

impl<P: SettingsChanged> Probe<P> {
    #[doc(hidden)]
    pub const SETTINGS_CHANGED: Option<HookEntry> = {
        unsafe extern "C" fn settings_changed<P: SettingsChanged>(instance: *const (), call: &RawCall<'_>) -> Outcome {
            let change = |plugin: &P, request: &mut Request<'_>| {
                let json = std::str::from_utf8(request.value()).map_err(|error| error.to_string())?;
                plugin.settings_changed(P::Settings::from_table(json).map_err(|error| error.to_string())?)
            };
            // SAFETY: as in `hooks!`.
            unsafe { enter(instance, call, change) }
        }
        Some(HookEntry { id: 18, flags: 0, hook: HookFn { call: settings_changed::<P> } })
    };
}

/// Removes entries that are not needed, after a plugin has refused a write or a batch with 413. If a plugin made room,
/// the host decides the operation again, up to 256 times. Otherwise the client gets the refusal.
///
/// It runs on the blocking pool, with no lock held. It may block and may call the store. Several threads may call it at
/// once.
///
/// Since 1.3.
///
/// ```
/// # use vkog_plugin_api::*;
/// # struct Mine { host: Host }
/// # impl Plugin for Mine { type Settings = NoSettings; fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { host }) } }
/// impl MakeRoom for Mine {
///     fn make_room(&self) -> bool {
///         self.host.delete("scratch").unwrap_or(false)
///     }
/// }
/// ```
pub trait MakeRoom: Plugin {
    /// Called as [`MakeRoom`] describes. Returns whether this call or another one has removed an entry since the call
    /// began.
    fn make_room(&self) -> bool;
}

impl<P: MakeRoom> Probe<P> {
    #[doc(hidden)]
    pub const MAKE_ROOM: Option<HookEntry> = {
        unsafe extern "C" fn make_room<P: MakeRoom>(instance: *const (), call: &RawCall<'_>) -> Outcome {
            // SAFETY: as in `hooks!`.
            unsafe { enter(instance, call, |plugin: &P, _: &mut Request<'_>| plugin.make_room()) }
        }
        Some(HookEntry { id: 19, flags: 0, hook: HookFn { call: make_room::<P> } })
    };
}
