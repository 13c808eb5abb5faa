//! The ABI: the types that cross the boundary between the host and a plugin. They are `repr(C)`; arguments are borrowed
//! for the call. Plugin authors need only [`Verb`] and [`Stage`] of this module.
//!
//! In a minor version, the prefix types ([`PluginModule`], [`HostApi`], [`BackendModule`], [`FeedApi`]) may grow at the end,
//! and [`HOOK_NAMES`] too. All other types are frozen until `vkog-plugin-api` 2.0.0. `tests/layout.rs` checks their sizes and offsets.

#![allow(unsafe_code)]

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RString};

mod backend;

pub use backend::{
    BackendModule, BackendModuleRef, FeedApi, FeedApiRef, RawChange, RawCommitOutcome, RawCondition, RawFeed,
    RawLoaded, RawMember, RawStatus, RawWrite, StatusFn,
};

/// The symbol under which a plugin library exports its header. The loader of abi_stable looks it up by this name.
pub const ROOT_SYMBOL: &str = "_1as_0lib_1header_0root_bmodule_bloader";

/// An operation, as a value.
#[repr(u32)]
#[derive(StableAbi, Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Read an entry.
    Get = 0,
    /// Create an entry.
    Post = 1,
    /// Update an entry.
    Put = 2,
    /// Remove an entry.
    Delete = 3,
}

impl Verb {
    /// Returns the HTTP method, in capital letters.
    ///
    /// ```
    /// assert_eq!(vkog_plugin_api::Verb::Post.method(), "POST");
    /// ```
    pub fn method(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Post => "POST",
            Verb::Put => "PUT",
            Verb::Delete => "DELETE",
        }
    }
}

/// The reason for which the host runs an operation (since 1.5).
#[repr(u32)]
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// A request for one entry, or something that this version does not know. An older host reports every operation so.
    Request = 0,
    /// An operation of a batch.
    Batch = 1,
    /// A listing of keys; the operation is a get of one of them.
    List = 2,
    /// A count of keys; the operation is a get of one of them.
    Count = 3,
    /// A watch; the operation is a get of the entry of a change.
    Watch = 4,
    /// A touch, which gets the entry and puts the same value.
    Touch = 5,
    /// A deletion by prefix.
    DeletePrefix = 6,
    /// A store call of a plugin: [`Request::asker`](crate::Request::asker) is its name.
    Plugin = 7,
}

impl Origin {
    /// Returns the origin with this number, or [`Origin::Request`] if this version does not know it.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Origin::Batch,
            2 => Origin::List,
            3 => Origin::Count,
            4 => Origin::Watch,
            5 => Origin::Touch,
            6 => Origin::DeletePrefix,
            7 => Origin::Plugin,
            _ => Origin::Request,
        }
    }
}

/// The position of a plugin in the chain: [`Plugin::STAGE`](crate::Plugin::STAGE). `before` and `guard` hooks run from
/// the first stage to the last, `after` and `undo` hooks from the last to the first. Within a stage, plugins are
/// ordered by name. Names in `order` of the table `[plugins]` come before all stages.
#[repr(u32)]
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Authentication, authorization, rate limits; also plugins that must see values before they are transformed, such as an
    /// index.
    Access = 0,
    /// Changes of the value: compression, encryption, rewriting.
    Transform = 1,
    /// Validation, conflicts. The default.
    Policy = 2,
    /// Quotas and limits, which should count only what all other plugins let pass.
    Accounting = 3,
    /// Audit logs, notifications.
    Observe = 4,
}

/// An entry of the store, as a hook sees it.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawEntry<'a> {
    /// The value.
    pub value: RSlice<'a, u8>,
    /// The media type the value was written with.
    pub content_type: RStr<'a>,
    /// The details that the called plugin has stored with the entry; empty if there are none.
    pub details: RSlice<'a, u8>,
    /// The revision of the entry; 0 if an earlier operation of the same batch wrote it.
    pub revision: u64,
    /// Since 1.4: the size of all details of the entry, in bytes, those of the host and the names included; then the size
    /// of those that plugins set. Before: zero.
    pub reserved: [u64; 2],
}

