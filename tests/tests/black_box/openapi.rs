//! `/openapi.json` and the server say the same: what is described is served, what is served is described, with the statuses
//! that are described.
//!
//! Provoked with every method of every path that is described; with schemathesis, which makes requests of the document, where
//! it is installed; and by every other test that speaks HTTP through `Client`, which looks up each status that it gets.

use std::process::{Command, Stdio};

use vkog_tests::{ENGINES, Server, Setup, TOKEN, administered, bytes, conflict, description, ttl, workspace};

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];

fn on_both_engines(check: impl Fn(&Server)) {
    for engine in ENGINES {
        eprintln!("on {engine}");
        let setup = Setup::new().config(administered("")).args(["--http", engine, "--fsync", "never"]);
        check(&setup.load(bytes()).load(conflict()).load(ttl()).start());
    }
}

#[test]
fn every_path_has_the_methods_that_are_described_and_no_other() {
    on_both_engines(|server| {
        for (path, item) in description()["paths"].as_object().expect("paths") {
            let described = |method: &&str| item.get(method.to_lowercase()).is_some();
            let allow = METHODS.into_iter().filter(described).collect::<Vec<_>>().join(", ");
            for method in METHODS {
                // What is watched has no end; what is too far ahead is refused at once.
                let path = path.replace("{key}", "k");
                let path = if path == "/watch" { "/watch?since=999999999".to_owned() } else { path };
                let reply = server.path(method, &path).body("v").send();
                assert_eq!(reply.status == 405, !described(&method), "{reply}");
                assert!(!reply.text().starts_with("Invalid path"), "described and not served: {reply}");
                if method == "OPTIONS" || reply.status == 405 {
                    assert_eq!(reply.header("Allow"), Some(&*allow), "{reply}");
                }
            }
        }
    });
}

#[test]
fn the_document_is_served_to_whoever_comes() {
    let server = Setup::new().config("[[access.tokens]]\nname = \"a\"\ntoken = \"s3cret\"\nright = \"read\"\n").start();
    server.get("k").expect(401);
    let reply = server.path("GET", "/openapi.json").send().expect(200).has("Content-Type", "application/json");
    let served: serde_json::Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    assert!(served == *description(), "{reply}");
}

#[test]
fn schemathesis_finds_nothing_on_either_engine() {
    if Command::new("schemathesis").arg("--version").stdout(Stdio::null()).status().is_err() {
        return eprintln!("skipped: schemathesis is not installed (pip install schemathesis)");
    }
    on_both_engines(|server| {
        let document = format!("http://{}/openapi.json", server.address());
        // Without a deadline, as it has one of its own.
        // It keeps files where it runs.
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut command = Command::new("schemathesis");
        command.current_dir(folder.path()).arg("--config-file").arg(workspace().join("tests/schemathesis.toml"));
        command.args(["run", &document]);
        let output =
            command.args(["--header", &format!("Authorization: Bearer {TOKEN}")]).output().expect("it ran just now");
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{report}\n--- server log\n{}", server.log());
        eprintln!("{report}");
    });
}
