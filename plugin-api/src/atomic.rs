//! Atomic store calls: several operations in one step, and the update of an entry.

#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use abi_stable::std_types::{RNone, ROption, RSlice, RSome};

use crate::abi::{AnswerFn, RawAnswer, RawEntry, UpdateFn};
use crate::ask::{Answer, Ask, read_answer, receive, too_old, unanswered};
use crate::call::{Entry, Refusal};
use crate::host::Host;

/// Why [`Host::batch`] failed. Since 1.5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchFailure {
    /// The index of the operation that failed.
    pub index: usize,
    /// Why. An absent entry is 404.
    pub refusal: Refusal,
}

/// The state of an update: the plugin's function, what it returned last, and the answer of the host.
struct Updating<F> {
    decide: F,
    value: Vec<u8>,
    given_up: Option<Refusal>,
    panic: Option<Box<dyn Any + Send>>,
    answer: Option<Result<Answer, Refusal>>,
}

unsafe extern "C" fn update<F>(state: *mut (), current: Option<&RawEntry<'_>>) -> ROption<RSlice<'static, u8>>
where
    F: FnMut(Option<Entry<'_>>) -> Result<Vec<u8>, Refusal>,
{
    // SAFETY: `Host::update` passes this pointer together with this function, and waits until the update ends.
    let updating = unsafe { &mut *state.cast::<Updating<F>>() };
    if updating.panic.is_some() {
        return RNone;
    }
    updating.given_up = None;
    match catch_unwind(AssertUnwindSafe(|| (updating.decide)(current.map(|raw| Entry { raw })))) {
        Ok(Ok(value)) => {
            updating.value = value;
            // SAFETY: the host reads the slice only until it calls this function again, or the update ends.
            RSome(unsafe { RSlice::from_raw_parts(updating.value.as_ptr(), updating.value.len()) })
        }
        Ok(Err(refusal)) => {
            updating.given_up = Some(refusal);
            RNone
        }
        Err(panic) => {
            updating.panic = Some(panic);
            RNone
        }
    }
}

unsafe extern "C" fn updated<F>(state: *mut (), raw: &RawAnswer<'_>) {
    // SAFETY: as in `update`.
    unsafe { &mut *state.cast::<Updating<F>>() }.answer = Some(read_answer(raw));
}

impl Host {
    /// Runs several operations in one step, and blocks until it is durable: either all succeed, or none takes effect. Each
    /// sees what those before it leave. The answers are in the order of the operations. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn rename(host: Host, from: &str, to: &str, value: &[u8]) -> Result<(), BatchFailure> {
    ///     host.batch(&[Ask::put(to, value).if_absent(), Ask::delete(from)]).map(drop)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The first operation that failed, with the errors of [`ask`](Self::ask). The whole step can fail, too: then the index
    /// is 0.
    pub fn batch(&self, asks: &[Ask<'_>]) -> Result<Vec<Answer>, BatchFailure> {
        let failed = |index, refusal| BatchFailure { index, refusal };
        let Some(function) = self.api().batch() else { return Err(failed(0, too_old("1.5"))) };
        let headers: Vec<_> = asks.iter().map(Ask::raw_headers).collect();
        let raw: Vec<_> = asks.iter().zip(&headers).map(|(ask, headers)| ask.raw(headers)).collect();
        let mut answers: Vec<Result<Answer, Refusal>> = Vec::with_capacity(asks.len());
        // SAFETY: `cx` belongs to this `api`, both came in one `RawHost`; the function calls back only until it returns.
        let at = unsafe {
            function(self.cx(), raw.as_slice().into(), (&raw mut answers).cast(), AnswerFn { answer: receive })
        };
        match usize::try_from(at) {
            Ok(index) => match answers.pop() {
                Some(Err(refusal)) => Err(failed(index, refusal)),
                Some(Ok(_)) => Err(failed(index, Refusal::new(404, "Key not found"))),
                None => Err(failed(index, unanswered())),
            },
            Err(_) => answers.into_iter().collect::<Result<Vec<_>, _>>().map_err(|refusal| failed(0, refusal)),
        }
    }

    /// Replaces the value of an entry by what the function makes of it, in one step: no other write of the entry comes between
    /// what the function sees and what it returns. Blocks until the write is durable, and returns its revision. The function
    /// gets `None` if the entry does not exist. It may be called several times; only its last result counts. It must not call
    /// the store. Since 1.5.
    ///
    /// The write is a put, which creates or replaces the entry ([`Ask::upsert`]); the media type, the query, the headers and
    /// the preconditions are those of the `ask`, and its value does not count. The entry loses its `Content-Encoding`, unless the
    /// `ask` [keeps it](Ask::keep_content_encoding). The hooks of get are not called. Updates of one
    /// key by several threads share the wait for the disk.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn count(host: Host, key: &str) -> Result<u64, Refusal> {
    ///     let mut count = 0;
    ///     host.update(&Ask::put(key, b"").content_type("text/plain"), |entry| {
    ///         let text = entry.map_or("0", |entry| std::str::from_utf8(entry.value()).unwrap_or("0"));
    ///         count = text.parse::<u64>().map_err(|_| Refusal::new(409, "the value is no number"))? + 1;
    ///         Ok(count.to_string().into_bytes())
    ///     })?;
    ///     Ok(count)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// What the function returns, and the errors of [`ask`](Self::ask); 409 if other writes of the entry came between 64 times.
    pub fn update<F>(&self, ask: &Ask<'_>, decide: F) -> Result<u64, Refusal>
    where
        F: FnMut(Option<Entry<'_>>) -> Result<Vec<u8>, Refusal>,
    {
        let Some(function) = self.api().update() else { return Err(too_old("1.5")) };
        let headers = ask.raw_headers();
        let mut updating = Updating { decide, value: Vec::new(), given_up: None, panic: None, answer: None };
        let functions = (UpdateFn { update: update::<F> }, AnswerFn { answer: updated::<F> });
        // SAFETY: as in `batch`.
        unsafe {
            function(self.cx(), &ask.raw(&headers), (&raw mut updating).cast(), functions.0, functions.1);
        }
        if let Some(panic) = updating.panic {
            resume_unwind(panic);
        }
        match (updating.given_up, updating.answer) {
            (Some(refusal), _) | (None, Some(Err(refusal))) => Err(refusal),
            (None, Some(Ok(Answer::Done(revision)))) => Ok(revision),
            (None, _) => Err(unanswered()),
        }
    }
}
