//! A plugin author needs nothing but a path to plugin-api: a crate builds outside the workspace, with whatever compiler, and
//! what comes out loads.
//!
//! Provoked by copying an example to a temporary folder, and by building a small plugin with every compiler that the
//! environment variable `VKOG_COMPILERS` names: paths to rustc, with colons between them.

use vkog_tests::{Setup, build, built_by_cargo, bytes, conflict, copy_out, small_plugin, target_folder};

#[test]
fn a_plugin_copied_out_of_the_tree_builds_and_loads() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    copy_out("examples/json-only", folder.path(), "copied-out");
    let mut cargo = built_by_cargo("build", folder.path(), &target_folder());
    let built = build(cargo.arg("--offline")).unwrap_or_else(|error| panic!("{error}"));
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
    // All of them in one process.
    let server = setup.start();
    server.post("k", "small").expect(200);
    server.post("l", [b'x'; 17]).expect(413).has("Vkog-Plugin", &names[0]);
}
