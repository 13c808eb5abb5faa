//! The types that cross the boundary between the host and a plugin, and nothing else: `repr(C)`, borrowed in, small and
//! plain out. Authors never see this layer.
//!
//! The two prefix types ([`PluginModule`], [`HostApi`]) may grow at the end in a minor version; everything else here is
//! frozen until `vkog-plugin-api` 2.0.0. `tests/layout.rs` holds the sizes and offsets as numbers.

#![allow(unsafe_code)]

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RString};

/// The symbol under which a plugin library exports its header. abi_stable chose it: its loader looks for nothing else.
pub const ROOT_SYMBOL: &str = "_1as_0lib_1header_0root_bmodule_bloader";

/// What a request wants done, as it crosses the boundary.
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
    /// The HTTP method that asks for it, in capitals.
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

/// Where in the chain a plugin stands. `before` and `guard` run from the first stage to the last, `after` and `undo` from
/// the last to the first; plugins of one stage run in the order of their names.
#[repr(u32)]
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Who may do it: authentication, authorisation, rate limits.
    Access = 0,
    /// What will be written: compression, encryption, rewriting.
    Transform = 1,
    /// Whether it is allowed: validation, conflicts. The default.
    Policy = 2,
    /// What it costs: quotas and limits, which should count only what everybody else let pass.
    Accounting = 3,
    /// Who wants to know: audit logs, notifications.
    Observe = 4,
}

/// An entry of the store as a hook sees it.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawEntry<'a> {
    /// The value.
    pub value: RSlice<'a, u8>,
    /// The media type the value was written with.
    pub content_type: RStr<'a>,
    /// The details that the plugin being called keeps with the entry; empty where it has none.
    pub details: RSlice<'a, u8>,
    /// The revision of the entry, or 0 for one that is not written yet.
    pub revision: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

/// One call of a hook: the request and what of the store belongs to it.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawCall<'a> {
    /// The key, decoded.
    pub key: RStr<'a>,
    /// The body of the request as the plugins before this one left it; the new settings as a JSON object
    /// (`settings_changed`).
    pub value: RSlice<'a, u8>,
    /// The media type of the body.
    pub content_type: RStr<'a>,
    /// The query of the request, without the question mark, not decoded.
    pub query: RStr<'a>,
    /// The entry before the operation; none where the key is absent, or where nothing has been looked up yet.
    pub before: Option<&'a RawEntry<'a>>,
    /// The entry after the operation; none where it was removed or nothing is done yet.
    pub after: Option<&'a RawEntry<'a>>,
    /// The revision the store had reached when the request arrived.
    pub arrived: u64,
    /// What the request wants.
    pub verb: Verb,
    /// Zero.
    pub flags: u32,
    /// The revision of what was done (`after_*`), else 0.
    pub revision: u64,
    /// Zero.
    pub reserved: u64,
    /// What the host needs to serve the functions of [`HostApi`] that take a call.
    pub cx: *mut (),
}

/// What a hook answers: one register.
#[repr(C)]
#[derive(StableAbi, Copy, Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// [`Outcome::GO_ON`], [`Outcome::REFUSED`] or [`Outcome::PANICKED`]. A host takes any other number for a refusal.
    pub kind: u16,
    /// The HTTP status of a refusal.
    pub status: u16,
    /// Bits: [`Outcome::HIDE`]. Of a `tick`: how long until the next one, in milliseconds. Of a `make_room`: 1 if it did.
    pub bits: u32,
}

impl Outcome {
    /// [`kind`](Self::kind): nothing against it.
    pub const GO_ON: u16 = 0;
    /// [`kind`](Self::kind): refused; message and headers went through [`HostApi`].
    pub const REFUSED: u16 = 1;
    /// [`kind`](Self::kind): the hook panicked; what it said went through [`HostApi::message`](HostApi).
    pub const PANICKED: u16 = 2;
    /// Bit of [`bits`](Self::bits): the entry counts as absent for this read.
    pub const HIDE: u32 = 1;

