//! TLS: a certificate and its key, which a reload replaces while the server runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by its chain, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

/// The TLS configuration of new connections.
pub struct Tls(RwLock<Certificate>);

/// A certificate with its private key, ready for use.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    config: Arc<ServerConfig>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; --tls-cert and --tls-key name PEM files")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}", Self::malformed(path, wanted, source))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The expected content.
        wanted: &'static str,
        /// The cause.
        source: pem::Error,
    },
    /// The certificate and the key do not match, or cannot be used.
    #[error("{}", Self::unusable(files, source))]
    Unusable {
        /// Both files.
        files: TlsFiles,
        /// The cause.
        source: rustls::Error,
    },
}

impl TlsError {
    fn malformed(path: &Path, wanted: &str, source: &pem::Error) -> String {
        let path = path.display();
        match source {
            pem::Error::NoItemsFound => format!("cannot use {path}: there is no {wanted} in it; give one as PEM"),
            source => format!("cannot use {path}: {source}; give a {wanted} as PEM"),
        }
    }

    fn unusable(TlsFiles { certificate, key }: &TlsFiles, source: &rustls::Error) -> String {
        let (certificate, key) = (certificate.display(), key.display());
        match source {
            rustls::Error::InconsistentKeys(_) => {
                format!("cannot use {certificate} with {key}: the key is another certificate's; give its own")
            }
            source => format!("cannot use {certificate} with {key}: {source}; give a certificate with its key"),
        }
    }
}

impl Certificate {
    /// Reads a certificate and its key.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is not PEM, or the two do not match.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let unusable = |source| TlsError::Unusable { files: files.clone(), source };
        let (path, wanted) = (&files.certificate, "certificate");
        let malformed = |source| TlsError::Malformed { path: path.clone(), wanted, source };
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(malformed)?;
        if chain.is_empty() {
            return Err(malformed(pem::Error::NoItemsFound));
        }
        let (path, wanted) = (&files.key, "private key without a password");
        let malformed = |source| TlsError::Malformed { path: path.clone(), wanted, source };
        let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(malformed)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { chain, config: Arc::new(config) })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}

impl Tls {
    /// Creates a configuration with this certificate.
    pub fn new(certificate: Certificate) -> Self {
        Self(RwLock::new(certificate))
    }

    /// Replaces the certificate for new connections. Returns whether it is a different one.
    pub fn set(&self, certificate: Certificate) -> bool {
        let mut current = self.0.write();
        let renewed = current.chain != certificate.chain;
        // With an unchanged certificate, clients can resume their sessions.
        if renewed {
            *current = certificate;
        }
        renewed
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.0.read().config).into()
    }
}
