//! The functions of the host with which plugins read and write entries: one operation, several, a batch, an update.

use std::borrow::Cow;

use abi_stable::std_types::{RSlice, RSome, RStr};
use vkog_plugin_api::abi::{AnswerFn, RawAnswer, RawAsk, UpdateFn};

use super::Refusal;
use super::host_api::{contained, identity};
use super::scope::{Lock, Scope};
use super::store_access::{CallScope, PluginRequest, PluginResponse, access};

pub(super) fn request<'a>(raw: &'a RawAsk<'a>, scope: &CallScope) -> PluginRequest<'a> {
    PluginRequest {
        verb: raw.verb,
        key: raw.key.as_str(),
        value: raw.value.as_slice(),
        content_type: raw.content_type.as_str(),
        query: raw.query.as_str(),
        headers: raw.headers.iter().map(|header| (header.name.as_str(), header.value.as_slice())).collect(),
        if_revision: (raw.flags & RawAsk::IF_REVISION != 0).then_some(raw.revision),
        if_absent: raw.flags & RawAsk::IF_ABSENT != 0,
        upserts: raw.flags & RawAsk::UPSERT != 0,
        keeps_coding: raw.flags & RawAsk::KEEP_CODING != 0,
        scope: scope.clone(),
    }
}

/// A function of a plugin that takes answers, and its state.
struct Answering<'a> {
    plugin: &'a str,
    state: *mut (),
    answer: AnswerFn,
}

impl Answering<'_> {
    /// Passes a response to the plugin.
    ///
    /// # Safety
    ///
    /// The state belongs to the function, and lives until this returns.
    unsafe fn pass(&self, response: &PluginResponse<'_>) {
        let mut raw = RawAnswer {
            entry: None,
            message: RStr::empty(),
            plugin: RStr::empty(),
            revision: 0,
            status: 200,
            flags: 0,
            reserved: [0; 2],
        };
        let found;
        match response {
            PluginResponse::Found(entry) => {
                found = entry.raw(self.plugin);
                raw.entry = Some(&found);
                raw.revision = entry.revision;
            }
            PluginResponse::Done(revision) => raw.revision = *revision,
            PluginResponse::Absent => raw.status = 404,
            PluginResponse::Refused(refusal) => {
                raw.status = refusal.status.into();
                raw.message = refusal.message.as_str().into();
                raw.plugin = refusal.plugin.as_str().into();
            }
        }
        // SAFETY: the caller's promise.
        unsafe { (self.answer.answer)(self.state, &raw) }
    }

    /// As [`pass`](Self::pass), for a refusal.
    ///
    /// # Safety
    ///
    /// As for [`pass`](Self::pass).
    unsafe fn refuse(&self, refusal: &Refusal) {
        // SAFETY: the caller's promise.
        unsafe { self.pass(&PluginResponse::Refused(Cow::Borrowed(refusal))) }
    }
}

pub(super) unsafe extern "C" fn ask(cx: *const (), raw: &RawAsk<'_>, state: *mut (), answer: AnswerFn) {
    // SAFETY: vkog-plugin-api passes a state that belongs to the function, and waits until this returns.
    unsafe { send(cx, std::slice::from_ref(raw), state, answer) }
}

pub(super) unsafe extern "C" fn ask_each(cx: *const (), raw: RSlice<'_, RawAsk<'_>>, state: *mut (), answer: AnswerFn) {
    // SAFETY: as in `ask`.
    unsafe { send(cx, raw.as_slice(), state, answer) }
}

/// Sends requests to the store and calls `answer` with the result of each.
///
/// # Safety
///
/// As for [`identity`]; the state belongs to the function `answer`, and lives until this returns.
unsafe fn send(cx: *const (), raw: &[RawAsk<'_>], state: *mut (), answer: AnswerFn) {
    contained((), || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        let answering = Answering { plugin: &identity.name, state, answer };
        // SAFETY: the caller's promise.
        let mut respond = |response: PluginResponse<'_>| unsafe { answering.pass(&response) };
        let (store, scope) = match access(identity) {
            Ok(access) => access,
            Err(refusal) => {
                return raw.iter().for_each(|_| respond(PluginResponse::Refused(Cow::Borrowed(&refusal))));
            }
        };
        match raw {
            [one] => store.request(&request(one, &scope), &mut respond),
            several => {
                let requests: Vec<_> = several.iter().map(|raw| request(raw, &scope)).collect();
                store.request_each(&requests, &mut respond);
            }
        }
    });
}

pub(super) unsafe extern "C" fn batch(
    cx: *const (),
    raw: RSlice<'_, RawAsk<'_>>,
    state: *mut (),
    answer: AnswerFn,
) -> i64 {
    contained(0, || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        let answering = Answering { plugin: &identity.name, state, answer };
        let (store, scope) = match access(identity) {
            Ok(access) => access,
            Err(refusal) => {
                // SAFETY: as in `ask`.
                unsafe { answering.refuse(&refusal) };
                return 0;
            }
        };
        let requests: Vec<_> = raw.iter().map(|raw| request(raw, &scope)).collect();
        // SAFETY: as in `ask`.
        let failed = store.batch(&requests, &mut |response| unsafe { answering.pass(&response) });
        failed.map_or(-1, |index| i64::try_from(index).unwrap_or(0))
    })
}

pub(super) unsafe extern "C" fn update(
    cx: *const (),
    raw: &RawAsk<'_>,
    state: *mut (),
    update: UpdateFn,
    answer: AnswerFn,
) {
    contained((), || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        let answering = Answering { plugin: &identity.name, state, answer };
        let (store, scope) = match access(identity) {
            Ok(access) => access,
            // SAFETY: as in `ask`.
            Err(refusal) => return unsafe { answering.refuse(&refusal) },
        };
        let outer = Scope::current();
        let mut value_of = |current: Option<super::EntryView<'_>>| {
            let _scope = Scope { lock: Lock::Updating, ..outer }.enter();
            let current = current.as_ref().map(|entry| entry.raw(&identity.name));
            // SAFETY: as in `ask`; the plugin lends the value until the next call, and it is copied here.
            match unsafe { (update.update)(state, current.as_ref()) } {
                RSome(value) => Some(value.to_vec()),
                _ => None,
            }
        };
        // SAFETY: as in `ask`.
        let mut respond = |response: PluginResponse<'_>| unsafe { answering.pass(&response) };
        store.update(&request(raw, &scope), &mut value_of, &mut respond);
    });
}