/// The argument of a hook: the request and its entries.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawCall<'a> {
    /// The key, decoded. For `before_request` and `serve`: the path, as the client sent it; that of `serve` begins
    /// behind the plugin's name.
    pub key: RStr<'a>,
    /// The value to write, as the plugins before this one left it. For `read_get`: the value that was read, as the
    /// plugins before this one left it. For `serve` and `serve_update`: the body. For `settings_changed`: the new settings, as a JSON object.
    pub value: RSlice<'a, u8>,
    /// The media type of the value.
    pub content_type: RStr<'a>,
    /// The query of the request, without the question mark, not decoded.
    pub query: RStr<'a>,
    /// The entry before the operation; `None` if the key is absent, and in `before_*`.
    pub before: Option<&'a RawEntry<'a>>,
    /// The entry after the operation (`after_*`, `applied`); `None` if it was removed.
    pub after: Option<&'a RawEntry<'a>>,
    /// The last revision that the store had assigned when the request arrived.
    pub arrived: u64,
    /// The operation.
    pub verb: Verb,
    /// Since 1.5: the origin of the operation, an [`Origin`] as a number. Before: zero. For `applied`: 1 if the entry has
    /// expired, otherwise 0.
    pub flags: u32,
    /// The revision of the operation (`after_*`, `applied`), otherwise 0.
    pub revision: u64,
    /// Since 1.4, in `guard_*`, `undo_*` and `after_*` of a write: the size of the details that the guards before this
    /// plugin's have set, in bytes, the names included. Otherwise zero.
    pub reserved: u64,
    /// The host's own. Functions of [`HostApi`] that belong to a call take it as their first argument.
    pub cx: *mut (),
}

/// The result of a hook. It fits into one register.
#[repr(C)]
#[derive(StableAbi, Copy, Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// [`Outcome::GO_ON`], [`Outcome::REFUSED`] or [`Outcome::PANICKED`]. The host treats any other number as a
    /// refusal.
    pub kind: u16,
    /// The HTTP status of a refusal.
    pub status: u16,
    /// Bits: [`Outcome::HIDE`]. For `tick`: the time until the next call, in milliseconds. For `make_room`: 1 if it
    /// made room.
    pub bits: u32,
}

impl Outcome {
    /// [`kind`](Self::kind): the operation continues.
    pub const GO_ON: u16 = 0;
    /// [`kind`](Self::kind): the operation is refused; the plugin has passed message and headers through [`HostApi`].
    pub const REFUSED: u16 = 1;
    /// [`kind`](Self::kind): the hook panicked; the plugin has passed the message through
    /// [`HostApi::message`](HostApi).
    pub const PANICKED: u16 = 2;
    /// Bit of [`bits`](Self::bits): hide the entry from this read.
    pub const HIDE: u32 = 1;

    /// Returns the result of a hook that lets the operation continue.
    pub const fn go_on(bits: u32) -> Self {
        Self { kind: Self::GO_ON, status: 0, bits }
    }
}

/// A hook's function. Its first argument is [`RawInstance::ptr`].
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct HookFn {
    /// The function; it never unwinds.
    pub call: for<'a> unsafe extern "C" fn(*const (), &'a RawCall<'a>) -> Outcome,
}

/// A row of the plugin's hook table.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct HookEntry {
    /// The hook: an index into [`HOOK_NAMES`]. The host ignores an unknown id. [`PluginModule::required`](PluginModule) has
    /// the names of required hooks; before 1.5, [`HookEntry::REQUIRED`] was set.
    pub id: u32,
    /// Bits: [`HookEntry::REQUIRED`], [`HookEntry::BLOCKS`].
    pub flags: u32,
    /// The function.
    pub hook: HookFn,
}

