//! `/openapi.json` and the server agree: what is described is served, and what is served is described, with its
//! statuses.
//!
//! Provoked with every method of every described path; with schemathesis, which generates requests from the document,
//! where it is installed; and by every other test that uses `Client`, which looks up each status.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use vkog_tests::{ENGINES, Server, Setup, TOKEN, administered, bytes, conflict, description, on_etcd, ttl, workspace};

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Hooks of schemathesis that drop requests with header fields that are not ASCII.
const ASCII_ONLY: &str = "
import schemathesis

@schemathesis.hook
def filter_headers(context, headers):
    return all(str(value).isascii() for value in (headers or {}).values())
";

fn on_both_engines(check: impl Fn(&Server, &str)) {
    for engine in ENGINES {
        eprintln!("on {engine}");
        let setup = Setup::new().config(administered("")).args(["--http", engine, "--fsync", "never"]);
        check(&setup.load(bytes()).load(conflict()).load(ttl()).start(), engine);
    }
}

#[test]
fn every_path_accepts_exactly_the_described_methods() {
    on_both_engines(|server, _| {
        for (path, item) in description()["paths"].as_object().expect("paths") {
            let described = |method: &&str| item.get(method.to_lowercase()).is_some();
            let allow = METHODS.into_iter().filter(described).collect::<Vec<_>>().join(", ");
            for method in METHODS {
                // A watch has no end, so it starts at a revision that is refused at once.
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
fn the_openapi_document_is_public() {
    let server = Setup::new().config("[[access.tokens]]\nname = \"a\"\ntoken = \"s3cret\"\nright = \"read\"\n").start();
    server.get("k").expect(401);
    let reply = server.path("GET", "/openapi.json").send().expect(200).has("Content-Type", "application/json");
    let served: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    let mut described = description().clone();
    if on_etcd() {
        // A shared store has no exports since a revision, and checks this field.
        let parameters = &mut described["components"]["parameters"];
        parameters["Vkog-Consistency"]["schema"]["enum"] = json!(["linearizable", "local"]);
        parameters.as_object_mut().expect("parameters").remove("since-revision");
        for method in ["get", "head"] {
            described["paths"]["/export"][method]["parameters"] =
                json!([{ "$ref": "#/components/parameters/Vkog-Consistency" }]);
        }
    }
    assert!(served == described, "{reply}");
}

#[test]
fn schemathesis_finds_nothing_on_either_engine() {
    if Command::new("schemathesis").arg("--version").stdout(Stdio::null()).status().is_err() {
        return eprintln!("skipped: schemathesis is not installed (pip install schemathesis)");
    }
    on_both_engines(|server, engine| {
        // Without a timeout, because schemathesis has its own.
        // It writes files into its current directory.
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // For a header field that has only a pattern, it sends "0". These two alternatives mean the same.
        let served = server.path("GET", "/openapi.json").send().expect(200);
        let mut document: Value = serde_json::from_slice(&served.body).expect("it is JSON");
        let tags = r#"(?!"\*"$)(W/)?"[!#-~]*"(, (W/)?"[!#-~]*")*"#;
        let schema = &mut document["components"]["schemas"]["EntityTags"];
        assert_eq!(*schema, json!({ "type": "string", "pattern": format!(r"^(\*|{tags})$") }));
        *schema = json!({ "anyOf": [
            { "type": "string", "const": "*" },
            { "type": "string", "pattern": format!("^{tags}$") },
        ] });
        std::fs::write(folder.path().join("openapi.json"), document.to_string()).expect("it can be written");
        let mut config = std::fs::read_to_string(workspace().join("tests/schemathesis.toml")).expect("it can be read");
        if engine == "tiny" {
            // tiny_http ends a connection without a response if a head is not ASCII. Line ends are left out by default.
            let excluded = String::from_iter('\u{80}'..='\u{ff}');
            let generation = format!("[generation]\nexclude-header-characters = \"\\r\\n{excluded}\"\n");
            config = format!("hooks = \"hooks.py\"\n{}", config.replace("[generation]\n", &generation));
            // For some fields, it leaves that setting out of account.
            std::fs::write(folder.path().join("hooks.py"), ASCII_ONLY).expect("it can be written");
        }
        std::fs::write(folder.path().join("schemathesis.toml"), config).expect("it can be written");
        let mut command = Command::new("schemathesis");
        command.current_dir(folder.path()).args(["--config-file", "schemathesis.toml"]);
        command.args(["run", "openapi.json", "--url", &format!("http://{}", server.address())]);
        let output =
            command.args(["--header", &format!("Authorization: Bearer {TOKEN}")]).output().expect("it ran just now");
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{report}\n--- server log\n{}", server.log());
        eprintln!("{report}");
    });
}
