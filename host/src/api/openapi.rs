//! `/openapi.json`: the interface as OpenAPI 3.1. The router takes the methods of each path from it, so the server serves only
//! what it describes. The routes of plugins are added to it.

use std::collections::BTreeMap;

use bytes::Bytes;
use clap::ValueEnum as _;
use once_cell::sync::OnceCell;
use serde_json::{Value, json};
use thiserror::Error;

use super::routes;
use super::shared::CONSISTENCY;
use crate::config::Reads;
use crate::http::{Method, Response};
use vkog_plugin_host::{Chain, Route};

const DOCUMENT: &str = include_str!("openapi.json");

/// Their names in the document, in the order of `Allow`.
const METHODS: [(Method, &str); 7] = [
    (Method::Get, "get"),
    (Method::Head, "head"),
    (Method::Post, "post"),
    (Method::Put, "put"),
    (Method::Patch, "patch"),
    (Method::Delete, "delete"),
    (Method::Options, "options"),
];

/// Why the interface is not known.
#[derive(Debug, Error)]
pub(super) enum DocumentError {
    #[error("openapi.json is not valid: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("openapi.json does not describe {ENTRY}")]
    NoEntryPath,
}

/// The methods of a path.
pub(super) struct Methods {
    methods: Vec<Method>,
    /// The value of the header field `Allow`.
    pub(super) allow: String,
}

impl Methods {
    /// Returns the methods of a path, or `None` if the document does not describe the path.
    ///
    /// # Errors
    ///
    /// The document cannot be parsed.
    pub(super) fn of(path: &str) -> Result<Option<&'static Self>, DocumentError> {
        static PATHS: OnceCell<Paths> = OnceCell::new();
        let Paths { entry, others } = PATHS.get_or_try_init(|| Paths::parse(DOCUMENT))?;
        Ok(if path.starts_with("/k/") { Some(entry) } else { others.get(path) })
    }

    pub(super) fn include(&self, method: Method) -> bool {
        self.methods.contains(&method)
    }
}

/// The path of an entry in the document.
const ENTRY: &str = "/k/{key}";

/// The paths that the document describes.
struct Paths {
    entry: Methods,
    others: BTreeMap<String, Methods>,
}

impl Paths {
    fn parse(document: &str) -> Result<Self, DocumentError> {
        let document: Value = serde_json::from_str(document)?;
        let paths = document["paths"].as_object().into_iter().flatten();
        let methods = |item: &Value| {
            let all = METHODS.iter().filter(|(_, name)| item.get(name).is_some());
            let allow = all.clone().map(|(_, name)| name.to_uppercase()).collect::<Vec<_>>().join(", ");
            Methods { methods: all.map(|(method, _)| *method).collect(), allow }
        };
        let mut others: BTreeMap<_, _> = paths.map(|(path, item)| (path.clone(), methods(item))).collect();
        let entry = others.remove(ENTRY).ok_or(DocumentError::NoEntryPath)?;
        Ok(Self { entry, others })
    }
}

/// The response with the document: as the store needs it, and with the routes of the plugins in a chain.
pub(super) fn document(chain: &Chain, is_shared: bool) -> Response {
    let is_unchanged = !is_shared && chain.members().iter().all(|member| member.routes().is_empty());
    let body = match is_unchanged {
        true => Bytes::from_static(DOCUMENT.as_bytes()),
        false => match serde_json::from_str(DOCUMENT) {
            Ok(document) => {
                let document = if is_shared { for_shared_store(document) } else { document };
                with_routes(document, chain).to_string().into()
            }
            Err(error) => {
                tracing::error!("{}", DocumentError::from(error));
                return Response::internal_error();
            }
        },
    };
    Response::new(200, body).with_header("Content-Type", "application/json").with_cache_control("no-cache")
}

/// Describes what differs on a shared store: it refuses other values of `Vkog-Consistency`, and has no exports since a revision.
fn for_shared_store(mut document: Value) -> Value {
    let parameters = &mut document["components"]["parameters"];
    let values = Reads::value_variants().iter().filter_map(Reads::to_possible_value);
    parameters[CONSISTENCY]["schema"]["enum"] = values.map(|value| value.get_name().to_owned()).collect();
    if let Some(parameters) = parameters.as_object_mut() {
        parameters.remove("since-revision");
    }
    for method in ["get", "head"] {
        if let Some(parameters) = document["paths"]["/export"][method]["parameters"].as_array_mut() {
            parameters.retain(|parameter| parameter["$ref"] != "#/components/parameters/since-revision");
        }
    }
    document
}

