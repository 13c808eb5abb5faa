//! A plugin author needs only the sources of plugin-api: a crate builds outside the workspace, with any compiler, and
//! its library loads.
//!
//! Provoked by copying an example to a temporary folder, with crates that `vkog plugins new` generates, and by building
//! a small plugin with every compiler in the environment variable `VKOG_COMPILERS`: paths to rustc, separated by
//! colons.

use std::path::Path;

use vkog_tests::{Setup, build, built, built_by_cargo, bytes, conflict, copy_out, small_plugin, workspace};

#[test]
fn a_plugin_copied_out_of_the_tree_builds_and_loads() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    copy_out("examples/json-only", folder.path(), "copied-out");
    let built = build(built(folder.path()).arg("--offline")).unwrap_or_else(|error| panic!("{error}"));
    let server = Setup::new().load(bytes()).load(built.library("copied-out")).start();
    server.post("k", "{").expect(422).has("Vkog-Plugin", "copied-out");
    server.post("k", "{}").expect(200);
}

#[test]
fn a_plugin_built_by_another_compiler_loads() {
    let Ok(compilers) = std::env::var("VKOG_COMPILERS") else {
        eprintln!("skipped: VKOG_COMPILERS names no compilers, as in VKOG_COMPILERS=/opt/a/rustc:/opt/b/rustc");
        return;
    };
    let mut setup = Setup::new().load(bytes()).load(conflict());
    let mut names = Vec::new();
    for (number, rustc) in compilers.split([':', '\n']).filter(|rustc| !rustc.is_empty()).enumerate() {
        let name = format!("fault-compiler-{number}");
        let folder = small_plugin(&name);
        let mut cargo = built_by_cargo("build", &folder, &folder.join("target"));
        let built = build(cargo.env("RUSTC", rustc).env_remove("RUSTC_WRAPPER").arg("--offline"));
        let library = built.unwrap_or_else(|error| panic!("{rustc}: {error}")).library(&name);
        let check = setup.run(["plugins".into(), "check".into(), library.clone().into_os_string()]).expect(0);
        assert!(check.stdout.contains(&name) && check.stdout.contains("before_post"), "{check}");
        eprintln!("{rustc}: {}", check.stdout.trim_end());
        setup = setup.load(&library);
        names.push(name);
    }
    // Loads all of them into one process.
    let server = setup.start();
    server.post("k", "small").expect(200);
    server.post("l", [b'x'; 17]).expect(413).has("Vkog-Plugin", &names[0]);
}

#[test]
fn plugins_new_creates_a_crate_and_overwrites_nothing() {
    let setup = Setup::new();
    let new = |arguments: &[&str]| setup.run(["plugins", "new"].iter().chain(arguments));
    std::fs::create_dir(setup.folder().join("elsewhere")).expect("a folder can be made");
    let made = new(&["vkog-shorter", "--path", "elsewhere"]).expect(0);
    let folder = setup.folder().join("elsewhere").join("vkog-shorter");
    assert!(made.stdout.contains("elsewhere") && made.stdout.contains("vkog_shorter"), "{made}");
    let written = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a crate has a manifest");
    assert!(written.contains("\"vendor/vkog/plugin-api\""), "{written}");
    let ignored = std::fs::read_to_string(folder.join(".gitignore")).expect("a crate has a list of ignored files");
    assert!(ignored.contains("/local.vkog*"), "a store that the tutorial makes would be committed: {ignored}");

    std::fs::write(folder.join("Cargo.toml"), "mine").expect("a file can be written");
    let exit = new(&["vkog-shorter", "--path", "elsewhere"]).expect(4);
    assert!(exit.one_error().contains("it exists; "), "{exit}");
    assert_eq!(std::fs::read_to_string(folder.join("Cargo.toml")).expect("it is still there"), "mine");
    let exit = new(&["shorter", "--path", "nowhere"]).expect(3);
    assert!(exit.one_error().contains("nowhere") && exit.one_error().contains("--path"), "{exit}");
}

#[test]
fn a_new_crate_can_depend_on_a_clone_of_the_interface() {
    let setup = Setup::new();
    let api = workspace().join("plugin-api");
    let new = |name: &str, api: &Path| {
        setup.run(["plugins".as_ref(), "new".as_ref(), name.as_ref(), "--api".as_ref(), api.as_os_str()])
    };
    new("beside-a-clone", &api).expect(0);
    let folder = setup.folder().join("beside-a-clone");
    assert!(!folder.join("vendor").exists(), "an unwanted copy");
    let built = build(built(&folder).arg("--offline"));
    built.unwrap_or_else(|error| panic!("{error}")).library("beside-a-clone");
    let exit = new("beside-nothing", &workspace().join("host")).expect(1);
    assert!(
        exit.one_error().contains("--api") && exit.one_error().contains("is not the crate vkog-plugin-api"),
        "{exit}"
    );
    assert!(!setup.folder().join("beside-nothing").exists(), "something was made");
}
