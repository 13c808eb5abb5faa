//! `/`: a page for people. It asks for what it shows as every client does.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::http::Response;

const PAGE: &str = include_str!("page.html");

/// The page. It may run its own script and style alone, ask this server alone, and be shown in no other page.
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
        .with_header("Cache-Control", "no-cache")
}

/// The hash by which a browser knows the only element of this name.
fn hash(element: &str) -> String {
    let (_, from) = PAGE.split_once(&format!("<{element}>")).unwrap_or_default();
    let (content, _) = from.split_once(&format!("</{element}>")).unwrap_or_default();
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}
