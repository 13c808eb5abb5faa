//! What is taken in while a server runs: who may do what and the certificate first, at once; then the plugins.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{allowed, tell_unknown, unreadable};
use crate::api::{Access, ReloadError};
use crate::config::{Config, ConfigError};
use crate::http::{Certificate, Tls};
use crate::ops::Ops;
use vkog_plugin_host::{Outcome, Source, Taken};

/// What a reload changes.
pub(super) struct Reloader<C> {
    pub(super) ops: Arc<Ops>,
    pub(super) access: Arc<Access>,
    pub(super) tls: Option<Arc<Tls>>,
    /// Only this machine reaches the server.
    pub(super) is_local: bool,
    /// Reads the configuration once more. Locked until what it says of access is in force, so that the last one wins.
    pub(super) configured: Mutex<C>,
}

impl<C: Fn() -> Result<Config, ConfigError>> Reloader<C> {
    /// Reads the configuration once more and takes in what has changed. No plugin holds up what concerns access.
    ///
    /// # Errors
    ///
    /// The configuration cannot be used, and nothing was changed; or the plugin folder cannot be read, and only the plugins
    /// were not changed.
    pub(super) fn reload(&self) -> Result<Vec<Taken>, ReloadError> {
        let source = self.reload_access().map_err(ReloadError::Nothing)?;
        let taken = self.ops.reload(&source).map_err(|error| {
            ReloadError::Plugins(match &source.folder {
                Some(folder) => unreadable(folder, &error).into(),
                None => error.into(),
            })
        })?;
        for Taken { path, name, outcome } in &taken {
            let (path, name) = (path.display(), name.as_deref().unwrap_or("?"));
            match outcome {
                Outcome::Kept => tracing::debug!("{name} ({path}) has not changed"),
                Outcome::Loaded => tracing::info!("loaded {name} ({path})"),
                Outcome::Reloaded => tracing::info!("reloaded {name} ({path})"),
                Outcome::Reconfigured => tracing::info!("{name} ({path}) took in its new settings"),
                Outcome::Removed => tracing::info!("removed {name} ({path})"),
                Outcome::Failed(error) => tracing::error!("{error}; what was loaded goes on"),
            }
        }
        self.ops.plugins().look(|plugins, _, _| tell_unknown(&source, plugins));
        Ok(taken)
    }

    /// Takes in who may do what, and the certificate. Returns what the configuration says of plugins.
    fn reload_access(&self) -> Result<Source, Box<dyn std::error::Error + Send + Sync>> {
        let configured = self.configured.lock();
        let config = configured()?;
        let allowed = allowed(config.access, self.is_local)?;
        // All that can be wrong comes before the first change.
        let certificate = config.tls.as_ref().map(Certificate::read).transpose()?;
        if self.tls.is_some() != certificate.is_some() {
            return Err("cannot begin or end to speak TLS at a reload; start anew".into());
        }
        let (was_open, is_open) = (self.access.is_open(), allowed.open);
        if self.access.set(allowed) {
            tracing::info!("reloaded access tokens");
        }
        if is_open && !was_open {
            tracing::warn!(
                "the configuration has no access tokens any more: every client of this address may read and write"
            );
        }
        if let (Some(tls), Some(certificate)) = (&self.tls, certificate)
            && tls.set(certificate)
        {
            tracing::info!("took in another certificate");
        }
        Ok(config.plugins)
    }
}
