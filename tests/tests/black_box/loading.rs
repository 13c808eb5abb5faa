//! Every way in which a library can be wrong has its own code and message. `vkog plugins check` and the start of the
//! server agree, and all bad libraries are reported, not only the first.
//!
//! Provoked with libraries that are truncated, patched, or built against changed copies of vkog-plugin-api.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vkog_tests::{
    Exit, Server, Setup, aborts, artefacts, as_library, bytes, conflict, damaged, faults, nowhere, on_windows,
    written_plugin,
};

/// Asserts that one library is refused with this code and with all of these words, by `vkog plugins check` and at the
/// start, also where there are good plugins beside it.
#[track_caller]
fn refused(library: &Path, config: Option<&str>, code: &str, words: &[&str]) {
    let mut setup = Setup::new().load(bytes()).load(library);
    let mut check = vec!["plugins".into(), "check".into(), library.as_os_str().to_owned()];
    if let Some(config) = config {
        setup = setup.config(config);
        let file = setup.folder().join("check.toml");
        std::fs::write(&file, config).expect("the configuration can be written");
        check.extend(["--config".into(), file.into()]);
    }
    let exit = setup.run(check).expect(1);
    one_line(&exit.stdout, &format!("{}: cannot be loaded: ", library.display()), code, words, &exit);
    let exit = setup.fail().expect(1);
    let vkog: Vec<_> = exit.stderr.lines().filter(|line| line.starts_with("vkog: ")).collect();
    let name = library.file_name().expect("a library has a name").to_string_lossy();
    assert!(vkog.len() == 1 && vkog[0].contains(&format!("{name}: ")), "one line that names {name} in {exit}");
    one_line(vkog[0], "vkog: cannot load ", code, words, &exit);
    assert_eq!(exit.stdout, "", "standard output of {exit}");
}

#[track_caller]
fn one_line(output: &str, start: &str, code: &str, words: &[&str], exit: &Exit) {
    assert_eq!(output.lines().count(), 1, "lines of {exit}");
    let line = output.trim_end();
    assert!(line.starts_with(start), "{start:?} at the beginning of {exit}");
    assert!(line.ends_with(&format!("[{code}]")), "[{code}] at the end of {exit}");
    for word in words {
        assert!(line.contains(word), "{word:?} in {exit}");
    }
    // The message has the fact and the way out.
    assert!(line.contains("; "), "a way out in {exit}");
}

/// Returns a library with this damage.
fn damage(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let library = damaged(&conflict(), folder.path())[name].clone();
    (folder, library)
}

#[test]
fn a_text_file_is_not_a_library() {
    let (_folder, library) = damage("text");
    refused(&library, None, "not-a-library", &["this is not a", "cdylib"]);
}

#[test]
fn an_empty_file_is_not_a_library() {
    let (_folder, library) = damage("empty");
    refused(&library, None, "not-a-library", &["empty"]);
}

#[test]
fn a_truncated_library_is_reported_wherever_it_is_cut() {
    for name in ["cut-10", "cut-50", "cut-90", "cut-last-byte"] {
        let (_folder, library) = damage(name);
        let size = std::fs::metadata(&library).expect("it was just written").len().to_string();
        refused(&library, None, "cut-off", &["truncated", &size]);
    }
}

#[test]
fn the_error_for_another_processor_names_both_processors() {
    let (_folder, library) = damage("aarch64");
    refused(&library, None, "wrong-architecture", &["Aarch64", "X86_64"]);
    let (_folder, library) = damage("bits-32");
    refused(&library, None, "wrong-architecture", &["I386", "X86_64"]);
}

/// A library in which each symbol of glibc 2.x has the version 9.x.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn the_error_for_a_newer_glibc_names_both_versions() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut library = std::fs::read(conflict()).expect("it was built");
    for at in 0..library.len() - 8 {
        if library[at..].starts_with(b"GLIBC_2.") {
            library[at + 6] = b'9';
        }
    }
    let newer = folder.path().join("libvkog_conflict.so");
    std::fs::write(&newer, library).expect("a file can be written");
    vkog_tests::only_ours(&newer);
    refused(&newer, None, "newer-glibc", &["needs glibc 9.", "this system has 2."]);
    let exit = Setup::new().run(["plugins".as_ref(), "check".as_ref(), "--json".as_ref(), newer.as_os_str()]).expect(1);
    let document: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error} in {exit}"));
    assert!(document["plugins"][0]["glibc"].as_str().is_some_and(|glibc| glibc.starts_with("9.")), "{document}");
}

#[test]
fn the_error_for_a_missing_dependency_names_it() {
    let (_folder, library) = damage("needs-more");
    refused(&library, None, "not-loadable", &[nowhere()]);
}