impl HookEntry {
    /// Bit of [`flags`](Self::flags): a host before 1.5 that does not know this hook refuses to load the plugin. Plugins
    /// built with 1.5 or newer do not set it, because such a host can report the number of the hook only.
    pub const REQUIRED: u32 = 1;
    /// Bit of [`flags`](Self::flags): the hook may block, so the host calls it on a blocking pool (since 1.2).
    pub const BLOCKS: u32 = 2;
}

/// The names of the hooks, by id. New hooks are added at the end.
pub const HOOK_NAMES: [&str; 25] = [
    "before_get",
    "before_post",
    "before_put",
    "before_delete",
    "guard_get",
    "guard_post",
    "guard_put",
    "guard_delete",
    "after_get",
    "after_post",
    "after_put",
    "after_delete",
    "undo_get",
    "undo_post",
    "undo_put",
    "undo_delete",
    "start",
    "tick",
    "settings_changed",
    "make_room",
    "read_get",
    "before_request",
    "serve",
    "serve_update",
    "applied",
];

/// One header of a request.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawHeader<'a> {
    /// The name, as the client sent it.
    pub name: RStr<'a>,
    /// The value, without surrounding white space.
    pub value: RSlice<'a, u8>,
}

/// A function that the host calls with each entry of the store. Its first argument is the state that was passed to
/// [`HostApi::scan`](HostApi).
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct ScanFn {
    /// The function; it never unwinds.
    pub each: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>, &'a RawEntry<'a>),
}

/// An operation that a plugin requests of the store (since 1.1).
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawAsk<'a> {
    /// The key.
    pub key: RStr<'a>,
    /// The value to be written; empty for get and delete.
    pub value: RSlice<'a, u8>,
    /// Its media type; empty for the default.
    pub content_type: RStr<'a>,
    /// The query that hooks see.
    pub query: RStr<'a>,
    /// The headers that hooks see.
    pub headers: RSlice<'a, RawHeader<'a>>,
    /// The operation.
    pub verb: Verb,
    /// Bits: [`RawAsk::IF_REVISION`], [`RawAsk::IF_ABSENT`], [`RawAsk::UPSERT`], [`RawAsk::KEEP_CODING`].
    pub flags: u32,
    /// The required revision of the entry, with [`RawAsk::IF_REVISION`].
    pub revision: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

impl RawAsk<'_> {
    /// Bit of [`flags`](Self::flags): the operation fails with 412 if the entry has another revision.
    pub const IF_REVISION: u32 = 1;
    /// Bit of [`flags`](Self::flags): the operation fails with 412 if the entry exists (since 1.5).
    pub const IF_ABSENT: u32 = 2;
    /// Bit of [`flags`](Self::flags): a put creates the entry or replaces it, even if a plugin treats a put without
    /// preconditions otherwise (since 1.5).
    pub const UPSERT: u32 = 4;
    /// Bit of [`flags`](Self::flags): a put keeps the content coding of the entry that it replaces (since 1.6).
    pub const KEEP_CODING: u32 = 8;
}

/// The result of a [`RawAsk`] (since 1.1).
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawAnswer<'a> {
    /// The entry that a get found.
    pub entry: Option<&'a RawEntry<'a>>,
    /// Why the operation failed; empty if it succeeded.
    pub message: RStr<'a>,
    /// The plugin that refused it; empty if none did.
    pub plugin: RStr<'a>,
    /// The revision of the entry that was found, or of the write.
    pub revision: u64,
    /// The HTTP status that a client would get.
    pub status: u32,
    /// Zero.
    pub flags: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// A function that the host calls once with the result of each operation, before [`HostApi::ask`](HostApi) returns. Its
/// first argument is the state that was passed to that function.
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct AnswerFn {
    /// The function; it never unwinds.
    pub answer: for<'a> unsafe extern "C" fn(*mut (), &'a RawAnswer<'a>),
}

