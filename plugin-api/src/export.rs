//! The code that [`export_plugin!`](crate::export_plugin) expands to: the root module of a plugin library. It is public
//! for the macro only, and not part of the stable interface.

#![allow(unsafe_code)]

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use abi_stable::library::RootModuleResult;
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RErr, RNone, ROk, ROption, RResult, RSlice, RSome, RStr, RString};

use crate::abi::{
    BackendModuleRef, HOOK_NAMES, HookEntry, HostApiRef, PluginModule, PluginModuleRef, RawFailure, RawHost,
    RawInstance,
};
use crate::hooks::Plugin;
use crate::host::{Host, Level};
use crate::http::Route;
use crate::settings::FromTable;

pub use crate::hooks::NoHooks;
pub use abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult as ModuleResult};

/// Detects at compile time which hooks a type has: `Probe::<P>::GUARD_PUT` is an inherent constant if `P: GuardPut`,
/// otherwise the `None` of [`NoHooks`].
pub struct Probe<P>(PhantomData<P>);

/// A plugin that [`export_plugin!`](crate::export_plugin) exports.
pub trait Exported: Plugin {
    /// The names of the hooks that the host must have.
    const REQUIRED: &'static [&'static str];

    /// Returns the root module of the library.
    fn module() -> PluginModuleRef;
}

/// The target of [`RawInstance::ptr`].
pub(crate) struct Instance<P> {
    pub(crate) plugin: P,
    pub(crate) host: Host,
}

/// The message of a panic.
pub(crate) struct Panic(pub(crate) String);

/// Runs code of a plugin and catches its panic.
#[inline(always)]
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(run)).map_err(caught_panic)
}

#[cold]
fn caught_panic(payload: Box<dyn Any + Send>) -> Panic {
    let message = panic_message(payload.as_ref());
    // The drop of the payload may panic as well. Forget the second payload, whose drop may panic again.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    Panic(message)
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

/// Set when the panic hook of this library was decided.
static PANICS: Once = Once::new();

/// Keeps the panic hook of this program, for tests that run a plugin in their own program.
pub fn leave_panics() {
    PANICS.call_once(|| {});
}

/// Sends the messages of panics in this library to the host's log. A plugin library has its own standard library and
/// therefore its own panic hook, which by default prints to standard error instead.
fn forward_panics(host: Host) {
    PANICS.call_once(|| {
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
            host.log(Level::Error, &format!("panicked{place}: {}", panic_message(info.payload())));
        }));
    });
}

unsafe extern "C" fn create<P: Plugin>(host: RawHost, settings: RStr<'_>) -> RResult<RawInstance, RawFailure> {
    let failure = |kind, message: String| RErr(RawFailure { kind, reserved: 0, message: message.into() });
    let host = Host::new(host);
    let created = caught(|| {
        forward_panics(host);
        let settings =
            P::Settings::from_table(settings.as_str()).map_err(|error| (RawFailure::SETTINGS, error.to_string()))?;
        P::create(host, settings).map_err(|error| (RawFailure::CREATE, error.to_string()))
    });
    match created {
        Ok(Ok(plugin)) => {
            ROk(RawInstance { ptr: Box::into_raw(Box::new(Instance { plugin, host })).cast_const().cast() })
        }
        Ok(Err((kind, message))) => failure(kind, message),
        Err(Panic(message)) => failure(RawFailure::PANIC, message),
    }
}

/// Creates the plugin, unless the host is too old to check [`PluginModule::required`](PluginModule) and lacks one of the hooks.
unsafe extern "C" fn create_exported<P: Exported>(
    host: RawHost,
    settings: RStr<'_>,
) -> RResult<RawInstance, RawFailure> {
    match missing_hook(host.api, P::REQUIRED) {
        // SAFETY: the arguments of the host.
        None => unsafe { create::<P>(host, settings) },
        Some((hook, version)) => {
            let message =
                format!("it requires the hook {hook} of vkog-plugin-api 1.{version}, which only newer servers have");
            RErr(RawFailure { kind: RawFailure::CREATE, reserved: 0, message: message.into() })
        }
    }
}