#[test]
fn a_library_without_a_plugin_is_skipped_unless_the_configuration_names_it() {
    let library = artefacts().library("fault-no-plugin");
    let named = "[plugins.fault-no-plugin]\nrequired = true\n";
    refused(&library, Some(named), "no-plugin", &["export_plugin!"]);
    // Of which a name with a version is a sign.
    let setup = Setup::new().load(bytes()).load(&library).load_as(&library, as_library("libz") + ".1");
    let server = setup.start();
    server.put("k", "v").expect(200);
    let skipped = |server: &Server, name: &str| {
        server.log().lines().filter(|line| line.contains("skipped") && line.contains(name)).count()
    };
    let file = library.file_name().expect("a library has a name").to_string_lossy();
    for name in [&*file, &(as_library("libz") + ".1")] {
        assert_eq!(skipped(&server, &format!("{name}: ")), 1, "{name} in\n{}", server.log());
    }
    let exit = server.stop().expect(0);
    assert!(!exit.stderr.contains("cannot load"), "{exit}");
}

#[test]
fn the_error_for_another_major_version_names_both_versions() {
    refused(&faults().other_major, None, "other-major", &["2.0.0", "1.6.0"]);
}

#[test]
fn a_plugin_whose_types_are_laid_out_differently_is_refused() {
    refused(&faults().other_layout, None, "other-layout", &[]);
}

#[test]
fn a_plugin_whose_panics_would_abort_is_refused() {
    refused(&aborts(), None, "panic-abort", &["fault-aborts", "abort"]);
}

#[test]
fn a_plugin_that_requires_an_unknown_hook_is_refused_with_the_name_of_the_hook() {
    refused(
        &faults().new_hook_required,
        None,
        "missing-hook",
        &["fault-new-hook-required", "the hook sweep of", "1.7.0"],
    );
}

#[test]
fn a_plugin_of_a_newer_version_loads_if_it_requires_nothing_new() {
    let setup = Setup::new().load(bytes()).load(&faults().new_hook_optional);
    let check =
        setup.run(["plugins".into(), "check".into(), faults().new_hook_optional.as_os_str().to_owned()]).expect(0);
    assert!(check.stdout.ends_with("; this server loads it\n"), "{check}");
    assert!(check.stdout.contains("before_post") && check.stdout.contains("1.7.0"), "{check}");
    let server = setup.start();
    server.post("k", "small").expect(200);
    server.post("l", [b'x'; 17]).expect(413).has("Vkog-Plugin", "fault-new-hook-optional");
}

#[test]
fn the_error_for_an_unknown_setting_lists_the_known_ones() {
    let library = artefacts().library("fault-refuses");
    let config = "[plugins.fault-refuses]\nwhere = \"guard_put\"\nwehre = \"guard_put\"\n";
    refused(&library, Some(config), "bad-settings", &["fault-refuses", "wehre", "known keys: where, status, value"]);
}

#[test]
fn the_error_for_a_setting_of_a_wrong_type_names_the_right_type() {
    let library = artefacts().library("fault-refuses");
    let config = "[plugins.fault-refuses]\nstatus = \"many\"\n";
    refused(&library, Some(config), "bad-settings", &["fault-refuses", "many", "u16"]);
}

#[test]
fn the_error_of_create_or_start_is_reported() {
    let library = artefacts().library("fault-refuses");
    let config = "[plugins.fault-refuses]\nwhere = \"create\"\n";
    refused(&library, Some(config), "create-failed", &["fault-refuses", "refused on purpose"]);
    // `check` creates plugins and starts none, so only the start can tell.
    let setup = Setup::new().load(&library).config("[plugins.fault-refuses]\nwhere = \"start\"\n");
    let exit = setup.fail().expect(1);
    let told = |line: &&str| line.starts_with("vkog: ") && line.ends_with("[start-failed]");
    let line = exit.stderr.lines().find(told).unwrap_or_else(|| panic!("no [start-failed] in {exit}"));
    assert!(line.contains("fault-refuses") && line.contains("refused on purpose"), "{exit}");
}

#[test]
fn a_plugin_that_panics_while_it_is_created_is_refused() {
    let config = "[plugins.fault-panics]\nwhere = \"create\"\n";
    let library = artefacts().library("fault-panics");
    let setup = Setup::new().load(&library).config(config);
    let exit = setup.fail().expect(1);
    assert!(exit.stderr.contains("[create-panicked]"), "{exit}");
}

