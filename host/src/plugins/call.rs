//! One call of a hook: what is lent to the plugin, and the functions it may call back with.

use std::panic::{AssertUnwindSafe, catch_unwind};

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RNone, ROption, RSlice, RSome, RStr};
use once_cell::sync::Lazy;
use vkog_plugin_api::Verb;
use vkog_plugin_api::abi::{HookFn, HostApi, HostApiRef, Outcome, RawCall, RawEntry, RawHeader, RawInstance, ScanFn};

use super::details;

/// Where a request came from: what a plugin rarely asks for, and so is looked up only when it does.
pub trait Origin: Send + Sync {
    /// The first header of this name, whatever its case.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// The header at this position.
    fn header_at(&self, index: usize) -> Option<(&str, &[u8])>;
    /// The client's address; empty on a Unix socket.
    fn client(&self) -> &str;
}

/// What a hook is called about.
#[derive(Copy, Clone)]
pub struct Subject<'a> {
    /// What is asked for.
    pub verb: Verb,
    /// The key.
    pub key: &'a str,
    /// The value to be written; empty for get and delete.
    pub value: &'a [u8],
    /// The media type of that value.
    pub content_type: &'a str,
    /// The request's query.
    pub query: &'a str,
    /// The revision the store had reached when the request arrived.
    pub arrived: u64,
    /// Headers and client.
    pub origin: &'a dyn Origin,
}

/// An entry as hooks see it.
#[derive(Copy, Clone)]
pub struct Seen<'a> {
    /// The value.
    pub value: &'a [u8],
    /// Its media type.
    pub content_type: &'a str,
    /// The details of all plugins, as [`super::Chain::guard`] gave them.
    pub details: &'a [u8],
    /// The revision.
    pub revision: u64,
}

impl<'a> Seen<'a> {
    fn raw(&self, plugin: &str) -> RawEntry<'a> {
        RawEntry {
            value: self.value.into(),
            content_type: self.content_type.into(),
            details: if self.details.is_empty() { &[] } else { details::find(self.details, plugin) }.into(),
            revision: self.revision,
            reserved: [0; 2],
        }
    }
}

/// Gives every entry of the store to a function.
pub(super) type Scan<'a> = &'a dyn Fn(&mut dyn FnMut(&str, Seen<'_>));

/// What a plugin said during a call, beside its verdict. [`RawCall::cx`] points to it.
pub(super) struct Said<'a> {
    plugin: &'a str,
    origin: &'a dyn Origin,
    scan: Option<Scan<'a>>,
    pub(super) message: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) details: Option<Vec<u8>>,
}

/// Calls one hook. The entries are those before and after the operation, as far as they are known in this phase.
pub(super) fn call<'a>(
    hook: HookFn,
    instance: RawInstance,
    plugin: &'a str,
    subject: &Subject<'a>,
    entries: [Option<Seen<'a>>; 2],
    revision: u64,
    scan: Option<Scan<'a>>,
) -> (Outcome, Said<'a>) {
    let mut said =
        Said { plugin, origin: subject.origin, scan, message: None, headers: Vec::new(), value: None, details: None };
    let [before, after] = entries.map(|entry| entry.map(|seen| seen.raw(plugin)));
    let raw = RawCall {
        key: subject.key.into(),
        value: subject.value.into(),
        content_type: subject.content_type.into(),
        query: subject.query.into(),
        before: before.as_ref(),
        after: after.as_ref(),
        arrived: subject.arrived,
        verb: subject.verb,
        flags: 0,
        revision,
        reserved: 0,
        cx: (&raw mut said).cast(),
    };
    // SAFETY: load.rs checked the layout of the module this function came from, the instance is that module's and not
    // destroyed (the chain owns it), and the library stays open until the process ends.
    let outcome = unsafe { (hook.call)(instance.ptr, &raw) };
    (outcome, said)
}

/// What a plugin's [`RawHost::cx`](vkog_plugin_api::abi::RawHost) points to.
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) max_size: u64,
}

