//! The functions through which the host calls a backend, and how `export_plugin!` finds them.

#![allow(unsafe_code)]

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RErr, RNone, ROk, ROption, RResult, RSome, RStr, RString};

use super::{Backend, Feed, Write};
use crate::abi::{
    BackendModule, BackendModuleRef, RawFailure, RawFeed, RawInstance, RawMember, RawStatus, RawWrite, StatusFn,
};
use crate::export::{Instance, Panic, Probe, caught};

impl<P: Backend> Probe<P> {
    /// Makes the table of the backend.
    #[doc(hidden)]
    pub const BACKEND: Option<fn() -> BackendModuleRef> = Some(module::<P>);
}

fn module<P: Backend>() -> BackendModuleRef {
    BackendModule {
        scheme: P::SCHEME.into(),
        open: open::<P>,
        commit: commit::<P>,
        confirm: confirm::<P>,
        status: status::<P>,
        announce: announce::<P>,
        close: close::<P>,
    }
    .leak_into_prefix()
}

/// Calls the plugin, and returns the message of its panic.
///
/// # Safety
///
/// `create` of export.rs created the instance for this plugin, and it is not destroyed.
unsafe fn call<P: Backend>(instance: RawInstance, run: impl FnOnce(&P)) -> ROption<RString> {
    // SAFETY: the caller's promise.
    let instance = unsafe { &*instance.ptr.cast::<Instance<P>>() };
    match caught(|| run(&instance.plugin)) {
        Ok(()) => RNone,
        Err(Panic(message)) => RSome(message.into()),
    }
}

unsafe extern "C" fn open<P: Backend>(
    instance: RawInstance,
    url: RStr<'_>,
    about: RStr<'_>,
    feed: RawFeed,
) -> RResult<(), RawFailure> {
    let failure = |kind, message| RErr(RawFailure { kind, reserved: 0, message });
    let mut opened = Ok(());
    // SAFETY: the host passes only an instance that the same module created.
    let panic = unsafe {
        call(instance, |plugin: &P| opened = plugin.open(url.as_str(), about.as_str(), Feed::from_raw(feed)))
    };
    match (panic, opened) {
        (RSome(message), _) => failure(RawFailure::PANIC, message),
        (RNone, Err(error)) => failure(RawFailure::CREATE, error.to_string().into()),
        (RNone, Ok(())) => ROk(()),
    }
}

unsafe extern "C" fn commit<P: Backend>(instance: RawInstance, write: &RawWrite<'_>) -> ROption<RString> {
    // SAFETY: as in `open`.
    unsafe { call(instance, |plugin: &P| plugin.commit(&Write::from_raw(write))) }
}

unsafe extern "C" fn confirm<P: Backend>(instance: RawInstance, id: u64) -> ROption<RString> {
    // SAFETY: as in `open`.
    unsafe { call(instance, |plugin: &P| plugin.confirm(id)) }
}

unsafe extern "C" fn status<P: Backend>(instance: RawInstance, state: *mut (), receive: StatusFn) -> ROption<RString> {
    let report = |plugin: &P| {
        let status = plugin.status();
        let members: Vec<RawMember<'_>> = status
            .members
            .iter()
            .map(|member| RawMember { id: member.id.as_str().into(), about: member.about.as_str().into(), reserved: 0 })
            .collect();
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        let raw = RawStatus {
            engine: status.engine.as_str().into(),
            engine_version: status.engine_version.as_str().into(),
            full: status.full.as_str().into(),
            entry_prefix: status.entry_prefix.as_str().into(),
            id: status.id.as_str().into(),
            members: members.as_slice().into(),
            size: status.size,
            quota: status.quota,
            flags: flag(status.connected, RawStatus::CONNECTED) | flag(status.leads, RawStatus::LEADS),
            reserved: [0; 4],
        };
        // SAFETY: the host passed the state together with the function, and waits until this function returns.
        unsafe { (receive.status)(state, &raw) }
    };
    // SAFETY: as in `open`.
    unsafe { call(instance, report) }
}

unsafe extern "C" fn announce<P: Backend>(instance: RawInstance, about: RStr<'_>) -> ROption<RString> {
    // SAFETY: as in `open`.
    unsafe { call(instance, |plugin: &P| plugin.announce(about.as_str())) }
}

unsafe extern "C" fn close<P: Backend>(instance: RawInstance) -> ROption<RString> {
    // SAFETY: as in `open`.
    unsafe { call(instance, |plugin: &P| plugin.close()) }
}
