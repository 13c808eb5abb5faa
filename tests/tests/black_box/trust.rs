//! A library that another user could have modified, or that makes the linker load code from elsewhere, is refused
//! before its code runs, by `vkog plugins check` and at the start, with its own code. The server opens exactly what it
//! checked.
//!
//! Provoked with permissions, owners, links, pipes and pins, and with a library whose initialiser leaves a mark.
#![cfg(unix)]

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use vkog_tests::{
    Exit, Running, Setup, as_library, build, built_by_cargo, bytes, damaged, on_windows, only_ours, small_plugin,
    target_folder, written_plugin,
};

/// A folder with the bytes plugin in it.
struct Place {
    setup: Setup,
    folder: PathBuf,
    library: PathBuf,
}

impl Place {
    fn new() -> Self {
        Self::with(&bytes(), "libvkog_bytes.so")
    }

    /// Adds a library under a Unix file name.
    fn with(library: &Path, name: &str) -> Self {
        let name = &as_library(name.trim_end_matches(".so"));
        let setup = Setup::new().load_as(library, name);
        let folder = setup.plugin_folder();
        let library = folder.join(name);
        Self { setup, folder, library }
    }

    fn config(self, text: &str) -> Self {
        let file = self.setup.folder().join("trust.toml");
        std::fs::write(&file, text).expect("the configuration can be written");
        self.env("VKOG_CONFIG", file)
    }

    fn env(mut self, name: &str, value: impl Into<std::ffi::OsString>) -> Self {
        self.setup = self.setup.env(name, value);
        self
    }

    /// Sets the file that an initialiser would write.
    fn marked(self) -> (Self, PathBuf) {
        let mark = self.setup.folder().join("mark");
        (self.env("MARK", &mark), mark)
    }

    fn check(&self) -> Exit {
        self.setup.run(["plugins".as_ref(), "check".as_ref(), self.library.as_os_str()])
    }

    fn serving(&self) -> Vec<std::ffi::OsString> {
        vec!["--listen".into(), "127.0.0.1:0".into(), "--plugin-dir".into(), self.folder.clone().into()]
    }

    /// Asserts that both the check and the start refuse it, with this code and all of these words.
    #[track_caller]
    fn refused(&self, code: &str, words: &[&str]) {
        let check = self.check().expect(1);
        let start = self.setup.run(self.serving()).expect(1);
        for line in [check.stdout.trim_end(), start.one_error()] {
            assert!(line.ends_with(&format!("[{code}]")) && line.lines().count() == 1, "[{code}] of {check}\n{start}");
            assert!(words.iter().chain(&["; "]).all(|word| line.contains(word)), "{words:?} in {line}");
        }
        println!("{}", start.one_error());
    }

    #[track_caller]
    fn loads(&self) {
        let check = self.check().expect(0);
        assert!(check.stdout.ends_with("; this server loads it\n"), "{check}");
        self.setup.start_with(self.serving()).post("k", "v").expect(200);
    }
}

#[track_caller]
fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn sha256(path: &Path) -> String {
    let read = std::fs::read(path).expect("a library can be read");
    Sha256::digest(read).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A good plugin named `marks`, whose initialiser writes the file that the environment variable `MARK` names.
pub(super) fn marks() -> &'static Path {
    static MARKS: LazyLock<PathBuf> = LazyLock::new(|| {
        let manifest = "[package]\nname = \"marks\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\n\
                        crate-type = [\"cdylib\"]\n\n[dependencies]\nvkog-plugin-api = { path = \"\" }\n";
        let source = r#"//! A plugin whose initialiser leaves a mark.
use vkog_plugin_api::*;

#[used]
#[cfg_attr(windows, unsafe(link_section = ".CRT$XCU"))]
#[cfg_attr(not(windows), unsafe(link_section = ".init_array"))]
static MARK: extern "C" fn() = mark;

extern "C" fn mark() {
    if let Some(file) = std::env::var_os("MARK") {
        let _ = std::fs::write(file, "code ran");
    }
}

struct Marks;

impl Plugin for Marks {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Marks)
    }
}

impl AfterGet for Marks {
    fn after_get(&self, _: &After<'_, Get>) {}
}

export_plugin!(Marks);
"#;
        written_plugin("marks", manifest, source)
    });
    &MARKS
}