    /// Nothing against it.
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

/// One row of a plugin's table of hooks.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct HookEntry {
    /// Which hook: an index into [`HOOK_NAMES`]. A host leaves out an id it does not know, unless it is required.
    pub id: u32,
    /// Bits: [`HookEntry::REQUIRED`], [`HookEntry::BLOCKS`].
    pub flags: u32,
    /// What to call.
    pub hook: HookFn,
}

impl HookEntry {
    /// Bit of [`flags`](Self::flags): a host that does not know this hook must not load the plugin.
    pub const REQUIRED: u32 = 1;
    /// Bit of [`flags`](Self::flags): the hook may wait, and is to be called where nobody else is served (since 1.2).
    pub const BLOCKS: u32 = 2;
}

/// The hooks of this version, at the index of their id. New ones go at the end.
pub const HOOK_NAMES: [&str; 20] = [
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
];

/// One header of a request.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawHeader<'a> {
    /// The name as the client wrote it.
    pub name: RStr<'a>,
    /// The value, without surrounding white space.
    pub value: RSlice<'a, u8>,
}

/// A function that is called with each entry of the store: its first argument is what [`HostApi::scan`](HostApi) was given.
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct ScanFn {
    /// The function; it never unwinds.
    pub each: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>, &'a RawEntry<'a>),
}

/// What a plugin asks of the store, through the chain.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawAsk<'a> {
    /// The key.
    pub key: RStr<'a>,
    /// The value to be written; empty for get and delete.
    pub value: RSlice<'a, u8>,
    /// Its media type; empty for the default.
    pub content_type: RStr<'a>,
    /// What the hooks see as the request's query.
    pub query: RStr<'a>,
    /// What they see as its headers.
    pub headers: RSlice<'a, RawHeader<'a>>,
    /// What is asked for.
    pub verb: Verb,
    /// Bits: [`RawAsk::IF_REVISION`].
    pub flags: u32,
    /// The revision that the entry has to have, with [`RawAsk::IF_REVISION`].
    pub revision: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

impl RawAsk<'_> {
    /// Bit of [`flags`](Self::flags): it is to be done only if the entry has this revision.
    pub const IF_REVISION: u32 = 1;
}

/// What became of a [`RawAsk`].
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawAnswer<'a> {
    /// The entry that a get found.
    pub entry: Option<&'a RawEntry<'a>>,
    /// Why it was not done; empty where it was.
    pub message: RStr<'a>,
    /// The plugin that refused it; empty where none did.
    pub plugin: RStr<'a>,
    /// The revision of what was written.
    pub revision: u64,
    /// The HTTP status that a client would have got.
    pub status: u32,
    /// Zero.
    pub flags: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// A function that is called with the answer, once, before [`HostApi::ask`](HostApi) returns. Its first argument is what
/// that was given.
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct AnswerFn {
    /// The function; it never unwinds.
    pub answer: for<'a> unsafe extern "C" fn(*mut (), &'a RawAnswer<'a>),
}

/// A function that is called with entries until it says `false`. Its first argument is what
/// [`HostApi::for_each`](HostApi) was given.
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct EachFn {
    /// The function; it never unwinds.
    pub each: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>, &'a RawEntry<'a>) -> bool,
}