/// The functions every plugin is handed.
pub(super) static HOST_API: Lazy<HostApiRef> = Lazy::new(|| {
    HostApi { log, max_size, message, refusal_header, replace_value, set_details, header, header_at, client, scan }
        .leak_into_prefix()
});

/// Keeps a panic of the host's own code from crossing into a plugin, where it would end the process.
fn contained<T>(otherwise: T, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(otherwise)
}

/// The call that `cx` stands for.
///
/// # Safety
///
/// `cx` is the [`RawCall::cx`] of a call that has not returned. plugin-api's views see to it: they borrow the call.
unsafe fn said<'a>(cx: *mut ()) -> &'a mut Said<'a> {
    // SAFETY: `call` above set it to a `Said` that outlives the call.
    unsafe { &mut *cx.cast() }
}

unsafe extern "C" fn log(cx: *const (), level: u32, line: RStr<'_>) {
    contained((), || {
        // SAFETY: load.rs leaked an `Identity` for this plugin.
        let plugin = unsafe { &*cx.cast::<Identity>() }.name.as_str();
        let line = line.as_str();
        match level {
            1 => tracing::error!(plugin, "{line}"),
            2 => tracing::warn!(plugin, "{line}"),
            3 => tracing::info!(plugin, "{line}"),
            _ => tracing::debug!(plugin, "{line}"),
        }
    });
}

unsafe extern "C" fn max_size(cx: *const ()) -> u64 {
    // SAFETY: load.rs leaked an `Identity` for this plugin.
    unsafe { &*cx.cast::<Identity>() }.max_size
}

unsafe extern "C" fn message(cx: *mut (), text: RStr<'_>) {
    // SAFETY: see `said`.
    contained((), || unsafe { said(cx) }.message = Some(text.to_string()));
}

unsafe extern "C" fn refusal_header(cx: *mut (), name: RStr<'_>, value: RStr<'_>) {
    // SAFETY: see `said`.
    contained((), || unsafe { said(cx) }.headers.push((name.to_string(), value.to_string())));
}

unsafe extern "C" fn replace_value(cx: *mut (), value: RSlice<'_, u8>) {
    // SAFETY: see `said`.
    contained((), || unsafe { said(cx) }.value = Some(value.to_vec()));
}

unsafe extern "C" fn set_details(cx: *mut (), details: RSlice<'_, u8>) {
    // SAFETY: see `said`.
    contained((), || unsafe { said(cx) }.details = Some(details.to_vec()));
}

unsafe extern "C" fn header(cx: *mut (), name: RStr<'_>) -> ROption<RSlice<'static, u8>> {
    contained(RNone, || {
        // SAFETY: see `said`. The origin outlives the call, and the views lend no longer than that.
        let origin: &'static dyn Origin = unsafe { std::mem::transmute(said(cx).origin) };
        origin.header(name.as_str()).map(RSlice::from_slice).into()
    })
}

unsafe extern "C" fn header_at(cx: *mut (), index: usize) -> ROption<RawHeader<'static>> {
    contained(RNone, || {
        // SAFETY: as in `header`.
        let origin: &'static dyn Origin = unsafe { std::mem::transmute(said(cx).origin) };
        match origin.header_at(index) {
            Some((name, value)) => RSome(RawHeader { name: name.into(), value: value.into() }),
            None => RNone,
        }
    })
}

unsafe extern "C" fn client(cx: *mut ()) -> RStr<'static> {
    contained(RStr::empty(), || {
        // SAFETY: as in `header`.
        let origin: &'static dyn Origin = unsafe { std::mem::transmute(said(cx).origin) };
        origin.client().into()
    })
}

unsafe extern "C" fn scan(cx: *mut (), state: *mut (), each: ScanFn) {
    contained((), || {
        // SAFETY: see `said`.
        let (plugin, scan) = unsafe { (said(cx).plugin, said(cx).scan) };
        if let Some(scan) = scan {
            scan(&mut |key, seen| {
                // SAFETY: plugin-api passes the state that belongs to this function, and waits until the scan is over.
                unsafe { (each.each)(state, key.into(), &seen.raw(plugin)) }
            });
        }
    });
}
