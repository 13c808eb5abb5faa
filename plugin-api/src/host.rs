//! The host as a plugin sees it between calls.

#![allow(unsafe_code)]

use crate::abi::RawHost;

/// How much a log line matters.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something failed that somebody has to look at.
    Error = 1,
    /// Something is odd, and the plugin went on.
    Warn = 2,
    /// Something happened that an operator wants to know.
    Info = 3,
    /// Detail for whoever looks for a fault.
    Debug = 4,
}

/// The host that created a plugin. Cheap to copy, and usable from any thread for as long as the plugin lives.
#[derive(Copy, Clone)]
pub struct Host {
    raw: RawHost,
}

// SAFETY: `RawHost::cx` is valid until the process ends (abi.rs), the host only reads what it points to, and the
// functions of `HostApi` are callable from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    pub(crate) fn new(raw: RawHost) -> Self {
        Self { raw }
    }

    pub(crate) fn cx(&self) -> *const () {
        self.raw.cx
    }

    pub(crate) fn api(&self) -> crate::abi::HostApiRef {
        self.raw.api
    }

    /// Writes one line to the host's log, under the plugin's name. Never blocks on a client or a lock of the store.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn opened(host: Host, file: &str) {
    ///     host.log(Level::Info, &format!("writing to {file}"));
    /// }
    /// ```
    pub fn log(&self, level: Level, line: &str) {
        // SAFETY: `cx` belongs to this `api`: both came in one `RawHost`.
        unsafe { self.raw.api.log()(self.raw.cx, level as u32, line.into()) }
    }

    /// The host's `--max-size` in bytes: how much the store may hold. It is for a plugin to hold to it; the host does not.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn half(host: Host) -> u64 {
    ///     host.max_size() / 2
    /// }
    /// ```
    pub fn max_size(&self) -> u64 {
        // SAFETY: as in `log`.
        unsafe { self.raw.api.max_size()(self.raw.cx) }
    }
}