/// Returns a required hook that a host older than 1.5 lacks, and the minor version that it came with.
fn missing_hook(host: HostApiRef, required: &[&'static str]) -> Option<(&'static str, u32)> {
    if host.switch_off().is_some() {
        return None;
    }
    let is_at_least = |version| match version {
        0 => true,
        1 => host.ask().is_some(),
        3 => host.ask_each().is_some(),
        _ => false,
    };
    let versions = required.iter().map(|name| (*name, version_of(name)));
    versions.into_iter().find(|(_, version)| !is_at_least(*version))
}

/// Returns the minor version that a hook came with.
fn version_of(hook: &str) -> u32 {
    match HOOK_NAMES.iter().position(|name| *name == hook) {
        Some(0..=16) => 0,
        Some(17 | 18) => 1,
        Some(19) => 3,
        _ => 5,
    }
}

unsafe extern "C" fn destroy<P: Plugin>(instance: RawInstance) -> ROption<RString> {
    // SAFETY: `create` above made the pointer with `Box::into_raw`, and the host destroys an instance once.
    let instance = unsafe { Box::from_raw(instance.ptr.cast_mut().cast::<Instance<P>>()) };
    match caught(|| drop(instance)) {
        Ok(()) => RNone,
        Err(Panic(message)) => RSome(message.into()),
    }
}

/// Returns the hook table without the hooks that are not implemented. It is made once for each library and leaked.
fn table(hooks: &[Option<HookEntry>], blocks: bool) -> RSlice<'static, HookEntry> {
    let flags = if blocks { HookEntry::BLOCKS } else { 0 };
    let flagged = |entry: &HookEntry| HookEntry { flags: entry.flags | flags, ..*entry };
    let table: Vec<HookEntry> = hooks.iter().flatten().map(flagged).collect();
    RSlice::from_slice(table.leak())
}

/// Returns all routes of a plugin: those of `Serve`, and those of `ServeUpdate`. They are leaked.
pub fn routes(served: &[Route], updating: &[Route]) -> &'static [Route] {
    let updating = updating.iter().map(Route::updating);
    served.iter().copied().chain(updating).collect::<Vec<_>>().leak()
}

/// Makes the root module of `P`, which requires no hook of its host and is no backend.
pub fn module<P: Plugin>(
    name: &'static str,
    version: &'static str,
    unwinds: bool,
    hooks: &[Option<HookEntry>],
    routes: &[Route],
) -> PluginModuleRef {
    module_with_backend::<P>(name, version, unwinds, hooks, routes, None)
}

/// Makes the root module of `P`, which requires no hook of its host.
pub fn module_with_backend<P: Plugin>(
    name: &'static str,
    version: &'static str,
    unwinds: bool,
    hooks: &[Option<HookEntry>],
    routes: &[Route],
    backend: Option<fn() -> BackendModuleRef>,
) -> PluginModuleRef {
    root_module::<P>(name, version, unwinds, hooks, routes, backend).leak_into_prefix()
}

/// Makes the root module of a library.
pub fn exported<P: Exported>(
    name: &'static str,
    version: &'static str,
    unwinds: bool,
    hooks: &[Option<HookEntry>],
    routes: &[Route],
    backend: Option<fn() -> BackendModuleRef>,
) -> PluginModuleRef {
    let required: Vec<RStr<'static>> = P::REQUIRED.iter().map(|name| (*name).into()).collect();
    PluginModule {
        create: create_exported::<P>,
        required: RSlice::from_slice(required.leak()),
        ..root_module::<P>(name, version, unwinds, hooks, routes, backend)
    }
    .leak_into_prefix()
}

fn root_module<P: Plugin>(
    name: &'static str,
    version: &'static str,
    unwinds: bool,
    hooks: &[Option<HookEntry>],
    routes: &[Route],
    backend: Option<fn() -> BackendModuleRef>,
) -> PluginModule {
    PluginModule {
        name: name.into(),
        version: version.into(),
        unwinds,
        stage: P::STAGE as u32,
        create: create::<P>,
        destroy: destroy::<P>,
        hooks: table(hooks, P::BLOCKS),
        routes: RSlice::from_slice(routes.iter().map(Route::raw).collect::<Vec<_>>().leak()),
        required: RSlice::EMPTY,
        backend: backend.map(|make| make()).into(),
    }
}

/// The function that the header of the library calls.
pub fn load(make: fn() -> PluginModuleRef) -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(make)
}

/// Returns the name of a plugin: the name of its crate without a leading `vkog-`.
pub const fn plugin_name(package: &str) -> &str {
    const PREFIX: &[u8] = b"vkog-";
    let bytes = package.as_bytes();
    let mut at = 0;
    while at < PREFIX.len() {
        if at >= bytes.len() || bytes[at] != PREFIX[at] {
            return package;
        }
        at += 1;
    }
    match core::str::from_utf8(bytes.split_at(PREFIX.len()).1) {
        Ok(name) => name,
        Err(_) => package,
    }
}

/// Whether a table has no hook.
pub const fn is_empty(hooks: &[Option<HookEntry>]) -> bool {
    let mut at = 0;
    while at < hooks.len() {
        if hooks[at].is_some() {
            return false;
        }
        at += 1;
    }
    true
}

/// Orders the hooks by their ids.
pub const fn by_id<const N: usize>(hooks: [Option<HookEntry>; N]) -> [Option<HookEntry>; N] {
    let mut ordered = [None; N];
    let mut index = 0;
    while index < N {
        if let Some(entry) = hooks[index] {
            ordered[entry.id as usize] = Some(entry);
        }
        index += 1;
    }
    ordered
}

