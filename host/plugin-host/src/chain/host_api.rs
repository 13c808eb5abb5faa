//! The functions of the host that plugins call. Each is `extern "C"`, checks nothing that vkog-plugin-api has checked, and
//! lets no panic cross the boundary.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RNone, ROption, RSlice, RSome, RStr};
use vkog_plugin_api::abi::{
    EachFn, HOOK_NAMES, HostApi, HostApiRef, RawAsk, RawHeader, RawState, ScanFn, UnreadableFn,
};

use super::Refusal;
use super::call::{CallOutput, EntryView, Origin};
use super::guard_output::AddedWrite;
use super::host_context::PluginIdentity;
use super::serve::{RouteCall, checked_head};
use super::store_access::{CallScope, KeyRange, StoreAccess, access};
use super::store_calls::{ask, ask_each, batch, request, update};
use super::text::one_line;

/// The functions that every plugin gets.
pub(super) static HOST_API: LazyLock<HostApiRef> = LazyLock::new(|| {
    HostApi {
        log,
        max_size,
        message,
        refusal_header,
        replace_value,
        set_details,
        header,
        header_at,
        client,
        scan,
        ask,
        for_each,
        now,
        metric,
        asker,
        ask_each,
        replace_content_type,
        state,
        token,
        method,
        set_key_prefix,
        add_write,
        parameter,
        respond,
        send_part,
        batch,
        update,
        for_each_from,
        sample,
        switch_off,
        leads,
        for_each_readable,
        depend_on,
    }
    .leak_into_prefix()
});

/// Keeps a panic of the host's own code from unwinding into a plugin, which would end the process.
pub(super) fn contained<T>(otherwise: T, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(otherwise)
}

/// Returns the plugin that `cx` points to.
///
/// # Safety
///
/// `cx` is the [`RawHost::cx`](vkog_plugin_api::abi::RawHost) that the plugin was created with.
pub(super) unsafe fn identity(cx: *const ()) -> &'static PluginIdentity {
    // SAFETY: `Member::create` leaked it for this plugin.
    unsafe { &*cx.cast() }
}

/// Returns the output of the call that `cx` points to.
///
/// # Safety
///
/// `cx` is the [`RawCall::cx`](vkog_plugin_api::abi::RawCall::cx) of a call that has not returned. The views of
/// vkog-plugin-api guarantee it: they borrow the call.
unsafe fn output<'a>(cx: *mut ()) -> &'a mut CallOutput<'a> {
    // SAFETY: call.rs set it to a `CallOutput` that outlives the call.
    unsafe { &mut *cx.cast() }
}

/// Returns the origin of the call that `cx` points to. It lives as long as the call, which `'static` only stands for.
///
/// # Safety
///
/// As for [`output`].
unsafe fn origin(cx: *mut ()) -> &'static dyn Origin {
    // SAFETY: the origin outlives the call, and the views of vkog-plugin-api lend nothing for longer than that.
    unsafe { std::mem::transmute::<&dyn Origin, &'static dyn Origin>(output(cx).origin) }
}

/// Returns the request of the `serve` or `serve_update` hook whose call `cx` points to, if it is one. It lives as long as the call, which `'static`
/// only stands for.
///
/// # Safety
///
/// As for [`output`].
unsafe fn route(cx: *mut ()) -> Option<&'static RouteCall<'static>> {
    // SAFETY: as in `origin`.
    unsafe { std::mem::transmute::<Option<&RouteCall<'_>>, Option<&'static RouteCall<'static>>>(output(cx).route) }
}

unsafe extern "C" fn log(cx: *const (), level: u32, line: RStr<'_>) {
    contained((), || {
        // SAFETY: see `identity`.
        let plugin = unsafe { identity(cx) }.name.as_str();
        let line = one_line(line.as_str());
        match level {
            1 => tracing::error!(plugin, "{line}"),
            2 => tracing::warn!(plugin, "{line}"),
            3 => tracing::info!(plugin, "{line}"),
            _ => tracing::debug!(plugin, "{line}"),
        }
    });
}

unsafe extern "C" fn max_size(cx: *const ()) -> u64 {
    // SAFETY: see `identity`.
    unsafe { identity(cx) }.context.max_size
}

unsafe extern "C" fn now(cx: *const ()) -> u64 {
    // SAFETY: see `identity`.
    contained(0, || unsafe { identity(cx) }.context.now())
}

unsafe extern "C" fn message(cx: *mut (), text: RStr<'_>) {
    // SAFETY: see `output`.
    contained((), || unsafe { output(cx) }.lazy().message = Some(text.to_string()));
}

unsafe extern "C" fn refusal_header(cx: *mut (), name: RStr<'_>, value: RStr<'_>) {
    // SAFETY: see `output`.
    contained((), || unsafe { output(cx) }.lazy().headers.push((name.to_string(), value.to_string())));
}

unsafe extern "C" fn replace_value(cx: *mut (), value: RSlice<'_, u8>) {
    // SAFETY: see `output`.
    contained((), || unsafe { output(cx) }.lazy().value = Some(value.to_vec()));
}

unsafe extern "C" fn replace_content_type(cx: *mut (), content_type: RStr<'_>) {
    // SAFETY: see `output`.
    contained((), || unsafe { output(cx) }.lazy().content_type = Some(content_type.to_string()));
}

unsafe extern "C" fn state(cx: *mut ()) -> *mut RawState {
    contained(std::ptr::null_mut(), || {
        // SAFETY: see `output`.
        let CallOutput { plugin, states, .. } = unsafe { output(cx) };
        states.map_or(std::ptr::null_mut(), |states| states.place(plugin))
    })
}

unsafe extern "C" fn token(cx: *mut ()) -> RStr<'static> {
    // SAFETY: see `origin`.
    contained(RStr::empty(), || unsafe { origin(cx) }.token().into())
}

