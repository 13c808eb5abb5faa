//! One trait for each hook, and for each of them the function that the host calls.

#![allow(unsafe_code)]

use std::time::Duration;

use crate::abi::{HookEntry, HookFn, Outcome, RawCall, Stage};
use crate::call::{After, Before, Delete, Get, Guard, Post, Put, Refusal, Request, Stored, Undo, Verdict, View};
use crate::export::{Instance, Probe, caught};
use crate::host::Host;
use crate::settings::{CreateError, FromTable};

/// A plugin: what is created once when the host starts and dropped when it stops.
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
    /// The plugin's table of the configuration, `[plugins.NAME]`. A key that this type does not have is refused, and the
    /// known ones are listed. [`NoSettings`](crate::NoSettings) for a plugin that takes none.
    type Settings: FromTable;

    /// Where in the chain the plugin stands.
    const STAGE: Stage = Stage::Policy;

    /// Whether its hooks may wait: for a file, for another machine, for a lock that is held for long. The host then does
    /// what it is asked about on threads that may wait, and other clients are served meanwhile; that costs each such
    /// request a change of threads. A guard is called under its entry's lock all the same, and must not wait. Since 1.2;
    /// an older host has it wait where others are served.
    const BLOCKS: bool = false;

    /// Makes the plugin. Called once for each start of the host, before the first request and before [`Start`], from the
    /// host's main thread; no lock is held. `vkog plugins check` calls it too, so what it opens it must close in `drop`.
    ///
    /// # Errors
    ///
    /// An error (or a panic) stops the start of the host, which prints it with the plugin's name.
    fn create(host: Host, settings: Self::Settings) -> Result<Self, CreateError>;
}

/// What a hook may return. A refusal has to be possible by type, or impossible by type.
trait IntoOutcome {
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

/// Calls a hook with its view of the call, and keeps a panic in.
///
/// # Safety
///
/// `instance` is what `create` of export.rs made for this plugin, not destroyed yet.
#[inline(always)]
unsafe fn enter<'a, P: Plugin, V: View<'a>, R: IntoOutcome>(
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
                        // SAFETY: the host calls the table's functions only with the instance that the same module made.
                        unsafe { enter(instance, call, |plugin: &P, view: &mut $view| plugin.$method(view)) }
                    }
                    Some(HookEntry { id: $id, flags: 0, hook: HookFn { call: $method::<P> } })
                };
            }
        )*

        /// What a plugin has of each hook whose trait it does not implement. An inherent constant of [`Probe`] is found
        /// first, and exists only where the trait is implemented.
        #[doc(hidden)]
        pub trait NoHooks {
            $(const $constant: Option<HookEntry> = None;)*
            $(const $other: Option<HookEntry> = None;)*
        }

        /// The hooks of a type, by their ids; `None` where the trait is not implemented.
        #[doc(hidden)]
        #[macro_export]
        macro_rules! __hooks {
            ($plugin:ty) => {{
                #[allow(unused_imports)]
                use $crate::export::{NoHooks as _, Probe};
                [$(Probe::<$plugin>::$constant,)* $(Probe::<$plugin>::$other),*]
            }};
        }
    };
    (@reference $view:ty, mutable) => { &mut $view };
    (@reference $view:ty) => { &$view };
}

impl<P> NoHooks for Probe<P> {}