/// A small good plugin, linked with a run path.
fn with_run_path(name: &str, path: &str) -> PathBuf {
    let folder = small_plugin(name);
    let mut cargo = built_by_cargo("rustc", &folder, &target_folder());
    let link = format!("link-arg=-Wl,--enable-new-dtags,-rpath,{path}");
    let built = build(cargo.args(["--offline", "--lib", "--", "-C", &link]));
    built.unwrap_or_else(|error| panic!("{error}")).library(name)
}

#[test]
fn a_library_that_group_or_others_can_write_is_refused() {
    let place = Place::new();
    chmod(&place.library, 0o664);
    place.refused("group-writable", &["its group", "0664", "chmod go-w"]);
    chmod(&place.library, 0o646);
    place.refused("world-writable", &["everybody", "0646", "chmod go-w"]);
    chmod(&place.library, 0o444);
    place.loads();
}

#[test]
fn a_plugin_folder_that_others_can_write_is_refused_sticky_or_not() {
    let place = Place::new();
    for (mode, who) in [(0o775, "its group"), (0o777, "everybody"), (0o1777, "everybody")] {
        chmod(&place.folder, mode);
        place.refused("folder-writable", &[who, &format!("{mode:04o}"), "chmod go-w"]);
    }
    chmod(&place.folder, 0o755);
    place.loads();
}

#[test]
fn a_parent_folder_that_others_can_write_is_refused_unless_it_is_sticky() {
    let place = Place::new();
    let around = place.folder.parent().expect("it is in the folder of the test");
    chmod(around, 0o777);
    place.refused("parent-writable", &["everybody", "0777", "chmod o-w"]);
    chmod(around, 0o1777);
    place.loads();
}

#[test]
fn a_library_or_folder_of_another_user_is_refused() {
    const SOMEBODY: u32 = 54321;
    let place = Place::new();
    if chown(&place.library, Some(SOMEBODY), None).is_err() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    place.refused("wrong-owner", &["54321", "chown"]);
    chown(&place.library, Some(0), None).expect("root takes it back");
    chown(&place.folder, Some(SOMEBODY), None).expect("root can give a folder away");
    place.refused("folder-owner", &["54321", "chown"]);
    chown(&place.folder, Some(0), None).expect("root takes it back");
    place.loads();

    // A server that does not run as root accepts files of its user or of root only.
    chmod(place.setup.folder(), 0o755);
    chmod(&place.folder, 0o755);
    let as_somebody = || {
        let mut command = place.setup.vkog();
        command.uid(SOMEBODY).gid(SOMEBODY);
        command
    };
    if as_somebody().arg("--version").output().is_err() {
        eprintln!("skipped in part: only root may run the programs that were built here");
        return;
    }
    for (owner, code) in [(0, None), (SOMEBODY, None), (SOMEBODY + 1, Some("[wrong-owner]\n"))] {
        chown(&place.library, Some(owner), None).expect("root can give a file away");
        let mut command = as_somebody();
        let exit = Running::start(command.args(["plugins", "check"]).arg(&place.library))
            .wait()
            .expect(i32::from(code.is_some()));
        assert!(exit.stdout.ends_with(code.unwrap_or("; this server loads it\n")), "of {owner}: {exit}");
    }
}

