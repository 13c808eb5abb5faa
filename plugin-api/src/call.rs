//! Views: the arguments of hooks. A view lends the request and its entries, and has the methods that the phase allows.
//! There is one type per phase, with the operation as its parameter, so that code which a phase forbids does not
//! compile.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::cell::Cell;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use crate::abi::{HostApiRef, Origin, Outcome, RawCall, RawEntry, Verb};
use crate::ask::{Ask, too_old};

/// The return type of a hook that may refuse the operation: `Ok(())` continues, `Err` refuses.
pub type Verdict = Result<(), Refusal>;

/// The refusal of an operation. The client gets the status, the message as the body, and the plugin's name in the
/// header `Vkog-Plugin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: Cow<'static, str>,
    pub(crate) headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
}

impl Refusal {
    /// Creates a refusal with an HTTP status from 400 to 599 and a message of one line. For any other status the host
    /// sends 500 and logs a warning. It escapes line breaks in the message.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// let refusal = Refusal::new(409, "Key already exists");
    /// # assert_eq!(refusal.status(), 409);
    /// ```
    pub fn new(status: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: message.into(), headers: Vec::new() }
    }

    /// Adds a header to the response. The host drops a header that is malformed or that belongs to the host, such as
    /// `Content-Length`, and logs a warning.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// let refusal = Refusal::new(401, "a token is needed").with_header("WWW-Authenticate", "Bearer");
    /// ```
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

mod sealed {
    pub trait Sealed {}
}

/// An operation: [`Get`], [`Post`], [`Put`] or [`Delete`]. Code that serves several operations is generic over it.
pub trait Operation: sealed::Sealed {
    /// The operation as a value.
    const VERB: Verb;
}

/// An [`Operation`] that changes the store: [`Post`], [`Put`] or [`Delete`].
pub trait Change: Operation {}

/// An [`Operation`] that writes a value: [`Post`] or [`Put`].
pub trait Write: Change {}

macro_rules! operations {
    ($($name:ident)*) => {$(
        #[doc = concat!("The operation `", stringify!($name), "`, as the type parameter of a view.")]
        pub struct $name;
        impl sealed::Sealed for $name {}
        impl Operation for $name {
            const VERB: Verb = Verb::$name;
        }
    )*};
}
operations!(Get Post Put Delete);
impl Change for Post {}
impl Change for Put {}
impl Change for Delete {}
impl Write for Post {}
impl Write for Put {}

/// A stored entry. It is borrowed: copy the parts that are needed after the hook returns.
#[derive(Copy, Clone)]
pub struct Entry<'a> {
    pub(crate) raw: &'a RawEntry<'a>,
}

impl<'a> Entry<'a> {
    /// Returns the value.
    pub fn value(&self) -> &'a [u8] {
        self.raw.value.as_slice()
    }

    /// Returns the media type that the value was written with.
    pub fn content_type(&self) -> &'a str {
        self.raw.content_type.as_str()
    }

    /// Returns the revision of the write that stored the entry. Revisions are numbers of the whole store: they grow
    /// with each write and never repeat. In a batch, an entry that an earlier operation of the batch wrote has revision
    /// 0.
    pub fn revision(&self) -> u64 {
        self.raw.revision
    }

    /// Returns the details that this plugin set when the entry was written ([`Guard::set_details`]), or an empty slice.
    /// A plugin does not see the details of others.
    pub fn details(&self) -> &'a [u8] {
        self.raw.details.as_slice()
    }

    /// Returns the size of all details that are stored with the entry: those of every plugin and of the host, with their
    /// names, in bytes. An older host returns zeros. Since 1.4.
    pub fn details_size(&self) -> DetailsSize {
        let [all, plugins] = self.raw.reserved;
        DetailsSize { all, plugins }
    }
}

/// The size of the details that are stored with an entry, in bytes, with the names of their owners. Since 1.4.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DetailsSize {
    /// The size of all details: those of plugins, and the host's own, such as the content coding of the value.
    pub all: u64,
    /// The size of the details that plugins set.
    pub plugins: u64,
}

/// The request for which a hook is called. Every view dereferences to it. Its data lives until the hook returns.
#[derive(Copy, Clone)]
pub struct Request<'a> {
    pub(crate) call: &'a RawCall<'a>,
    pub(crate) api: HostApiRef,
}

impl<'a> Request<'a> {
    /// Returns the operation.
    pub fn verb(&self) -> Verb {
        self.call.verb
    }

