//! What a plugin asks of the store between calls, through the chain like any client.

#![allow(unsafe_code)]

use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use abi_stable::std_types::RStr;

use crate::abi::{AnswerFn, EachFn, RawAnswer, RawAsk, RawEntry, RawHeader, Verb};
use crate::call::{Entry, Refusal, Visit};
use crate::host::Host;

/// An operation that a plugin asks for, with what a client would send. [`Host::get`], [`Host::post`], [`Host::put`] and
/// [`Host::delete`] are short for the usual ones.
///
/// ```
/// # use vkog_plugin_api::*;
/// fn remember(host: Host, name: &str) -> Result<(), Refusal> {
///     host.ask(&Ask::put("last", name.as_bytes()).content_type("text/plain"))?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    verb: Verb,
    key: &'a str,
    value: &'a [u8],
    content_type: &'a str,
    query: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    if_revision: Option<u64>,
}

impl<'a> Ask<'a> {
    fn new(verb: Verb, key: &'a str, value: &'a [u8]) -> Self {
        Self { verb, key, value, content_type: "", query: "", headers: Vec::new(), if_revision: None }
    }

    /// To read an entry.
    pub fn get(key: &'a str) -> Self {
        Self::new(Verb::Get, key, &[])
    }

    /// To create an entry.
    pub fn post(key: &'a str, value: &'a [u8]) -> Self {
        Self::new(Verb::Post, key, value)
    }

    /// To update an entry.
    pub fn put(key: &'a str, value: &'a [u8]) -> Self {
        Self::new(Verb::Put, key, value)
    }

    /// To remove an entry.
    pub fn delete(key: &'a str) -> Self {
        Self::new(Verb::Delete, key, &[])
    }

    /// The media type of the value; `application/octet-stream` where it is not named.
    pub fn content_type(mut self, content_type: &'a str) -> Self {
        self.content_type = content_type;
        self
    }

    /// A query, as other plugins' hooks see it.
    pub fn query(mut self, query: &'a str) -> Self {
        self.query = query;
        self
    }

    /// A header more, as other plugins' hooks see it. The host itself heeds none of them.
    pub fn header(mut self, name: &'a str, value: &'a str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// To be done only if the entry has this revision; else it is refused with 412.
    pub fn if_revision(mut self, revision: u64) -> Self {
        self.if_revision = Some(revision);
        self
    }

    fn raw_headers(&self) -> Vec<RawHeader<'a>> {
        let headers = self.headers.iter();
        headers.map(|(name, value)| RawHeader { name: (*name).into(), value: value.as_bytes().into() }).collect()
    }

    fn raw<'b>(&'b self, headers: &'b [RawHeader<'b>]) -> RawAsk<'b> {
        RawAsk {
            key: self.key.into(),
            value: self.value.into(),
            content_type: self.content_type.into(),
            query: self.query.into(),
            headers: headers.into(),
            verb: self.verb,
            flags: if self.if_revision.is_some() { RawAsk::IF_REVISION } else { 0 },
            revision: self.if_revision.unwrap_or(0),
            reserved: [0; 2],
        }
    }
}

/// An entry that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub value: Vec<u8>,
    /// The media type that it was written with.
    pub content_type: String,
    /// What this plugin set as the entry's details.
    pub details: Vec<u8>,
    /// The revision.
    pub revision: u64,
}

impl From<Entry<'_>> for Found {
    fn from(entry: Entry<'_>) -> Self {
        Self {
            value: entry.value().to_vec(),
            content_type: entry.content_type().to_owned(),
            details: entry.details().to_vec(),
            revision: entry.revision(),
        }
    }
}

/// What became of an [`Ask`] that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A get found this.
    Found(Found),
    /// The write or removal is done and kept, with this revision.
    Done(u64),
    /// There is no such entry.
    Absent,
}

/// Takes an answer of the host's; the state is the list of answers.
unsafe extern "C" fn answer(state: *mut (), raw: &RawAnswer<'_>) {
    // SAFETY: `ask` and `ask_each` below pass this pointer together with this function, and wait for the answers.
    let answers = unsafe { &mut *state.cast::<Vec<Result<Answer, Refusal>>>() };
    answers.push(match raw.status {
        200 => Ok(raw.entry.map_or(Answer::Done(raw.revision), |raw| Answer::Found(Entry { raw }.into()))),
        404 if raw.plugin.is_empty() => Ok(Answer::Absent),
        status => Err(Refusal::new(u16::try_from(status).unwrap_or(500), raw.message.to_string())),
    });
}

fn unanswered() -> Refusal {
    Refusal::new(500, "the host did not answer; its log says more")
}

/// The host is older than this function.
fn too_old() -> Refusal {
    Refusal::new(501, "this host is older than vkog-plugin-api 1.1; use a newer one")
}

impl Host {
    /// Asks for an operation on one entry and waits for what becomes of it. It passes the whole chain, this plugin's own
    /// hooks included, which see [`Request::asker`](crate::Request::asker).
    ///
    /// From any thread, and from `before_*`, `after_*`, `tick` and `settings_changed`; hooks that are called so in turn may
    /// ask again, eight deep. In `guard_*` and `undo_*`, where an entry is locked, and before `start` has returned
    /// everything is refused.
    ///
    /// # Errors
    ///
    /// What a client would get: a plugin's refusal, 412 for another revision, 503 or 507 where the store cannot be written.
    /// And 508 from where nothing may be asked, or too deep.
    pub fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Refusal> {
        let Some(function) = self.api().ask() else { return Err(too_old()) };
        let headers = ask.raw_headers();
        let mut answers = Vec::with_capacity(1);
        // SAFETY: `cx` belongs to this `api`, both came in one `RawHost`; the function calls back only until it returns.
        unsafe { function(self.cx(), &ask.raw(&headers), (&raw mut answers).cast(), AnswerFn { answer }) };
        answers.pop().unwrap_or_else(|| Err(unanswered()))
    }

