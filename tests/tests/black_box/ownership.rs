//! A server takes over no file, socket or store that another process may use, removes only what it created, and leaves
//! nothing behind after a failed start.
//!
//! Provoked with files of every kind at the path of a Unix socket, with sockets of live and ended processes, with links
//! to a store, and with starts that fail.

use std::collections::BTreeSet;
use std::path::Path;

use vkog_tests::{ENGINES, Exit, Setup};

/// Returns the names of all files in a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Asserts that a start fails with all of the words, and creates or removes no file.
#[track_caller]
fn refused(setup: &Setup, arguments: &[&str], words: &[&str]) -> Exit {
    let before = names(setup.folder());
    let exit = setup.run(["serve", "--no-plugins"].iter().chain(arguments).copied());
    // Another process that uses the store has its own status.
    let exit = exit.expect(if words[0].contains("is in use") { 4 } else { 1 });
    let told = exit.stderr.lines().filter(|line| line.starts_with("vkog: ")).collect::<Vec<_>>();
    assert!(told.len() == 1 && words.iter().all(|word| told[0].contains(word)), "{words:?} in {exit}");
    assert_eq!(exit.stdout, "", "standard output of {exit}");
    assert_eq!(names(setup.folder()), before, "the files after {exit}");
    exit
}

#[test]
fn a_refused_start_leaves_nothing_behind() {
    let setup = Setup::new();
    let folder = setup.folder();
    std::fs::write(folder.join("text"), "no store\n").expect("a file can be written");
    std::fs::create_dir(folder.join("folder")).expect("a folder can be made");
    refused(&setup, &["-f", "text", "--listen", "127.0.0.1:0"], &["text"]);
    refused(&setup, &["-f", "folder", "--listen", "127.0.0.1:0"], &["folder", "not a regular file"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let taken = listener.local_addr().expect("it has an address").to_string();
    refused(&setup, &["-f", "new.vkog", "--listen", &taken], &["cannot listen on", &taken]);
    refused(&setup, &["-f", "new.vkog", "--listen", "0.0.0.0:0"], &["[[access.tokens]]"]);
    for command in ["check", "repair"] {
        setup.run([command, "text"]).expect(1);
        assert!(!folder.join("text.lock").exists(), "{command} left a lock file");
    }
}

#[test]
fn a_plugin_that_refuses_to_start_leaves_no_files_of_a_new_store() {
    let setup = Setup::new().load(vkog_tests::artefacts().library("fault-refuses"));
    let setup = setup.config("[plugins.fault-refuses]\nwhere = \"start\"\n");
    let exit = setup.fail().expect(1);
    let left: Vec<_> = names(setup.folder()).into_iter().filter(|name| name.starts_with("store.vkog")).collect();
    assert!(left.is_empty(), "{left:?} after {exit}");
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::process::Command;

    use vkog_tests::Running;

    use super::*;

    /// A server on a Unix socket in the folder.
    fn at_socket(setup: &Setup, engine: &str, store: &str, socket: &str) -> Running {
        let listen = format!("unix:{socket}");
        let mut command = setup.vkog();
        command.args(["serve", "--no-plugins", "--http", engine, "-f", store, "--listen", &listen]);
        let running = Running::start(&mut command);
        assert!(running.stdout.wait_for(|text| text.contains(&listen)), "{}", running.stderr.text());
        running
    }

    #[test]
    fn a_server_replaces_only_the_socket_of_an_ended_process() {
        let setup = Setup::new();
        let at = |name: &str| setup.folder().join(name);
        std::fs::write(at("notes.txt"), "notes").expect("a file can be written");
        assert!(Command::new("mkfifo").arg(at("fifo")).status().expect("mkfifo runs").success());
        symlink(at("notes.txt"), at("link")).expect("a link can be made");
        std::fs::create_dir(at("folder")).expect("a folder can be made");
        for name in ["notes.txt", "fifo", "link", "folder"] {
            refused(&setup, &["-f", "s.vkog", "--listen", &format!("unix:{name}")], &[name, "not a socket"]);
        }
        assert_eq!(std::fs::read(at("notes.txt")).expect("it exists"), b"notes");

        let live = UnixListener::bind(at("live")).expect("a socket can be made");
        refused(&setup, &["-f", "s.vkog", "--listen", "unix:live"], &["live", "another process listens"]);
        let _datagram = UnixDatagram::bind(at("datagram")).expect("a socket can be made");
        refused(&setup, &["-f", "s.vkog", "--listen", "unix:datagram"], &["datagram", "the socket exists"]);
        // A full queue of connections does not mean that the process has ended.
        let (mut waiting, mut full) = (Vec::new(), false);
        while !full {
            let socket = rustix::net::socket_with(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::NONBLOCK,
                None,
            );
            let socket = socket.expect("a socket can be made");
            let address = rustix::net::SocketAddrUnix::new(at("live")).expect("a short path");
            full = rustix::net::connect(&socket, &address).is_err();
            waiting.push(socket);
        }
        refused(&setup, &["-f", "s.vkog", "--listen", "unix:live"], &["live", "another process listens"]);
        drop(live);
        at_socket(&setup, "hyper", "s.vkog", "live");
    }

    #[test]
    fn a_socket_path_that_is_a_store_file_is_refused() {
        let setup = Setup::new();
        let server = setup.start();
        server.put("k", "v").expect(200);
        server.stop().expect(0);
        for ending in ["", ".log", ".lock", ".new", ".log.next"] {
            let listen = format!("unix:./store.vkog{ending}");
            refused(&setup, &["-f", "store.vkog", "--listen", &listen], &[&listen, "choose another path"]);
            refused(&setup, &["-f", "other.vkog", "--listen", "unix:other.vkog"], &["other.vkog"]);
        }
        setup.start().get("k").expect(200).is("v");
    }

    #[test]
    fn a_server_removes_only_its_own_socket() {
        for engine in ENGINES {
            let setup = Setup::new();
            let socket = setup.folder().join("s.sock");
            let first = at_socket(&setup, engine, "first.vkog", "s.sock");
            std::fs::remove_file(&socket).expect("the socket exists");
            let second = at_socket(&setup, engine, "second.vkog", "s.sock");
            first.signal("TERM");
            first.wait().expect(0);
            UnixStream::connect(&socket).unwrap_or_else(|error| panic!("{engine}: the other server: {error}"));
            second.signal("TERM");
            second.wait().expect(0);
            assert!(!socket.exists(), "{engine} left its socket");
        }
    }

    #[test]
    fn a_link_to_a_store_starts_no_second_server() {
        let setup = Setup::new();
        let at = |name: &str| setup.folder().join(name);
        let server = setup.start();
        server.put("k", "v").expect(200);
        server.stop().expect(0);
        symlink("store.vkog", at("symbolic")).expect("a link can be made");
        std::fs::hard_link(at("store.vkog"), at("hard")).expect("a link can be made");
        let server = setup.start();
        for _ in 0..2 {
            refused(&setup, &["-f", "symbolic", "--listen", "127.0.0.1:0"], &["symbolic is in use by process"]);
            // The next snapshot is the locked file from then on, and the hard link belongs to another store.
            server.put("k", "w").expect(200);
        }
        refused(&setup, &["-f", "hard", "--listen", "127.0.0.1:0"], &["hard is in use by another process"]);
        server.stop().expect(0);
        // The link leads to the same store, and remains a link.
        let linked = setup.clone().store(at("symbolic"));
        let server = linked.start();
        server.get("k").expect(200).is("w");
        server.put("k", "x").expect(200);
        server.stop().expect(0);
        assert!(at("symbolic").symlink_metadata().expect("it exists").is_symlink());
        assert!(!at("symbolic.log").exists() && !at("symbolic.lock").exists());
        setup.start().get("k").expect(200).is("x");
    }

    #[test]
    fn a_new_store_is_created_at_the_target_of_its_link() {
        let setup = Setup::new();
        std::fs::create_dir(setup.folder().join("data")).expect("a folder can be made");
        symlink("data/real.vkog", setup.store_file()).expect("a link can be made");
        let server = setup.start();
        server.put("k", "v").expect(200);
        server.stop().expect(0);
        assert!(setup.folder().join("data/real.vkog").is_file());
        assert_eq!(names(setup.folder()).iter().filter(|name| name.starts_with("store")).count(), 1);
        setup.start().get("k").expect(200).is("v");
    }

    #[test]
    fn no_second_server_starts_where_the_lock_file_was_removed() {
        let setup = Setup::new();
        let lock = setup.folder().join("store.vkog.lock");
        for round in ["without a snapshot", "with one"] {
            let server = setup.start();
            server.put("k", round).expect(200);
            std::fs::remove_file(&lock).expect("there is a lock file");
            refused(&setup, &["-f", "store.vkog", "--listen", "127.0.0.1:0"], &["store.vkog is in use"]);
            std::fs::write(&lock, "").expect("a lock file can be made");
            refused(&setup, &["-f", "store.vkog", "--listen", "127.0.0.1:0"], &["store.vkog is in use"]);
            drop(server);
            setup.start().stop().expect(0);
        }
    }

    #[test]
    fn a_server_whose_lock_file_was_removed_stops_writing_at_its_next_snapshot() {
        let setup = Setup::new();
        let server = setup.start();
        server.put("k", "v").expect(200);
        std::fs::remove_file(setup.folder().join("store.vkog.lock")).expect("there is a lock file");
        server.signal("USR1");
        server.logs(&["store.vkog.lock was removed", "another process may use the store"]);
        server.put("k", "w").expect(503);
        server.path("GET", "/readyz").send().expect(503).says("store.vkog.lock was removed");
        server.get("k").expect(200).is("v");
        assert!(!setup.store_file().exists(), "a snapshot was written");
        server.stop().expect(1);
        setup.start().get("k").expect(200).is("v");
    }

    /// Returns the permissions of a file.
    fn mode(setup: &Setup, name: &str) -> u32 {
        setup.folder().join(name).metadata().unwrap_or_else(|error| panic!("{name}: {error}")).permissions().mode()
            & 0o777
    }

    #[test]
    fn only_the_owner_may_read_the_files_of_a_new_store() {
        let setup = Setup::new();
        let server = setup.start();
        server.put("k", "v").expect(200);
        for name in ["store.vkog.log", "store.vkog.lock"] {
            assert_eq!(mode(&setup, name), 0o600, "{name}");
        }
        server.stop().expect(0);
        for name in ["store.vkog", "store.vkog.log", "store.vkog.lock"] {
            assert_eq!(mode(&setup, name), 0o600, "{name}");
        }
    }

    #[test]
    fn a_snapshot_has_the_mode_and_the_owner_of_the_file_that_it_replaces() {
        let setup = Setup::new();
        let server = setup.start();
        server.put("k", "v").expect(200);
        server.stop().expect(0);
        let file = setup.store_file();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("it is ours");
        // Only root can change the owner of a file.
        let other = if rustix::process::geteuid().is_root() { 12345 } else { rustix::process::getegid().as_raw() };
        std::os::unix::fs::chown(&file, None, Some(other)).expect("a file can be given to a group of ours");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(12345), None).expect("root can do it");
        }
        let before = file.metadata().expect("it exists");
        let server = setup.start();
        for name in ["store.vkog.log", "store.vkog.lock"] {
            assert_eq!(mode(&setup, name), 0o640, "{name} follows at the start");
        }
        server.put("k", "w").expect(200);
        server.stop().expect(0);
        for name in ["store.vkog", "store.vkog.log"] {
            assert_eq!(mode(&setup, name), 0o640, "{name}");
            let now = setup.folder().join(name).metadata().expect("it exists");
            assert_eq!((now.uid(), now.gid()), (before.uid(), before.gid()), "the owner of {name}");
        }
        assert_ne!(file.metadata().expect("it exists").ino(), before.ino(), "it was not replaced");
        std::fs::remove_file(setup.folder().join("store.vkog.lock")).expect("it exists");
        let _server = setup.start();
        assert_eq!(mode(&setup, "store.vkog.lock"), 0o640);
    }
}
