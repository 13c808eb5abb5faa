//! What a hook is given: the request, the entries that belong to it, and what the phase allows to do with them.
//! Each view is one type per phase, with the operation as its parameter, so that what a phase forbids does not compile.

#![allow(unsafe_code)]

use std::any::Any;
use std::borrow::Cow;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use abi_stable::std_types::RStr;

use crate::abi::{HostApiRef, Outcome, RawCall, RawEntry, ScanFn, Verb};

/// What a hook that may refuse answers: `Ok(())` lets the operation go on, `Err` refuses it.
pub type Verdict = Result<(), Refusal>;

/// Why an operation is refused. The client gets the status, the message as the body and the plugin's name in the header
/// `Vkog-Plugin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: Cow<'static, str>,
    pub(crate) headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
}

impl Refusal {
    /// A refusal with an HTTP status from 400 to 599 and a message of one line. The host sends any other status as 500,
    /// and says so in its log.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// let refusal = Refusal::new(409, "Key already exists");
    /// # assert_eq!(refusal.status(), 409);
    /// ```
    pub fn new(status: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: message.into(), headers: Vec::new() }
    }

    /// The same refusal with a header more. The host drops a header that HTTP does not allow, and says so in its log.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// let refusal = Refusal::new(401, "a token is needed").with_header("WWW-Authenticate", "Bearer");
    /// ```
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

mod sealed {
    pub trait Sealed {}
}

/// One of [`Get`], [`Post`], [`Put`], [`Delete`].
pub trait Operation: sealed::Sealed {
    /// The verb of this operation.
    const VERB: Verb;
}

/// An [`Operation`] that writes a value: [`Post`] or [`Put`].
pub trait Write: Operation {}

macro_rules! operations {
    ($($name:ident)*) => {$(
        #[doc = concat!("The operation `", stringify!($name), "`, as the parameter of a view.")]
        pub struct $name;
        impl sealed::Sealed for $name {}
        impl Operation for $name {
            const VERB: Verb = Verb::$name;
        }
    )*};
}
operations!(Get Post Put Delete);
impl Write for Post {}
impl Write for Put {}

/// An entry of the store, borrowed for the call.
#[derive(Copy, Clone)]
pub struct Entry<'a> {
    pub(crate) raw: &'a RawEntry<'a>,
}

impl<'a> Entry<'a> {
    /// The value.
    pub fn value(&self) -> &'a [u8] {
        self.raw.value.as_slice()
    }

    /// The media type that the value was written with.
    pub fn content_type(&self) -> &'a str {
        self.raw.content_type.as_str()
    }

    /// The entry's revision: a number of the whole store that grows with every write and never repeats.
    pub fn revision(&self) -> u64 {
        self.raw.revision
    }

    /// What this plugin set as the entry's details when it was written, or nothing. Other plugins' details are not seen.
    pub fn details(&self) -> &'a [u8] {
        self.raw.details.as_slice()
    }
}

/// The request a hook is called for. Every view dereferences to it.
#[derive(Copy, Clone)]
pub struct Request<'a> {
    call: &'a RawCall<'a>,
    api: HostApiRef,
}

impl<'a> Request<'a> {
    /// What is asked for.
    pub fn verb(&self) -> Verb {
        self.call.verb
    }

    /// The key, percent-decoded.
    pub fn key(&self) -> &'a str {
        self.call.key.as_str()
    }

    /// The value to be written, as the plugins before this one left it; empty for get and delete.
    pub fn value(&self) -> &'a [u8] {
        self.call.value.as_slice()
    }

    /// The media type of the value to be written; `application/octet-stream` where the client named none.
    pub fn content_type(&self) -> &'a str {
        self.call.content_type.as_str()
    }

    /// The request's query, without the question mark and not decoded; empty where there is none.
    pub fn query(&self) -> &'a str {
        self.call.query.as_str()
    }

    /// The first header of this name, whatever its case.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn is_json(put: &Before<'_, Put>) -> bool {
    ///     put.header("content-type").is_some_and(|value| value.starts_with(b"application/json"))
    /// }
    /// ```
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it. So does what comes back.
        unsafe { self.api.header()(self.call.cx, name.into()) }.into_option().map(|value| value.as_slice())
    }

    /// All headers, name and value, in the order they were sent.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn count(put: &Before<'_, Put>) -> usize {
    ///     put.headers().count()
    /// }
    /// ```
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let (api, call) = (self.api, self.call);
        (0..).map_while(move |index| {
            // SAFETY: as in `header`.
            let header = unsafe { api.header_at()(call.cx, index) }.into_option()?;
            Some((header.name.as_str(), header.value.as_slice()))
        })
    }

    /// The client's address, `ip:port`; empty on a Unix socket. Behind a proxy that the server trusts, the address that the
    /// proxy sends, with port 0 if it sends none, or `unknown`.
    pub fn client(&self) -> &'a str {
        // SAFETY: as in `header`.
        unsafe { self.api.client()(self.call.cx) }.as_str()
    }

    /// The plugin that asks, where it is not a client: through [`Host`](crate::Host), perhaps this one itself. An operator
    /// trusts the plugins that are loaded, so that one that asks clients for a token need not ask another plugin.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn check(delete: &Before<'_, Delete>) -> Verdict {
    ///     if delete.asker().is_some() || delete.header("x-token") == Some(b"s3cret") {
    ///         return Ok(());
    ///     }
    ///     Err(Refusal::new(401, "a token is needed"))
    /// }
    /// ```
    pub fn asker(&self) -> Option<&'a str> {
        // SAFETY: as in `header`.
        let asker = self.api.asker().map(|asker| unsafe { asker(self.call.cx) }.as_str());
        asker.filter(|asker| !asker.is_empty())
    }

    /// The revision the store had reached when the request arrived. An entry with a greater one was written since.
    pub fn arrived(&self) -> u64 {
        self.call.arrived
    }
}

