//! TLS, client certificates, users and passwords.

use std::error::Error;
use std::fs;
use std::sync::Arc;

use vkog_etcd::{EtcdStore, Settings};
use vkog_plugin_api::backend::CommitOutcome;
use vkog_tests::{Authority, Etcd, wait_until};

use crate::recorder::{Host, Recorder, Reported};

#[test]
fn a_store_uses_tls_with_a_client_certificate() {
    let Some(etcd) = Etcd::start_with_tls(1) else { return };
    let [ca, cert, key] = etcd.tls_files().map(Some);
    let with_ca = Settings { ca, ..Settings::default() };
    let complete = Settings { cert, key, ..with_ca.clone() };
    let host = Host::open(&etcd.store("vkog"), &complete);
    host.put("a", 0, b"x");
    let renamed =
        Host::open(&etcd.store("vkog"), &Settings { server_name: Some("etcd.test".into()), ..complete.clone() });
    assert_eq!(renamed.entries().len(), 1);
    for (settings, hint) in [
        (with_ca, "if etcd requires a certificate, set cert and key of [plugins.etcd]"),
        (
            Settings { ca: None, tls: true, ..complete.clone() },
            "set ca of [plugins.etcd] to a file with the certificates that sign those of etcd",
        ),
        (
            Settings { server_name: Some("other.test".into()), ..complete },
            "set server_name of [plugins.etcd] to a name in the certificates of etcd",
        ),
    ] {
        let refused = Host::begin(&etcd.store("vkog"), &settings);
        let reason = refused.wait_for_disconnection();
        assert!(reason.starts_with("no connection to https://") && reason.ends_with(hint), "{reason}");
    }
    let refused = Host::begin(&etcd.store("vkog"), &Settings::default());
    let reason = refused.wait_for_disconnection();
    assert!(reason.ends_with("; if etcd uses TLS, set ca of [plugins.etcd], or tls = true"), "{reason}");
}

#[test]
fn a_certificate_that_is_replaced_needs_no_restart() {
    let Some(etcd) = Etcd::start_with_tls(1) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let [ca, cert, key] = etcd.tls_files();
    let (own_cert, own_key) = (folder.path().join("cert"), folder.path().join("key"));
    let foreign = Authority::new().sign(1, |_| {});
    fs::write(&own_cert, &foreign.pem).expect("it can be written");
    fs::write(&own_key, &foreign.key).expect("it can be written");
    let settings =
        Settings { ca: Some(ca), cert: Some(own_cert.clone()), key: Some(own_key.clone()), ..Settings::default() };
    let host = Host::begin(&etcd.store("vkog"), &settings);
    host.wait_for_disconnection();
    fs::copy(cert, own_cert).expect("it can be copied");
    fs::copy(key, own_key).expect("it can be copied");
    host.wait_for_connection();
    host.put("a", 0, b"x");
}

#[test]
fn a_connection_with_tls_to_an_etcd_without_it_names_the_settings() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    let settings = Settings { tls: true, ..Settings::default() };
    let refused = Host::begin(&etcd.store("vkog"), &settings);
    let reason = refused.wait_for_disconnection();
    let hint = "if etcd does not use TLS, remove tls, ca, cert, key and server_name from [plugins.etcd]";
    assert!(reason.ends_with(hint), "{reason}");
    // TLS does not explain these.
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    etcd.kill(0);
    let reason = host.wait_for_disconnection();
    assert!(!reason.contains("TLS"), "{reason}");
    let reason = Host::begin(&etcd.store("vkog"), &settings).wait_for_disconnection();
    assert!(reason.ends_with("Connection refused (os error 111)"), "{reason}");
}

