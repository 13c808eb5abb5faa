//! The setup of a test host: its plugins, their settings and order, its clock and limits.

#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::TestHost;
use vkog_plugin_api::abi::PluginModuleRef;
use vkog_plugin_api::export::Exported;
use vkog_plugin_host::{FailurePolicy, HostContext, LoadError, LoadFault, Member, PluginError};

/// The default start time of the clock: 1 January 2026, 00:00 UTC, in seconds since 1970.
const START: Duration = Duration::from_secs(1_767_225_600);
/// The default of [`Host::max_size`](vkog_plugin_api::Host::max_size), in bytes.
const MAX_SIZE: u64 = 128 << 20;

/// A plugin for a [`Setup`], made by [`plugin!`](crate::plugin).
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
        // SAFETY: the module is part of this program, so its layout is the one this program knows, and it is never
        // unloaded.
        let created = unsafe { Member::create(self.module, &self.settings, context, FailurePolicy::default()) };
        created.map(Arc::new).map_err(|cause| StartError { plugin: self.name().to_owned(), cause })
    }
}

/// The error of a plugin that cannot be created, does not start, or rejects its settings. `Display` names the plugin
/// and the reason.
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

/// The setup of a [`TestHost`]: its plugins, their settings and order, its clock and limits. A clone can start further
/// hosts.
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
    /// Creates a setup without plugins. The clock starts on 1 January 2026, 00:00 UTC, and `max_size` is 128 MiB.
    pub fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH + START;
        Self { candidates: Vec::new(), order: Vec::new(), now, max_size: MAX_SIZE }
    }

    /// Adds the plugin that this crate exports ([`export_plugin!`](vkog_plugin_api::export_plugin)), under the crate's
    /// name.
    pub fn load<P: Exported>(self) -> Self {
        self.load_other(Candidate::new(P::module()))
    }

    /// Adds a plugin that this crate does not export: [`plugin!`](crate::plugin).
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

    /// Sets the settings of the plugin that was added last: its table in the configuration, as a JSON object. The
    /// default is an empty table.
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

    /// Sets the order of the plugins, as `order` of the table `[plugins]` does. Plugins that it does not name follow by
    /// stage, then by name.
    pub fn order(mut self, names: &[&str]) -> Self {
        self.order = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Sets the time at which the host's clock starts ([`Host::now`](vkog_plugin_api::Host::now)).
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
    /// A plugin cannot be created or does not start.
    #[track_caller]
    pub fn start(self) -> TestHost {
        self.try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`start`](Self::start), for tests of wrong settings.
    ///
    /// # Errors
    ///
    /// A plugin cannot be created or does not start.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use vkog_plugin_testing::{Setup, plugin};
    /// # struct Idle;
    /// # impl Plugin for Idle { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Idle) } }
    /// # impl AfterGet for Idle { fn after_get(&self, _: &After<'_, Get>) {} }
    /// let setup = Setup::new().load_other(plugin!(Idle, "idle")).settings(r#"{"limit": 3}"#);
    /// let error = setup.try_start().err().expect("idle has no settings");
    /// assert!(error.to_string().contains("unknown key \"limit\""), "{error}");
    /// ```
    pub fn try_start(self) -> Result<TestHost, StartError> {
        TestHost::new(self)
    }
}