impl<'a> View<'a> for Request<'a> {
    fn new(request: Request<'a>) -> Self {
        request
    }
}

/// What makes a view of a call; the trampolines of `hooks.rs` know nothing else of a view.
pub(crate) trait View<'a> {
    fn new(request: Request<'a>) -> Self;

    fn bits(&self) -> u32 {
        0
    }
}

macro_rules! views {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        pub struct $name<'a, O: Operation> {
            request: Request<'a>,
            bits: Cell<u32>,
            operation: PhantomData<O>,
        }

        impl<'a, O: Operation> View<'a> for $name<'a, O> {
            fn new(request: Request<'a>) -> Self {
                Self { request, bits: Cell::new(0), operation: PhantomData }
            }

            fn bits(&self) -> u32 {
                self.bits.get()
            }
        }

        impl<'a, O: Operation> Deref for $name<'a, O> {
            type Target = Request<'a>;

            fn deref(&self) -> &Request<'a> {
                &self.request
            }
        }
    )*};
}
views! {
    /// A request of which nothing is decided yet. No lock is held; a hook may take its time, at the cost of this client.
    Before
    /// A request and the entry it is about, under that entry's lock: until the hook returns nobody else reads or writes
    /// the entry (nor some of its neighbours). It must be short, and must not wait for anything.
    Guard
    /// What this plugin's guard of the same operation saw, now that the operation will not happen.
    Undo
    /// A request that is done, and the entries before and after it. Calls for one key can overlap; the revision orders
    /// them.
    After
}

impl<O: Write> Before<'_, O> {
    /// Replaces the value that will be written; later plugins see the new one. The host copies it.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn trim(put: &mut Before<'_, Put>) {
    ///     put.replace_value(put.value().trim_ascii());
    /// }
    /// ```
    pub fn replace_value(&self, value: &[u8]) {
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it.
        unsafe { self.api.replace_value()(self.call.cx, value.into()) }
    }
}

impl Before<'_, Get> {
    /// Has the entry count as absent for this read: the client gets 404.
    pub fn hide(&mut self) {
        self.bits.set(Outcome::HIDE);
    }
}

impl<'a, O: Operation> Guard<'a, O> {
    /// The entry as it is now; none where the key is absent.
    pub fn entry(&self) -> Option<Entry<'a>> {
        self.call.before.map(|raw| Entry { raw })
    }
}

impl<O: Write> Guard<'_, O> {
    /// Sets this plugin's details of the entry that will be written: a small byte string, kept with the entry and in the
    /// file. They belong to the write: an entry that is written again has none until they are set again.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn remember_the_first_writer(put: &mut Guard<'_, Put>) {
    ///     match put.entry() {
    ///         Some(entry) => put.set_details(entry.details()),
    ///         None => put.set_details(put.client().as_bytes()),
    ///     }
    /// }
    /// ```
    pub fn set_details(&self, details: &[u8]) {
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it.
        unsafe { self.api.set_details()(self.call.cx, details.into()) }
    }
}

impl Guard<'_, Get> {
    /// Has the entry count as absent for this read: the client gets 404.
    pub fn hide(&mut self) {
        self.bits.set(Outcome::HIDE);
    }
}

impl<'a, O: Operation> Undo<'a, O> {
    /// The entry as the guard saw it; none where the key was absent.
    pub fn entry(&self) -> Option<Entry<'a>> {
        self.call.before.map(|raw| Entry { raw })
    }
}