#[test]
fn a_second_library_with_the_same_plugin_is_refused_and_names_the_first() {
    let setup = Setup::new().load_as(bytes(), as_library("liba")).load_as(bytes(), as_library("libb"));
    let exit = setup.fail().expect(1);
    let line = exit.stderr.lines().find(|line| line.starts_with("vkog: ")).unwrap_or_default();
    let told = line.contains(&format!("{}: ", as_library("libb")))
        && line.contains(&as_library("liba"))
        && line.ends_with("[duplicate-name]");
    assert!(told && line.contains("\"bytes\""), "one line that names both in {exit}");
    let folder = setup.plugin_folder();
    let both = ["liba", "libb"].map(|name| folder.join(as_library(name)).into_os_string());
    let exit = setup.run(["plugins".into(), "check".into()].into_iter().chain(both)).expect(1);
    let lines: Vec<_> = exit.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].ends_with("; this server loads it"), "{exit}");
    assert!(lines[1].contains(&as_library("liba")) && lines[1].ends_with("[duplicate-name]"), "{exit}");
}

#[test]
fn a_library_that_is_a_folder_or_a_dead_link_is_reported() {
    let setup = Setup::new();
    let missing = setup.folder().join(as_library("libmissing"));
    let folder = setup.folder().join(as_library("libfolder"));
    std::fs::create_dir(&folder).expect("a folder can be made");
    for (library, code) in [(missing, "unreadable"), (folder, "not-a-file")] {
        let exit = setup.run(["plugins".into(), "check".into(), library.clone().into_os_string()]).expect(1);
        one_line(&exit.stdout, &format!("{}: cannot be loaded: ", library.display()), code, &[], &exit);
    }
}

#[test]
fn all_bad_libraries_are_reported_and_each_with_its_own_code() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let damaged = damaged(&conflict(), folder.path());
    let faults = faults();
    let mut bad = vec![
        (artefacts().library("fault-no-plugin"), "no-plugin"),
        (artefacts().library("fault-refuses"), "bad-settings"),
        (artefacts().library("fault-panics"), "create-panicked"),
        (damaged["text"].clone(), "not-a-library"),
        (damaged["cut-50"].clone(), "cut-off"),
        (damaged["aarch64"].clone(), "wrong-architecture"),
        (damaged["needs-more"].clone(), "not-loadable"),
        (faults.other_major.clone(), "other-major"),
        (faults.other_layout.clone(), "other-layout"),
        (faults.new_hook_required.clone(), "missing-hook"),
    ];
    if !on_windows() {
        bad.push((aborts(), "panic-abort"));
    }
    let config =
        "[plugins.fault-refuses]\nwrong = 1\n[plugins.fault-panics]\nwhere = \"create\"\n[plugins.fault-no-plugin]\n";
    let mut setup = Setup::new().config(config).load(bytes()).load_as(bytes(), as_library("zz_vkog_bytes"));
    for (library, _) in &bad {
        setup = setup.load(library);
    }
    let exit = setup.fail().expect(1);
    let lines: Vec<_> = exit.stderr.lines().filter(|line| line.starts_with("vkog: cannot load ")).collect();
    assert_eq!(lines.len(), bad.len() + 1, "a line for each bad library in {exit}");
    let reported = |name: &str, code: &str| {
        let found =
            lines.iter().filter(|line| line.contains(&format!("{name}: ")) && line.ends_with(&format!("[{code}]")));
        assert_eq!(found.count(), 1, "one line with {name} and [{code}] in {exit}");
    };
    for (library, code) in &bad {
        reported(&library.file_name().expect("a library has a name").to_string_lossy(), code);
    }
    reported(&as_library("zz_vkog_bytes"), "duplicate-name");
}

#[test]
fn check_reports_name_version_and_hooks_of_a_library() {
    let setup = Setup::new();
    let libraries = [bytes().into_os_string(), conflict().into_os_string(), artefacts().library("fault-panics").into()];
    let exit = setup.run(["plugins".into(), "check".into()].into_iter().chain(libraries)).expect(0);
    let lines: Vec<_> = exit.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "a line for each in {exit}");
    for (line, (library, plugin)) in lines.iter().zip([
        (bytes(), "bytes 0.1.0"),
        (conflict(), "conflict 0.1.0"),
        (artefacts().library("fault-panics"), "fault-panics 0.1.0"),
    ]) {
        assert!(line.starts_with(&format!("{}: {plugin}", library.display())), "{plugin} in {exit}");
        assert!(line.contains("guard_post") && line.ends_with("; this server loads it"), "{exit}");
    }
    for hook in ["before_get", "after_delete", "undo_put", "start"] {
        assert!(lines[2].contains(hook), "{hook} in {exit}");
    }
    assert!(!lines[1].contains("before_get"), "a hook that conflict has not in {exit}");
}