/// What a plugin may ask of its host. New functions go at the end.
///
/// `cx` of the functions that take a `*const ()` is [`RawHost::cx`]; of those that take a `*mut ()`, [`RawCall::cx`] of
/// a call that has not returned. What they return is borrowed from that call, which `'static` only stands for.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostApiRef)))]
pub struct HostApi {
    /// Writes a line to the host's log: 1 error, 2 warning, 3 information, 4 debugging.
    pub log: for<'a> unsafe extern "C" fn(*const (), u32, RStr<'a>),
    /// The host's `--max-size`, in bytes.
    pub max_size: unsafe extern "C" fn(*const ()) -> u64,
    /// Sets the message of a refusal, or what a panic said.
    pub message: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>),
    /// Adds a header to a refusal, and, in `after_*`, to the answer (since 1.1).
    pub refusal_header: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>, RStr<'a>),
    /// Replaces the value that will be written (`before_post`, `before_put`).
    pub replace_value: for<'a> unsafe extern "C" fn(*mut (), RSlice<'a, u8>),
    /// Sets the plugin's details of the entry that will be written (`guard_post`, `guard_put`).
    pub set_details: for<'a> unsafe extern "C" fn(*mut (), RSlice<'a, u8>),
    /// The first request header of that name, whatever its case.
    pub header: for<'a> unsafe extern "C" fn(*mut (), RStr<'a>) -> ROption<RSlice<'static, u8>>,
    /// The request header at that position.
    pub header_at: unsafe extern "C" fn(*mut (), usize) -> ROption<RawHeader<'static>>,
    /// The client's address, `ip:port`; empty on a Unix socket.
    pub client: unsafe extern "C" fn(*mut ()) -> RStr<'static>,
    /// Calls a function with every entry of the store (`start`).
    #[sabi(last_prefix_field)]
    pub scan: unsafe extern "C" fn(*mut (), *mut (), ScanFn),

    // Since 1.1:
    /// Does what a plugin asks for, and calls the function with the answer.
    pub ask: for<'a> unsafe extern "C" fn(*const (), &'a RawAsk<'a>, *mut (), AnswerFn),
    /// Calls a function with every entry whose key begins so and that a get of this plugin would find. Returns the status
    /// of the refusal that ended it, or 0.
    pub for_each: for<'a> unsafe extern "C" fn(*const (), RStr<'a>, *mut (), EachFn) -> u32,
    /// The host's clock: milliseconds since 1970 in UTC.
    pub now: unsafe extern "C" fn(*const ()) -> u64,
    /// The number of a metric of this name and help text, 0 a counter, 1 a gauge; null where the name cannot be one. It
    /// is only ever accessed atomically, and valid until the process ends.
    pub metric: for<'a> unsafe extern "C" fn(*const (), u32, RStr<'a>, RStr<'a>) -> *const u64,
    /// The plugin that asked for what the call is about; empty where a client did.
    pub asker: unsafe extern "C" fn(*mut ()) -> RStr<'static>,

    // Since 1.3:
    /// Does all that a plugin asks for, each by itself, and then calls the function with the answers, in the same order.
    pub ask_each: for<'a> unsafe extern "C" fn(*const (), RSlice<'a, RawAsk<'a>>, *mut (), AnswerFn),
}

/// The host as a plugin holds it.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawHost {
    /// The functions.
    pub api: HostApiRef,
    /// Which plugin is asking. Valid until the process ends.
    pub cx: *const (),
}

/// A plugin that was created.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawInstance {
    /// The plugin's own; the host only hands it back.
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
    /// One line that says why.
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

/// The root module: all that a plugin library exports. New fields go at the end.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
pub struct PluginModule {
    /// The plugin's name.
    pub name: RStr<'static>,
    /// The plugin's version.
    pub version: RStr<'static>,
    /// Whether a panic in this library unwinds. Where it aborts, the host cannot contain it and does not load the library.
    pub unwinds: bool,
    /// The plugin's [`Stage`], as a number.
    pub stage: u32,
    /// Creates an instance; the second argument is the plugin's settings, a JSON object.
    pub create: for<'a> unsafe extern "C" fn(RawHost, RStr<'a>) -> RResult<RawInstance, RawFailure>,
    /// Ends an instance, once, when no call of it is under way; gives what a panic in `drop` said.
    pub destroy: unsafe extern "C" fn(RawInstance) -> ROption<RString>,
    /// The hooks this plugin implements, each at most once.
    #[sabi(last_prefix_field)]
    pub hooks: RSlice<'static, HookEntry>,
}

impl RootModule for PluginModuleRef {
    abi_stable::declare_root_module_statics! {PluginModuleRef}

    const BASE_NAME: &'static str = "vkog_plugin";
    const NAME: &'static str = "vkog_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