fn with_routes(mut document: Value, chain: &Chain) -> Value {
    for member in chain.members() {
        for route in member.routes() {
            let path = format!("{}{}{}", routes::PREFIX, member.name(), route.path.replace("{*", "{"));
            let item = &mut document["paths"][path];
            item[route.method.to_lowercase()] = operation(member.name(), route);
            if route.method == "GET" {
                item["head"] = operation(member.name(), &Route { summary: "As GET, without the body", ..*route });
            }
            let reference = |name: &str| json!({ "$ref": format!("#/components/responses/{name}") });
            item["options"] = json!({
                "responses": { "204": reference("Allow"), "400": reference("BadRequest"), "503": reference("Starting") },
            });
            item["parameters"] = parameters(route.path);
        }
    }
    document
}

fn parameters(path: &str) -> Value {
    let names = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| {
        let rest = name.strip_prefix('*');
        let description =
            if rest.is_some() { "The rest of the path, with its slashes" } else { "A segment of the path" };
        let name = rest.unwrap_or(name);
        json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": "string" } })
    };
    names.map(parameter).collect()
}

/// Describes a route.
fn operation(plugin: &str, route: &Route) -> Value {
    let mut responses = json!({
        "default": { "description": "The response of the plugin" },
        "504": { "description": "The plugin did not respond in time" },
    });
    for (status, name) in [
        ("400", "BadRequest"),
        ("401", "Unauthorized"),
        ("403", "Forbidden"),
        ("408", "TooSlow"),
        ("413", "TooLarge"),
        ("421", "Misdirected"),
        ("500", "Failed"),
        ("501", "NotImplemented"),
        ("503", "Starting"),
    ] {
        responses[status] = json!({ "$ref": format!("#/components/responses/{name}") });
    }
    let mut operation = json!({ "tags": [plugin], "summary": route.summary, "responses": responses });
    if matches!(route.method, "POST" | "PUT" | "PATCH") {
        operation["requestBody"] = json!({ "content": { "*/*": { "schema": {} } } });
    }
    operation
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_document_is_valid_and_has_the_version_of_the_server() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("it is JSON");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let allow = |path: &str| Methods::of(path).expect("it is valid").map(|methods| &*methods.allow);
        assert_eq!(allow("/k/{key}"), Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        assert_eq!(allow("/plugins/reload"), Some("POST, OPTIONS"));
        assert_eq!(allow("/plugins/"), None);
    }

    #[test]
    fn the_document_of_a_shared_store_has_no_export_since_a_revision() {
        let document = for_shared_store(serde_json::from_str(DOCUMENT).expect("it is JSON"));
        assert!(!document.to_string().contains("since-revision"), "a use or the definition is left");
        let consistency = json!([{ "$ref": "#/components/parameters/Vkog-Consistency" }]);
        assert_eq!(document["paths"]["/export"]["get"]["parameters"], consistency);
        assert_eq!(
            document["components"]["parameters"]["Vkog-Consistency"]["schema"]["enum"].as_array().map(Vec::len),
            Some(2)
        );
    }

    #[test]
    fn a_client_certificate_is_accepted_wherever_a_token_is() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("it is JSON");
        let items = document["paths"].as_object().expect("paths").values().flat_map(|item| item.as_object());
        let operations = items.flat_map(|item| item.values()).filter_map(|operation| operation.get("security"));
        let [token, certificate] = [json!({"bearer": []}), json!({"certificate": []})];
        let mut with_token = 0;
        for security in operations.chain([&document["security"]]) {
            let all = security.as_array().expect("a list");
            assert_eq!(all.contains(&token), all.contains(&certificate), "{security}");
            with_token += usize::from(all.contains(&token));
        }
        assert!(with_token > 3, "{with_token}");
        assert_eq!(document["components"]["securitySchemes"]["certificate"]["type"], "mutualTLS");
    }

    #[test]
    fn an_invalid_document_is_an_error() {
        assert!(matches!(Paths::parse("{"), Err(DocumentError::Malformed(_))));
        assert!(matches!(Paths::parse("{\"paths\":{\"/keys\":{}}}"), Err(DocumentError::NoEntryPath)));
    }
}