    /// Returns the key, percent-decoded: 1 to 1,024 bytes.
    pub fn key(&self) -> &'a str {
        self.call.key.as_str()
    }

    /// Returns the value to write, as the plugins before this one left it. It is empty for get and delete.
    pub fn value(&self) -> &'a [u8] {
        self.call.value.as_slice()
    }

    /// Returns the media type of the value to write; `application/octet-stream` if the client sends none. It is empty
    /// for get and delete.
    pub fn content_type(&self) -> &'a str {
        self.call.content_type.as_str()
    }

    /// Returns the query of the request, without the question mark and still percent-encoded; empty if there is none.
    /// In a batch it is the query of the batch.
    pub fn query(&self) -> &'a str {
        self.call.query.as_str()
    }

    /// Returns the value of the first header with this name. The case of the name does not matter.
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

    /// Returns all headers, name and value, in the order in which the client sent them.
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

    /// Returns the client's address, `ip:port`; empty on a Unix socket and for the store calls of plugins. Behind a
    /// trusted proxy it is the address that the proxy sends, with port 0 if it sends none, or `unknown`.
    pub fn client(&self) -> &'a str {
        // SAFETY: as in `header`.
        unsafe { self.api.client()(self.call.cx) }.as_str()
    }

    /// Returns the client's IP address, without the port of [`client`](Self::client); `None` on a Unix socket, for the store
    /// calls of plugins, and if a trusted proxy does not know it. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn is_local(get: &Before<'_, Get>) -> bool {
    ///     get.client_ip().is_none_or(|address| address.is_loopback())
    /// }
    /// ```
    pub fn client_ip(&self) -> Option<IpAddr> {
        let client = self.client();
        client.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| client.parse()).ok()
    }

    /// Returns the name of the access token with which the client authenticates itself; `None` without one, for the store
    /// calls of plugins, and with a host older than 1.5. Since 1.5.
    pub fn token(&self) -> Option<&'a str> {
        // SAFETY: as in `header`.
        let token = self.api.token().map(|token| unsafe { token(self.call.cx) }.as_str());
        token.filter(|token| !token.is_empty())
    }

    /// Returns what made the host run the operation, such as a listing or a batch. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn is_read_by_a_client(get: &After<'_, Get>) -> bool {
    ///     matches!(get.origin(), Origin::Request | Origin::Batch)
    /// }
    /// ```
    pub fn origin(&self) -> Origin {
        Origin::from_number(self.call.flags)
    }

    /// Returns the name of the plugin that called the store through [`Host`](crate::Host), possibly this one; `None`
    /// for a request of a client. The operator trusts loaded plugins, so a plugin that checks tokens can let these
    /// requests pass. Since 1.1.
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

    /// Returns the last revision that the store had assigned when the request arrived. An entry with a greater revision
    /// was written afterwards.
    pub fn arrived(&self) -> u64 {
        self.call.arrived
    }

    /// Returns the size of the details that the plugins before this one have set for the entry to write, with their
    /// names, in bytes. It is the same in the guard of a write and in its undo or after. It is 0 in other hooks, for
    /// reads, and with a host older than 1.4. Since 1.4.
    pub fn earlier_details_size(&self) -> u64 {
        self.call.reserved
    }
}

impl<'a> View<'a> for Request<'a> {
    fn new(request: Request<'a>) -> Self {
        request
    }
}

/// How `hooks.rs` makes a view of a call.
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
    /// The argument of `before_*`: a request about which nothing is decided. No lock is held. The hook may run on an
    /// event loop, which serves other clients, too: it must not block unless the plugin sets
    /// [`Plugin::BLOCKS`](crate::Plugin::BLOCKS).
    Before
    /// The argument of `guard_*`: a request and its entry, under the entry's lock. Until the hook returns, no other
    /// request reads or writes this entry or the other keys of its shard. The hook must be short and must not block.
    Guard
    /// The argument of `undo_*`: a request that does not happen, and the entry as this plugin's guard saw it.
    Undo
    /// The argument of `after_*`: a request that succeeded, and its entry before and after it. Calls for one key may
    /// overlap; the [revision](After::revision) orders them.
    After
}

impl<O: Write> Before<'_, O> {
    /// Replaces the value to write. Later plugins see the new value. The host copies it. A second call replaces the
    /// first.
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

    /// Replaces the media type of the value to write: a type and a subtype, with parameters or without. The host refuses the
    /// write with 500 if it is malformed. A host older than 1.5 ignores the call. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn label(put: &mut Before<'_, Put>) {
    ///     if put.value().starts_with(b"{") {
    ///         put.replace_content_type("application/json");
    ///     }
    /// }
    /// ```
    pub fn replace_content_type(&self, content_type: &str) {
        if let Some(replace) = self.api.replace_content_type() {
            // SAFETY: as in `replace_value`.
            unsafe { replace(self.call.cx, content_type.into()) }
        }
    }
}

impl Before<'_, Get> {
    /// Hides the entry from this read: the client gets 404. Preconditions of the request are checked as for an absent
    /// entry.
    pub fn hide(&mut self) {
        self.bits.set(Outcome::HIDE);
    }
}

impl<'a, O: Operation> Guard<'a, O> {
    /// Returns the current entry, or `None` if the key is absent.
    pub fn entry(&self) -> Option<Entry<'a>> {
        self.call.before.map(|raw| Entry { raw })
    }
}

