//! TLS, client certificates, users and passwords.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use vkog_etcd::Settings;
use vkog_plugin_api::backend::CommitOutcome;

use crate::cluster::{Cluster, Tls, wait_until};
use crate::recorder::Host;

/// Makes a certificate for etcd and its clients, signed by a new authority.
fn certificates(folder: &Path) -> Option<Tls> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "etcd.test".to_owned()]).expect("two names");
    // Without a name that etcd would take for a user.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let cert = params.signed_by(&key, &ca).expect("a certificate");
    let file = |name: &str, content: String| {
        let path = folder.join(name);
        fs::write(&path, content).expect("a file can be written");
        path
    };
    Some(Tls {
        ca: file("ca.pem", ca.pem()),
        cert: file("cert.pem", cert.pem()),
        key: file("key.pem", key.serialize_pem()),
    })
}

#[test]
fn a_store_uses_tls_with_a_client_certificate() {
    let Some(cluster) = Cluster::start_with(1, &[], certificates) else { return };
    let Tls { ca, cert, key } = cluster.tls.as_ref().expect("it has certificates");
    let with_ca = Settings { ca: Some(ca.clone()), ..Settings::default() };
    let complete = Settings { cert: Some(cert.clone()), key: Some(key.clone()), ..with_ca.clone() };
    let host = Host::open(&cluster.url(), &complete);
    host.put("a", 0, b"x");
    let renamed = Host::open(&cluster.url(), &Settings { server_name: Some("etcd.test".into()), ..complete.clone() });
    assert_eq!(renamed.entries().len(), 1);
    for settings in [
        // No certificate of this host, no trust, another name.
        with_ca,
        Settings { ca: None, tls: true, ..complete.clone() },
        Settings { server_name: Some("other.test".into()), ..complete },
    ] {
        let refused = Host::begin(&cluster.url(), &settings);
        let reason = refused.wait_for_disconnection();
        assert!(reason.starts_with("no connection to https://"), "{reason}");
    }
}

#[test]
fn a_store_authenticates_with_a_user_and_a_password() {
    let Some(mut cluster) = Cluster::start(1, &[]) else { return };
    for command in [
        &["user", "add", "root:secret"][..],
        &["role", "add", "vkog"],
        &["role", "grant-permission", "vkog", "--prefix=true", "readwrite", "vkog/"],
        &["user", "add", "host:word"],
        &["user", "grant-role", "host", "vkog"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        cluster.ctl(command);
    }
    let settings = Settings { user: Some("host".into()), password: Some("word".into()), ..Settings::default() };
    let host = Host::open(&cluster.url(), &settings);
    let revision = host.put("a", 0, b"x");
    wait_until("it leads", || host.store.status().leads);
    // Its token ends with the user.
    for command in
        [&["user", "delete", "host"][..], &["user", "add", "host:word"], &["user", "grant-role", "host", "vkog"]]
    {
        cluster.ctl(&[&["--user", "root:secret"], command].concat());
    }
    // Without a role for a moment, it may have reported that it has no connection.
    let mut written = 0;
    wait_until("it can write again", || match host.outcome(host.send(&[("a", revision, Some(b"y"))])) {
        CommitOutcome::Committed { revision } => {
            written = revision;
            true
        }
        _ => false,
    });
    cluster.kill(0);
    host.wait_for_disconnection();
    cluster.run(0);
    host.wait_for_connection();
    host.put("a", written, b"z");

    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "word\n").expect("it can be written");
    let from_file = Settings { password: None, password_file: Some(file.path().into()), ..settings.clone() };
    assert_eq!(Host::open(&cluster.url(), &from_file).entries().len(), 1);

    for command in [
        &["role", "add", "reader"][..],
        &["role", "grant-permission", "reader", "--prefix=true", "read", "vkog/"],
        &["user", "add", "reader:word"],
        &["user", "grant-role", "reader", "reader"],
    ] {
        cluster.ctl(&[&["--user", "root:secret"], command].concat());
    }
    let reader = Host::open(&cluster.url(), &Settings { user: Some("reader".into()), ..settings.clone() });
    reader.agrees_with(&host);
    match reader.outcome(reader.send(&[("b", 0, Some(b"x"))])) {
        CommitOutcome::Dropped { message } => assert!(message.contains("permission denied"), "{message}"),
        other => panic!("{other:?}"),
    }

    for (settings, part) in [
        (Settings { password: Some("other".into()), ..settings }, "invalid user ID or password"),
        (Settings::default(), "user name is empty"),
    ] {
        let refused = Host::begin(&cluster.url(), &settings);
        let what = format!("the store is refused with {part:?}");
        refused.recorder.wait(&what, |reported| reported.connection.clone()?.err()?.contains(part).then_some(()));
    }
}
