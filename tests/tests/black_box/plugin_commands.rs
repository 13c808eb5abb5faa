//! `vkog plugins add`, `ls` and `rm`: the plugin folder has only complete libraries that passed every check, a failure changes
//! nothing, and the pins in the configuration follow.
//!
//! Provoked with damaged libraries, small and read-only disks, a limit on the size of files that kills the program while it
//! writes, servers that send too little, too much or a redirect, and a library whose initialiser leaves a mark.
#![cfg(unix)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::Value;
use sha2::{Digest, Sha256};
use vkog_tests::{
    Certificate, Exit, Running, Setup, administered, artefacts, bytes, conflict, damaged, only_ours, ttl,
};

/// A configuration and a plugin folder, which does not exist at first.
struct Place {
    setup: Setup,
    folder: PathBuf,
    config: PathBuf,
}

impl Place {
    fn new() -> Self {
        let setup = Setup::new();
        let (folder, config) = (setup.folder().join("plugins"), setup.folder().join("vkog.toml"));
        setup.write_config("");
        Self { setup, folder, config }
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.setup.vkog();
        command.arg("plugins").args(words).args(["--plugin-dir", "plugins", "--config", "vkog.toml"]);
        command
    }

    /// Runs `vkog plugins` with these words, for the folder and the configuration.
    fn run(&self, words: &[&str]) -> Exit {
        Running::start(&mut self.command(words)).wait()
    }

    fn add(&self, library: &Path, options: &[&str]) -> Exit {
        let library = library.display().to_string();
        self.run(&[&["add", &library], options].concat())
    }

    /// Returns the names of all files in the folder.
    fn files(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("it is ours").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn config(&self) -> String {
        std::fs::read_to_string(&self.config).expect("it exists")
    }

    fn serving(&self) -> [&str; 6] {
        ["--listen", "127.0.0.1:0", "--plugin-dir", "plugins", "--config", "vkog.toml"]
    }

    /// Returns the document of `ls --json`.
    fn listed(&self) -> Vec<Value> {
        let exit = self.run(&["ls", "--json"]).expect(0);
        let document: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit}"));
        document["plugins"].as_array().expect("a list").clone()
    }

    /// Asserts that adding fails with this status and words, and that nothing has changed.
    #[track_caller]
    fn refused(&self, words: &[&str], status: i32, expected: &[&str]) {
        let before = (self.files(), self.config());
        let exit = self.run(words).expect(status);
        // A plugin that was created may have logged.
        let error = exit.stderr.lines().last().filter(|line| line.starts_with("vkog: ")).unwrap_or_default();
        assert!(expected.iter().all(|word| error.contains(word)), "{expected:?} in {exit}");
        assert_eq!((self.files(), self.config()), before, "{exit}");
    }
}

fn hash(library: &Path) -> String {
    let read = std::fs::read(library).expect("a library can be read");
    Sha256::digest(read).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it exists").permissions().mode() & 0o7777
}

/// The two versions of a plugin.
fn versions() -> [PathBuf; 2] {
    ["versioned", "vkog-versioned"].map(|package| artefacts().library(package))
}

/// Sends the same bytes to each request, until the process ends. Returns the address.
fn sending(response: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            read_head(&mut stream);
            // The client may have stopped reading.
            let _ = stream.write_all(&response);
        }
    });
    url
}

fn read_head(stream: &mut impl Read) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
        head.extend(byte);
    }
}