#[test]
fn a_file_without_what_its_setting_needs_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let authority = Authority::new();
    for name in ["one", "two"] {
        let certificate = authority.sign(1, |_| {});
        fs::write(path(name).with_extension("crt"), &certificate.pem).expect("it can be written");
        fs::write(path(name).with_extension("key"), &certificate.key).expect("it can be written");
    }
    fs::write(path("text"), "localhost\n").expect("it can be written");
    let block = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    fs::write(path("not-base64"), block("?")).expect("it can be written");
    fs::write(path("not-a-certificate"), block("AAAA")).expect("it can be written");

    let ca = |name: &str| Settings { ca: Some(path(name)), ..Settings::default() };
    let pair = |cert, key| Settings { cert: Some(path(cert)), key: Some(path(key)), ..Settings::default() };
    for (settings, setting, name, fact) in [
        (ca("text"), "ca", "text", "has no certificate; name a PEM file with one"),
        (ca("one.key"), "ca", "one.key", "has no certificate; name a PEM file with one"),
        (ca("not-base64"), "ca", "not-base64", "is not a PEM file; name one"),
        (pair("one.key", "one.crt"), "cert", "one.key", "has no certificate; name a PEM file with one"),
        (
            pair("one.crt", "one.crt"),
            "key",
            "one.crt",
            "has no private key without a password; name a PEM file with one",
        ),
        (pair("one.crt", "text"), "key", "text", "has no private key without a password; name a PEM file with one"),
    ] {
        let expected = format!("{setting} of [plugins.etcd]: {} {fact}", path(name).display());
        let refusal = refusal(&settings);
        assert!(refusal.starts_with(&expected), "{refusal}, not {expected}");
    }
    for (settings, setting) in [(ca("not-a-certificate"), "ca"), (pair("not-a-certificate", "one.key"), "cert")] {
        let expected = format!("{setting} of [plugins.etcd]: cannot use {}: ", path("not-a-certificate").display());
        let refusal = refusal(&settings);
        assert!(refusal.starts_with(&expected), "{refusal}, not {expected}");
    }
    let expected = format!(
        "cert and key of [plugins.etcd]: the key in {} is not that of the certificate in {}; name two files that belong together",
        path("two.key").display(),
        path("one.crt").display()
    );
    assert_eq!(refusal(&pair("one.crt", "two.key")), expected);
    let settings = Settings { ca: Some(path("one.crt")), ..pair("one.crt", "one.key") };
    let opened = EtcdStore::open(&settings, "etcd://127.0.0.1:1/vkog", "{}", Arc::<Recorder>::default());
    assert!(opened.is_ok(), "{:?}", opened.err());
}