#[test]
fn a_link_out_of_the_folder_is_refused_and_one_within_is_followed() {
    let place = Place::new();
    let outside = place.setup.folder().join("outside.so");
    std::fs::rename(&place.library, &outside).expect("a library can be moved");
    symlink(&outside, &place.library).expect("a link can be made");
    place.refused("symlink-out", &["outside.so"]);
    std::fs::remove_file(&place.library).expect("a link can be removed");
    std::fs::rename(&outside, place.folder.join("bytes-1")).expect("a library can be moved");
    symlink("bytes-1", &place.library).expect("a link can be made");
    place.loads();
    chmod(&place.folder.join("bytes-1"), 0o666);
    place.refused("world-writable", &["bytes-1"]);
}

#[test]
fn a_link_to_a_subfolder_that_others_can_write_is_refused() {
    let place = Place::new();
    let within = place.folder.join("within");
    std::fs::create_dir(&within).expect("a folder can be made");
    std::fs::rename(&place.library, within.join("bytes-1")).expect("a library can be moved");
    symlink("within/bytes-1", &place.library).expect("a link can be made");
    chmod(&within, 0o775);
    place.refused("folder-writable", &["within"]);
    chmod(&within, 0o755);
    place.loads();
}

#[test]
fn a_pipe_a_socket_and_a_folder_are_refused_without_blocking() {
    let place = Place::new();
    let again = || std::fs::remove_file(&place.library).expect("it can be removed");
    again();
    let mkfifo = Command::new("mkfifo").arg(&place.library).status().expect("mkfifo runs");
    assert!(mkfifo.success());
    place.refused("not-a-file", &["a pipe"]);
    again();
    let _socket = std::os::unix::net::UnixListener::bind(&place.library).expect("a socket can be made");
    place.refused("not-a-file", &["a socket"]);
    again();
    std::fs::create_dir(&place.library).expect("a folder can be made");
    place.refused("not-a-file", &["a folder"]);
}

#[test]
fn a_library_with_another_hash_than_the_pin_is_refused_before_its_code_runs() {
    let (place, mark) = Place::with(marks(), "libmarks.so").marked();
    place.loads();
    assert!(mark.exists(), "an initialiser that leaves a mark");

    // It claims the name of the pinned plugin before its own name can be checked.
    let pinned = sha256(&bytes());
    let config = format!("[plugins.bytes]\nsha256 = \"{pinned}\"\n");
    for name in ["libvkog_bytes.so", "libbytes.so", "vkog-bytes.so"] {
        let (place, mark) = Place::with(marks(), name).config(&config).marked();
        place.refused("wrong-sha256", &["[plugins.bytes]", &pinned, &sha256(marks())]);
        assert!(!mark.exists(), "code of {name} ran");
    }
    // The right hash loads the library, in upper or lower case.
    Place::new().config(&config).loads();
    Place::new().config(&config.replace(&pinned, &pinned.to_uppercase())).loads();
}

#[test]
fn a_library_that_claims_a_pinned_name_under_another_file_name_is_refused() {
    let pinned = sha256(&bytes());
    let place = Place::with(marks(), "libinnocent.so").config(&format!("[plugins.marks]\nsha256 = \"{pinned}\"\n"));
    place.refused("wrong-sha256", &["[plugins.marks]", &pinned]);
}

#[test]
fn a_malformed_pin_is_reported_when_the_configuration_is_read() {
    let place = Place::new().config("[plugins.bytes]\nsha256 = \"abc\"\n");
    let exit = place.check().expect(1);
    let line = exit.one_error();
    let words = [":2: plugins.bytes.sha256: ", "64 hexadecimal digits", "sha256sum"];
    assert!(words.iter().all(|word| line.contains(word)), "{line}");
}

