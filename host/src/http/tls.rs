//! TLS: the server's certificate and its key, and the authorities of client certificates. A reload replaces them while the
//! server runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// HTTP/2 as a protocol of TLS (ALPN).
pub(super) const HTTP_2: &[u8] = b"h2";

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by its chain, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// The files of client certificates, if clients may send one.
    pub clients: Option<ClientFiles>,
}

/// The files of client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificates of the authorities that sign them, as PEM.
    pub authorities: PathBuf,
    /// The certificate revocation lists of these authorities, as PEM.
    pub revoked: Option<PathBuf>,
    /// Whether every connection needs one.
    pub is_required: bool,
}

/// The names in a client's certificate that the server has verified.
pub type CertificateNames = Arc<[String]>;

/// The TLS configuration of new connections.
pub struct Tls(RwLock<Certificate>);

/// A certificate with its private key, ready for use.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    clients: Option<ClientAuthorities>,
    config: Arc<ServerConfig>,
}

/// The authorities of client certificates.
#[derive(PartialEq, Eq)]
struct ClientAuthorities {
    trusted: Vec<CertificateDer<'static>>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    is_required: bool,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; TLS needs a PEM file that the server may read")]
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
    /// An authority of client certificates cannot be used.
    #[error("cannot use {path}: {source}; give the certificates of authorities as PEM")]
    UnusableAuthority {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// The authorities of client certificates cannot be used with their revocation lists.
    #[error("cannot use the revocation lists of client certificates: {source}; give those of --tls-client-ca as PEM")]
    UnusableLists {
        /// The cause.
        source: VerifierBuilderError,
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

    fn unusable(TlsFiles { certificate, key, .. }: &TlsFiles, source: &rustls::Error) -> String {
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
    /// Reads a certificate and its key, and the authorities of client certificates.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is not PEM, or certificate and key do not match.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let unusable = |source| TlsError::Unusable { files: files.clone(), source };
        let chain: Vec<CertificateDer<'_>> = read_all(&files.certificate, "certificate")?;
        let clients = files.clients.as_ref().map(ClientAuthorities::read).transpose()?;
        let (path, wanted) = (&files.key, "private key without a password");
        let malformed = |source| TlsError::Malformed { path: path.clone(), wanted, source };
        let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(malformed)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match (&clients, &files.clients) {
            (Some(clients), Some(files)) => builder.with_client_cert_verifier(clients.verifier(&files.authorities)?),
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain.clone(), key).map_err(unusable)?;
        // By preference. A client that offers only HTTP/1.0 is served too, since HTTP/1.1 servers understand it.
        config.alpn_protocols = [HTTP_2, b"http/1.1", b"http/1.0"].map(<[u8]>::to_vec).to_vec();
        Ok(Self { chain, clients, config: Arc::new(config) })
    }
}

impl ClientAuthorities {
    fn read(files: &ClientFiles) -> Result<Self, TlsError> {
        let lists = files.revoked.as_ref().map(|path| read_all(path, "certificate revocation list")).transpose()?;
        Ok(Self {
            trusted: read_all(&files.authorities, "certificate")?,
            revoked: lists.unwrap_or_default(),
            is_required: files.is_required,
        })
    }

    fn verifier(&self, path: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in &self.trusted {
            roots
                .add(authority.clone())
                .map_err(|source| TlsError::UnusableAuthority { path: path.to_owned(), source })?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls(self.revoked.iter().cloned())
            .only_check_end_entity_revocation();
        let verifier = if self.is_required { verifier } else { verifier.allow_unauthenticated() };
        verifier.build().map_err(|source| TlsError::UnusableLists { source })
    }
}

/// Returns the names in a certificate: the DNS names, URIs and e-mail addresses for which it is valid, and the common name of
/// its owner. A certificate that the verifier accepts can be parsed.
pub(super) fn names(certificate: &CertificateDer<'_>) -> CertificateNames {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Arc::default() };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    alternative.chain(common).map(str::to_owned).collect()
}

/// Reads all items of one kind from a file, at least one.
fn read_all<T: PemObject>(path: &Path, wanted: &'static str) -> Result<Vec<T>, TlsError> {
    let malformed = |source| TlsError::Malformed { path: path.to_owned(), wanted, source };
    let items: Vec<T> = T::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(malformed)?;
    if items.is_empty() { Err(malformed(pem::Error::NoItemsFound)) } else { Ok(items) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}

impl Tls {
    /// Creates a configuration with this certificate.
    pub fn new(certificate: Certificate) -> Self {
        Self(RwLock::new(certificate))
    }

    /// Replaces the certificate and the authorities of clients for new connections. Returns whether one is different.
    pub fn set(&self, certificate: Certificate) -> bool {
        let mut current = self.0.write();
        let renewed = current.chain != certificate.chain || current.clients != certificate.clients;
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
