//! The program and the plugin libraries, built once for each test process, so that `cargo test` is enough.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

use crate::server::only_ours;
use crate::windows;

/// The option that makes cargo report what it built.
const JSON: &str = "--message-format=json-render-diagnostics";

/// The results of a build.
pub struct Artefacts {
    programs: BTreeMap<String, PathBuf>,
    libraries: BTreeMap<String, PathBuf>,
}

impl Artefacts {
    /// Returns the program `vkog`.
    #[track_caller]
    pub fn vkog(&self) -> &Path {
        self.programs.get("vkog").expect("the workspace has a program named vkog")
    }

    /// Returns a program.
    #[track_caller]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.get(name).unwrap_or_else(|| panic!("nothing makes a program named {name}")).clone()
    }

    /// Returns the shared library of a package.
    #[track_caller]
    pub fn library(&self, package: &str) -> PathBuf {
        let library = self.libraries.get(&package.replace('-', "_"));
        library.unwrap_or_else(|| panic!("no package {package} makes a shared library")).clone()
    }
}

/// Returns the root of the workspace, from the folder in which cargo runs the test. A copied tree may have been built
/// elsewhere.
pub fn workspace() -> &'static Path {
    static WORKSPACE: LazyLock<PathBuf> = LazyLock::new(|| {
        let tests = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&tests).parent().expect("the tests are a folder of the workspace").to_owned()
    });
    &WORKSPACE
}

/// The target folder that this test was built into, and the name of its profile. A test runs from
/// `TARGET/PROFILE/deps/NAME`.
fn built_here() -> (PathBuf, String) {
    let test = std::env::current_exe().expect("a test knows where it is");
    let profile = test.ancestors().nth(2).expect("a test is in TARGET/PROFILE/deps");
    let target = profile.parent().expect("a profile is a folder of the target folder");
    let name = profile.file_name().expect("a profile has a name").to_string_lossy();
    (target.to_owned(), if name == "debug" { "dev".to_owned() } else { name.into_owned() })
}

/// Returns the target folder that this test was built into.
pub fn target_folder() -> PathBuf {
    built_here().0
}

/// The cargo that runs the tests. It builds dependencies as the workspace does, so that they are there already.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    // What the cargo that runs the tests says about their package makes build scripts of dependencies run again.
    let about_package = |name: &String| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    std::env::vars().map(|(name, _)| name).filter(about_package).for_each(|name| _ = cargo.env_remove(name));
    cargo
}

/// Runs a command that [`built_by_cargo`] began. The output of cargo is the error of a failed build.
///
/// # Errors
///
/// Cargo failed.
pub fn build(command: &mut Command) -> Result<Artefacts, String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?} failed\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let mut artefacts = Artefacts { programs: BTreeMap::new(), libraries: BTreeMap::new() };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        let kinds = message["target"]["kind"].as_array().cloned().unwrap_or_default();
        if kinds.iter().any(|kind| kind == "cdylib") {
            let files = message["filenames"].as_array().cloned().unwrap_or_default();
            let library = files
                .iter()
                .filter_map(Value::as_str)
                .map(PathBuf::from)
                .find(|file| file.extension().is_some_and(|extension| extension == windows::library_extension()));
            if let Some(library) = library {
                only_ours(&library);
                only_ours(library.parent().expect("a library is in a folder"));
                artefacts.libraries.insert(name.replace('-', "_"), library);
            }
        } else if let Some(program) = message["executable"].as_str() {
            artefacts.programs.insert(name, PathBuf::from(program));
        }
    }
    Ok(artefacts)
}

/// A `cargo SUBCOMMAND` that builds for tests: in a folder, into a target folder.
pub fn built_by_cargo(subcommand: &str, folder: &Path, target: &Path) -> Command {
    let mut command = cargo();
    command.args([subcommand, JSON, "--target-dir"]).arg(target).current_dir(folder);
    command
}

/// A build of what a test is about, for the system that it is to run on.
pub fn built(folder: &Path) -> Command {
    match windows::built(folder) {
        Some(mut command) => {
            command.arg(JSON);
            command
        }
        None => built_by_cargo("build", folder, &target_folder()),
    }
}

/// The workspace's program and libraries. Built with the features and the profile of `cargo test` at the root, so that
/// little is left to build.
#[track_caller]
pub fn artefacts() -> &'static Artefacts {
    static ARTEFACTS: LazyLock<Result<Artefacts, String>> = LazyLock::new(|| {
        if windows::on_windows() {
            let all = ["--workspace", "--exclude", "vkog-tests", "--exclude", "xtask", "--exclude", "vkog-etcd"];
            return build(built(workspace()).args(all));
        }
        let (target, profile) = built_here();
        let mut cargo = built_by_cargo("build", workspace(), &target);
        // With a small test among it, cargo takes the features that the tests' own dependencies want, as `cargo test`
        // does. Otherwise it would build the server a second time, and what speaks HTTP.
        cargo.args([
            "--workspace",
            "--exclude",
            "vkog-etcd",
            "--lib",
            "--bins",
            "--test",
            "panic_log",
            "--profile",
            &profile,
        ]);
        build(&mut cargo)
    });
    ARTEFACTS.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

/// Returns the library of the plugin etcd. It is built alone, and only for tests that need it, because its dependencies
/// would change the features of the others; with its own test, as `cargo test -p vkog-etcd` does.
#[track_caller]
pub fn etcd_plugin() -> PathBuf {
    static PLUGIN: LazyLock<Result<Artefacts, String>> = LazyLock::new(|| {
        let (target, profile) = built_here();
        build(built_by_cargo("build", workspace(), &target).args([
            "--package",
            "vkog-etcd",
            "--lib",
            "--test",
            "real_etcd",
            "--profile",
            &profile,
        ]))
    });
    PLUGIN.as_ref().unwrap_or_else(|error| panic!("{error}")).library("vkog-etcd")
}
