//! The plugins of a test, their settings and order, and the time at which it starts.

#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::TestHost;
use vkog_plugin_api::abi::PluginModuleRef;
use vkog_plugin_api::export::Exported;
use vkog_plugin_host::{FailurePolicy, HostContext, LoadError, LoadFault, Member, PluginError};

/// The time at which a test starts unless it sets another: 1 January 2026, 00:00 UTC.
const START: Duration = Duration::from_secs(1_767_225_600);
/// [`Host::max_size`](vkog_plugin_api::Host::max_size) unless the test sets another.
const MAX_SIZE: u64 = 128 << 20;

/// A plugin for a [`Setup`]: [`plugin!`](crate::plugin).
#[derive(Clone)]
pub struct Candidate {
    module: PluginModuleRef,
    pub(crate) settings: String,
}

impl Candidate {
    #[doc(hidden)]
    pub fn new(module: PluginModuleRef) -> Self {
        Self { module, settings: "{}".to_owned() }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.module.name().as_str()
    }

    pub(crate) fn create(&self, context: &Arc<HostContext>) -> Result<Arc<Member>, StartError> {
        // SAFETY: the module is part of this program, so its layout is the one this program knows, and it is never unloaded.
        let created = unsafe { Member::create(self.module, &self.settings, context, FailurePolicy::default()) };
        created.map(Arc::new).map_err(|cause| StartError { plugin: self.name().to_owned(), cause })
    }
}

/// A plugin cannot be created, does not start, or rejects its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    pub(crate) plugin: String,
    pub(crate) cause: PluginError,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plugin, cause } = self;
        match cause {
            PluginError::Settings { message } => write!(f, "plugin \"{plugin}\" cannot read its settings: {message}"),
            PluginError::Panicked { message } => write!(f, "plugin \"{plugin}\" panicked while starting: {message}"),
            error => write!(f, "plugin \"{plugin}\" does not start: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<LoadError> for StartError {
    fn from(LoadError { path, fault }: LoadError) -> Self {
        let (plugin, cause) = match fault {
            LoadFault::StartFailed { name, error } | LoadFault::StartPanicked { name, error } => (name, error),
            other => (path.display().to_string(), PluginError::Returned { message: other.to_string() }),
        };
        Self { plugin, cause }
    }
}

/// What a [`TestHost`] consists of: the plugins, their settings and order, the time.
#[derive(Clone)]
pub struct Setup {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) order: Vec<String>,
    pub(crate) now: SystemTime,
    pub(crate) max_size: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// A store without plugins.
    pub fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH + START;
        Self { candidates: Vec::new(), order: Vec::new(), now, max_size: MAX_SIZE }
    }

    /// Adds the plugin that this crate exports ([`export_plugin!`](vkog_plugin_api::export_plugin)), under the crate's name.
    pub fn load<P: Exported>(self) -> Self {
        self.load_other(Candidate::new(P::module()))
    }

    /// Adds another plugin, under a name of its own: [`plugin!`](crate::plugin).
    ///
    /// # Panics
    ///
    /// Another plugin has the same name.
    pub fn load_other(mut self, candidate: Candidate) -> Self {
        let name = candidate.name();
        assert!(self.candidates.iter().all(|other| other.name() != name), "two plugins are named \"{name}\"");
        self.candidates.push(candidate);
        self
    }

    /// Sets the settings of the plugin that was added last: its table of the configuration, as JSON.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use vkog_plugin_testing::{Setup, plugin};
    /// # #[derive(serde::Deserialize)]
    /// # #[serde(crate = "vkog_plugin_api::serde")]
    /// # struct Settings { limit: usize }
    /// # struct Short { limit: usize }
    /// # impl Plugin for Short { type Settings = Settings; fn create(_: Host, s: Settings) -> Result<Self, CreateError> { Ok(Short { limit: s.limit }) } }
    /// # impl BeforePut for Short { fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
    /// #     if put.value().len() > self.limit { Err(Refusal::new(413, "too long")) } else { Ok(()) } } }
    /// let setup = Setup::new().load_other(plugin!(Short, "short")).settings(r#"{"limit": 3}"#);
    /// setup.start().put("a", "long").refused(413, "too long");
    /// ```
    ///
    /// # Panics
    ///
    /// No plugin was added.
    pub fn settings(mut self, json: &str) -> Self {
        let Some(last) = self.candidates.last_mut() else { panic!("settings are for a plugin: load one first") };
        json.clone_into(&mut last.settings);
        self
    }

    /// Puts these plugins first, in this order, as `plugins.order` of the configuration does.
    pub fn order(mut self, names: &[&str]) -> Self {
        self.order = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Sets the host's clock ([`Host::now`](vkog_plugin_api::Host::now)).
    pub fn at(mut self, now: SystemTime) -> Self {
        self.now = now;
        self
    }

    /// Sets `--max-size`, in bytes ([`Host::max_size`](vkog_plugin_api::Host::max_size)).
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = bytes;
        self
    }

    /// Creates and starts the plugins, and calls each `tick` for the first time, as a server does.
    ///
    /// # Panics
    ///
    /// A plugin does not start.
    #[track_caller]
    pub fn start(self) -> TestHost {
        self.try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// A plugin cannot be created, or does not start.
    pub fn try_start(self) -> Result<TestHost, StartError> {
        TestHost::new(self)
    }
}
