//! Certificates created for a test, and a direct TLS client that shows what a server sends.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::DEADLINE;

/// A certificate for 127.0.0.1, and its key.
pub struct Certificate {
    der: CertificateDer<'static>,
    /// The certificate, as PEM.
    pub pem: String,
    /// The certificate of the authority that signed it, as PEM: the same one if it is self-signed.
    pub authority: String,
    /// Its private key, as PEM.
    pub key: String,
}

/// The certificate and the response that a TLS client received.
pub struct Seen {
    /// The negotiated TLS version.
    pub alpn: Option<Vec<u8>>,
    /// All bytes that the server sent until it closed the connection.
    pub text: String,
}

impl Certificate {
    /// Creates a self-signed certificate.
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a key can be made");
        let pem = made.cert.pem();
        Self { der: made.cert.der().clone(), authority: pem.clone(), pem, key: made.signing_key.serialize_pem() }
    }

    /// Creates a private certificate authority and a certificate that it signs.
    pub fn signed() -> Self {
        let key = || KeyPair::generate().expect("a key can be made");
        let parameters = |names: &[String]| CertificateParams::new(names).expect("it is an address");
        let mut authority = parameters(&[]);
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(DnType::CommonName, "VKOG test authority");
        let authority = CertifiedIssuer::self_signed(authority, key()).expect("the key is new");
        let mut signed = parameters(&["127.0.0.1".to_owned()]);
        signed.use_authority_key_identifier_extension = true;
        let signing_key = key();
        let cert = signed.signed_by(&signing_key, &authority).expect("the authority has a key");
        let authority = authority.as_ref().pem();
        Self { der: cert.der().clone(), pem: cert.pem(), authority, key: signing_key.serialize_pem() }
    }

    /// Writes `cert.pem` and `key.pem` into a folder.
    pub fn write(&self, folder: &Path) {
        std::fs::write(folder.join("cert.pem"), &self.pem).expect("the certificate can be written");
        std::fs::write(folder.join("key.pem"), &self.key).expect("the key can be written");
    }

    /// Connects with one version of TLS, trusting only this certificate, and offers these protocols.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub fn connect(
        &self,
        address: &str,
        version: &'static SupportedProtocolVersion,
        protocols: &[&str],
    ) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("it is a certificate");
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("ring knows this version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("127.0.0.1").expect("it is an address");
        let client = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(StreamOwned::new(client, socket))
    }

    /// Connects with an offer of these protocols, and sends a request that ends the connection.
    ///
    /// # Errors
    ///
    /// The server has another certificate, or none of the protocols.
    pub fn ask(
        &self,
        address: &str,
        version: &'static SupportedProtocolVersion,
        protocols: &[&str],
        request: impl AsRef<[u8]>,
    ) -> io::Result<Seen> {
        let mut stream = self.connect(address, version, protocols)?;
        stream.write_all(request.as_ref())?;
        let mut bytes = Vec::new();
        // It fails if the server closes the connection without a TLS close message.
        stream.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Seen { alpn: stream.conn.alpn_protocol().map(<[u8]>::to_vec), text })
    }
}

impl Default for Certificate {
    fn default() -> Self {
        Self::new()
    }
}