/// A function that the host calls with entries until it returns `false`. Its first argument is the state that was
/// passed to [`HostApi::for_each`](HostApi).
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct EachFn {
    /// The function; it never unwinds.
    pub each: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>, &'a RawEntry<'a>) -> bool,
}

/// A function that the host calls with the key of an entry that cannot be read, the HTTP status that a client would get, and the
/// reason (since 1.6). Its first argument is the state that was passed to [`HostApi::for_each_readable`](HostApi).
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct UnreadableFn {
    /// The function; it never unwinds. The listing continues if it returns `true`.
    pub unreadable: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>, u32, RStr<'a>) -> bool,
}

/// A function that the host calls with the current entry of an update, possibly several times (since 1.5). It returns the
/// value to write, borrowed from the state until the next call, or nothing to give the update up. Its first argument is
/// the state that was passed to [`HostApi::update`](HostApi).
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct UpdateFn {
    /// The function; it never unwinds.
    pub update: for<'a> unsafe extern "C" fn(*mut (), Option<&'a RawEntry<'a>>) -> ROption<RSlice<'static, u8>>,
}

/// The state that a plugin keeps for one operation (since 1.5). The host drops it at the end of the operation.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawState {
    /// The plugin's own; null if there is no state.
    pub ptr: *mut (),
    /// Drops what `ptr` points to; it never unwinds.
    pub drop: Option<unsafe extern "C" fn(*mut ())>,
}

