//! Store calls: operations that a plugin requests of the store. They pass the hook chain as requests of clients do.

#![allow(unsafe_code)]

use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use abi_stable::std_types::RStr;

use crate::abi::{AnswerFn, EachFn, RawAnswer, RawAsk, RawEntry, RawHeader, UnreadableFn, Verb};
use crate::call::{Entry, Refusal};
use crate::host::Host;
use crate::stored::Visit;

/// An operation for the store, with all that a client could send. [`Host::get`], [`Host::post`], [`Host::put`] and
/// [`Host::delete`] are shorter for the usual ones. Since 1.1.
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
    flags: u32,
}

impl<'a> Ask<'a> {
    fn new(verb: Verb, key: &'a str, value: &'a [u8]) -> Self {
        Self { verb, key, value, content_type: "", query: "", headers: Vec::new(), if_revision: None, flags: 0 }
    }

    /// Reads an entry.
    pub fn get(key: &'a str) -> Self {
        Self::new(Verb::Get, key, &[])
    }

    /// Creates an entry. Whether an existing entry is replaced depends on the plugins. The key has 1 to 1,024 bytes, and the value
    /// at least one; otherwise the operation fails with 400 or 414.
    pub fn post(key: &'a str, value: &'a [u8]) -> Self {
        Self::new(Verb::Post, key, value)
    }

    /// Updates an entry. Whether an absent entry is created depends on the plugins. Key and value as for [`post`](Self::post).
    pub fn put(key: &'a str, value: &'a [u8]) -> Self {
        Self::new(Verb::Put, key, value)
    }

    /// Removes an entry.
    pub fn delete(key: &'a str) -> Self {
        Self::new(Verb::Delete, key, &[])
    }

    /// Sets the media type of the value. The default is `application/octet-stream`.
    pub fn content_type(mut self, content_type: &'a str) -> Self {
        self.content_type = content_type;
        self
    }

    /// Sets the query that hooks see, without the question mark.
    pub fn query(mut self, query: &'a str) -> Self {
        self.query = query;
        self
    }

    /// Adds a header that hooks see. The host stores a `Content-Encoding` with the value, and ignores all others: use
    /// [`if_revision`](Self::if_revision) instead of `If-Match`.
    pub fn header(mut self, name: &'a str, value: &'a str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Requires that the entry has this revision. Otherwise the operation fails with 412.
    pub fn if_revision(mut self, revision: u64) -> Self {
        self.if_revision = Some(revision);
        self
    }

    /// Requires that the entry does not exist. Otherwise the operation fails with 412. Hooks see the header
    /// `If-None-Match: *`. A host older than 1.5 ignores it. Since 1.5.
    pub fn if_absent(mut self) -> Self {
        self.flags |= RawAsk::IF_ABSENT;
        self
    }

    /// Makes a put create the entry if it does not exist, and replace it if it does, even where a plugin such as conflict
    /// keeps creating and updating apart. Hooks see the header `If-None-Match: *`, and no write overlaps it
    /// ([`Request::arrived`](crate::Request::arrived)). A host older than 1.5 ignores it. Since 1.5.
    pub fn upsert(mut self) -> Self {
        self.flags |= RawAsk::UPSERT;
        self
    }

    /// Makes a put keep the `Content-Encoding` of the entry that it replaces. Without it, the entry has the one of
    /// [`header`](Self::header), or none. Use it if the value is the one that was read, or has the same coding: the host never
    /// decodes a value. Hooks see the header.
    ///
    /// It needs [`if_revision`](Self::if_revision), so that the coding is that of the entry that was read; otherwise the put fails
    /// with 400. In [`Host::update`] it needs nothing. A host older than 1.6 ignores it. Since 1.6.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// /// Writes an entry again as it is, so that plugins store their details anew.
    /// fn write_again(host: Host, key: &str) -> Result<(), Refusal> {
    ///     let Some(found) = host.get(key)? else { return Ok(()) };
    ///     let put = Ask::put(key, &found.value).content_type(&found.content_type);
    ///     host.ask(&put.if_revision(found.revision).keep_content_encoding()).map(drop)
    /// }
    /// ```
    pub fn keep_content_encoding(mut self) -> Self {
        self.flags |= RawAsk::KEEP_CODING;
        self
    }

    pub(crate) fn raw_headers(&self) -> Vec<RawHeader<'a>> {
        let headers = self.headers.iter();
        headers.map(|(name, value)| RawHeader { name: (*name).into(), value: value.as_bytes().into() }).collect()
    }

