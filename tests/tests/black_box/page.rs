//! The web UI at `/` loads nothing from other servers, and runs only its own script.
//!
//! Provoked by reading it as a browser would: its headers, the hashes of its policy, and the paths that it requests.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use vkog_tests::{Reply, Setup, description};

/// Reads the page from a server that requires a token for everything else.
fn page() -> Reply {
    let setup = Setup::new().config("[[access.tokens]]\nname = \"a\"\ntoken = \"s3cret\"\nright = \"read\"\n");
    setup.start().path("GET", "/").send().expect(200)
}

/// Returns each text between two markers.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Vec<&'t str> {
    text.split(before).skip(1).map(|rest| rest.split(after).next().expect("there is a first")).collect()
}

#[test]
fn the_page_is_public_and_runs_only_its_own_script() {
    let page = page().has("Content-Type", "text/html; charset=utf-8").has("X-Content-Type-Options", "nosniff");
    let (policy, text) = (page.header("Content-Security-Policy").unwrap_or_default(), page.text());
    for element in ["script", "style"] {
        let [content] = between(&text, &format!("<{element}>"), &format!("</{element}>"))[..] else {
            panic!("not one {element} in the page")
        };
        let hash = STANDARD.encode(Sha256::digest(content));
        assert!(policy.contains(&format!("{element}-src 'sha256-{hash}'")), "{policy}");
    }
    for rule in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(rule), "{rule} in {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
}

#[test]
fn the_page_requests_only_routes_of_its_server_and_inserts_no_text_as_markup() {
    let text = page().text();
    let [script] = between(&text, "<script>", "</script>")[..] else { panic!("not one script in the page") };
    // Every path is a constant, and relative to the page, which a proxy may serve under a prefix.
    let [constants] = between(script, "const ENTRY", ";")[..] else { panic!("not one list of paths in the page") };
    let named: BTreeSet<_> = between(constants, "= \"", "\"").into_iter().collect();
    assert!(named.len() >= 5, "{named:?}");
    for path in named {
        let described = if path == "k/" { "/k/{key}".to_owned() } else { format!("/{path}") };
        assert!(description()["paths"].get(described).is_some(), "{path} is no route");
    }
    assert!(!script.contains("\"/k") && !script.contains("`/"), "an absolute path in the page");
    assert_eq!(
        (script.matches("fetch(").count(), script.matches("EventSource(").count()),
        (1, 1),
        "one place each asks"
    );
    for word in ["://", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("] {
        assert!(!text.contains(word), "{word} in the page");
    }
    assert!(!text.contains(" src=") && between(&text, "href=\"", "\"") == ["data:,"], "the page loads something");
}