/// A route that a plugin serves (since 1.5).
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawRoute {
    /// The HTTP method.
    pub method: RStr<'static>,
    /// The path below `/x/PLUGIN`, which begins with a slash.
    pub path: RStr<'static>,
    /// One sentence for the description of the HTTP API.
    pub summary: RStr<'static>,
    /// The [`Permission`](crate::Permission) that the client needs, as a number.
    pub permission: u32,
    /// Bits: [`RawRoute::UPDATES`].
    pub flags: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

impl RawRoute {
    /// Bit of [`flags`](Self::flags): the host calls `serve_update` for the route, and not `serve`.
    pub const UPDATES: u32 = 1;
}

/// The functions of the host that a plugin may call. New functions are added at the end.
///
/// The first argument of type `*const ()` is [`RawHost::cx`]. The first argument of type `*mut ()` is [`RawCall::cx`]
/// of a call that has not returned; the result is borrowed from that call, and `'static` only stands for its lifetime.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostApiRef)))]
pub struct HostApi {
    /// Writes a line to the host's log: 1 error, 2 warning, 3 information, 4 debugging.
    pub log: for<'a> unsafe extern "C" fn(*const (), u32, RStr<'a>),
    /// The host's `--max-size`, in bytes.
    pub max_size: unsafe extern "C" fn(*const ()) -> u64,
    /// Sets the message of a refusal or of a panic.
    pub message: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>),
    /// Adds a header to a refusal; in `after_*` to the response (since 1.1).
    pub refusal_header: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>, RStr<'a>),
    /// Sets the value to write (`before_post`, `before_put`; since 1.5 also `guard_post`, `guard_put`, `serve_update`), or the
    /// value that was read (`read_get`).
    pub replace_value: for<'a> unsafe extern "C" fn(*mut (), RSlice<'a, u8>),
    /// Sets the plugin's details of the entry to write (`guard_post`, `guard_put`).
    pub set_details: for<'a> unsafe extern "C" fn(*mut (), RSlice<'a, u8>),
    /// Returns the first request header with this name, in any case.
    pub header: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>) -> ROption<RSlice<'static, u8>>,
    /// Returns the request header at this position.
    pub header_at: unsafe extern "C" fn(*mut (), usize) -> ROption<RawHeader<'static>>,
    /// Returns the client's address, `ip:port`; empty on a Unix socket.
    pub client: unsafe extern "C" fn(*mut ()) -> RStr<'static>,
    /// Calls a function with every entry of the store (`start`).
    #[sabi(last_prefix_field)]
    pub scan: unsafe extern "C" fn(*mut (), *mut (), ScanFn),

    // Since 1.1:
    /// Runs an operation and calls the function with the result.
    pub ask: for<'a> unsafe extern "C" fn(*const (), &'a RawAsk<'a>, *mut (), AnswerFn),
    /// Calls a function with every entry whose key starts with the prefix and that a get of this plugin would find.
    /// Returns 0, or the status of the refusal that ended it.
    pub for_each: for<'a> unsafe extern "C" fn(*const (), RStr<'a>, *mut (), EachFn) -> u32,
    /// Returns the time of the host's clock: milliseconds since 1970 in UTC.
    pub now: unsafe extern "C" fn(*const ()) -> u64,
    /// Returns the value of a metric with this name and help text: kind 0 is a counter, 1 a gauge. Null if the name is
    /// invalid. Both sides access it only atomically, and it is valid until the process ends.
    pub metric: for<'a> unsafe extern "C" fn(*const (), u32, RStr<'a>, RStr<'a>) -> *const u64,
    /// Returns the plugin that requested the operation; empty for a request of a client.
    pub asker: unsafe extern "C" fn(*mut ()) -> RStr<'static>,

    // Since 1.3:
    /// Runs several independent operations, then calls the function with each result, in the same order.
    pub ask_each: for<'a> unsafe extern "C" fn(*const (), RSlice<'a, RawAsk<'a>>, *mut (), AnswerFn),

    // Since 1.5:
    /// Sets the media type of the value to write (`before_post`, `before_put`, `serve_update`) or of the value that was read
    /// (`read_get`).
    pub replace_content_type: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>),
    /// Returns the place for the plugin's state of the operation (`before_*`, `guard_*`, `undo_*`, `read_get`, `after_*`);
    /// null in other hooks. It is valid until the hook returns.
    pub state: unsafe extern "C" fn(*mut ()) -> *mut RawState,
    /// Returns the name of the access token with which the request came; empty if there is none.
    pub token: unsafe extern "C" fn(*mut ()) -> RStr<'static>,
    /// Returns the HTTP method (`before_request`, `serve`, `serve_update`).
    pub method: unsafe extern "C" fn(*mut ()) -> RStr<'static>,
    /// Sets the prefix of all keys of the request (`before_request`).
    pub set_key_prefix: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>),
    /// Adds a write to the step of this one (`guard_post`, `guard_put`, `guard_delete`).
    pub add_write: for<'a> unsafe extern "C" fn(*mut (), &'a RawAsk<'a>),
    /// Returns a parameter of the path (`serve`, `serve_update`), percent-decoded.
    pub parameter: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>) -> ROption<RStr<'static>>,
    /// Begins the response (`serve`, `serve_update`): status, media type, the first part of the body, and whether more parts
    /// follow, which only `serve` may send. Returns whether the client still reads.
    pub respond: for<'a> unsafe extern "C" fn(*mut (), u32, RStr<'a>, RSlice<'a, u8>, bool) -> bool,
    /// Sends a further part of the body (`serve`). Blocks while the client does not read. Returns whether it still reads.
    pub send_part: for<'a> unsafe extern "C" fn(*mut (), RSlice<'a, u8>) -> bool,
    /// Runs several operations in one step, and calls the function with each result, in the same order. Returns -1; or
    /// the index of the operation that failed, and then calls the function once, with its failure.
    pub batch: for<'a> unsafe extern "C" fn(*const (), RSlice<'a, RawAsk<'a>>, *mut (), AnswerFn) -> i64,
    /// Replaces the value of an entry by what the update function makes of it, in one step, and calls the answer function
    /// once, unless the update function gave up. Both get the same state.
    pub update: for<'a> unsafe extern "C" fn(*const (), &'a RawAsk<'a>, *mut (), UpdateFn, AnswerFn),
    /// Calls a function with the entries whose keys begin with the prefix, in byte order, from a start on, at most as many
    /// as the limit. Otherwise as `for_each`.
    pub for_each_from: for<'a> unsafe extern "C" fn(*const (), RStr<'a>, RStr<'a>, u64, *mut (), EachFn) -> u32,
    /// Calls a function with entries that are chosen at random, at most as many as the number. Otherwise as `for_each`.
    pub sample: unsafe extern "C" fn(*const (), u64, *mut (), EachFn) -> u32,
    /// Switches a hook of the plugin off, by its name, while the plugin is created.
    pub switch_off: for<'a> unsafe extern "C" fn(*const (), RStr<'a>),

    // Since 1.6:
    /// Returns whether this host leads among those that share the store.
    pub leads: unsafe extern "C" fn(*const ()) -> bool,
    /// As `for_each_from`, but entries that cannot be read do not end the listing: calls the second function with them.
    pub for_each_readable:
        for<'a> unsafe extern "C" fn(*const (), RStr<'a>, RStr<'a>, u64, *mut (), EachFn, UnreadableFn) -> u32,
    /// Records that the plugin depends on the content of a file, and that content's hash.
    pub depend_on: for<'a> unsafe extern "C" fn(*const (), RStr<'a>),
}