#[test]
fn check_json_is_one_document_with_the_same_facts() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let bad = damaged(&conflict(), folder.path())["text"].clone();
    let check = |libraries: &[&Path], status| {
        let arguments = ["plugins", "check", "--json"].into_iter().map(OsString::from);
        let exit = Setup::new().run(arguments.chain(libraries.iter().map(|path| path.into()))).expect(status);
        let document: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error} in {exit}"));
        document["plugins"].clone()
    };
    let mut good = json!({
        "path": conflict(), "ok": true, "name": "conflict", "version": "0.1.0", "api_version": "1.6.0",
        "stage": "policy", "hooks": ["guard_post", "guard_put", "guard_delete"],
        "required_hooks": ["guard_post", "guard_put", "guard_delete"], "routes": [],
    });
    let found = check(&[&conflict()], 0);
    if cfg!(all(target_os = "linux", target_env = "gnu")) && !on_windows() {
        assert!(found[0]["glibc"].as_str().is_some_and(|glibc| glibc.starts_with("2.")), "{found}");
        good["glibc"] = found[0]["glibc"].clone();
    }
    assert_eq!(found, json!([good]));
    let told = check(&[&bad, &conflict()], 1);
    let message = told[0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("this is not a") && message.contains("cdylib"), "{told}");
    assert_eq!(told, json!([{ "path": bad, "ok": false, "code": "not-a-library", "message": message }, good]));
    let quiet = check(&[&artefacts().library("fault-panics")], 0);
    assert_eq!(quiet[0]["required_hooks"], json!([]));
    let backend = check(&[&artefacts().library("memory")], 0);
    assert_eq!((&backend[0]["hooks"], &backend[0]["scheme"]), (&json!([]), &json!("memory")));
}

#[test]
fn other_files_in_the_plugin_folder_are_ignored() {
    let setup = Setup::new();
    let folder = setup.plugin_folder();
    std::fs::copy(bytes(), folder.join(as_library("libvkog_bytes"))).expect("a library can be copied");
    for name in ["README.md", &format!("{}.bak", as_library("libvkog_bytes")), "libvkog_bytes.d"] {
        std::fs::write(folder.join(name), "not a library").expect("a file can be written");
    }
    let server = setup.start_with(
        ["--listen", "127.0.0.1:0", "-s", "10", "--max-value", "100", "--plugin-dir"]
            .into_iter()
            .map(Into::into)
            .chain([folder.into_os_string()]),
    );
    server.post("k", [b'x'; 20]).expect(413).has("Vkog-Plugin", "bytes");
}

#[test]
fn a_required_plugin_that_is_missing_stops_the_start() {
    let pin = format!("sha256 = \"{}\"", "0".repeat(64));
    for demand in ["required = true", &pin] {
        let config = format!("[plugins.bearer]\n{demand}\n");
        let exit = Setup::new().load(bytes()).config(&config).fail().expect(1);
        assert!(
            exit.stderr.contains("[plugins.bearer] requires a plugin that was not loaded from "),
            "{demand}: {exit}"
        );
        // Without plugins, the tables have no effect.
        Setup::new().config(&config).start().post("k", "v").expect(200);
    }
    for demand in ["token = \"s3cret\"".to_owned(), format!("{pin}\nrequired = false")] {
        let server = Setup::new().load(bytes()).config(format!("[plugins.bearer]\n{demand}\n")).start();
        server.logs(&["WARN", "[plugins.bearer]", "a plugin that was not loaded from "]);
    }
}

#[test]
fn a_malformed_route_is_refused_and_check_prints_those_of_a_good_plugin() {
    let manifest = "[package]\nname = \"bad-route\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n[dependencies]\n\
                    vkog-plugin-api = \"1\"\n";
    let source = r#"
use vkog_plugin_api::*;

struct BadRoute;

impl Plugin for BadRoute {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(BadRoute)
    }
}

impl Serve for BadRoute {
    const ROUTES: &'static [Route] = &[Route::new("GET", "/{*all}/more", Permission::None, "None.")];

    fn serve(&self, _: &RouteRequest<'_>) -> Verdict {
        Ok(())
    }
}

export_plugin!(BadRoute);
"#;
    let library = written_plugin("bad-route", manifest, source);
    refused(&library, None, "bad-route", &["bad-route", "GET /{*all}/more", "malformed"]);
    let serves = artefacts().library("serves");
    let check = ["plugins".into(), "check".into(), serves.as_os_str().to_owned()];
    let exit = Setup::new().run(check.clone()).expect(0);
    assert!(exit.stdout.contains("routes GET /x/serves/hello/{name}, GET /x/serves/k/{*key}, PUT"), "{exit}");
    let exit = Setup::new().run(check.into_iter().chain(["--json".into()])).expect(0);
    let document: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error} in {exit}"));
    assert_eq!(document["plugins"][0]["routes"][0]["path"], "/hello/{name}", "{exit}");
}