    pub(crate) fn raw<'b>(&'b self, headers: &'b [RawHeader<'b>]) -> RawAsk<'b> {
        RawAsk {
            key: self.key.into(),
            value: self.value.into(),
            content_type: self.content_type.into(),
            query: self.query.into(),
            headers: headers.into(),
            verb: self.verb,
            flags: self.flags | if self.if_revision.is_some() { RawAsk::IF_REVISION } else { 0 },
            revision: self.if_revision.unwrap_or(0),
            reserved: [0; 2],
        }
    }
}

/// The entries that [`Host::for_each_in`] calls a function with. Since 1.5.
///
/// ```
/// # use vkog_plugin_api::*;
/// let page = KeyRange::new("users/").from("users/m").limit(100);
/// ```
#[derive(Copy, Clone, Debug)]
pub struct KeyRange<'a> {
    prefix: &'a str,
    from: &'a str,
    limit: u64,
}

impl<'a> KeyRange<'a> {
    /// Selects all entries whose keys begin with the prefix.
    pub fn new(prefix: &'a str) -> Self {
        Self { prefix, from: "", limit: u64::MAX }
    }

    /// Selects only entries whose keys are at or behind this one, in byte order. The first key behind `key` is `key` with a zero
    /// byte at its end, as in `format!("{key}\0")`.
    pub fn from(mut self, key: &'a str) -> Self {
        self.from = key;
        self
    }

    /// Selects at most this many entries.
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }
}

/// A copy of an entry that a get found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub value: Vec<u8>,
    /// The media type that it was written with.
    pub content_type: String,
    /// The details that this plugin set.
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

/// The result of an [`Ask`] that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A get found this entry.
    Found(Found),
    /// The write or the removal is durable, with this revision.
    Done(u64),
    /// The entry does not exist, or a plugin hides it.
    Absent,
}

/// Receives an answer of the host; the state is the list of answers.
pub(crate) unsafe extern "C" fn receive(state: *mut (), raw: &RawAnswer<'_>) {
    // SAFETY: `ask` and the others pass this pointer together with this function, and wait for the answers.
    let answers = unsafe { &mut *state.cast::<Vec<Result<Answer, Refusal>>>() };
    answers.push(read_answer(raw));
}

pub(crate) fn read_answer(raw: &RawAnswer<'_>) -> Result<Answer, Refusal> {
    match raw.status {
        200 => Ok(raw.entry.map_or(Answer::Done(raw.revision), |raw| Answer::Found(Entry { raw }.into()))),
        404 if raw.plugin.is_empty() => Ok(Answer::Absent),
        status => Err(Refusal::new(u16::try_from(status).unwrap_or(500), raw.message.to_string())),
    }
}