impl<'a, O: Operation> After<'a, O> {
    /// The entry as it was; none where the key was absent.
    pub fn entry_before(&self) -> Option<Entry<'a>> {
        self.call.before.map(|raw| Entry { raw })
    }

    /// Adds a header to the answer. The host drops one that HTTP does not allow, and says so in its log.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn tell_the_size(get: &After<'_, Get>) {
    ///     if let Some(entry) = get.entry_after() {
    ///         get.add_header("X-Size", &entry.value().len().to_string());
    ///     }
    /// }
    /// ```
    pub fn add_header(&self, name: &str, value: &str) {
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it.
        unsafe { self.api.refusal_header()(self.call.cx, name.into(), value.into()) }
    }

    /// The revision of what was done: of the write or the removal, or of the entry that was read.
    pub fn revision(&self) -> u64 {
        self.call.revision
    }

    /// The entry as it is; none after a delete.
    pub fn entry_after(&self) -> Option<Entry<'a>> {
        self.call.after.map(|raw| Entry { raw })
    }
}

/// What the store holds when the host starts, for [`Start`](crate::Start).
pub struct Stored<'a> {
    request: Request<'a>,
}

impl<'a> View<'a> for Stored<'a> {
    fn new(request: Request<'a>) -> Self {
        Self { request }
    }
}

impl Stored<'_> {
    /// Calls a function with the key and the entry of everything the store holds, in no order. Nothing changes meanwhile.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn total(stored: &Stored<'_>) -> usize {
    ///     let mut total = 0;
    ///     stored.for_each(|key, entry| total += key.len() + entry.value().len());
    ///     total
    /// }
    /// ```
    pub fn for_each<F: FnMut(&str, Entry<'_>)>(&self, mut each: F) {
        unsafe extern "C" fn shim<F: FnMut(&str, Entry<'_>)>(visit: *mut (), key: RStr<'_>, raw: &RawEntry<'_>) {
            // SAFETY: `for_each` below passes this pointer together with this function, and waits for the scan.
            let visit = unsafe { &mut *visit.cast::<Visit<'_, F>>() };
            visit.run(|each| each(key.as_str(), Entry { raw }));
        }

        let mut visit = Visit::new(&mut each);
        // SAFETY: `cx` belongs to the call, which has not returned, and the host calls the function only until `scan` does.
        unsafe {
            self.request.api.scan()(self.request.call.cx, (&raw mut visit).cast(), ScanFn { each: shim::<F> });
        }
        visit.finish();
    }
}

/// A plugin's function that the host calls with entries, and what it panicked with, for which there is no way back through
/// the host's frames.
pub(crate) struct Visit<'f, F> {
    each: &'f mut F,
    panic: Option<Box<dyn Any + Send>>,
}

impl<'f, F> Visit<'f, F> {
    pub(crate) fn new(each: &'f mut F) -> Self {
        Self { each, panic: None }
    }

    /// Calls the function, unless it panicked before.
    pub(crate) fn run<R>(&mut self, call: impl FnOnce(&mut F) -> R) -> Option<R> {
        if self.panic.is_some() {
            return None;
        }
        match catch_unwind(AssertUnwindSafe(|| call(self.each))) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.panic = Some(panic);
                None
            }
        }
    }

    /// Goes on with the panic, now that the host's frames are gone.
    pub(crate) fn finish(self) {
        if let Some(panic) = self.panic {
            resume_unwind(panic);
        }
    }
}

impl<'a> Request<'a> {
    pub(crate) fn new(call: &'a RawCall<'a>, api: HostApiRef) -> Self {
        Self { call, api }
    }

    /// Hands a verdict to the host. Part of the hook: a hook that mostly says `Ok` costs hardly more than its own code.
    #[inline(always)]
    pub(crate) fn answer(&self, verdict: Verdict, bits: u32) -> Outcome {
        match verdict {
            Ok(()) => Outcome::go_on(bits),
            Err(refusal) => self.refuse(&refusal),
        }
    }

    #[cold]
    fn refuse(&self, refusal: &Refusal) -> Outcome {
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it.
        unsafe {
            self.api.message()(self.call.cx, refusal.message.as_ref().into());
            for (name, value) in &refusal.headers {
                self.api.refusal_header()(self.call.cx, name.as_ref().into(), value.as_ref().into());
            }
        }
        Outcome { kind: Outcome::REFUSED, status: refusal.status, bits: 0 }
    }

    /// Tells the host that the hook panicked, and with what.
    pub(crate) fn panicked(&self, said: &str) -> Outcome {
        // SAFETY: as in `answer`.
        unsafe { self.api.message()(self.call.cx, said.into()) };
        Outcome { kind: Outcome::PANICKED, status: 500, bits: 0 }
    }
}
