//! The host as a plugin sees it: log and limits. Store calls and the clock are in ask.rs, metrics in metrics.rs.

#![allow(unsafe_code)]

use std::path::Path;

use crate::abi::{HOOK_NAMES, RawHost};

/// The level of a log line.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Level {
    /// A failure that an operator must look at.
    Error = 1,
    /// An unexpected event; the plugin continues.
    Warn = 2,
    /// An event of normal operation.
    Info = 3,
    /// Detail for debugging.
    Debug = 4,
}

/// The host that created the plugin: the argument of [`Plugin::create`](crate::Plugin::create). It can be copied, and
/// used on any thread.
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

    /// Writes a line to the host's log, with the plugin's name. Line breaks are escaped. It never blocks, so hooks of
    /// every phase may call it.
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

    /// Returns the host's `--max-size` in bytes: the maximum size of the store. The host itself does not enforce it; a
    /// plugin such as `bytes` does.
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

    /// Switches a hook of this plugin off, by its name, because the settings do not need it: operations then cost what they
    /// cost without it. Call it in [`Plugin::create`](crate::Plugin::create); later it has no effect. It
    /// logs a warning if no hook has this name. A host older than 1.5 ignores it and calls the hook. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn observe(host: Host, reads: bool) {
    ///     if !reads {
    ///         host.switch_off("after_get");
    ///     }
    /// }
    /// ```
    pub fn switch_off(&self, hook: &str) {
        if !HOOK_NAMES.contains(&hook) {
            self.log(Level::Warn, &format!("cannot switch off {hook:?}: no hook has this name"));
        }
        if let Some(switch_off) = self.raw.api.switch_off() {
            // SAFETY: as in `log`.
            unsafe { switch_off(self.raw.cx, hook.into()) }
        }
    }

    /// Names a file whose content the plugin reads when it is created, such as a list of keys. A reload compares the content, and
    /// creates the plugin again if it has changed. If that fails, for example because the file is malformed, the old instance
    /// continues and the reload reports the error. Otherwise a reload compares only the library and the settings of a plugin.
    ///
    /// Call it in [`Plugin::create`](crate::Plugin::create) before you read the file, so that a change in between is noticed; later
    /// it has no effect. A path that is not Unicode and a file that is always unreadable are ignored. A host older than 1.6 ignores
    /// the call. Since 1.6.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use std::path::Path;
    /// fn read_keys(host: Host, path: &Path) -> Result<String, CreateError> {
    ///     host.depend_on(path);
    ///     Ok(std::fs::read_to_string(path)?)
    /// }
    /// ```
    pub fn depend_on(&self, path: &Path) {
        if let (Some(depend_on), Some(path)) = (self.raw.api.depend_on(), path.to_str()) {
            // SAFETY: as in `log`.
            unsafe { depend_on(self.raw.cx, path.into()) }
        }
    }

    /// Returns whether this host leads among the hosts that share the store. Only the leader should do what is to be done once
    /// for all hosts, such as the removal of expired entries. Always `true` if the store is this host's alone. For a moment
    /// after a failure, no host leads, or two hosts do; preconditions of the writes ([`Ask::if_revision`](crate::Ask::if_revision))
    /// keep that harmless. May be called in every hook. A host older than 1.6 leads. Since 1.6.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use std::time::Duration;
    /// # struct Mine { host: Host }
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { host }) } }
    /// impl Tick for Mine {
    ///     fn tick(&self) -> Duration {
    ///         if self.host.leads() {
    ///             self.host.log(Level::Debug, "it is this host's turn");
    ///         }
    ///         Duration::from_secs(60)
    ///     }
    /// }
    /// ```
    pub fn leads(&self) -> bool {
        // SAFETY: as in `log`.
        self.raw.api.leads().is_none_or(|leads| unsafe { leads(self.raw.cx) })
    }
}
