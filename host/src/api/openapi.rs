//! `/openapi.json`: the interface as OpenAPI 3.1. What it does not describe is not served: the methods of each path are taken
//! from there.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::http::{Method, Response};

const DOCUMENT: &str = include_str!("openapi.json");

/// Their names in the document, in the order of `Allow`.
const METHODS: [(Method, &str); 6] = [
    (Method::Get, "get"),
    (Method::Head, "head"),
    (Method::Post, "post"),
    (Method::Put, "put"),
    (Method::Delete, "delete"),
    (Method::Options, "options"),
];

/// The methods of a path.
pub(super) struct Methods {
    methods: Vec<Method>,
    /// The same as `Allow` has it.
    pub(super) allow: String,
}

impl Methods {
    /// Those that the document describes, if it describes the path at all.
    pub(super) fn of(path: &str) -> Option<&'static Self> {
        static PATHS: LazyLock<BTreeMap<String, Methods>> = LazyLock::new(described);
        static ENTRY: LazyLock<Option<&Methods>> = LazyLock::new(|| PATHS.get("/k/{key}"));
        if path.starts_with("/k/") { *ENTRY } else { PATHS.get(path) }
    }

    pub(super) fn include(&self, method: Method) -> bool {
        self.methods.contains(&method)
    }
}

fn described() -> BTreeMap<String, Methods> {
    let document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    let paths = document["paths"].as_object().into_iter().flatten();
    let methods = |item: &Value| {
        let all = METHODS.iter().filter(|(_, name)| item.get(name).is_some());
        let allow = all.clone().map(|(_, name)| name.to_uppercase()).collect::<Vec<_>>().join(", ");
        Methods { methods: all.map(|(method, _)| *method).collect(), allow }
    };
    paths.map(|(path, item)| (path.clone(), methods(item))).collect()
}

/// The document.
pub(super) fn document() -> Response {
    Response::new(200, DOCUMENT.as_bytes()).with_header("Content-Type", "application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_one_and_of_this_version() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("it is JSON");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(
            Methods::of("/k/{key}").map(|methods| &*methods.allow),
            Some("GET, HEAD, POST, PUT, DELETE, OPTIONS")
        );
        assert_eq!(Methods::of("/plugins/reload").map(|methods| &*methods.allow), Some("POST, OPTIONS"));
        assert!(Methods::of("/plugins/").is_none());
    }
}