/// Passes an entry to a plugin's function, until that returns `Break`.
unsafe extern "C" fn each_entry<F>(visit: *mut (), key: RStr<'_>, raw: &RawEntry<'_>) -> bool
where
    F: FnMut(&str, Entry<'_>) -> ControlFlow<()>,
{
    // SAFETY: the listings of `Host` pass this pointer together with this function, and wait until the listing ends.
    let visit = unsafe { &mut *visit.cast::<Visit<'_, F>>() };
    visit.run(|each| each(key.as_str(), Entry { raw })) == Some(ControlFlow::Continue(()))
}

/// The functions of a plugin for the entries of a listing: those that can be read, and the others.
struct Readable<'f, F, U> {
    each: Visit<'f, F>,
    unreadable: Visit<'f, U>,
}

unsafe extern "C" fn readable<F, U>(state: *mut (), key: RStr<'_>, raw: &RawEntry<'_>) -> bool
where
    F: FnMut(&str, Entry<'_>) -> ControlFlow<()>,
{
    // SAFETY: `for_each_readable` passes this pointer together with this function, and waits until the listing ends.
    let state = unsafe { &mut *state.cast::<Readable<'_, F, U>>() };
    state.each.run(|each| each(key.as_str(), Entry { raw })) == Some(ControlFlow::Continue(()))
}

unsafe extern "C" fn unreadable<F, U>(state: *mut (), key: RStr<'_>, status: u32, message: RStr<'_>) -> bool
where
    U: FnMut(&str, &Refusal),
{
    // SAFETY: as in `readable`.
    let state = unsafe { &mut *state.cast::<Readable<'_, F, U>>() };
    let refusal = Refusal::new(u16::try_from(status).unwrap_or(500), message.to_string());
    state.unreadable.run(|unreadable| unreadable(key.as_str(), &refusal)).is_some()
}

pub(crate) fn unanswered() -> Refusal {
    Refusal::new(500, "the host did not answer; its log says more")
}

/// The refusal of a function that the host lacks.
pub(crate) fn too_old(version: &str) -> Refusal {
    Refusal::new(501, format!("this host is older than vkog-plugin-api {version}; use a newer one"))
}

/// The result of a listing, of which the host returns the status only.
fn listed(status: u32) -> Result<(), Refusal> {
    let message = match status {
        0 => return Ok(()),
        501 | 508 => "the store cannot be listed from here",
        _ => "an entry cannot be read; the host's log says why",
    };
    Err(Refusal::new(u16::try_from(status).unwrap_or(500), message))
}

impl Host {
    /// Runs one operation, and blocks until it is durable. It passes the whole chain, including this plugin's own
    /// hooks; they recognise it by [`Request::asker`](crate::Request::asker). Since 1.1.
    ///
    /// May be called on any thread of the plugin, and in `before_*`, `after_*`, [`Tick`](crate::Tick),
    /// [`SettingsChanged`](crate::SettingsChanged) and [`MakeRoom`](crate::MakeRoom). In `before_*` and `after_*` it
    /// blocks the thread that serves the client: set [`Plugin::BLOCKS`](crate::Plugin::BLOCKS), unless such calls are
    /// rare. Hooks that run for the operation may call the store again, up to 8 levels deep.
    ///
    /// # Errors
    ///
    /// | status | cause |
    /// |---|---|
    /// | 400, 414 | the key, the media type or the value is invalid |
    /// | 412 | the entry does not have the revision of [`Ask::if_revision`] |
    /// | 501 | the host is older than 1.1 |
    /// | 503, 507 | the store cannot be written; 507: the disk is full |
    /// | 508 | the call comes from `guard_*`, `undo_*`, `create` or `start`, after the plugin was dropped, or from too deep a level |
    /// | any other | a plugin refused the operation |
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// /// Removes an entry, unless it was written since it was read.
    /// fn remove(host: Host, key: &str) -> Result<(), Refusal> {
    ///     let Some(found) = host.get(key)? else { return Ok(()) };
    ///     match host.ask(&Ask::delete(key).if_revision(found.revision)) {
    ///         Err(refusal) if refusal.status() == 412 => Ok(()),
    ///         result => result.map(drop),
    ///     }
    /// }
    /// ```
    pub fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Refusal> {
        let Some(function) = self.api().ask() else { return Err(too_old("1.1")) };
        let headers = ask.raw_headers();
        let mut answers = Vec::with_capacity(1);
        // SAFETY: `cx` belongs to this `api`, both came in one `RawHost`; the function calls back only until it
        // returns.
        unsafe { function(self.cx(), &ask.raw(&headers), (&raw mut answers).cast(), AnswerFn { answer: receive }) };
        answers.pop().unwrap_or_else(|| Err(unanswered()))
    }

    /// Runs several independent operations, and blocks until all are durable. Writes share the wait for the disk. Each
    /// succeeds or fails alone, with the errors of [`ask`](Self::ask). The results are in the order of the operations.
    /// Pass a few thousand operations at most, because nothing interrupts the call before the last one.
    ///
    /// Since 1.3. An older host runs them one after the other.
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
        unsafe { function(self.cx(), raw.as_slice().into(), (&raw mut answers).cast(), AnswerFn { answer: receive }) };
        answers.resize_with(asks.len(), || Err(unanswered()));
        answers
    }

    /// Reads an entry, as [`ask`](Self::ask) does with [`Ask::get`]. Returns `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask).
    pub fn get(&self, key: &str) -> Result<Option<Found>, Refusal> {
        Ok(match self.ask(&Ask::get(key))? {
            Answer::Found(found) => Some(found),
            Answer::Done(_) | Answer::Absent => None,
        })
    }

    /// Creates an entry, as [`ask`](Self::ask) does with [`Ask::post`]. Returns its revision.
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask).
    pub fn post(&self, key: &str, value: &[u8]) -> Result<u64, Refusal> {
        self.write(&Ask::post(key, value))
    }

    /// Updates an entry, as [`ask`](Self::ask) does with [`Ask::put`]. Returns its revision.
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask).
    pub fn put(&self, key: &str, value: &[u8]) -> Result<u64, Refusal> {
        self.write(&Ask::put(key, value))
    }

    /// Removes an entry, as [`ask`](Self::ask) does with [`Ask::delete`]. Returns whether it existed.
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask).
    pub fn delete(&self, key: &str) -> Result<bool, Refusal> {
        Ok(self.ask(&Ask::delete(key))? != Answer::Absent)
    }

    fn write(&self, ask: &Ask<'_>) -> Result<u64, Refusal> {
        match self.ask(ask)? {
            Answer::Done(revision) => Ok(revision),
            Answer::Found(_) | Answer::Absent => Err(Refusal::new(500, "the host answered a write with an entry")),
        }
    }

    /// Calls a function with each entry whose key starts with the prefix, in no particular order, until the function
    /// returns `Break`. Each entry is read as by [`get`](Self::get), so the hooks of get run, and entries that a plugin
    /// hides or refuses are left out. Entries that are written during the call may be included or not. Since 1.1.
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
    /// 501 or 508, as for [`ask`](Self::ask). Since 1.5 any status from 500 on if an entry cannot be read, for example because a
    /// plugin that has [transformed](crate::ReadGet) its value is not loaded; the host logs the reason. The function was not
    /// called for that entry and for those behind it.
    pub fn for_each<F>(&self, prefix: &str, mut each: F) -> Result<(), Refusal>
    where
        F: FnMut(&str, Entry<'_>) -> ControlFlow<()>,
    {
        let Some(function) = self.api().for_each() else { return Err(too_old("1.1")) };
        let mut visit = Visit::new(&mut each);
        // SAFETY: as in `ask`.
        let status =
            unsafe { function(self.cx(), prefix.into(), (&raw mut visit).cast(), EachFn { each: each_entry::<F> }) };
        visit.finish();
        listed(status)
    }

    /// Calls a function with entries in the byte order of their keys, until the function returns `Break`. Otherwise as
    /// [`for_each`](Self::for_each). A key that exists throughout the call is not left out because others are written. Since
    /// 1.5.
    ///
    /// The host reads some hundred entries at a time. The store keeps no order: the first page costs a scan of all keys, and
    /// the next ones use what it found, about a sixteenth of the keys at a time.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use std::ops::ControlFlow;
    /// fn first(host: Host) -> Result<Option<String>, Refusal> {
    ///     let mut first = None;
    ///     host.for_each_in(&KeyRange::new("users/").limit(1), |key, _| {
    ///         first = Some(key.to_owned());
    ///         ControlFlow::Break(())
    ///     })?;
    ///     Ok(first)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`for_each`](Self::for_each).
    pub fn for_each_in<F>(&self, range: &KeyRange<'_>, mut each: F) -> Result<(), Refusal>
    where
        F: FnMut(&str, Entry<'_>) -> ControlFlow<()>,
    {
        let Some(function) = self.api().for_each_from() else { return Err(too_old("1.5")) };
        let KeyRange { prefix, from, limit } = *range;
        let mut visit = Visit::new(&mut each);
        let each = EachFn { each: each_entry::<F> };
        // SAFETY: as in `ask`.
        let status = unsafe { function(self.cx(), prefix.into(), from.into(), limit, (&raw mut visit).cast(), each) };
        visit.finish();
        listed(status)
    }

    /// Calls a function with entries in the byte order of their keys, until the function returns `Break`. Entries that cannot be
    /// read, for example because a plugin that has [transformed](crate::ReadGet) their values is not loaded or has lost its key, do
    /// not end the call: the other function gets their keys, and the reasons. They do not count for the limit. Otherwise as
    /// [`for_each_in`](Self::for_each_in). Since 1.6.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use std::ops::ControlFlow;
    /// /// Returns the size of all values, and the keys of the entries that it does not include.
    /// fn size(host: Host) -> Result<(usize, Vec<String>), Refusal> {
    ///     let (mut size, mut left_out) = (0, Vec::new());
    ///     host.for_each_readable(
    ///         &KeyRange::new(""),
    ///         |_, entry| {
    ///             size += entry.value().len();
    ///             ControlFlow::Continue(())
    ///         },
    ///         |key, _reason| left_out.push(key.to_owned()),
    ///     )?;
    ///     Ok((size, left_out))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`for_each`](Self::for_each), for another reason than one entry; 501 if the host is older than 1.6.
    pub fn for_each_readable<F, U>(
        &self,
        range: &KeyRange<'_>,
        mut each: F,
        mut when_unreadable: U,
    ) -> Result<(), Refusal>
    where
        F: FnMut(&str, Entry<'_>) -> ControlFlow<()>,
        U: FnMut(&str, &Refusal),
    {
        let Some(function) = self.api().for_each_readable() else { return Err(too_old("1.6")) };
        let KeyRange { prefix, from, limit } = *range;
        let mut state = Readable { each: Visit::new(&mut each), unreadable: Visit::new(&mut when_unreadable) };
        let functions = (EachFn { each: readable::<F, U> }, UnreadableFn { unreadable: unreadable::<F, U> });
        // SAFETY: as in `ask`.
        let status = unsafe {
            function(self.cx(), prefix.into(), from.into(), limit, (&raw mut state).cast(), functions.0, functions.1)
        };
        state.each.finish();
        state.unreadable.finish();
        listed(status)
    }

    /// Calls a function with different entries that are chosen at random, at most `count`, until the function returns
    /// `Break`. It takes the same time however many entries the store has. Otherwise as [`for_each`](Self::for_each): an
    /// entry that a plugin hides or refuses, or that cannot be read, is left out, and no other one is chosen instead. Since
    /// 1.5.
    ///
    /// The choice does not depend on keys and values. The entries of one call are not independent of each other: those that
    /// lie side by side in the hash table of the store are chosen together.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use std::ops::ControlFlow;
    /// /// Estimates the average size of a value, in bytes.
    /// fn average(host: Host) -> Result<usize, Refusal> {
    ///     let (mut sum, mut count) = (0, 0);
    ///     host.sample(100, |_key, entry| {
    ///         sum += entry.value().len();
    ///         count += 1;
    ///         ControlFlow::Continue(())
    ///     })?;
    ///     Ok(sum / count.max(1))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// 501 or 508, as for [`ask`](Self::ask).
    pub fn sample<F>(&self, count: u64, mut each: F) -> Result<(), Refusal>
    where
        F: FnMut(&str, Entry<'_>) -> ControlFlow<()>,
    {
        let Some(function) = self.api().sample() else { return Err(too_old("1.5")) };
        let mut visit = Visit::new(&mut each);
        // SAFETY: as in `ask`.
        let status = unsafe { function(self.cx(), count, (&raw mut visit).cast(), EachFn { each: each_entry::<F> }) };
        visit.finish();
        listed(status)
    }

    /// Returns the time of the host's clock, in milliseconds of precision. Use it instead of the system's clock: a test
    /// with `vkog-plugin-testing` can set it. Since 1.1; with an older host it returns the time of the system.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use std::time::{Duration, SystemTime};
    /// fn is_over(host: Host, end: SystemTime) -> bool {
    ///     host.now() >= end
    /// }
    /// ```
    pub fn now(&self) -> SystemTime {
        match self.api().now() {
            // SAFETY: as in `ask`.
            Some(now) => SystemTime::UNIX_EPOCH + Duration::from_millis(unsafe { now(self.cx()) }),
            None => SystemTime::now(),
        }
    }
}