/// Returns a response whose `Content-Length` is `length`.
fn response(status: &str, field: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{field}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn sending_library(library: &Path) -> String {
    let library = std::fs::read(library).expect("a library can be read");
    sending(response("200 OK", "", library.len(), &library))
}

#[test]
fn an_added_library_is_loaded_by_every_server_of_the_folder() {
    let place = Place::new();
    // Whatever the umask is, no other user can write the folder and the library, and another user can read them.
    for (umask, library, file, name) in
        [("000", conflict(), "libvkog_conflict.so", "conflict"), ("077", bytes(), "libvkog_bytes.so", "bytes")]
    {
        let line =
            format!("umask {umask}; vkog plugins add '{}' --plugin-dir plugins --config vkog.toml", library.display());
        let exit = Running::start(&mut place.setup.shell(&line)).wait().expect(0);
        let added = exit.stdout.starts_with(&format!("added {name} ")) && exit.stdout.contains(&hash(&library));
        assert!(added && exit.stdout.contains("reload"), "{exit}");
        assert_eq!((mode(&place.folder), mode(&place.folder.join(file))), (0o755, 0o644));
    }
    assert_eq!(place.files(), ["libvkog_bytes.so", "libvkog_conflict.so"]);
    let other = Setup::new();
    let arguments = ["--listen", "127.0.0.1:0", "--plugin-dir"].map(Into::into);
    let arguments = arguments.into_iter().chain([place.folder.clone().into_os_string()]);
    for server in [place.setup.start_with(place.serving()), other.start_with(arguments)] {
        let names: Vec<Value> = server.plugins().iter().map(|plugin| plugin["name"].clone()).collect();
        assert_eq!(names, ["conflict", "bytes"]);
    }
    // Adding it again changes nothing, also from the folder itself.
    for library in [conflict(), place.folder.join("libvkog_conflict.so")] {
        let exit = place.add(&library, &[]).expect(0);
        assert!(exit.stdout.starts_with("already there: conflict "), "{exit}");
    }
}

#[test]
fn a_library_that_a_server_would_not_load_is_not_added() {
    let place = Place::new();
    let damaged = damaged(&bytes(), place.setup.folder());
    for (name, code) in [
        ("text", "[not-a-library]"),
        ("cut-50", "[cut-off]"),
        ("aarch64", "[wrong-architecture]"),
        ("needs-more", "[not-loadable]"),
    ] {
        let library = damaged[name].display().to_string();
        place.refused(&["add", &library], 1, &["cannot add ", code]);
        place.refused(&["add", &library, "--pin", "--replace"], 1, &[code]);
    }
    let no_plugin = artefacts().library("fault-no-plugin").display().to_string();
    place.refused(&["add", &no_plugin], 1, &["[no-plugin]"]);
    place.refused(&["add", "absent.so"], 3, &["absent.so", "[unreadable]"]);
    place.refused(&["add", "plugins"], 3, &["[unreadable]"]);
    // Other users could have written it; its hash replaces the check.
    let exposed = place.setup.folder().join("exposed.so");
    std::fs::copy(ttl(), &exposed).expect("a library can be copied");
    std::fs::set_permissions(&exposed, std::fs::Permissions::from_mode(0o666)).expect("it is ours");
    place.refused(&["add", "exposed.so"], 1, &["[world-writable]"]);
    place.refused(&["add", "exposed.so", "--sha256", &"0".repeat(64)], 1, &["--sha256 is 0000", &hash(&ttl())]);
    place.setup.write_config("[plugins.ttl]\nunknown = 1\n");
    place.refused(&["add", "exposed.so", "--sha256", &hash(&ttl())], 1, &["[bad-settings]"]);
    assert!(!place.folder.exists(), "a failed add creates no folder");
    place.setup.write_config("");
    place.add(&exposed, &["--sha256", &hash(&ttl())]).expect(0);
    assert_eq!(place.files(), ["libvkog_ttl.so"]);
}

#[test]
fn another_library_of_a_plugin_replaces_the_first_only_on_demand() {
    let [old, new] = versions();
    let place = Place::new();
    place.setup.write_config(&administered(""));
    place.add(&old, &["--pin"]).expect(0);
    let file = place.folder.join("libvkog_versioned.so");
    std::fs::rename(&file, place.folder.join("libversioned.so")).expect("it is ours");
    let server = place.setup.start_with(place.serving());
    let new = new.display().to_string();
    // The pin forbids it, and then the library that is there.
    place.refused(&["add", &new], 1, &["[wrong-sha256]"]);
    place.refused(&["add", &new, "--replace"], 1, &["[wrong-sha256]"]);
    place.refused(&["add", &new, "--pin"], 1, &["[wrong-sha256]"]);
    place.setup.write_config(&administered(""));
    place.refused(&["add", &new], 4, &["libversioned.so contains versioned ", "--replace"]);
    place.refused(&["add", &new, "--pin"], 4, &["--replace"]);
    place.setup.write_config(&administered(&format!("[plugins.versioned]\nsha256 = \"{}\"\n", hash(&old))));
    let exit = place.run(&["add", &new, "--replace", "--pin"]).expect(0);
    assert!(exit.stdout.starts_with("replaced versioned "), "{exit}");
    assert_eq!(place.files(), ["libversioned.so"]);
    assert!(place.config().contains(&hash(Path::new(&new))), "{}", place.config());
    assert_eq!(server.reloaded("versioned"), "reloaded");
    // A library that does not load is replaced as well, and so is a link, but not what it leads to.
    let installed = place.folder.join("libversioned.so");
    std::fs::write(&installed, "broken").expect("it is ours");
    place.refused(&["add", &new], 4, &["libversioned.so does not load [wrong-sha256]"]);
    std::fs::rename(&installed, place.setup.folder().join("target")).expect("it is ours");
    symlink("../target", &installed).expect("a link can be made");
    place.run(&["add", &new, "--replace"]).expect(0);
    assert!(!installed.is_symlink() && hash(&installed) == hash(Path::new(&new)));
    assert_eq!(std::fs::read(place.setup.folder().join("target")).expect("it remains"), b"broken");
}

#[test]
fn a_file_name_or_folder_that_cannot_be_used_is_reported() {
    let place = Place::new();
    let library = conflict().display().to_string();
    std::fs::write(&place.folder, "a file").expect("it is ours");
    place.refused(&["add", &library], 1, &["plugins", "Not a directory"]);
    place.refused(&["ls"], 1, &["plugins", "Not a directory"]);
    std::fs::remove_file(&place.folder).expect("it is ours");
    place.refused(&["ls"], 3, &["--plugin-dir"]);
    place.refused(&["rm", "conflict"], 3, &["--plugin-dir"]);
    std::fs::create_dir(&place.folder).expect("it is ours");
    only_ours(&place.folder);
    // The name that the library would get is that of another plugin's.
    std::fs::copy(bytes(), place.folder.join("libvkog_conflict.so")).expect("a library can be copied");
    place.refused(&["add", &library, "--replace"], 1, &["contains the plugin bytes"]);
    std::fs::copy(conflict(), place.folder.join("one.so")).expect("a library can be copied");
    std::fs::copy(conflict(), place.folder.join("two.so")).expect("a library can be copied");
    place.refused(&["add", &library, "--replace"], 1, &["one.so, two.so", "vkog plugins rm"]);
    place.refused(&["rm", "conflict"], 1, &["one.so, two.so"]);
    for name in ["libvkog_conflict.so", "one.so", "two.so"] {
        std::fs::remove_file(place.folder.join(name)).expect("it is ours");
    }
    // A server would refuse a library in a folder that others can write, unless it is pinned.
    std::fs::set_permissions(&place.folder, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    place.refused(&["add", &library], 1, &["everybody can put libraries", "[folder-writable]"]);
    place.run(&["add", &library, "--pin"]).expect(0);
    place.setup.start_with(place.serving()).plugin("conflict");
    // The parent of a missing folder is not created: its name may be misspelt.
    let exit = place.setup.run(["plugins", "add", &library, "--plugin-dir", "absent/plugins"]).expect(3);
    assert!(exit.one_error().contains("cannot create the plugin folder"), "{exit}");
}

#[test]
fn a_pin_is_written_into_the_configuration_and_comments_stay() {
    let place = Place::new();
    let before = "# mine\n[plugins]\norder = [ \"ttl\" ] # first\n\n[plugins.ttl]\ndefault = \"1d\" # a day\n";
    place.setup.write_config(before);
    let exit = place.add(&ttl(), &["--pin"]).expect(0);
    assert!(exit.stdout.contains("pinned in vkog.toml"), "{exit}");
    assert_eq!(place.config(), format!("{before}sha256 = \"{}\"\n", hash(&ttl())));
    place.setup.start_with(place.serving()).plugin("ttl");
    // Without a configuration there is no place for a pin.
    let library = ttl().display().to_string();
    let exit = place.setup.run(["plugins", "add", &library, "--pin", "--plugin-dir", "plugins"]).expect(2);
    assert!(exit.one_error().contains("--config"), "{exit}");
    let exit = place.setup.run(["plugins", "add", &library, "--pin", "--config", "absent.toml"]).expect(3);
    assert!(exit.one_error().contains("absent.toml"), "{exit}");
    // Two at once: none loses the pin of the other.
    let (bytes, conflict) = (bytes().display().to_string(), conflict().display().to_string());
    let running = [&bytes, &conflict].map(|library| Running::start(&mut place.command(&["add", library, "--pin"])));
    running.into_iter().for_each(|running| drop(running.wait().expect(0)));
    assert_eq!(place.config().matches("sha256 = ").count(), 3, "{}", place.config());
    let exit = place.setup.run(["plugins", "ls", "--plugin-dir", "plugins", "--config", "vkog.toml"]).expect(0);
    assert_eq!(exit.stdout.matches(" yes ").count(), 3, "{exit}");
}

#[test]
fn a_download_is_complete_and_has_the_expected_hash_or_nothing_changes() {
    let place = Place::new();
    let (expected, library) = (hash(&conflict()), std::fs::read(conflict()).expect("a library can be read"));
    let good = sending_library(&conflict());
    place.refused(&["add", &format!("{good}/x.so")], 2, &["without TLS", "--sha256"]);
    place.refused(&["add", &format!("{good}/x.so"), "--pin"], 2, &["without TLS"]);
    let refused = |url: &str, status: i32, words: &[&str]| {
        place.refused(&["add", url, "--sha256", &expected], status, words);
    };
    refused(&sending_library(&ttl()), 1, &["its sha256 is", &hash(&ttl())]);
    refused(
        &sending(response("200 OK", "", library.len(), &library[..library.len() - 1])),
        6,
        &["response ended after"],
    );
    let chunked = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\x7fELF\r\n".as_slice()].concat();
    refused(&sending(chunked), 6, &["response ended after 4 bytes"]);
    refused(&sending(response("200 OK", "", 1 << 40, b"")), 1, &["268435456 bytes"]);
    refused(&sending(response("404 Not Found", "", 0, b"")), 3, &["404 Not Found"]);
    refused(&sending(response("401 Unauthorized", "", 0, b"")), 5, &["401 Unauthorized"]);
    refused(&sending(response("503 Service Unavailable", "", 0, b"")), 6, &["503 Service Unavailable"]);
    refused(&sending(response("500 Internal Server Error", "", 0, b"")), 1, &["500 Internal"]);
    refused("http://127.0.0.1:1/x.so", 6, &["cannot download http://127.0.0.1:1/x.so: "]);
    // It redirects to itself.
    refused(&sending(response("302 Found", "Location: /again\r\n", 0, b"")), 6, &["redirect"]);
    assert!(!place.folder.exists());
    let redirecting = sending(response("302 Found", &format!("Location: {good}/here.so\r\n"), 0, b""));
    place.run(&["add", &format!("{redirecting}/a/..%2f../../../../etc/x.so?a=../b"), "--sha256", &expected]).expect(0);
    assert_eq!(place.files(), ["libvkog_conflict.so"]);
    assert_eq!(hash(&place.folder.join("libvkog_conflict.so")), expected);
    let beside = std::fs::read_dir(place.setup.folder()).expect("it exists").count();
    assert_eq!(beside, 2, "only the folder and the configuration are there");
}

#[test]
fn no_message_shows_the_credentials_of_an_address() {
    let place = Place::new();
    let expected = hash(&conflict());
    let secret = |url: &str| url.replacen("://", "://ann:s3cret@", 1) + "/x.so?key=s3cret#s3cret";
    let refused = |url: &str, status: i32, words: &[&str]| {
        let exit = place.run(&["add", &secret(url), "--sha256", &expected]);
        let printed = format!("{}{}", exit.stdout, exit.stderr);
        assert!(!printed.contains("s3cret") && !printed.contains("ann:"), "{printed}");
        place.refused(&["add", &secret(url), "--sha256", &expected], status, words);
    };
    let whole = response("200 OK", "", 9, b"");
    refused(&sending(whole), 6, &["response ended after 0 bytes", "/x.so?\u{2026}"]);
    refused(&sending(response("401 Unauthorized", "", 0, b"")), 5, &["401 Unauthorized"]);
    refused(&sending(response("200 OK", "", 1 << 40, b"")), 1, &["268435456 bytes"]);
    refused(&sending(response("200 OK", "", 9, b"no librar")), 1, &["its sha256 is"]);
    let away = response("302 Found", "Location: https://ann:s3cret@[/x.so?s3cret\r\n", 0, b"");
    refused(&sending(away), 6, &["cannot download http://127.0.0.1"]);
    refused("http://127.0.0.1:1", 6, &["cannot download http://127.0.0.1:1/x.so"]);
    refused("http://[", 6, &["cannot download http://[/x.so"]);
    refused("ftp://127.0.0.1:1", 2, &["cannot download over ftp://;", "https://"]);
    place.refused(&["add", &secret("http://127.0.0.1:1")], 2, &["cannot download http://127.0.0.1:1/x.so", "--sha256"]);

    let good = sending_library(&conflict());
    let exit = place.run(&["add", &secret(&good), "--sha256", &expected, "--pin"]).expect(0);
    assert!(!format!("{}{}", exit.stdout, exit.stderr).contains("s3cret"), "{exit}");
    assert!(!place.config().contains("s3cret"), "{}", place.config());
}

#[test]
fn the_scheme_of_an_address_is_case_insensitive() {
    let place = Place::new();
    let good = sending_library(&conflict()).replacen("http", "HTTP", 1);
    place.refused(&["add", &format!("{good}/x.so")], 2, &["without TLS", "--sha256"]);
    place.run(&["add", &format!("{good}/x.so"), "--sha256", &hash(&conflict())]).expect(0);
    let server = Setup::new().start();
    place.setup.run(["put", "a", "b", "--url", &format!("HTTP://{}", server.address())]).expect(0);
}

#[test]
fn a_download_over_tls_needs_no_hash_if_it_stays_there() {
    let place = Place::new();
    let certificate = Certificate::signed();
    let server = Setup::new().certificate(&certificate).start();
    std::fs::write(place.setup.folder().join("ca.pem"), &certificate.authority).expect("it is ours");
    server.put("libvkog_ttl.so", std::fs::read(ttl()).expect("a library can be read")).expect(200);
    let url = format!("https://{}/k/libvkog_ttl.so", server.address());
    place.refused(&["add", &url], 6, &["cannot download", "certificate"]);
    place.refused(&["add", &url, "--cacert", "absent.pem"], 3, &["absent.pem"]);
    place.run(&["add", &url, "--cacert", "ca.pem", "--pin"]).expect(0);
    assert_eq!(place.files(), ["libvkog_ttl.so"]);
    assert!(place.config().contains(&hash(&ttl())), "{}", place.config());

    let (plain, conflict) = (sending_library(&conflict()), hash(&conflict()));
    let away = redirecting_over_tls(&certificate, &format!("{plain}/x.so"));
    place.refused(&["add", &away, "--cacert", "ca.pem"], 1, &["without TLS", "--sha256"]);
    place.run(&["add", &away, "--cacert", "ca.pem", "--sha256", &conflict]).expect(0);
}

/// Redirects each request over TLS to an address. Returns its own.
fn redirecting_over_tls(certificate: &Certificate, to: &str) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).expect("it is a certificate")];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).expect("it is a key");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("ring knows them").with_no_client_auth().with_single_cert(chain, key);
    let config = std::sync::Arc::new(config.expect("the key is its own"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}", listener.local_addr().expect("it is bound"));
    let response = response("302 Found", &format!("Location: {to}\r\n"), 0, b"");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).expect("it is valid");
            let mut stream = rustls::StreamOwned::new(connection, stream);
            read_head(&mut stream);
            let _ = stream.write_all(&response);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    url
}