    /// Asks for several operations, each of which succeeds or fails by itself, as for one with [`ask`](Self::ask), and waits
    /// for all of them together: those that write share the wait for the disk. The results come in the order of the asks.
    /// For a few thousand at a time at most, since nothing ends the wait before the last one.
    ///
    /// A host older than vkog-plugin-api 1.3 does one after the other.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn forget(host: Host, keys: &[String]) -> usize {
    ///     let asks: Vec<_> = keys.iter().map(|key| Ask::delete(key)).collect();
    ///     host.ask_each(&asks).iter().filter(|answer| matches!(answer, Ok(Answer::Done(_)))).count()
    /// }
    /// ```
    pub fn ask_each(&self, asks: &[Ask<'_>]) -> Vec<Result<Answer, Refusal>> {
        let Some(function) = self.api().ask_each() else { return asks.iter().map(|ask| self.ask(ask)).collect() };
        let headers: Vec<_> = asks.iter().map(Ask::raw_headers).collect();
        let raw: Vec<_> = asks.iter().zip(&headers).map(|(ask, headers)| ask.raw(headers)).collect();
        let mut answers = Vec::with_capacity(asks.len());
        // SAFETY: as in `ask`.
        unsafe { function(self.cx(), raw.as_slice().into(), (&raw mut answers).cast(), AnswerFn { answer }) };
        answers.resize_with(asks.len(), || Err(unanswered()));
        answers
    }

    /// Reads an entry: [`ask`](Self::ask) with [`Ask::get`].
    ///
    /// # Errors
    ///
    /// As for [`ask`](Self::ask).
    pub fn get(&self, key: &str) -> Result<Option<Found>, Refusal> {
        Ok(match self.ask(&Ask::get(key))? {
            Answer::Found(found) => Some(found),
            Answer::Done(_) | Answer::Absent => None,
        })
    }

    /// Creates an entry: [`ask`](Self::ask) with [`Ask::post`]. Gives its revision.
    ///
    /// # Errors
    ///
    /// As for [`ask`](Self::ask).
    pub fn post(&self, key: &str, value: &[u8]) -> Result<u64, Refusal> {
        self.write(&Ask::post(key, value))
    }

    /// Updates an entry: [`ask`](Self::ask) with [`Ask::put`]. Gives its revision.
    ///
    /// # Errors
    ///
    /// As for [`ask`](Self::ask).
    pub fn put(&self, key: &str, value: &[u8]) -> Result<u64, Refusal> {
        self.write(&Ask::put(key, value))
    }

    /// Removes an entry: [`ask`](Self::ask) with [`Ask::delete`]. Gives whether it was there.
    ///
    /// # Errors
    ///
    /// As for [`ask`](Self::ask).
    pub fn delete(&self, key: &str) -> Result<bool, Refusal> {
        Ok(self.ask(&Ask::delete(key))? != Answer::Absent)
    }

    fn write(&self, ask: &Ask<'_>) -> Result<u64, Refusal> {
        match self.ask(ask)? {
            Answer::Done(revision) => Ok(revision),
            Answer::Found(_) | Answer::Absent => Err(Refusal::new(500, "the host answered a write with an entry")),
        }
    }

    /// Calls a function with each entry whose key begins so, in no order, until it breaks off. Each is read as
    /// [`get`](Self::get) would read it, one after the other, so that what another plugin hides is left out; what is
    /// written meanwhile may be among them or not.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use std::ops::ControlFlow;
    /// fn count(host: Host) -> Result<usize, Refusal> {
    ///     let mut count = 0;
    ///     host.for_each("users/", |_key, _entry| {
    ///         count += 1;
    ///         ControlFlow::Continue(())
    ///     })?;
    ///     Ok(count)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`ask`](Self::ask); an entry that a plugin refuses to give is left out.
    pub fn for_each<F>(&self, prefix: &str, mut each: F) -> Result<(), Refusal>
    where
        F: FnMut(&str, Entry<'_>) -> ControlFlow<()>,
    {
        unsafe extern "C" fn shim<F>(visit: *mut (), key: RStr<'_>, raw: &RawEntry<'_>) -> bool
        where
            F: FnMut(&str, Entry<'_>) -> ControlFlow<()>,
        {
            // SAFETY: `for_each` below passes this pointer together with this function, and waits until it is over.
            let visit = unsafe { &mut *visit.cast::<Visit<'_, F>>() };
            visit.run(|each| each(key.as_str(), Entry { raw })) == Some(ControlFlow::Continue(()))
        }
        let Some(function) = self.api().for_each() else { return Err(too_old()) };
        let mut visit = Visit::new(&mut each);
        // SAFETY: as in `ask`.
        let status = unsafe { function(self.cx(), prefix.into(), (&raw mut visit).cast(), EachFn { each: shim::<F> }) };
        visit.finish();
        match status {
            0 => Ok(()),
            status => Err(Refusal::new(u16::try_from(status).unwrap_or(500), "the store cannot be listed from here")),
        }
    }

    /// The host's clock. By this one, not by the system's, a plugin can be tested at any time (`vkog-plugin-testing`).
    pub fn now(&self) -> SystemTime {
        match self.api().now() {
            // SAFETY: as in `ask`.
            Some(now) => SystemTime::UNIX_EPOCH + Duration::from_millis(unsafe { now(self.cx()) }),
            None => SystemTime::now(),
        }
    }
}