#[test]
fn a_library_with_an_unsafe_runpath_is_refused() {
    let place = Place::with(&with_run_path("run-path-here", "/opt/lib:."), "libx.so");
    place.refused("search-path", &["RUNPATH", "/opt/lib:."]);
    let place = Place::with(&with_run_path("run-path-origin", "$ORIGIN/../lib"), "libx.so");
    place.refused("search-path", &["RUNPATH", "$ORIGIN/../lib"]);
    Place::with(&with_run_path("run-path-absolute", "/opt/lib"), "libx.so").loads();

    let place = Place::new();
    let mut library = std::fs::read(bytes()).expect("a library can be read");
    let (name, relative) = (b"libgcc_s.so.1\0", b"./gcc__s.so.1\0");
    let at = library.windows(name.len()).position(|window| window == name).expect("a plugin unwinds with libgcc_s");
    library[at..at + name.len()].copy_from_slice(relative);
    std::fs::write(&place.library, library).expect("a library can be written");
    place.refused("search-path", &["NEEDED", "./gcc__s.so.1"]);
}

#[test]
fn dependencies_of_a_library_are_not_loaded_from_the_current_directory() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let needs = &damaged(&bytes(), folder.path())["needs-more"];
    for path in ["", ":/opt/lib", "/opt/lib:", "/opt//lib::/lib", ".", "lib:/opt/lib", "/opt/lib;."] {
        let (place, mark) = Place::with(needs, "libx.so").env("LD_LIBRARY_PATH", path).marked();
        std::fs::copy(marks(), place.setup.folder().join("libgone_.so.1")).expect("a library can be copied");
        if path.is_empty() {
            place.refused("not-loadable", &["libgone_.so.1"]);
        } else {
            place.refused("library-path", &["libgone_.so.1", path]);
        }
        assert!(!mark.exists(), "code from the current directory ran with LD_LIBRARY_PATH={path}");
    }
    // A library that the process has already loaded is not searched.
    Place::new().env("LD_LIBRARY_PATH", ":").loads();
}

#[test]
fn a_bare_name_is_a_file_in_the_current_directory_and_never_searched_for() {
    let (place, mark) = Place::with(marks(), "libmarks.so").marked();
    let folder = place.folder.clone();
    let place = place.env("LD_LIBRARY_PATH", folder);
    let bare = ["plugins", "check", "libmarks.so"];
    let exit = place.setup.run(bare).expect(1);
    assert!(exit.stdout.starts_with("libmarks.so: ") && exit.stdout.ends_with("[unreadable]\n"), "{exit}");
    print!("{}", exit.stdout);
    assert!(!mark.exists(), "the linker searched for a bare name");

    let here = place.setup.folder().join("libmarks.so");
    std::fs::copy(marks(), &here).expect("a library can be copied");
    only_ours(&here);
    place.setup.run(bare).expect(0);
    chmod(place.setup.folder(), 0o777);
    let exit = place.setup.run(bare).expect(1);
    assert!(exit.stdout.ends_with("[folder-writable]\n"), "{exit}");
}

#[test]
fn a_library_in_the_current_directory_does_not_replace_one_of_the_folder() {
    let (place, mark) = Place::new().marked();
    std::fs::copy(marks(), place.setup.folder().join(as_library("libvkog_bytes"))).expect("a library can be copied");
    let place = place.env("LD_LIBRARY_PATH", ".");
    // The folder as a path from the current directory, too.
    let folder = place.folder.file_name().expect("a folder has a name").to_owned();
    let arguments = ["--listen", "127.0.0.1:0", "-s", "10", "--max-value", "100", "--plugin-dir"].map(Into::into);
    let server = place.setup.start_with(arguments.into_iter().chain([folder]));
    server.post("k", [b'x'; 20]).expect(413).has("Vkog-Plugin", "bytes");
    assert!(!mark.exists(), "code from the current directory ran");
}

