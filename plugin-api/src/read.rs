//! The view of a read whose value is turned back: the argument of `read_get`.

#![allow(unsafe_code)]

use std::ops::Deref;

use crate::call::{Entry, Request, View};

/// The argument of [`ReadGet`](crate::ReadGet): a value that was read, on its way to the client or plugin that reads it.
/// Since 1.5.
pub struct Read<'a> {
    request: Request<'a>,
}

impl<'a> View<'a> for Read<'a> {
    fn new(request: Request<'a>) -> Self {
        Self { request }
    }
}

impl<'a> Deref for Read<'a> {
    type Target = Request<'a>;

    fn deref(&self) -> &Request<'a> {
        &self.request
    }
}

impl<'a> Read<'a> {
    /// Returns the value as the plugins that replaced it after this one have turned it back.
    pub fn value(&self) -> &'a [u8] {
        self.request.value()
    }

    /// Returns the media type that goes with it.
    pub fn content_type(&self) -> &'a str {
        self.request.content_type()
    }

    /// Returns the entry as it is stored, with this plugin's details. `None` only with a host that breaks the interface.
    pub fn entry(&self) -> Option<Entry<'a>> {
        self.request.call.after.map(|raw| Entry { raw })
    }

    /// Replaces the value that is returned. The host copies it. A second call replaces the first.
    pub fn replace_value(&self, value: &[u8]) {
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it.
        unsafe { self.request.api.replace_value()(self.request.call.cx, value.into()) }
    }

    /// Replaces the media type that is returned.
    pub fn replace_content_type(&self, content_type: &str) {
        if let Some(replace) = self.request.api.replace_content_type() {
            // SAFETY: as in `replace_value`.
            unsafe { replace(self.request.call.cx, content_type.into()) }
        }
    }

    /// Adds a header to the response, as [`After::add_header`](crate::After::add_header) does.
    pub fn add_header(&self, name: &str, value: &str) {
        // SAFETY: as in `replace_value`.
        unsafe { self.request.api.refusal_header()(self.request.call.cx, name.into(), value.into()) }
    }
}
