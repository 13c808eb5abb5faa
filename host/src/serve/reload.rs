//! Reloads of a running server: access tokens and the certificate first, at once; then the plugins.

use std::sync::Arc;

use parking_lot::Mutex;

use super::error::{PluginFolderError, TlsChanged};
use super::plugins::{warn_order, warn_unknown};
use crate::any_store::Engine;
use crate::api::{Authorizer, ReloadError};
use crate::config::{Config, ConfigError};
use crate::http::{Certificate, Tls};
use crate::members::announce;
use vkog_plugin_host::{ReloadOutcome, ReloadReport, Source};

/// The parts of the server that a reload reads and changes.
pub(super) struct Reloader<C> {
    pub(super) engine: Arc<Engine>,
    pub(super) auth: Arc<Authorizer>,
    pub(super) tls: Option<Arc<Tls>>,
    /// Only this machine reaches the server.
    pub(super) is_local: bool,
    /// Reads the configuration again. Locked until its tokens are in force, so that the last reload wins.
    pub(super) configured: Mutex<C>,
}

impl<C: Fn() -> Result<Config, ConfigError>> Reloader<C> {
    /// Reads the configuration again and applies what has changed. Plugins do not delay new access tokens.
    ///
    /// # Errors
    ///
    /// The configuration cannot be used, and nothing was changed; or the plugin folder cannot be read, and only the plugins
    /// were not changed.
    pub(super) fn reload(&self) -> Result<Vec<ReloadReport>, ReloadError> {
        let source = self.reload_access().map_err(ReloadError::Nothing)?;
        let taken = self.engine.reload(&source).map_err(|error| {
            ReloadError::Plugins(match &source.folder {
                Some(folder) => PluginFolderError { folder: folder.clone(), source: error }.into(),
                None => error.into(),
            })
        })?;
        for ReloadReport { path, name, outcome } in &taken {
            let (path, name) = (path.display(), name.as_deref().unwrap_or("?"));
            match outcome {
                ReloadOutcome::Unchanged => tracing::debug!("{name} ({path}) is unchanged"),
                ReloadOutcome::Loaded => tracing::info!("loaded {name} ({path})"),
                ReloadOutcome::Reloaded => tracing::info!("reloaded {name} ({path})"),
                ReloadOutcome::Reconfigured => tracing::info!("{name} ({path}) uses its new settings"),
                ReloadOutcome::Removed => tracing::info!("removed {name} ({path})"),
                ReloadOutcome::Failed(error) => tracing::error!("{error}; the loaded version continues"),
            }
        }
        self.engine.plugins().look(|plugins, chain, _| {
            warn_unknown(&source, plugins);
            warn_order(chain);
        });
        if let Some(shared) = self.engine.store().shared() {
            announce(&self.engine, shared);
        }
        Ok(taken)
    }

    /// Reloads access tokens and the certificate. Returns the plugin settings of the configuration.
    fn reload_access(&self) -> Result<Source, Box<dyn std::error::Error + Send + Sync>> {
        let configured = self.configured.lock();
        let config = configured()?;
        let source = config.served_plugins();
        let auth = config.auth.for_listeners(self.is_local)?;
        // Everything that can fail comes before the first change.
        let certificate = config.tls.as_ref().map(Certificate::read).transpose()?;
        if self.tls.is_some() != certificate.is_some() {
            return Err(TlsChanged.into());
        }
        let (was_open, is_open) = (self.auth.is_open(), auth.open);
        if self.auth.set(auth) {
            tracing::info!("reloaded access tokens");
        }
        if is_open && !was_open {
            tracing::warn!(
                "the configuration no longer has access tokens: every client of this address may read and write; add [[access.tokens]] to restrict them"
            );
        }
        if let (Some(tls), Some(certificate)) = (&self.tls, certificate)
            && tls.set(certificate)
        {
            tracing::info!("reloaded the certificate");
        }
        Ok(source)
    }
}