// A get's `guard`, `undo` and `after`, and a delete's, run only where there is an entry: nothing else goes out or away.
hooks! {
    /// Before a read: may refuse it, or hide the entry. No lock is held. Called on a worker of the host.
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

    /// Before a create: may refuse it, or replace the value. No lock is held. Called on a worker of the host.
    1 BEFORE_POST BeforePost: Plugin, before_post(post: Before<'_, Post>, mutable) -> Verdict;

    /// Before an update: may refuse it, or replace the value. No lock is held. Called on a worker of the host.
    2 BEFORE_PUT BeforePut: Plugin, before_put(put: Before<'_, Put>, mutable) -> Verdict;

    /// Before a removal: may refuse it. No lock is held. Called on a worker of the host.
    3 BEFORE_DELETE BeforeDelete: Plugin, before_delete(delete: Before<'_, Delete>, mutable) -> Verdict;

    /// With a read, under the entry's lock: may refuse it, or hide the entry. Must be short. Not called where the key is
    /// absent.
    4 GUARD_GET GuardGet: Plugin, guard_get(get: Guard<'_, Get>, mutable) -> Verdict;

    /// With a create, in one step with the write, under the entry's lock: may refuse it, set details, reserve. Must be
    /// short. What it reserves it gives back in [`UndoPost`], which is called if the write does not happen after all.
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

    /// With an update, in one step with the write, under the entry's lock. As [`GuardPost`].
    6 GUARD_PUT GuardPut: Plugin, guard_put(put: Guard<'_, Put>, mutable) -> Verdict;

    /// With a removal, in one step with it, under the entry's lock: may refuse it, reserve. Must be short. Not called
    /// where the key is absent.
    7 GUARD_DELETE GuardDelete: Plugin, guard_delete(delete: Guard<'_, Delete>, mutable) -> Verdict;

    /// After a read that found an entry, before its answer leaves. No lock is held; any thread of the host.
    8 AFTER_GET AfterGet: Plugin, after_get(get: After<'_, Get>) -> ();

    /// After a create is done and kept, before its answer leaves. No lock is held; any thread of the host.
    9 AFTER_POST AfterPost: Plugin, after_post(post: After<'_, Post>) -> ();

    /// After an update is done and kept, before its answer leaves. No lock is held; any thread of the host.
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

    /// After a removal is done and kept, before its answer leaves. No lock is held; any thread of the host.
    11 AFTER_DELETE AfterDelete: Plugin, after_delete(delete: After<'_, Delete>) -> ();

    /// A read whose guard here had passed is refused by a later plugin. Any thread of the host.
    12 UNDO_GET UndoGet: GuardGet, undo_get(get: Undo<'_, Get>) -> ();

    /// A create whose guard here had passed will not happen: a later plugin refused it or failed, or the store did. The
    /// entry's lock may be held. Called at most once for a guard that passed, and then no `after_post` follows.
    13 UNDO_POST UndoPost: GuardPost, undo_post(post: Undo<'_, Post>) -> ();

    /// An update whose guard here had passed will not happen. As [`UndoPost`].
    14 UNDO_PUT UndoPut: GuardPut, undo_put(put: Undo<'_, Put>) -> ();

    /// A removal whose guard here had passed will not happen. As [`UndoPost`].
    15 UNDO_DELETE UndoDelete: GuardDelete, undo_delete(delete: Undo<'_, Delete>) -> ();

    /// The store is loaded and nothing is served yet: the moment to learn what it holds. Called once after `create`, on
    /// the host's main thread. An error stops the start.
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

    and TICK SETTINGS_CHANGED MAKE_ROOM
}

/// Work of the plugin's own, beside the requests. Called for the first time when the host serves, and then whenever the
/// time that the last call gave has passed; never twice at a time, on a thread of the host, with no lock held. What it
/// does to the store goes through [`Host`]. Not called any more once the plugin is being dropped.
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
    /// See [`Tick`]. Returns how long to wait until the next call, a millisecond to 49 days. After a panic that is a second.
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

/// The plugin's table of the configuration has changed, and the host was asked to take that in. Without this hook the host
/// makes a new instance of the plugin in place of this one.
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
    /// See [`SettingsChanged`]. Called beside the other hooks, with no lock held.
    ///
    /// # Errors
    ///
    /// The plugin keeps the settings it has; whoever asked for the change is told why.
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

/// A plugin has refused a write with 413, because it finds no room for it. Called before the client is answered, on a thread
/// that may wait, with no lock held: a plugin that knows of entries that nobody needs any more removes some of them. If one
/// did, the write is decided again; that is repeated as long as room is made. Since 1.3.
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
    /// See [`MakeRoom`]. Returns whether something was removed since the call began, by this call or another one.
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
