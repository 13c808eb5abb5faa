//! Clients that generators make from `/openapi.json` work: what they send is accepted, and what comes back has their types.
//!
//! Provoked with openapi-python-client and openapi-typescript, where they are installed, which read the document from a server;
//! the programs in `tests/clients` then call the generated code.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use vkog_tests::{Setup, workspace};

/// Whether a program can be run.
fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ends with {}\n{out}\n{err}", output.status);
    output
}

fn program(name: &str) -> std::path::PathBuf {
    workspace().join("tests/clients").join(name)
}

#[test]
fn a_generated_python_client_reads_writes_lists_and_batches() {
    if !has("openapi-python-client") {
        return println!("skipped: openapi-python-client is not installed (pip install openapi-python-client)");
    }
    let (server, folder) = (Setup::new().start(), tempfile::tempdir().expect("a temporary folder can be made"));
    let url = format!("http://{}", server.address());
    let mut generator = Command::new("openapi-python-client");
    generator.current_dir(folder.path()).args(["generate", "--meta", "none", "--output-path", "vkog_client", "--url"]);
    let output = run(generator.arg(format!("{url}/openapi.json")));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!said.contains("WARNING") && !said.contains("ERROR"), "the generator leaves something out: {said}");
    let output =
        run(Command::new("python3").arg(program("client.py")).args([&*url, &*folder.path().to_string_lossy()]));
    assert!(output.stdout.ends_with(b"done\n"), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn generated_typescript_types_fit_what_the_server_does() {
    if !has("openapi-typescript") || !has("tsc") || !has("node") {
        return println!("skipped: npm install --global openapi-typescript openapi-fetch typescript@5");
    }
    let (server, folder) = (Setup::new().start(), tempfile::tempdir().expect("a temporary folder can be made"));
    let at = |name: &str| folder.path().join(name);
    let url = format!("http://{}", server.address());
    let modules = run(Command::new("npm").args(["root", "--global"])).stdout;
    link(Path::new(String::from_utf8_lossy(&modules).trim()), &at("node_modules"));
    std::fs::copy(program("client.ts"), at("client.ts")).expect("the client can be copied");
    std::fs::write(at("package.json"), r#"{ "type": "module" }"#).expect("a file can be written");
    let inside = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(folder.path());
        command
    };
    run(inside("openapi-typescript").args([&format!("{url}/openapi.json"), "--output", "vkog.ts"]));
    run(inside("tsc").args(["--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck", "client.ts"]));
    let output = run(inside("node").args(["client.js", &url]));
    assert!(output.stdout.ends_with(b"done\n"), "{}", String::from_utf8_lossy(&output.stdout));
}

fn link(to: &Path, at: &Path) {
    #[cfg(unix)]
    std::os::unix::fs::symlink(to, at).expect("a link can be made");
    #[cfg(not(unix))]
    let _ = (to, at);
}
