//! Certificates created for a test, and a direct TLS client that shows what a server sends.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
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

/// An authority that signs the certificates of clients.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Its certificate, as PEM.
    pub pem: String,
}

/// The certificate of a client.
pub struct ClientCertificate {
    /// The certificate, as PEM.
    pub pem: String,
    /// Its private key, as PEM.
    pub key: String,
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key can be made")
}

impl Authority {
    /// Creates an authority.
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("it has no names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Authorities with the same name would be taken for one whose signature is wrong.
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("VKOG test clients {}", COUNT.fetch_add(1, Relaxed));
        parameters.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(parameters, key()).expect("the key is new");
        Self { pem: issuer.as_ref().pem(), issuer }
    }

    /// Signs a certificate with this serial number; `name` sets its names and its validity.
    pub fn sign(&self, serial: u64, name: impl FnOnce(&mut CertificateParams)) -> ClientCertificate {
        let mut parameters = CertificateParams::new(Vec::new()).expect("it has no names");
        parameters.serial_number = Some(serial.into());
        parameters.use_authority_key_identifier_extension = true;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        name(&mut parameters);
        let key = key();
        let pem = parameters.signed_by(&key, &self.issuer).expect("the authority has a key").pem();
        ClientCertificate { pem, key: key.serialize_pem() }
    }

    /// Signs a certificate with a common name.
    pub fn named(&self, name: &str) -> ClientCertificate {
        self.sign(1, |parameters| parameters.distinguished_name.push(DnType::CommonName, name))
    }

    /// Returns a list that revokes the certificates with these serial numbers, as PEM.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("the authority has a key").pem().expect("it can be encoded")
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientCertificate {
    /// Writes `client.pem` and `client-key.pem` into a folder.
    pub fn write(&self, folder: &Path) {
        std::fs::write(folder.join("client.pem"), &self.pem).expect("the certificate can be written");
        std::fs::write(folder.join("client-key.pem"), &self.key).expect("the key can be written");
    }
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
        self.connect_as(None, address, version, protocols)
    }

    /// Connects as [`connect`](Self::connect) does, and shows this certificate.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub fn connect_as(
        &self,
        client: Option<&ClientCertificate>,
        address: &str,
        version: &'static SupportedProtocolVersion,
        protocols: &[&str],
    ) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("it is a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("ring knows this version")
            .with_root_certificates(roots);
        let mut config = match client {
            None => config.with_no_client_auth(),
            Some(ClientCertificate { pem, key }) => {
                let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is a certificate");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("it is a key");
                config.with_client_auth_cert(vec![certificate], key).expect("the key is its own")
            }
        };
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