#[test]
fn an_add_that_is_killed_while_it_writes_leaves_nothing_that_loads() {
    let place = Place::new();
    let [old, new] = versions();
    let kill = |library: &Path, options: &str| {
        // The limit ends the program at the last block of the library. What its private copy needs is shorter.
        let blocks = library.metadata().expect("it exists").len() / 512;
        let line = format!(
            "ulimit -f {blocks}; exec vkog plugins add '{}' --plugin-dir plugins --config vkog.toml {options}",
            library.display()
        );
        let exit = Running::start(&mut place.setup.shell(&line)).wait();
        assert!(exit.status.signal().is_some(), "not killed: {exit}");
    };
    kill(&old, "");
    let left = place.files();
    // Only where the file system has files without a name, the end of the program removes what it has written.
    assert!(left.is_empty() || !cfg!(target_os = "linux") && left[0].starts_with(".vkog-"), "{left:?}");
    assert_eq!(place.listed(), [] as [Value; 0]);
    assert!(place.setup.start_with(place.serving()).plugins().is_empty());

    place.add(&old, &["--pin"]).expect(0);
    let config = place.config();
    kill(&new, "--replace --pin");
    assert_eq!(place.config(), config);
    assert_eq!(hash(&place.folder.join("libvkog_versioned.so")), hash(&old));
    place.setup.start_with(place.serving()).plugin("versioned");
    place.add(&new, &["--replace", "--pin"]).expect(0);
    place.setup.start_with(place.serving()).plugin("versioned");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_or_read_only_disk_changes_neither_the_folder_nor_the_pin() {
    use super::disk_trouble::SmallDisk;
    let Some(disk) = SmallDisk::new("40m") else { return };
    let place = Place::new();
    let folder = disk.path().join("plugins");
    symlink(&folder, &place.folder).expect("a link can be made");
    std::fs::create_dir(&folder).expect("it is ours");
    only_ours(&folder);
    let (conflict, ttl) = (conflict().display().to_string(), ttl().display().to_string());
    place.run(&["add", &conflict, "--pin"]).expect(0);
    let filler = disk.fill();
    place.refused(&["add", &ttl, "--pin"], 1, &["cannot write plugins/libvkog_ttl.so", "No space left", "free disk"]);
    std::fs::remove_file(filler).expect("it is ours");
    disk.remount("ro");
    place.refused(&["add", &ttl, "--pin"], 1, &["cannot write plugins/libvkog_ttl.so", "Read-only"]);
    place.refused(&["rm", "conflict"], 1, &["cannot remove plugins/libvkog_conflict.so", "Read-only"]);
    disk.remount("rw");

    // Only the configuration is read-only: a library is neither added without its pin nor removed with it.
    let place = Place::new();
    place.setup.write_config("# mine\n");
    place.run(&["add", &conflict, "--pin"]).expect(0);
    std::fs::copy(&place.config, disk.path().join("vkog.toml")).expect("it can be copied");
    std::fs::remove_file(&place.config).expect("it is ours");
    symlink(disk.path().join("vkog.toml"), &place.config).expect("a link can be made");
    disk.remount("ro");
    place.refused(&["add", &ttl, "--pin"], 1, &["cannot change the pin in vkog.toml", "Read-only"]);
    place.refused(&["rm", "conflict"], 1, &["cannot change the pin in vkog.toml", "Read-only"]);
    disk.remount("rw");
    place.run(&["rm", "conflict"]).expect(0);
    assert_eq!((place.files().len(), &*place.config()), (0, "# mine\n"));
}

#[test]
fn ls_shows_what_a_server_would_load_and_why_not() {
    let place = Place::new();
    let empty = Setup::new();
    std::fs::create_dir(empty.folder().join("plugins")).expect("it is ours");
    let exit = empty.run(["plugins", "ls", "--plugin-dir", "plugins"]).expect(0);
    assert_eq!(exit.stdout, "no libraries in plugins\n");
    let pins = format!("[plugins.bytes]\nsha256 = \"{}\"\n\n[plugins.gone]\nrequired = true\n", hash(&bytes()));
    place.setup.write_config(&format!("{pins}\n[plugins.optional]\nrequired = false\n"));
    place.add(&bytes(), &[]).expect(0);
    let put = |library: &Path, name: &str| {
        std::fs::copy(library, place.folder.join(name)).expect("a library can be copied");
        only_ours(&place.folder.join(name));
    };
    put(&bytes(), "libzz.so");
    put(&artefacts().library("fault-no-plugin"), "libneeded.so");
    std::fs::write(place.folder.join("liboptional.so"), "text").expect("it is ours");
    std::fs::write(place.folder.join("README"), "no library").expect("it is ours");
    let listed = place.listed();
    let row = |row: &Value| ["file", "name", "status", "code"].map(|key| row[key].as_str().unwrap_or("-").to_owned());
    assert_eq!(
        listed.iter().map(row).collect::<Vec<_>>(),
        [
            ["libneeded.so", "-", "skipped", "no-plugin"],
            ["liboptional.so", "-", "fails", "not-a-library"],
            ["libvkog_bytes.so", "bytes", "loads", "-"],
            ["libzz.so", "bytes", "fails", "duplicate-name"],
            ["-", "gone", "missing", "-"],
        ]
    );
    assert_eq!(listed.iter().map(|row| row["pinned"] == true).collect::<Vec<_>>(), [false, false, true, true, false]);
    assert_eq!([&listed[1]["required"], &listed[3]["required"]], [false, true]);
    let bytes = &listed[2];
    assert!(bytes["sha256"] == hash(&vkog_tests::bytes()).as_str() && bytes["stage"] == "accounting", "{bytes}");
    assert!(bytes["hooks"].as_array().is_some_and(|hooks| hooks.iter().any(|hook| hook == "guard_put")), "{bytes}");

    let table = place.run(&["ls"]).expect(0).stdout;
    let cells =
        |line: &str| line.split("  ").filter(|cell| !cell.is_empty()).map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<String>> = table.lines().map(cells).collect();
    assert_eq!(rows[0], ["FILE", "PLUGIN", "VERSION", "STAGE", "API", "PINNED", "STATUS", "HOOKS OR REASON"]);
    assert_eq!(rows[3][..2], ["libvkog_bytes.so", "bytes"], "{table}");
    assert_eq!(rows[3][5..7], ["yes", "loads"], "{table}");
    assert!(rows[4][7].ends_with("[duplicate-name]") && rows[5][7].contains("required = true"), "{table}");
}

#[test]
fn the_configuration_of_a_server_with_a_shared_store_can_be_used() {
    let place = Place::new();
    place.setup.write_config("store = \"etcd://127.0.0.1/vkog\"\n");
    let library = ttl().display().to_string();
    place.run(&["add", &library, "--pin"]).expect(0);
    place.run(&["ls"]).expect(0);
    place.setup.run(["plugins", "check", &library, "--config", "vkog.toml"]).expect(0);
    place.run(&["rm", "ttl"]).expect(0);
}

#[test]
fn ls_runs_no_code_before_the_checks_and_creates_no_plugin() {
    let place = Place::new();
    let mark = place.setup.folder().join("mark");
    std::fs::create_dir(&place.folder).expect("it is ours");
    only_ours(&place.folder);
    let library = place.folder.join("libmarks.so");
    std::fs::copy(super::trust::marks(), &library).expect("a library can be copied");
    std::fs::set_permissions(&library, std::fs::Permissions::from_mode(0o666)).expect("it is ours");
    let ls = |words: &[&str]| Running::start(place.command(words).env("MARK", &mark)).wait().expect(0);
    assert!(ls(&["ls"]).stdout.contains("[world-writable]") && !mark.exists());
    // By file name, nothing of it runs, also not if it could.
    only_ours(&library);
    ls(&["rm", "libmarks.so"]);
    assert!(!mark.exists() && place.files().is_empty());
    std::fs::copy(super::trust::marks(), &library).expect("a library can be copied");
    only_ours(&library);
    assert!(ls(&["ls"]).stdout.contains(" loads ") && mark.exists(), "the mark shows that code of the library runs");

    let audit = artefacts().library("vkog-audit");
    std::fs::copy(audit, place.folder.join("libaudit.so")).expect("a library can be copied");
    only_ours(&place.folder.join("libaudit.so"));
    place.setup.write_config("[plugins.audit]\nfile = \"audit.jsonl\"\n");
    assert!(ls(&["ls"]).stdout.contains("audit "));
    assert!(!place.setup.folder().join("audit.jsonl").exists());
}

#[test]
fn rm_removes_a_library_with_its_pin_and_reports_what_remains() {
    let place = Place::new();
    let add = |library: PathBuf| place.add(&library, &["--pin"]).expect(0);
    let remains = |exit: &Exit, words: &str| assert!(exit.stdout.contains(words), "{words} in {exit}");
    place.setup.write_config("open = true # mine\n");
    add(bytes());
    add(conflict());
    let absent = "absent: it is not in the plugin folder plugins; it has ";
    place.refused(&["rm", "absent"], 3, &[absent, "bytes (libvkog_bytes.so), conflict (libvkog_conflict.so)"]);
    place.refused(&["rm", "libabsent.so"], 3, &["libvkog_bytes.so, libvkog_conflict.so"]);
    std::fs::copy(ttl(), place.setup.folder().join("libvkog_bytes.so")).expect("a library can be copied");
    for outside in ["./libvkog_bytes.so", "../libvkog_bytes.so", "plugins/../libvkog_bytes.so"] {
        place.refused(&["rm", outside], 3, &["it is not in the plugin folder"]);
    }
    let exit = place.run(&["rm", "bytes"]).expect(0);
    remains(&exit, "removed plugins/libvkog_bytes.so\nremoved the pin of bytes from vkog.toml\n");
    remains(&exit, "reload");
    place.run(&["rm", "plugins/libvkog_conflict.so"]).expect(0);
    assert_eq!((place.files().len(), &*place.config()), (0, "open = true # mine\n"));

    // Other settings remain, and so does a pin whose library another file has as well.
    place.setup.write_config("[plugins.ttl]\ndefault = \"1d\"\n\n[plugins.bytes]\nrequired = true\n");
    add(ttl());
    add(bytes());
    remains(&place.run(&["rm", "ttl"]).expect(0), "[plugins.ttl] in vkog.toml remains");
    assert!(place.config().contains("default = \"1d\"\n\n"), "{}", place.config());
    std::fs::copy(bytes(), place.folder.join("libbytes.so")).expect("a library can be copied");
    place.refused(&["rm", "bytes"], 1, &["libbytes.so, libvkog_bytes.so"]);
    place.run(&["rm", "libbytes.so"]).expect(0);
    assert!(place.config().contains(&hash(&bytes())), "{}", place.config());
    remains(&place.run(&["rm", "bytes"]).expect(0), "a server does not start without it");

    // A library that does not load has the plugin that its name stands for; a pin without a library can be removed.
    place.setup.write_config("");
    add(conflict());
    std::fs::write(place.folder.join("libvkog_conflict.so"), "text").expect("it is ours");
    place.run(&["rm", "conflict"]).expect(0);
    assert_eq!((place.files().len(), &*place.config()), (0, ""));
    place.setup.write_config(&format!("[plugins.gone]\nsha256 = \"{}\"\n", "0".repeat(64)));
    remains(&place.run(&["rm", "gone"]).expect(0), "removed the pin of gone");
    assert_eq!(place.config(), "");
}
