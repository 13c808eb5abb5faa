//! A batch: a byte that says whether it is JSON or MessagePack, and the body.

use vkog::http::{Headers, Method};

use crate::server;

/// Sends the batch. A rejected batch changes nothing.
pub fn check(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let format = if kind % 2 == 0 { "application/json" } else { "application/msgpack" };
    server::with(|api| {
        let listing = || {
            // Every key with its revision: what there is, and whether it changed.
            let reply = server::ask(api, Method::Get, "/keys", Headers::default(), b"");
            reply.body.as_ref().to_vec()
        };
        let before = listing();
        let mut headers = Headers::default();
        headers.push("Content-Type", format.as_bytes());
        let reply = server::ask(api, Method::Post, "/batch", headers, body);
        server::check(&reply);
        if reply.status != 200 {
            assert!(listing() == before, "{} changed something", reply.status);
        }
    });
}
