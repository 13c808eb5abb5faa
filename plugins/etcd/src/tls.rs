//! TLS: the files that the settings name, and what a connection that failed may say of the settings.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore};
use tonic::Status;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::settings::{Settings, SettingsError, read};

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFileError {
    #[error("{setting} of [plugins.etcd]: {} has no {item}; name a PEM file with one", path.display())]
    Missing { setting: &'static str, path: PathBuf, item: &'static str },
    #[error("{setting} of [plugins.etcd]: {} is not a PEM file; name one", path.display())]
    Pem {
        setting: &'static str,
        path: PathBuf,
        #[source]
        error: pem::Error,
    },
    #[error("{setting} of [plugins.etcd]: cannot use {}", path.display())]
    Unusable {
        setting: &'static str,
        path: PathBuf,
        #[source]
        error: rustls::Error,
    },
    #[error(
        "cert and key of [plugins.etcd]: the key in {} is not that of the certificate in {}; name two files that belong together",
        key.display(),
        cert.display()
    )]
    Mismatch { cert: PathBuf, key: PathBuf },
}

/// Reads the files of the settings. None if they do not use TLS.
///
/// # Errors
///
/// A file cannot be read, or etcd or TLS cannot use it.
pub(crate) fn config(settings: &Settings) -> Result<Option<ClientTlsConfig>, SettingsError> {
    if !settings.uses_tls() {
        return Ok(None);
    }
    let mut tls = ClientTlsConfig::new();
    tls = match &settings.ca {
        Some(path) => {
            let text = read("ca", path)?;
            let mut roots = RootCertStore::empty();
            for certificate in certificates("ca", path, &text)? {
                roots.add(certificate).map_err(unusable("ca", path))?;
            }
            tls.ca_certificate(Certificate::from_pem(text))
        }
        None => tls.with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&settings.cert, &settings.key) {
        tls = tls.identity(identity(cert, key)?);
    }
    Ok(Some(match &settings.server_name {
        Some(name) => tls.domain_name(name),
        None => tls,
    }))
}

fn identity(cert: &Path, key: &Path) -> Result<Identity, SettingsError> {
    let (certificate_text, key_text) = (read("cert", cert)?, read("key", key)?);
    let chain = certificates("cert", cert, &certificate_text)?;
    let private =
        PrivateKeyDer::from_pem_slice(&key_text).map_err(not_pem("key", key, "private key without a password"))?;
    match CertifiedKey::from_der(chain, private, &ring::default_provider()) {
        Ok(_) => Ok(Identity::from_pem(certificate_text, key_text)),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(TlsFileError::Mismatch { cert: cert.to_owned(), key: key.to_owned() }.into())
        }
        Err(error @ rustls::Error::InvalidCertificate(_)) => Err(unusable("cert", cert)(error)),
        Err(error) => Err(unusable("key", key)(error)),
    }
}

/// Returns the certificates in a file, which has at least one.
fn certificates(
    setting: &'static str,
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let found = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(not_pem(setting, path, "certificate")(pem::Error::NoItemsFound)),
        found => found.map_err(not_pem(setting, path, "certificate")),
    }
}

fn not_pem(setting: &'static str, path: &Path, item: &'static str) -> impl FnOnce(pem::Error) -> SettingsError {
    let path = path.to_owned();
    move |error| match error {
        pem::Error::NoItemsFound => TlsFileError::Missing { setting, path, item }.into(),
        error => TlsFileError::Pem { setting, path, error }.into(),
    }
}

fn unusable(setting: &'static str, path: &Path) -> impl FnOnce(rustls::Error) -> SettingsError {
    let path = path.to_owned();
    move |error| TlsFileError::Unusable { setting, path, error }.into()
}

/// Returns what to check in the settings after a connection failed; empty if TLS does not explain it. A member that has
/// answered on the connection, `was_used`, agrees with the host about TLS.
pub(crate) fn hint(settings: &Settings, status: &Status, was_used: bool) -> &'static str {
    match failure(status) {
        Failure::Issuer => "; set ca of [plugins.etcd] to a file with the certificates that sign those of etcd",
        Failure::Name => "; set server_name of [plugins.etcd] to a name in the certificates of etcd",
        Failure::ClientCertificate if settings.cert.is_some() => "; etcd does not accept cert of [plugins.etcd]",
        Failure::ClientCertificate => "; if etcd requires a certificate, set cert and key of [plugins.etcd]",
        Failure::Other => "",
        _ if was_used => "",
        Failure::Handshake | Failure::Closed if !settings.uses_tls() => {
            "; if etcd uses TLS, set ca of [plugins.etcd], or tls = true"
        }
        Failure::Closed if settings.cert.is_none() => {
            "; if etcd requires a certificate, set cert and key of [plugins.etcd]"
        }
        Failure::Closed => "; if etcd does not accept cert of [plugins.etcd], name another one",
        Failure::Handshake => {
            "; if etcd does not use TLS, remove tls, ca, cert, key and server_name from [plugins.etcd]"
        }
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// No authority that the host trusts has signed the certificate of the member.
    Issuer,
    /// That certificate is for another name.
    Name,
    /// The member has refused the certificate of the host, or that it has none.
    ClientCertificate,
    /// The member has closed the connection in the TLS handshake.
    Handshake,
    /// The member has closed the connection.
    Closed,
    Other,
}

fn failure(status: &Status) -> Failure {
    let mut is_connecting = false;
    let mut last: &dyn Error = status;
    while let Some(source) = last.source() {
        is_connecting |= source.is::<tonic::ConnectError>();
        last = source;
    }
    let text = last.to_string();
    let io = last.downcast_ref::<io::Error>();
    let tls = io.and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (tls, io.map(io::Error::kind)) {
        (Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)), _) => Failure::Issuer,
        (
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )),
            _,
        ) => Failure::Name,
        // Its type is lost where it comes after the handshake.
        _ if text.starts_with("received fatal alert: ") => {
            if text.contains("Certificate") || text.ends_with("UnknownCA") {
                Failure::ClientCertificate
            } else {
                Failure::Other
            }
        }
        (None, Some(ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)) if is_connecting => Failure::Handshake,
        (
            None,
            Some(
                ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof,
            ),
        ) => Failure::Closed,
        (None, None) if text == "connection closed" => Failure::Closed,
        _ => Failure::Other,
    }
}