/// Returns why a store with these settings cannot be opened.
fn refusal(settings: &Settings) -> String {
    let opened = EtcdStore::open(settings, "etcd://127.0.0.1:1/vkog", "{}", Arc::<Recorder>::default());
    let error = opened.err().expect("the settings are refused");
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_its_setting() {
    let [missing, present] = ["/nonexistent", "/dev/null"].map(|path| Some(path.into()));
    let base = Settings::default();
    let user = Some("host".to_owned());
    for (setting, settings) in [
        ("ca", Settings { ca: missing.clone(), ..base.clone() }),
        ("cert", Settings { cert: missing.clone(), key: present.clone(), ..base.clone() }),
        ("password_file", Settings { user, password_file: missing, ..base }),
    ] {
        let expected =
            format!("{setting} of [plugins.etcd]: cannot read /nonexistent: No such file or directory (os error 2)");
        assert_eq!(refusal(&settings), expected);
    }
}

/// Starts etcd with authentication: the user `host` with the password `word` may write below `vkog/`.
fn start_with_users() -> Option<Etcd> {
    let etcd = Etcd::start(1)?;
    for command in [
        &["user", "add", "root:secret"][..],
        &["role", "add", "vkog"],
        &["role", "grant-permission", "vkog", "--prefix=true", "readwrite", "vkog/"],
        &["user", "add", "host:word"],
        &["user", "grant-role", "host", "vkog"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcd.etcdctl(command);
    }
    Some(etcd)
}

/// Replaces the user `host` by one with this password. That ends its tokens, as a change of its password does.
fn replace_user(etcd: &Etcd, password: &str) {
    let add = format!("host:{password}");
    for command in [&["user", "delete", "host"][..], &["user", "add", &add], &["user", "grant-role", "host", "vkog"]] {
        etcd.etcdctl(&[&["--user", "root:secret"], command].concat());
    }
}

#[test]
fn a_password_that_is_corrected_in_its_file_needs_no_restart() {
    let Some(etcd) = start_with_users() else { return };
    let file = tempfile::NamedTempFile::new().expect("a file");
    let write = |password: &str| fs::write(file.path(), password).expect("it can be written");
    write("mistyped\n");
    let password_file = Some(file.path().into());
    let host =
        Host::begin(&etcd.store("vkog"), &Settings { user: Some("host".into()), password_file, ..Settings::default() });
    let wait_for = |part: &str| {
        let is_found = |reported: &mut Reported| reported.connection.clone()?.err()?.contains(part).then_some(());
        host.recorder.wait(part, is_found);
    };
    wait_for("invalid user ID or password");
    write("word\n");
    host.wait_for_connection();
    host.put("a", 0, b"x");
    for (number, password) in [(0, "second"), (1, "third")] {
        replace_user(&etcd, password);
        wait_for("invalid user ID or password");
        if number == 1 {
            fs::remove_file(file.path()).expect("it exists");
            wait_for("password_file of [plugins.etcd]: cannot read ");
        }
        write(password);
        host.wait_for_connection();
        host.put(password, 0, b"x");
    }
}

#[test]
fn a_user_is_refused_while_etcd_has_no_authentication() {
    let Some(etcd) = Etcd::start(1) else { return };
    let (user, password) = (Some("host".into()), Some("word".into()));
    let refused = Host::begin(&etcd.store("vkog"), &Settings { user, password, ..Settings::default() });
    let expected = "etcd refuses this server: etcdserver: authentication is not enabled; enable authentication in etcd, or remove user \
                    and its password from [plugins.etcd]";
    assert_eq!(refused.wait_for_disconnection(), expected);
}

#[test]
fn a_store_authenticates_with_a_user_and_a_password() {
    let Some(mut etcd) = start_with_users() else { return };
    let settings = Settings { user: Some("host".into()), password: Some("word".into()), ..Settings::default() };
    let host = Host::open(&etcd.store("vkog"), &settings);
    let revision = host.put("a", 0, b"x");
    wait_until("it leads", || host.store.status().leads);
    // Its token ends with the user.
    replace_user(&etcd, "word");
    // Without a role for a moment, it may have reported that it has no connection.
    let mut written = 0;
    wait_until("it can write again", || match host.outcome(host.send(&[("a", revision, Some(b"y"))])) {
        CommitOutcome::Committed { revision } => {
            written = revision;
            true
        }
        _ => false,
    });
    etcd.kill(0);
    host.wait_for_disconnection();
    etcd.run(0);
    host.wait_for_connection();
    host.put("a", written, b"z");

    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "word\n").expect("it can be written");
    let from_file = Settings { password: None, password_file: Some(file.path().into()), ..settings.clone() };
    assert_eq!(Host::open(&etcd.store("vkog"), &from_file).entries().len(), 1);

    for command in [
        &["role", "add", "reader"][..],
        &["role", "grant-permission", "reader", "--prefix=true", "read", "vkog/"],
        &["user", "add", "reader:word"],
        &["user", "grant-role", "reader", "reader"],
    ] {
        etcd.etcdctl(&[&["--user", "root:secret"], command].concat());
    }
    let reader = Host::open(&etcd.store("vkog"), &Settings { user: Some("reader".into()), ..settings.clone() });
    reader.agrees_with(&host);
    let refused = |message: &str| {
        message
            .contains("may not write in etcd (etcdserver: permission denied); grant it readwrite on the prefix vkog/")
    };
    match reader.outcome(reader.send(&[("b", 0, Some(b"x"))])) {
        CommitOutcome::Refused { status: 503, message } => assert!(refused(&message), "{message}"),
        other => panic!("{other:?}"),
    }
    assert!(refused(&reader.store.status().full), "{:?}", reader.store.status());
    let grant = ["--user", "root:secret", "role", "grant-permission", "reader", "--prefix=true", "readwrite", "vkog/"];
    etcd.etcdctl(&grant);
    wait_until("it may write", || reader.store.status().full.is_empty());
    reader.put("b", 0, b"x");
    // While it runs, the first write that is refused says so.
    etcd.etcdctl(&["--user", "root:secret", "role", "revoke-permission", "reader", "--prefix=true", "vkog/"]);
    etcd.etcdctl(&grant.map(|word| if word == "readwrite" { "read" } else { word }));
    assert!(matches!(reader.outcome(reader.send(&[("c", 0, Some(b"x"))])), CommitOutcome::Refused { status: 503, .. }));
    wait_until("it may not write", || refused(&reader.store.status().full));
    etcd.etcdctl(&grant);
    wait_until("it may write", || reader.store.status().full.is_empty());
    reader.put("c", 0, b"x");

    for (prefix, settings, part) in [
        ("vkog", Settings { password: Some("other".into()), ..settings.clone() }, "invalid user ID or password"),
        ("vkog", Settings::default(), "user name is empty"),
        ("a/b", settings, "permission denied; grant its user readwrite on the prefix a/b/"),
    ] {
        let refused = Host::begin(&etcd.store(prefix), &settings);
        let what = format!("the store is refused with {part:?}");
        refused.recorder.wait(&what, |reported| reported.connection.clone()?.err()?.contains(part).then_some(()));
    }
}