unsafe extern "C" fn method(cx: *mut ()) -> RStr<'static> {
    // SAFETY: see `origin`.
    contained(RStr::empty(), || unsafe { origin(cx) }.method().into())
}

unsafe extern "C" fn set_key_prefix(cx: *mut (), prefix: RStr<'_>) {
    // SAFETY: see `output`.
    contained((), || unsafe { output(cx) }.lazy().key_prefix = Some(prefix.to_string()));
}

unsafe extern "C" fn add_write(cx: *mut (), raw: &RawAsk<'_>) {
    contained((), || {
        // SAFETY: see `output`.
        let output = unsafe { output(cx) };
        let scope = CallScope { plugin: output.plugin, depth: 0, chain: None };
        let added = AddedWrite::new(&request(raw, &scope));
        output.lazy().added.push(added);
    });
}

unsafe extern "C" fn parameter(cx: *mut (), name: RStr<'_>) -> ROption<RStr<'static>> {
    contained(RNone, || {
        // SAFETY: see `route`.
        let parameters = unsafe { route(cx) }.map_or(&[][..], |route| route.parameters);
        let found = parameters.iter().find(|(own, _)| own == name.as_str());
        found.map(|(_, value)| RStr::from_str(value)).into()
    })
}

unsafe extern "C" fn respond(
    cx: *mut (),
    status: u32,
    content_type: RStr<'_>,
    body: RSlice<'_, u8>,
    more: bool,
) -> bool {
    contained(false, || {
        // SAFETY: see `route`.
        let Some(route) = (unsafe { route(cx) }) else { return false };
        // SAFETY: see `output`.
        let output = unsafe { output(cx) };
        let headers = output.take(|output| &mut output.headers);
        let head = checked_head(output.plugin, status, content_type.as_str(), headers);
        route.exchange.respond(head, body.as_slice(), more)
    })
}

unsafe extern "C" fn send_part(cx: *mut (), part: RSlice<'_, u8>) -> bool {
    // SAFETY: see `route`.
    contained(false, || unsafe { route(cx) }.is_some_and(|route| route.exchange.send(part.as_slice())))
}

unsafe extern "C" fn set_details(cx: *mut (), details: RSlice<'_, u8>) {
    // SAFETY: see `output`.
    contained((), || unsafe { output(cx) }.lazy().details = Some(details.to_vec()));
}

unsafe extern "C" fn header(cx: *mut (), name: RStr<'_>) -> ROption<RSlice<'static, u8>> {
    // SAFETY: see `origin`.
    contained(RNone, || unsafe { origin(cx) }.header(name.as_str()).map(RSlice::from_slice).into())
}

unsafe extern "C" fn header_at(cx: *mut (), index: usize) -> ROption<RawHeader<'static>> {
    contained(RNone, || {
        // SAFETY: see `origin`.
        match unsafe { origin(cx) }.header_at(index) {
            Some((name, value)) => RSome(RawHeader { name: name.into(), value: value.into() }),
            None => RNone,
        }
    })
}

unsafe extern "C" fn client(cx: *mut ()) -> RStr<'static> {
    // SAFETY: see `origin`.
    contained(RStr::empty(), || unsafe { origin(cx) }.client().into())
}

unsafe extern "C" fn asker(cx: *mut ()) -> RStr<'static> {
    // SAFETY: see `origin`.
    contained(RStr::empty(), || unsafe { origin(cx) }.asker().into())
}

unsafe extern "C" fn scan(cx: *mut (), state: *mut (), each: ScanFn) {
    contained((), || {
        // SAFETY: see `output`.
        let (plugin, scan) = unsafe { (output(cx).plugin, output(cx).scan) };
        if let Some(scan) = scan {
            scan(&mut |key, entry| {
                // SAFETY: vkog-plugin-api passes the state that belongs to this function, and waits until the scan ends.
                unsafe { (each.each)(state, key.into(), &entry.raw(plugin)) }
            });
        }
    });
}

