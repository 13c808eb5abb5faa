//! A request as an engine hands it on: a line with method and target, lines with header fields, an empty line, the body.

use vkog::http::{Headers, Method};

use crate::server;

/// Sends the request, and then reads the entry.
pub fn check(data: &[u8]) {
    let (head, body) = match data.windows(2).position(|two| two == b"\n\n") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, &b""[..]),
    };
    // An engine lets no others pass.
    let Ok(head) = str::from_utf8(head) else { return };
    let mut lines = head.split('\n');
    let Some((method, target)) = lines.next().and_then(|line| line.split_once(' ')) else { return };
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    };
    let mut headers = Headers::default();
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else { continue };
        headers.push(name, value.as_bytes());
    }
    server::with(|api| {
        let reply = server::ask(api, method, target, headers, body);
        server::check(&reply);
        let is_entry = target.starts_with("/k/");
        if is_entry && reply.status == 200 && matches!(method, Method::Post | Method::Put) {
            let found = server::ask(api, Method::Get, target, Headers::default(), b"");
            assert_eq!((found.status, found.body.as_ref()), (200, body), "the stored entry of {target}");
            server::check(&found);
        }
        if is_entry && reply.status == 200 && method == Method::Delete {
            assert_eq!(server::ask(api, Method::Get, target, Headers::default(), b"").status, 404, "{target}");
        }
    });
}
