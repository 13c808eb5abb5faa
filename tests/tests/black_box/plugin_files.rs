//! A plugin's library takes no space in `TMPDIR`. It is refused with the cause if the process has no static
//! thread-local storage left, or if it is too large. A pinned library may be writable by others. The texts of a plugin
//! break no line of `/metrics` and of the log.
//!
//! Provoked with reloads, a sparse file, permissions, a plugin in assembly that uses static thread-local storage as
//! allocators do, and a plugin whose texts contain line breaks.
#![cfg(unix)]

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use vkog_tests::{
    Setup, administered, artefacts, as_library, bytes, conflict, on_windows, only_ours, put_in_place, written_plugin,
};

#[track_caller]
fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
}

/// Returns a configuration that pins a plugin to a library.
fn pin(plugin: &str, library: &Path) -> String {
    let read = std::fs::read(library).expect("a library can be read");
    let hash: String = Sha256::digest(read).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[plugins.{plugin}]\nsha256 = \"{hash}\"\n")
}

/// Changes the hash of a library without changing its effect: appends bytes after all that its tables name.
fn vary(library: &Path, copy: &Path, turn: usize) {
    std::fs::copy(library, copy).expect("a library can be copied");
    let mut file = OpenOptions::new().append(true).open(copy).expect("it is ours");
    write!(file, "{turn}").expect("it can be written");
}

fn manifest(name: &str) -> String {
    format!(
        "[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\ncrate-type = [\"cdylib\"]\n\n\
         [dependencies]\nvkog-plugin-api = {{ path = \"\" }}\n"
    )
}

/// Builds a plugin with this number of bytes of static thread-local storage.
fn static_tls(name: &str, bytes: usize) -> PathBuf {
    let source = r#"//! A plugin that uses static thread-local storage, as an allocator does.
use vkog_plugin_api::*;

std::arch::global_asm!(
    ".section .tbss.vkog_block,\"awT\",@nobits",
    "vkog_block: .zero BYTES",
    ".text",
    "vkog_first:",
    "mov rax, qword ptr [rip + vkog_block@GOTTPOFF]",
    "movzx eax, byte ptr fs:[rax]",
    "ret",
);

unsafe extern "C" {
    fn vkog_first() -> u8;
}

struct Stubborn;

impl Plugin for Stubborn {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Stubborn)
    }
}

impl AfterGet for Stubborn {
    fn after_get(&self, get: &After<'_, Get>) {
        // SAFETY: the function above reads a byte.
        get.add_header("X-First", &unsafe { vkog_first() }.to_string());
    }
}

export_plugin!(Stubborn);
"#;
    written_plugin(name, &manifest(name), &source.replace("BYTES", &bytes.to_string()))
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
#[test]
fn a_plugin_that_needs_static_tls_is_refused_and_the_old_one_continues() {
    let words = ["static thread-local storage", "disable_initial_exec_tls", "local_dynamic_tls", "[static-tls]"];
    let setup = Setup::new().load(static_tls("tls-large", 1 << 16)).config(administered(""));
    let exit = setup.fail().expect(1);
    assert!(words.iter().all(|word| exit.one_error().contains(word)), "{exit}");

    // A plugin with little storage loads as often as there is space, as with mimalloc.
    let small = static_tls("tls-small", 256);
    let setup = Setup::new().load_as(&small, as_library("libtls_small")).config(administered(""));
    let server = setup.start();
    server.post("k", "v").expect(200);
    let (place, copy) = (server.library_of("tls-small"), setup.folder().join("copy"));
    let refused = (1..100).find(|turn| {
        vary(&small, &copy, *turn);
        put_in_place(&copy, &place);
        let outcome = server.reloaded(&as_library("libtls_small"));
        assert!(["reloaded", "static-tls"].contains(&outcome.as_str()), "{outcome}");
        outcome == "static-tls"
    });
    assert!(refused.is_some_and(|turn| turn > 1), "{refused:?}");
    server.get("k").expect(200).has("X-First", "0");
    server.logs(&["disable_initial_exec_tls", "[static-tls]"]);
}