/// Checks that the required hooks are implemented, and returns the table. Each name comes with the error for a table without
/// it, because constant code cannot concatenate texts.
pub const fn require<const N: usize>(
    hooks: [Option<HookEntry>; N],
    required: &[(&str, &str)],
) -> [Option<HookEntry>; N] {
    let mut index = 0;
    while index < required.len() {
        let (name, error) = required[index];
        let mut id = 0;
        while id < N && !same(HOOK_NAMES[id], name) {
            id += 1;
        }
        if id == N || hooks[id].is_none() {
            panic!("{}", error);
        }
        index += 1;
    }
    hooks
}

const fn same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut at = 0;
    while at < left.len() {
        if left[at] != right[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Exports a plugin from its library: `export_plugin!(Type);`, once in a crate with `crate-type = ["cdylib"]`.
///
/// The macro finds the hooks, and a [backend](crate::Backend), by the traits that the type implements. A type without any of
/// them does not compile.
///
/// A host ignores hooks that it does not know. If the plugin is useless without a hook, name the hook as required. A
/// host that does not know it then refuses to load the plugin, and names the hook:
///
/// ```
/// # use vkog_plugin_api::*;
/// # struct Mine;
/// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
/// # impl MakeRoom for Mine { fn make_room(&self) -> bool { false } }
/// export_plugin!(Mine, required: [make_room]);
/// # fn main() {}
/// ```
///
/// ```compile_fail
/// use vkog_plugin_api::*;
/// struct Idle;
/// impl Plugin for Idle {
///     type Settings = NoSettings;
///     fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Idle) }
/// }
/// export_plugin!(Idle); // error: this plugin implements no hook
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty $(, required: [$($hook:ident),+ $(,)?])? $(,)?) => {
        const _: () = {
            const HOOKS: [::core::option::Option<$crate::abi::HookEntry>; $crate::abi::HOOK_NAMES.len()] =
                $crate::export::require($crate::export::by_id($crate::__hooks!($plugin)), &[$($((
                    stringify!($hook),
                    concat!(
                        "`", stringify!($hook), "` is required, but this plugin implements no hook of that name: implement \
                         its trait, or correct the name (`required: [guard_put]`), or leave it out"
                    ),
                )),+)?]);
            const BACKEND: ::core::option::Option<fn() -> $crate::abi::BackendModuleRef> = $crate::__backend!($plugin);
            assert!(
                !$crate::export::is_empty(&HOOKS) || BACKEND.is_some(),
                "this plugin implements no hook: implement at least one of the hook traits, such as GuardPut"
            );

            impl $crate::export::Exported for $plugin {
                const REQUIRED: &'static [&'static str] = &[$($(stringify!($hook)),+)?];

                fn module() -> $crate::abi::PluginModuleRef {
                    const NAME: &str = $crate::export::plugin_name(env!("CARGO_PKG_NAME"));
                    $crate::export::exported::<$plugin>(
                        NAME,
                        env!("CARGO_PKG_VERSION"),
                        cfg!(panic = "unwind"),
                        &HOOKS,
                        $crate::__routes!($plugin),
                        BACKEND,
                    )
                }
            }

            extern "C" fn load() -> $crate::export::ModuleResult {
                $crate::export::load(<$plugin as $crate::export::Exported>::module)
            }

            $crate::__root!(load);
        };
    };
}

/// Returns the name of the plugin that this crate exports, as a `&'static str`: the name of the crate without a leading `vkog-`.
/// A plugin recognises its own store calls by it. Since 1.5.
///
/// ```
/// # use vkog_plugin_api::*;
/// fn check(put: &Before<'_, Put>) -> Verdict {
///     if put.key().starts_with("mine/") && put.asker() != Some(plugin_name!()) {
///         return Err(Refusal::new(403, "only the plugin writes these entries"));
///     }
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! plugin_name {
    () => {{
        const NAME: &str = $crate::export::plugin_name(env!("CARGO_PKG_NAME"));
        NAME
    }};
}

/// Defines the static that abi_stable's loader looks up by name. A separate macro, so that the name is written once.
#[doc(hidden)]
#[macro_export]
macro_rules! __root {
    ($load:ident) => {
        #[allow(non_upper_case_globals)]
        // No other plugin of the process has the same symbol in the same library.
        #[unsafe(no_mangle)]
        pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::export::LibHeader = {
            // SAFETY: the constructor returns the module type that is named here.
            unsafe {
                $crate::export::LibHeader::from_constructor::<$crate::abi::PluginModuleRef>(
                    $load,
                    $crate::export::CheckTypeLayout::Yes,
                )
            }
        };
    };
}
