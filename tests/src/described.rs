//! The interface as `/openapi.json` describes it. Every response that a test receives is compared with it.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::artefacts::workspace;
use crate::client::Reply;

/// The document, from the source file that the server embeds.
pub fn description() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let text = std::fs::read_to_string(workspace().join("host/src/api/openapi.json"));
        serde_json::from_str(&text.expect("the server has the document")).expect("the document is JSON")
    });
    &DOCUMENT
}

/// The methods and parameters of a path, and how the document calls it.
fn item(path: &str) -> Option<&'static Map<String, Value>> {
    let path = path.split('?').next().unwrap_or_default();
    description()["paths"][if path.starts_with("/k/") { "/k/{key}" } else { path }].as_object()
}

/// Asserts that the status is one that the document has for this method and path. Plugins may refuse with any.
#[track_caller]
pub(crate) fn check(method: &str, path: &str, reply: &Reply) {
    // A plugin describes its routes on its own.
    if path.starts_with("/x/") {
        return;
    }
    let Some(item) = item(path) else {
        assert!(reply.status == 404, "{path} is served and not described in /openapi.json: {reply}");
        return;
    };
    let Some(operation) = item.get(&method.to_lowercase()) else {
        assert!(reply.status == 405, "{method} of {path} is served and not described in /openapi.json: {reply}");
        return;
    };
    let described = operation["responses"].get(reply.status.to_string()).is_some();
    assert!(described || reply.header("Vkog-Plugin").is_some(), "not a status of /openapi.json: {reply}");
}
