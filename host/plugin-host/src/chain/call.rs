//! One call of a hook: what the plugin may read during the call, and what it returns beside its verdict.

use abi_stable::std_types::RSlice;
use vkog_plugin_api::abi::{HookFn, Origin as Cause, Outcome, RawCall, RawEntry, RawInstance, Verb};

use super::details;
use super::guard_output::{AddedWrite, GuardOutput};
use super::serve::RouteCall;
use super::states::CallStates;

/// The origin of a request. Plugins rarely need it, so it is looked up only when they call.
pub trait Origin: Send + Sync {
    /// Returns the value of the first header with this name, which is compared without regard to case.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// Returns the name and value of the header at this position.
    fn header_at(&self, index: usize) -> Option<(&str, &[u8])>;
    /// Returns the address of the client, or an empty text for a Unix socket.
    fn client(&self) -> &str;
    /// Returns the name of the plugin that sent the request, or an empty text if a client did.
    fn asker(&self) -> &str {
        ""
    }
    /// Returns the HTTP method in capital letters, or an empty text if there is no HTTP request.
    fn method(&self) -> &str {
        ""
    }
    /// Returns the name of the access token, or an empty text if there is none.
    fn token(&self) -> &str {
        ""
    }
}

/// The origin of a call that no request caused, and of requests without headers and client in tests.
pub struct NoOrigin;

impl Origin for NoOrigin {
    fn header(&self, _name: &str) -> Option<&[u8]> {
        None
    }

    fn header_at(&self, _index: usize) -> Option<(&str, &[u8])> {
        None
    }

    fn client(&self) -> &str {
        ""
    }
}

/// The operation that hooks are called for.
#[derive(Copy, Clone)]
pub struct OpContext<'a> {
    /// The kind of operation.
    pub verb: Verb,
    /// The key, decoded.
    pub key: &'a str,
    /// The value to write; empty for get and delete.
    pub value: &'a [u8],
    /// The media type of the value.
    pub content_type: &'a str,
    /// The query of the request, without the question mark, not decoded.
    pub query: &'a str,
    /// The revision of the store when the request arrived.
    pub arrived: u64,
    /// The nesting depth of plugin requests: 0 for a request of a client.
    pub depth: u32,
    /// The reason for which the host runs the operation.
    pub cause: Cause,
    /// The headers and the client of the request.
    pub origin: &'a dyn Origin,
    /// The states that plugins keep for the operation; `None` if its hooks can keep none.
    pub states: Option<&'a CallStates>,
    /// The output of its guards.
    pub guarded: &'a GuardOutput,
}

impl OpContext<'static> {
    /// The context of a hook that belongs to no operation.
    pub(super) fn none() -> Self {
        static NOTHING: GuardOutput = GuardOutput::new();
        Self {
            verb: Verb::Get,
            key: "",
            value: &[],
            content_type: "",
            query: "",
            arrived: 0,
            depth: 0,
            cause: Cause::Request,
            origin: &NoOrigin,
            states: None,
            guarded: &NOTHING,
        }
    }
}

/// A read-only view of an entry for hooks.
#[derive(Copy, Clone)]
pub struct EntryView<'a> {
    /// The value.
    pub value: &'a [u8],
    /// The media type of the value.
    pub content_type: &'a str,
    /// The details of all plugins, as [`Chain::guard`](super::Chain::guard) returned them.
    pub details: &'a [u8],
    /// The revision of the entry.
    pub revision: u64,
}

impl<'a> EntryView<'a> {
    /// Returns the entry with the details of one plugin.
    pub(super) fn raw(&self, plugin: &str) -> RawEntry<'a> {
        let (details, reserved) = (details::find(self.details, plugin).into(), details::size(self.details));
        RawEntry { details, reserved, ..self.raw_without_details() }
    }

    #[inline(always)]
    pub(super) fn raw_without_details(&self) -> RawEntry<'a> {
        RawEntry {
            value: self.value.into(),
            content_type: self.content_type.into(),
            details: RSlice::EMPTY,
            revision: self.revision,
            reserved: [0; 2],
        }
    }
}

