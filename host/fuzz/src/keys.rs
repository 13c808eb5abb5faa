//! A key as it stands in a path, and a listing's query: two lines.

use vkog::http::{Headers, Method};

use crate::server;

/// Keeps a value under the key, finds it by its bytes and in a listing, and takes it away.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (key, query) = text.split_once('\n').unwrap_or((text, ""));
    let ask = |api: &_, method, target: &str, body: &[u8]| {
        let reply = server::ask(api, method, target, Headers::default(), body);
        server::check(&reply);
        reply
    };
    server::with(|api| {
        let target = format!("/k/{key}");
        let kept = ask(api, Method::Put, &target, b"value");
        if kept.status == 200 {
            let path = key.split('?').next().unwrap_or_default();
            let key = decoded(path);
            // Every byte encoded is the same key.
            let encoded: String = key.iter().map(|byte| format!("%{byte:02X}")).collect();
            assert_eq!(ask(api, Method::Get, &format!("/k/{encoded}"), b"").body.as_ref(), b"value", "{key:?}");
            let count = ask(api, Method::Get, &format!("/keys?count&prefix={encoded}"), b"");
            assert!(!count.body.as_ref().windows(3).any(|text| text == b": 0"), "a prefix of {key:?} counts itself");
        } else {
            assert!(matches!(kept.status, 400 | 414), "{} for {target:?}", kept.status);
        }
        ask(api, Method::Get, &format!("/keys?{query}"), b"");
        if kept.status == 200 {
            assert_eq!(ask(api, Method::Delete, &target, b"").status, 200);
        }
    });
}

/// Decodes percent-encoded text by other code than the server's.
fn decoded(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let escape = (byte == b'%').then(|| str::from_utf8(&after[..2]).ok()).flatten();
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(escaped) => (bytes.push(escaped), rest = &after[2..]).1,
            None => (bytes.push(byte), rest = after).1,
        }
    }
    bytes
}