#[cfg(target_os = "linux")]
#[test]
fn reloads_take_no_space_in_the_temporary_folder() {
    if on_windows() {
        return;
    }
    let old = artefacts().library("versioned");
    let setup = Setup::new().load_as(&old, as_library("libversioned")).config(administered(""));
    let temporary = setup.folder().join("temporary");
    std::fs::create_dir(&temporary).expect("a folder can be made");
    only_ours(&temporary);
    let server = setup.clone().env("TMPDIR", &temporary).start();
    let (place, copy) = (server.library_of("versioned"), setup.folder().join("copy"));
    for turn in 0..5 {
        vary(&old, &copy, turn);
        put_in_place(&copy, &place);
        assert_eq!(server.reloaded("versioned"), "reloaded");
    }
    assert_eq!(std::fs::read_dir(&temporary).expect("it can be read").count(), 0);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.id())).expect("it is running");
    let on_disk: Vec<_> = maps.lines().filter(|line| line.contains("/temporary/")).collect();
    assert!(on_disk.is_empty(), "a file that was removed keeps its room: {on_disk:?}");
    // A reload keeps no file descriptor, either.
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.id())).expect("it is running");
    let files = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let kept: Vec<_> = files.filter(|file| file.to_string_lossy().contains("versioned")).collect();
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn a_library_over_the_size_limit_is_refused_before_it_is_read() {
    let setup = Setup::new().load(bytes());
    let folder = setup.plugin_folder();
    let library = folder.join(bytes().file_name().expect("it has a name"));
    let file = OpenOptions::new().write(true).open(&library).expect("it is ours");
    file.set_len(3 << 30).expect("a file may have holes");
    let exit = setup.run(["plugins".as_ref(), "check".as_ref(), library.as_os_str()]).expect(1);
    let told = exit.stdout.contains("3221225472 bytes") && exit.stdout.contains("268435456");
    assert!(told && exit.stdout.ends_with("[too-large]\n"), "{exit}");
    // At the limit the library is read and loads, with zeros after its end.
    file.set_len(256 << 20).expect("a file may have holes");
    setup.run(["plugins".as_ref(), "check".as_ref(), library.as_os_str()]).expect(0);
}

/// A plugin whose texts all contain line breaks.
fn talkative() -> PathBuf {
    static TALKATIVE: LazyLock<PathBuf> = LazyLock::new(|| {
        let source = r#"//! A plugin whose texts have line breaks.
use vkog_plugin_api::*;

struct Talkative {
    host: Host,
    seen: Counter,
}

impl Plugin for Talkative {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        host.gauge("open", "One\n# EOF\nforged 1");
        host.gauge("not-a-name", "Has a name that no metric can have.");
        host.log(Level::Info, "begun\n2026-01-01T00:00:00Z ERROR forged\u{1b}[2J");
        Ok(Talkative { host, seen: host.counter("seen_total", "A \\ and \"quotes\"\r\n.") })
    }
}

impl BeforePut for Talkative {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        self.seen.add(1);
        if put.key() == "panic" {
            panic!("first\nERROR forged");
        }
        self.host.log(Level::Warn, "put\nERROR forged");
        Ok(())
    }
}

export_plugin!(Talkative);
"#;
        written_plugin("talkative", &manifest("talkative"), source)
    });
    TALKATIVE.clone()
}