/// A function that is called with the key and the value of an entry.
pub type Each<'a> = dyn FnMut(&str, EntryView<'_>) + 'a;

/// A function that calls another one with every entry of the store.
pub type Scan<'a> = &'a dyn Fn(&mut Each<'_>);

/// The state that a plugin can reach during a call, and the output that it has returned through the functions of the host. [`RawCall::cx`]
/// points to it.
pub(super) struct CallOutput<'a> {
    pub(super) plugin: &'static str,
    pub(super) origin: &'a dyn Origin,
    pub(super) scan: Option<Scan<'a>>,
    /// The request, in a `serve` or `serve_update` hook.
    pub(super) route: Option<&'a RouteCall<'a>>,
    pub(super) states: Option<&'a CallStates>,
    /// Allocated on first use, because most calls return a verdict only. So there is less to build and to drop.
    lazy: Option<Box<LazyOutput>>,
}

/// The values that a plugin returns through the functions of [`HostApi`](vkog_plugin_api::abi::HostApi).
#[derive(Default)]
pub(super) struct LazyOutput {
    pub(super) message: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) content_type: Option<String>,
    pub(super) details: Option<Vec<u8>>,
    pub(super) key_prefix: Option<String>,
    pub(super) added: Vec<AddedWrite>,
}

impl Drop for CallOutput<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(lazy) = self.lazy.take() {
            drop_lazy(lazy);
        }
    }
}

// A separate function, because most calls have no output.
#[cold]
#[inline(never)]
fn drop_lazy(lazy: Box<LazyOutput>) {
    drop(lazy);
}

impl<'a> CallOutput<'a> {
    #[inline(always)]
    pub(super) fn new(op: &OpContext<'a>) -> Self {
        Self { plugin: "", origin: op.origin, scan: None, route: None, states: op.states, lazy: None }
    }

    /// Whether the plugins have returned nothing but verdicts.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.lazy.is_none()
    }

    /// Returns the output, to add to it.
    pub(super) fn lazy(&mut self) -> &mut LazyOutput {
        self.lazy.get_or_insert_default()
    }

    /// Takes a field out of the output, or its default if there is none.
    #[inline(always)]
    pub(super) fn take<T: Default>(&mut self, field: impl FnOnce(&mut LazyOutput) -> &mut T) -> T {
        match &mut self.lazy {
            Some(lazy) => std::mem::take(field(lazy)),
            None => T::default(),
        }
    }
}

/// Returns the raw call for an operation, without [`RawCall::cx`].
#[inline(always)]
pub(super) fn raw_call<'a>(
    op: &OpContext<'a>,
    [before, after]: [Option<&'a RawEntry<'a>>; 2],
    revision: u64,
) -> RawCall<'a> {
    RawCall {
        key: op.key.into(),
        value: op.value.into(),
        content_type: op.content_type.into(),
        query: op.query.into(),
        before,
        after,
        arrived: op.arrived,
        verb: op.verb,
        flags: op.cause as u32,
        revision,
        reserved: 0,
        cx: std::ptr::null_mut(),
    }
}

/// Returns the raw call for an operation whose value or media type a plugin replaced. A separate function, because few plugins
/// do.
#[cold]
pub(super) fn raw_call_replaced<'a>(
    op: &OpContext<'a>,
    value: Option<&'a [u8]>,
    content_type: Option<&'a str>,
) -> RawCall<'a> {
    let (value, content_type) = (value.unwrap_or(op.value), content_type.unwrap_or(op.content_type));
    raw_call(&OpContext { value, content_type, ..*op }, [None, None], 0)
}

/// Calls a hook. Afterwards `output` has the output of the plugin beside its verdict.
///
/// # Safety
///
/// The instance belongs to the module that the function came from, and is not destroyed. The layout of the module was
/// checked, and its library is loaded.
#[inline(always)]
pub(super) unsafe fn call(
    hook: HookFn,
    instance: RawInstance,
    raw: &mut RawCall<'_>,
    output: &mut CallOutput<'_>,
) -> Outcome {
    raw.cx = std::ptr::from_mut(output).cast();
    // SAFETY: the caller's promise.
    unsafe { (hook.call)(instance.ptr, raw) }
}