#[test]
fn overwriting_or_replacing_a_loaded_library_changes_nothing() {
    let place = Place::new();
    let opened = sha256(&place.library);
    let mut arguments = place.serving();
    arguments.extend(["-s", "10", "--max-value", "100"].map(Into::into));
    let server = place.setup.start_with(arguments);
    server.post("k", [b'x'; 20]).expect(413).has("Vkog-Plugin", "bytes");
    // In place, as this would destroy the mapped pages of an opened file.
    std::fs::write(&place.library, "no library any more").expect("it is ours");
    server.post("k", [b'x'; 20]).expect(413).has("Vkog-Plugin", "bytes");
    let other = place.folder.join("other");
    std::fs::copy(marks(), &other).expect("a library can be copied");
    std::fs::rename(&other, &place.library).expect("a library can be replaced");
    server.post("k", [b'x'; 20]).expect(413).has("Vkog-Plugin", "bytes");
    // A profiler sees the name of the library and its content at the time of opening.
    if cfg!(target_os = "linux") && !on_windows() {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.id())).expect("it is running");
        let name = format!("/memfd:vkog_bytes-{}.so", &opened[..12]);
        assert!(maps.contains(&name) && !maps.contains("libvkog_bytes.so"), "{name} alone in {maps}");
    }
}

#[test]
fn no_private_copy_remains_after_the_stop() {
    let place = Place::new();
    let temporary = place.setup.folder().join("temporary");
    std::fs::create_dir(&temporary).expect("a folder can be made");
    only_ours(&temporary);
    let place = place.env("TMPDIR", &temporary);
    let server = place.setup.start_with(place.serving());
    server.post("k", "v").expect(200);
    let left = || std::fs::read_dir(&temporary).expect("it can be read").count();
    assert_eq!(left(), 0);

    // No other user may be able to replace the copy.
    chmod(&temporary, 0o777);
    place.refused("parent-writable", &["/temporary", "0777"]);
    assert_eq!(left(), 0);
    std::fs::remove_dir(&temporary).expect("it is empty");
    place.refused("no-copy", &["/temporary", "TMPDIR"]);
}

#[test]
fn a_noexec_temporary_folder_is_refused_only_without_files_in_memory() {
    let place = Place::new();
    let temporary = place.setup.folder().join("noexec");
    std::fs::create_dir(&temporary).expect("a folder can be made");
    // In a mount namespace of its own, so that nothing has to be cleared away. Without /proc no file in memory has a path.
    let check = |further: &str| {
        let script = format!("mount -t tmpfs -o noexec,mode=755 tmpfs \"$TMPDIR\" {further} || exit 77; exec \"$@\"");
        let program = place.setup.vkog().get_program().to_owned();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script, "sh"])
            .arg(program)
            .args(["plugins", "check"])
            .arg(&place.library);
        Running::start(command.env("TMPDIR", &temporary)).wait()
    };
    let exit = check("&& mount -t tmpfs tmpfs /proc");
    if exit.stdout.is_empty() {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let exit = exit.expect(1);
    let told = exit.stdout.contains("/noexec, ") && exit.stdout.contains("set TMPDIR");
    assert!(told && exit.stdout.ends_with("[no-exec]\n"), "{exit}");
    print!("{}", exit.stdout);
    if cfg!(target_os = "linux") {
        check("").expect(0);
    }
}

#[test]
fn a_server_starts_without_an_optional_plugin() {
    for config in ["[plugins.bytes]\nrequired = false\n", "[plugins.bytes]\nrequired = true\n"] {
        let place = Place::new().config(config);
        chmod(&place.library, 0o666);
        if config.contains("true") {
            place.refused("world-writable", &[]);
            continue;
        }
        let server = place.setup.start_with(place.serving());
        server.logs(&["WARN", "libvkog_bytes.so", "[world-writable]", "started without it"]);
        server.post("k", "v").expect(200);
        drop(server);
        // The plugin does not receive the key `required`.
        chmod(&place.library, 0o644);
        place.loads();
    }
    // A plugin whose name is known before it fails is reported by that name, not by its file.
    let place = Place::with(&bytes(), "libany.so").config("[plugins.bytes]\nrequired = false\nwrong = 1\n");
    let server = place.setup.start_with(place.serving());
    server.logs(&["WARN", "[bad-settings]", "started without it"]);
}