impl<O: Write> Guard<'_, O> {
    /// Replaces the value to write, as it is stored: transforms do not run again, so the host refuses the write with 500 if
    /// a plugin has transformed the value. Later guards see the new value. The `undo` and the `after` of each plugin see the
    /// value that its guard saw. If the guard runs again for the same write, it sees the original value again. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// /// Appends to the entry instead of replacing it.
    /// fn append(put: &mut Guard<'_, Put>) -> Verdict {
    ///     match put.entry() {
    ///         // A PATCH puts the value that the entry has.
    ///         Some(entry) if put.origin() != Origin::Touch => put.replace_value(&[entry.value(), put.value()].concat()),
    ///         _ => Ok(()),
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// 501 if the host is older than 1.5.
    pub fn replace_value(&self, value: &[u8]) -> Verdict {
        if self.api.add_write().is_none() {
            return Err(too_old("1.5"));
        }
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it.
        unsafe { self.api.replace_value()(self.call.cx, value.into()) };
        Ok(())
    }

    /// Sets this plugin's details of the entry to write: up to 4,096 bytes that are stored with the entry, in memory
    /// and in the files. Longer details refuse the write with 500. Details belong to one write: an entry that is
    /// written again has none until the guard sets them again.
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

impl<O: Change> Guard<'_, O> {
    /// Adds a put, a post or a delete to the step of this operation: either all become durable, or none. The added write
    /// passes the chain as a [store call](crate::Host::ask) of this plugin does; a refusal refuses the whole step, and a
    /// delete of an absent key does nothing. Its own guards cannot add writes. At most 64 for one operation; the key must be
    /// another than that of this operation. Added writes come behind all operations of a batch, in their order. They need no
    /// permission of the client's token. An invalid write, such as one with an empty value or a key over 1,024 bytes, refuses the
    /// step with 500.
    ///
    /// The guards run a first time to learn which writes they add, and are rolled back. Then the host locks all keys of the step
    /// and runs all its guards again. So the guard must add the same writes for the same request and the same entry; read what an
    /// earlier hook has found with [`state`](Request::state), which leaves it for the second run. After
    /// repeated changes by other clients the operation fails with 503. Use [`Ask::upsert`](crate::Ask::upsert) for an entry
    /// that may exist or not, as other plugins may keep creating and updating apart. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// /// Keeps the previous value of an entry under another key.
    /// fn keep_previous(put: &mut Guard<'_, Put>) -> Verdict {
    ///     let Some(entry) = put.entry().filter(|_| put.asker().is_none()) else { return Ok(()) };
    ///     put.add(&Ask::put(&format!("previous/{}", put.key()), entry.value()))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// 501 if the host is older than 1.5.
    pub fn add(&self, ask: &Ask<'_>) -> Verdict {
        let Some(add) = self.api.add_write() else { return Err(too_old("1.5")) };
        let headers = ask.raw_headers();
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it. The host copies the write.
        unsafe { add(self.call.cx, &ask.raw(&headers)) };
        Ok(())
    }
}

impl Guard<'_, Get> {
    /// Hides the entry from this read: the client gets 404.
    pub fn hide(&mut self) {
        self.bits.set(Outcome::HIDE);
    }
}

impl<'a, O: Operation> Undo<'a, O> {
    /// Returns the entry as the guard saw it, or `None` if the key was absent.
    pub fn entry(&self) -> Option<Entry<'a>> {
        self.call.before.map(|raw| Entry { raw })
    }
}

impl<'a, O: Operation> After<'a, O> {
    /// Returns the entry before the operation, or `None` if the key was absent.
    pub fn entry_before(&self) -> Option<Entry<'a>> {
        self.call.before.map(|raw| Entry { raw })
    }

    /// Adds a header to the response. The host drops a header that is malformed or that belongs to the host, such as
    /// `Content-Length`, and logs a warning. Watch events have no headers. Since 1.1.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn add_size(get: &After<'_, Get>) {
    ///     if let Some(entry) = get.entry_after() {
    ///         get.add_header("X-Size", &entry.value().len().to_string());
    ///     }
    /// }
    /// ```
    pub fn add_header(&self, name: &str, value: &str) {
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it.
        unsafe { self.api.refusal_header()(self.call.cx, name.into(), value.into()) }
    }

    /// Returns the revision of the write or the removal, or of the entry that was read.
    pub fn revision(&self) -> u64 {
        self.call.revision
    }

    /// Returns the entry after the operation; `None` after a removal.
    pub fn entry_after(&self) -> Option<Entry<'a>> {
        self.call.after.map(|raw| Entry { raw })
    }
}

impl<'a> Request<'a> {
    pub(crate) fn new(call: &'a RawCall<'a>, api: HostApiRef) -> Self {
        Self { call, api }
    }

    /// Turns a verdict into the result of the hook. It is inlined, so that a hook which returns `Ok` costs little more
    /// than its own code.
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

    /// Reports a panic of the hook to the host, with its message.
    pub(crate) fn panicked(&self, said: &str) -> Outcome {
        // SAFETY: as in `answer`.
        unsafe { self.api.message()(self.call.cx, said.into()) };
        Outcome { kind: Outcome::PANICKED, status: 500, bits: 0 }
    }
}
