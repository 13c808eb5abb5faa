//! Downloads of libraries over HTTP and HTTPS.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use ureq::http::StatusCode;
use ureq::http::header::CONTENT_LENGTH;
use ureq::{Agent, Proxy};
use vkog_plugin_host::LIBRARY_MAX;

use crate::commands::client::{ClientError, Counted, agent_config, trusting, without_kind};
use crate::failure::Status;
use crate::urls::without_credentials;

/// The maximum number of redirects.
const REDIRECTS_MAX: u32 = 5;

/// Why a library cannot be downloaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum DownloadError {
    /// The file of `--cacert` cannot be used.
    #[error(transparent)]
    Certificates(#[from] ClientError),
    /// There is no response.
    #[error("cannot download {url}: {}; check the address and the network", without_kind(.source))]
    NoResponse { url: String, source: Box<ureq::Error> },
    /// The server redirects from HTTPS to HTTP.
    #[error(
        "cannot download {0}: it redirects to an address without TLS; give the SHA-256 of the library with --sha256"
    )]
    Downgraded(String),
    /// The server responds with another status than 200.
    #[error("cannot download {url}: the server responds {status}; check the address")]
    Refused { url: String, status: StatusCode },
    /// The response is larger than any library that a server loads.
    #[error(
        "cannot download {0}: it has more than {LIBRARY_MAX} bytes, the maximum size of a library; check the address"
    )]
    TooLarge(String),
    /// The connection ended before the response did.
    #[error("cannot download {url}: the response ended after {received} bytes: {source}; try again")]
    Interrupted { url: String, received: usize, source: io::Error },
}

impl DownloadError {
    /// Returns the exit status for the error, or `None` if its source determines it.
    pub(crate) fn status(&self) -> Option<Status> {
        match self {
            Self::Certificates(_) => None,
            Self::Refused { status, .. } => Some(match status.as_u16() {
                401 | 403 | 407 => Status::Unauthorized,
                404 | 410 => Status::NotFound,
                408 | 429 | 502..=504 => Status::Unreachable,
                _ => Status::Failure,
            }),
            Self::NoResponse { .. } | Self::Interrupted { .. } => Some(Status::Unreachable),
            Self::Downgraded(_) | Self::TooLarge(_) => Some(Status::Failure),
        }
    }
}

/// Returns the content behind an address. Redirects are followed; without `is_hash_known`, only to addresses with TLS.
pub(super) fn download(
    url: &str,
    cacert: Option<&PathBuf>,
    timeout: Duration,
    is_hash_known: bool,
) -> Result<Vec<u8>, DownloadError> {
    let mut config = agent_config()
        .max_redirects(REDIRECTS_MAX)
        .https_only(!is_hash_known)
        .proxy(Proxy::try_from_env())
        .timeout_resolve(Some(timeout))
        .timeout_connect(Some(timeout))
        .timeout_per_write(Some(timeout))
        .timeout_per_read(Some(timeout));
    if let Some(path) = cacert {
        config = config.tls_config(trusting(path)?);
    }
    let agent = Agent::new_with_config(config.build());
    let shown = without_credentials(url);
    let response = agent.get(url).call().map_err(|error| match error {
        ureq::Error::RequireHttpsOnly(_) => DownloadError::Downgraded(shown.clone()),
        error => DownloadError::NoResponse { url: shown.clone(), source: Box::new(error) },
    })?;
    if response.status() != StatusCode::OK {
        return Err(DownloadError::Refused { url: shown.clone(), status: response.status() });
    }
    let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > LIBRARY_MAX) {
        return Err(DownloadError::TooLarge(shown.clone()));
    }
    // One byte more than the maximum: a response without a length may have no end.
    let body = response.into_body().into_with_config().limit(u64::MAX).reader().take(LIBRARY_MAX + 1);
    let mut bytes = Vec::with_capacity(length.unwrap_or(0) as usize);
    let read = Counted::new(body, format!("downloading {shown}"), length.unwrap_or(0)).read_to_end(&mut bytes);
    if let Err(source) = read {
        return Err(DownloadError::Interrupted { url: shown.clone(), received: bytes.len(), source });
    }
    if bytes.len() as u64 > LIBRARY_MAX {
        return Err(DownloadError::TooLarge(shown.clone()));
    }
    Ok(bytes)
}