unsafe extern "C" fn for_each(cx: *const (), prefix: RStr<'_>, state: *mut (), each: EachFn) -> u32 {
    // SAFETY: as in `ask`.
    unsafe { list(cx, state, each, |store, scope, pass| store.for_each(prefix.as_str(), scope, pass)) }
}

unsafe extern "C" fn for_each_from(
    cx: *const (),
    prefix: RStr<'_>,
    from: RStr<'_>,
    limit: u64,
    state: *mut (),
    each: EachFn,
) -> u32 {
    let range = KeyRange { prefix: prefix.as_str(), from: from.as_str(), limit };
    // SAFETY: as in `ask`.
    unsafe {
        list(cx, state, each, |store, scope, pass| {
            let mut unreadable = None;
            store.for_each_from(range, scope, &mut |key, found| match found {
                Ok(entry) => pass(key, entry),
                Err(refusal) => {
                    unreadable = Some(refusal.at_key(key));
                    false
                }
            })?;
            unreadable.map_or(Ok(()), Err)
        })
    }
}

unsafe extern "C" fn for_each_readable(
    cx: *const (),
    prefix: RStr<'_>,
    from: RStr<'_>,
    limit: u64,
    state: *mut (),
    each: EachFn,
    unreadable: UnreadableFn,
) -> u32 {
    let range = KeyRange { prefix: prefix.as_str(), from: from.as_str(), limit };
    // SAFETY: as in `ask`; the state belongs to both functions.
    unsafe {
        list(cx, state, each, |store, scope, pass| {
            store.for_each_from(range, scope, &mut |key, found| match found {
                Ok(entry) => pass(key, entry),
                Err(refusal) => {
                    let message = one_line(&refusal.message);
                    (unreadable.unreadable)(state, key.into(), refusal.status.into(), (&*message).into())
                }
            })
        })
    }
}

unsafe extern "C" fn sample(cx: *const (), count: u64, state: *mut (), each: EachFn) -> u32 {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    // SAFETY: as in `ask`.
    unsafe {
        list(cx, state, each, |store, scope, pass| {
            store.sample(count, scope, pass);
            Ok(())
        })
    }
}

/// Passes entries from a listing to a plugin. Returns 0, or the status of the refusal.
///
/// # Safety
///
/// As for [`identity`]; the state belongs to the function `each`, and lives until this returns.
unsafe fn list(
    cx: *const (),
    state: *mut (),
    each: EachFn,
    run: impl FnOnce(Arc<dyn StoreAccess>, &CallScope, &mut dyn FnMut(&str, EntryView<'_>) -> bool) -> Result<(), Refusal>,
) -> u32 {
    contained(500, || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        let (store, scope) = match access(identity) {
            Ok(access) => access,
            Err(refusal) => return refusal.status.into(),
        };
        let listed = run(store, &scope, &mut |key, entry| {
            // SAFETY: the caller's promise.
            unsafe { (each.each)(state, key.into(), &entry.raw(&identity.name)) }
        });
        let Err(Refusal { status, message, .. }) = listed else { return 0 };
        // Only the status crosses the boundary.
        let plugin = identity.name.as_str();
        tracing::warn!(plugin, status, "a listing for plugin \"{plugin}\" ended early: {}", one_line(&message));
        status.into()
    })
}

unsafe extern "C" fn switch_off(cx: *const (), hook: RStr<'_>) {
    contained((), || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        if let Some(id) = HOOK_NAMES.iter().position(|name| *name == hook.as_str()) {
            identity.switched_off[id].store(true, Relaxed);
        }
    });
}

unsafe extern "C" fn depend_on(cx: *const (), path: RStr<'_>) {
    contained((), || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        // Once it has started, it holds what it has read.
        if !identity.may_send.load(Relaxed) {
            identity.depend_on(path.as_str().into());
        }
    });
}

unsafe extern "C" fn leads(cx: *const ()) -> bool {
    contained(false, || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        identity.context.store().is_none_or(|store| store.leads())
    })
}

unsafe extern "C" fn metric(cx: *const (), kind: u32, name: RStr<'_>, help: RStr<'_>) -> *const u64 {
    contained(std::ptr::null(), || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let (plugin, name) = (identity.name.as_str(), name.as_str());
        if name.is_empty() || !name.bytes().all(letter) || kind > 1 {
            tracing::warn!(plugin, "cannot publish the metric {name:?}: use a to z, 0 to 9 and _ in its name");
            return std::ptr::null();
        }
        identity.context.metric(plugin, name, help.as_str(), kind == 1).as_ptr().cast_const()
    })
}
