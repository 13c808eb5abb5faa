//! `/`: the web UI, a page that uses the HTTP interface like every client.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::http::Response;

const PAGE: &str = include_str!("page.html");

/// The response with the page. Its policy allows only its own script and style, connections to this server, and no frames.
pub(super) fn page() -> Response {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let (script, style) = (hash("script"), hash("style"));
        format!(
            "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data: blob:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
    });
    Response::new(200, PAGE.as_bytes())
        .with_header("Content-Type", "text/html; charset=utf-8")
        .with_header("Content-Security-Policy", POLICY.as_str())
        .with_header("X-Content-Type-Options", "nosniff")
        .with_header("Referrer-Policy", "no-referrer")
        .with_cache_control("no-cache")
}

/// Returns the hash of the only element with this name, for the content security policy.
fn hash(element: &str) -> String {
    let (_, from) = PAGE.split_once(&format!("<{element}>")).unwrap_or_default();
    let (content, _) = from.split_once(&format!("</{element}>")).unwrap_or_default();
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}