/// The host as a plugin holds it.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawHost {
    /// The functions.
    pub api: HostApiRef,
    /// Identifies the calling plugin. Valid until the process ends.
    pub cx: *const (),
}

/// A plugin that was created.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawInstance {
    /// The plugin's own; the host only passes it back.
    pub ptr: *const (),
}

/// Why a plugin could not be created.
#[repr(C)]
#[derive(StableAbi)]
pub struct RawFailure {
    /// [`RawFailure::SETTINGS`], [`RawFailure::CREATE`] or [`RawFailure::PANIC`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// The error, as one line.
    pub message: RString,
}

impl RawFailure {
    /// [`kind`](Self::kind): the settings could not be read.
    pub const SETTINGS: u32 = 0;
    /// [`kind`](Self::kind): `create` returned an error.
    pub const CREATE: u32 = 1;
    /// [`kind`](Self::kind): `create` panicked.
    pub const PANIC: u32 = 2;
}

/// The root module: everything that a plugin library exports. New fields are added at the end.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
pub struct PluginModule {
    /// The plugin's name.
    pub name: RStr<'static>,
    /// The plugin's version.
    pub version: RStr<'static>,
    /// Whether a panic in this library unwinds. The host does not load a library whose panics abort, because it cannot
    /// catch them.
    pub unwinds: bool,
    /// The plugin's [`Stage`], as a number.
    pub stage: u32,
    /// Creates an instance; the second argument is the plugin's settings, a JSON object.
    pub create: for<'a> unsafe extern "C" fn(RawHost, RStr<'a>) -> RResult<RawInstance, RawFailure>,
    /// Destroys an instance. The host calls it once, when no hook of the instance is in flight. Returns the message of
    /// a panic in `drop`.
    pub destroy: unsafe extern "C" fn(RawInstance) -> ROption<RString>,
    /// The hooks this plugin implements, each at most once.
    #[sabi(last_prefix_field)]
    pub hooks: RSlice<'static, HookEntry>,

    // Since 1.5:
    /// The routes that the plugin serves.
    pub routes: RSlice<'static, RawRoute>,
    /// The names of the hooks that the host must have. A host older than 1.5 does not read them: there,
    /// [`create`](Self::create) fails.
    pub required: RSlice<'static, RStr<'static>>,

    // Since 1.6:
    /// The functions of the backend, if the plugin is one.
    pub backend: ROption<BackendModuleRef>,
}

impl RootModule for PluginModuleRef {
    abi_stable::declare_root_module_statics! {PluginModuleRef}

    const BASE_NAME: &'static str = "vkog_plugin";
    const NAME: &'static str = "vkog_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
