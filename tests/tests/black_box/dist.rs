//! The distribution that `cargo xtask dist` makes runs where it is unpacked, with its own plugins, and contains the
//! documentation.
//!
//! Provoked by unpacking it as a user does and starting its program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vkog_tests::{Setup, artefacts, dead_links, dead_links_of_site, on_windows, program, target_folder, workspace};

/// Runs a command and returns its standard output.
#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it says text")
}

/// Makes the release, in its own target folder, because the program has other features here than for the tests, which run at the
/// same time. The dependencies that both have are built once.
fn dist() -> PathBuf {
    let mut xtask = if on_windows() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["xtask", "dist", "--target=x86_64-pc-windows-gnu"]);
        cargo
    } else {
        let mut xtask = Command::new(artefacts().program("xtask"));
        xtask.args(["dist", "--profile=dev"]).env("CARGO_TARGET_DIR", target_folder().join("dist-build"));
        xtask.env("CARGO_BUILD_BUILD_DIR", target_folder());
        xtask
    };
    // Its progress appears while it builds for minutes, because the test harness captures no output of other processes.
    let made = said(xtask.current_dir(workspace()).stderr(Stdio::inherit()));
    workspace().join(made.lines().last().expect("it says what it made"))
}

#[test]
fn the_distribution_runs_where_it_is_unpacked() {
    let setup = Setup::new();
    let packed = dist();
    let name = packed.file_name().expect("an archive has a name").to_string_lossy().into_owned();
    // Under a umask that permits the group to write.
    let unpack = if on_windows() { "python3 -m zipfile -e \"$0\" ." } else { "umask 002 && tar -xzf \"$0\"" };
    said(Command::new("sh").args(["-c", unpack]).arg(&packed).current_dir(setup.folder()));
    let folder = setup.folder().join(name.trim_end_matches(".tar.gz").trim_end_matches(".zip"));
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