#[test]
fn texts_of_a_plugin_forge_no_line_of_the_metrics_or_the_log() {
    let server = Setup::new().load(talkative()).args(["--log-format", "text"]).start();
    server.put("k", "v").expect(200);
    server.put("panic", "v").expect(500);
    let metrics =
        server.path("GET", "/metrics").header("Accept", "application/openmetrics-text").send().expect(200).text();
    let lines: Vec<_> = metrics.lines().collect();
    let is_line = |line: &&str| ["# ", "vkog_", "process_"].iter().any(|start| line.starts_with(start));
    assert!(lines.iter().all(is_line), "{metrics}");
    assert_eq!(metrics.matches("# EOF\n").count(), 1, "{metrics}");
    for line in [
        r"# HELP vkog_plugin_talkative_open One\n# EOF\nforged 1",
        r#"# HELP vkog_plugin_talkative_seen A \\ and \"quotes\" \n"#,
        "vkog_plugin_talkative_seen_total 2",
    ] {
        assert!(lines.contains(&line), "{line} in {metrics}");
    }
    server.logs(&["\\nERROR forged", "put"]);
    server.logs(&["failed in before_put", "first\\nERROR forged"]);
    let log = server.stop().expect(0).stderr;
    assert!(!log.lines().any(|line| line.starts_with("ERROR")) && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn a_plugin_whose_name_breaks_lines_is_refused() {
    let mut library = std::fs::read(talkative()).expect("a library can be read");
    let (name, broken) = (b"talkative0.1.0", b"talk\"\ntiv0.1.0");
    // The name and the version are constants that the compiler may put beside each other, or not.
    let (name, broken) = match library.windows(name.len()).any(|window| window == name) {
        true => (name.as_slice(), broken.as_slice()),
        false => (b"talkative".as_slice(), b"talk\"\ntiv".as_slice()),
    };
    let places = (0..library.len() - name.len()).filter(|at| library[*at..].starts_with(name)).collect::<Vec<_>>();
    for at in places {
        library[at..at + name.len()].copy_from_slice(broken);
    }
    let setup = Setup::new().load_as(talkative(), as_library("libx"));
    let place = setup.plugin_folder().join(as_library("libx"));
    std::fs::write(&place, library).expect("it is ours");
    let exit = setup.run(["plugins".as_ref(), "check".as_ref(), place.as_os_str()]).expect(1);
    assert!(exit.stdout.ends_with("[bad-name]\n") && exit.stdout.lines().count() == 1, "{exit}");
}

#[test]
fn a_pinned_library_may_be_writable_by_others() {
    let setup = Setup::new().load_as(bytes(), as_library("libvkog_bytes"));
    let folder = setup.plugin_folder();
    let library = folder.join(as_library("libvkog_bytes"));
    let serving = |config: &str| {
        setup.write_config(config);
        let config = setup.folder().join("vkog.toml");
        let arguments = ["--listen", "127.0.0.1:0", "-s", "10", "--max-value", "100", "--plugin-dir"];
        let mut arguments: Vec<std::ffi::OsString> = arguments.map(Into::into).to_vec();
        arguments.extend([folder.clone().into(), "--config".into(), config.into()]);
        arguments
    };
    let pinned = pin("bytes", &bytes());
    // As a Kubernetes volume with an fsGroup, and with more permissions.
    for (folder_mode, library_mode) in [(0o2775, 0o664), (0o755, 0o666), (0o777, 0o666)] {
        chmod(&folder, folder_mode);
        chmod(&library, library_mode);
        let refused = setup.run(serving("")).expect(1);
        assert!(refused.one_error().contains("writable]"), "{refused}");
        let server = setup.start_with(serving(&pinned));
        server.post("k", [b'x'; 20]).expect(413).has("Vkog-Plugin", "bytes");
    }
    // The pin identifies this library, and permits no other one.
    std::fs::copy(conflict(), &library).expect("a library can be copied");
    let refused = setup.run(serving(&pinned)).expect(1);
    assert!(refused.one_error().ends_with("[wrong-sha256]"), "{refused}");
    std::fs::copy(bytes(), &library).expect("a library can be copied");
    let other = folder.join(as_library("libvkog_conflict"));
    std::fs::copy(conflict(), &other).expect("a library can be copied");
    only_ours(&other);
    let refused = setup.run(serving(&pinned)).expect(1);
    assert!(refused.stderr.ends_with("[folder-writable]\n"), "{refused}");
    let both = format!("{pinned}{}", pin("conflict", &conflict()));
    setup.start_with(serving(&both)).post("k", [b'x'; 20]).expect(413).has("Vkog-Plugin", "bytes");
}
