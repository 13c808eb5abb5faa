//! The distribution that `cargo xtask dist` makes runs where it is unpacked, with its own plugins, and contains the
//! documentation.
//!
//! Provoked by unpacking it as a user does and starting its program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use vkog_tests::{
    Setup, amount, artefacts, dead_links, dead_links_of_site, on_windows, program, target_folder, workspace,
};

/// The time of the files in the archives.
const TIME: u64 = 1_700_000_000;

/// Runs a command and returns its standard output.
#[track_caller]
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it says text")
}

/// Makes the release, in its own target folder, because the program has other features here than for the tests, which run at the
/// same time. The dependencies that both have are built once. Returns the files.
fn dist() -> Vec<PathBuf> {
    let mut xtask = if on_windows() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["xtask", "dist", "--target=x86_64-pc-windows-gnu"]);
        cargo
    } else {
        let mut xtask = Command::new(artefacts().program("xtask"));
        xtask
            .args(["dist", "--profile=dev", "--no-backends"])
            .env("CARGO_TARGET_DIR", target_folder().join("dist-build"));
        xtask.env("CARGO_BUILD_BUILD_DIR", target_folder());
        xtask
    };
    // Its progress appears while it builds for minutes, because the test harness captures no output of other processes.
    let made = said(xtask.env("SOURCE_DATE_EPOCH", TIME.to_string()).current_dir(workspace()).stderr(Stdio::inherit()));
    made.lines().map(|line| workspace().join(line)).collect()
}

/// Returns the file of the release with this end. The release is made once for all tests.
#[track_caller]
pub(crate) fn released(end: &str) -> PathBuf {
    static RELEASE: LazyLock<Vec<PathBuf>> = LazyLock::new(dist);
    let file = RELEASE.iter().find(|file| file.to_string_lossy().ends_with(end));
    file.unwrap_or_else(|| panic!("no file *{end} in {:?}", *RELEASE)).clone()
}

/// Unpacks the archive in a folder, and returns the folder of the release in it.
pub(crate) fn unpacked(folder: &Path) -> PathBuf {
    let packed = released(if on_windows() { ".zip" } else { ".tar.gz" });
    let name = packed.file_name().expect("an archive has a name").to_string_lossy().into_owned();
    // Under a umask that permits the group to write.
    let unpack = if on_windows() { "python3 -m zipfile -e \"$0\" ." } else { "umask 002 && tar -xzf \"$0\"" };
    said(Command::new("sh").args(["-c", unpack]).arg(&packed).current_dir(folder));
    folder.join(name.trim_end_matches(".tar.gz").trim_end_matches(".zip"))
}

#[test]
fn the_distribution_runs_where_it_is_unpacked() {
    let setup = Setup::new();
    let folder = unpacked(setup.folder());
    let read =
        |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert!(read("README.md").starts_with("# VKOG") && read("LICENSE").contains("MIT License"));
    assert_eq!(dead_links(&folder), [""; 0], "dead links in the distribution");
    let api = read("api/vkog_plugin_api/index.html");
    assert!(api.contains("id=\"which-hook-do-i-use\""), "no front page for plugin authors");
    assert!(read("api/index.html").contains("vkog_plugin_api/index.html"));
    assert!(read("api/vkog_plugin_testing/struct.TestHost.html").contains("fail_writes"));
    // rustdoc copies the documentation of tracing's blanket implementations with a link that is relative to tracing's site.
    let dead: Vec<String> =
        dead_links_of_site(&folder.join("api")).into_iter().filter(|link| !link.contains(": dispatcher#")).collect();
    assert_eq!(dead, [""; 0], "dead links in the API documentation");
    assert!(read("man/vkog.1").contains("plugin\\-dir"), "a manual page without the options");
    for file in ["vkog.bash", "vkog.elv", "vkog.fish", "_vkog.ps1", "_vkog"] {
        assert!(read(&format!("completions/{file}")).contains("--plugin-dir"), "{file} without the options");
    }

    let mut command = program(Path::new(if on_windows() { "./vkog.exe" } else { "./vkog" }));
    command.args(["--plugin-dir", "./plugins", "--listen", "127.0.0.1:0"]).current_dir(&folder);
    let server = setup.start_by(&mut command);
    let names: Vec<_> = server.plugins().iter().map(|plugin| plugin["name"].to_string()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    server.key("POST", "k").header("Vkog-TTL", "1h").body("v").send().expect(200);
    server.post("k", "v").expect(409).has("Vkog-Plugin", "conflict");
    server.stop().expect(0);
    assert!(folder.join("local.vkog").exists(), "the store is where it was started");
}

#[test]
fn the_checksums_of_a_release_are_those_of_all_its_files() {
    let sums = released("SHA256SUMS");
    let text = std::fs::read_to_string(&sums).expect("it was made");
    let packages = if on_windows() { vec![".zip"] } else { vec![".tar.gz", ".deb"] };
    for end in packages.into_iter().chain([".cdx.json"]) {
        let name = released(end).file_name().expect("a file has a name").to_string_lossy().into_owned();
        assert!(text.lines().any(|line| line.ends_with(&format!("  {name}"))), "no {name} in\n{text}");
    }
    said(
        Command::new("sha256sum")
            .args(["--check", "--strict", "SHA256SUMS"])
            .current_dir(sums.parent().expect("it is in a folder")),
    );
    // It takes as long as the first one, without the compilation.
    if amount(0, 1) == 1 {
        dist();
        assert_eq!(
            std::fs::read_to_string(&sums).expect("it was made again"),
            text,
            "two releases of the same sources"
        );
    }
}

#[test]
fn the_bill_of_materials_names_the_crates_that_are_compiled_in() {
    let text = std::fs::read_to_string(released(".cdx.json")).expect("it was made");
    let bill: Value = serde_json::from_str(&text).expect("it is JSON");
    let components = bill["components"].as_array().expect("a list");
    let named = |name: &str| components.iter().find(|component| component["name"] == name);
    for (name, is_hashed) in [("hyper", true), ("abi_stable", true), ("vkog", false), ("vkog-ttl", false)] {
        let component = named(name).unwrap_or_else(|| panic!("no {name} in {text}"));
        let version = component["version"].as_str().expect("a version");
        assert_eq!(component["purl"], format!("pkg:cargo/{name}@{version}"));
        assert!(component["licenses"][0]["expression"].as_str().is_some_and(|license| license.contains("MIT")));
        let hash = component["hashes"][0]["content"].as_str().map(str::len);
        assert_eq!(hash, is_hashed.then_some(64), "{component}");
    }
    for absent in ["divan", "vkog-tests", "vkog-plugin-testing", "xtask"] {
        assert!(named(absent).is_none(), "{absent} is not part of a release");
    }
    assert!(!text.contains("path+file") && !text.contains(&*workspace().to_string_lossy()), "a path of this machine");
}

#[test]
fn the_bill_of_materials_follows_the_schema_of_cyclonedx() {
    let check = "import sys\n\
        from cyclonedx.validation.json import JsonStrictValidator\n\
        from cyclonedx.schema import SchemaVersion\n\
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())\n\
        sys.exit(str(error) if error else 0)";
    let has = Command::new("python3").args(["-c", "import cyclonedx, jsonschema"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        return println!("skipped: pip install 'cyclonedx-python-lib[json-validation]'");
    }
    said(Command::new("python3").args(["-c", check]).arg(released(".cdx.json")));
}
