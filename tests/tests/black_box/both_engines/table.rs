//! Every row of the table of `/k/{key}`: status and first words, with any set of plugins.
//!
//! Provoked over the network against four servers for each row: with bytes and conflict, with neither, and with each
//! alone. Rows that depend on a plugin differ by it; all others must not.

use vkog_tests::{Server, Setup, bytes, conflict};

use super::ENGINE;

/// A server and its plugins.
struct With {
    server: Server,
    bytes: bool,
    conflict: bool,
}

/// Starts a server with each set of plugins, the store limited to 1,000 bytes and a value to a million, and checks one row.
fn with_every_set(check: impl Fn(&Server, &With)) {
    for (with_bytes, with_conflict) in [(true, true), (false, false), (true, false), (false, true)] {
        let mut setup = Setup::on(ENGINE).args(["--max-size", "1000", "--max-value", "1000000"]);
        if with_bytes {
            setup = setup.load(bytes());
        }
        if with_conflict {
            setup = setup.load(conflict());
        }
        eprintln!("with bytes: {with_bytes}, with conflict: {with_conflict}");
        let with = With { server: setup.start(), bytes: with_bytes, conflict: with_conflict };
        check(&with.server, &with);
    }
}

#[test]
fn get_of_a_present_key_is_its_value_byte_for_byte() {
    with_every_set(|server, _| {
        let value: Vec<u8> = (0..=255).collect();
        server.post("k", &value).expect(200);
        server.get("k").expect(200).is(value);
    });
}

#[test]
fn get_of_an_absent_key_is_404() {
    with_every_set(|server, _| {
        server.get("k").refused(404, "Not Found");
    });
}

#[test]
fn post_of_an_absent_key_creates_it() {
    with_every_set(|server, _| {
        server.post("k", "v").expect(200).begins("Ok");
        server.get("k").expect(200).is("v");
    });
}

#[test]
fn post_of_a_present_key_is_409_with_conflict_and_writes_without() {
    with_every_set(|server, with| {
        server.post("k", "v1").expect(200);
        let second = server.post("k", "v2");
        if with.conflict {
            second.refused(409, "Key already exists").has("Vkog-Plugin", "conflict");
            server.get("k").expect(200).is("v1");
        } else {
            second.expect(200).begins("Ok");
            server.get("k").expect(200).is("v2");
        }
    });
}

#[test]
fn put_of_a_present_key_updates_it() {
    with_every_set(|server, _| {
        server.post("k", "v1").expect(200);
        server.put("k", "v2").expect(200).begins("Ok");
        server.get("k").expect(200).is("v2");
    });
}

#[test]
fn put_of_an_absent_key_is_404_with_conflict_and_writes_without() {
    with_every_set(|server, with| {
        let put = server.put("k", "v");
        if with.conflict {
            put.refused(404, "Key does not exist").has("Vkog-Plugin", "conflict");
            server.get("k").refused(404, "Not Found");
        } else {
            put.expect(200).begins("Ok");
            server.get("k").expect(200).is("v");
        }
    });
}

#[test]
fn an_empty_body_is_400_and_writes_nothing() {
    with_every_set(|server, _| {
        server.post("k", "v").expect(200);
        for key in ["k", "absent"] {
            server.post(key, "").refused(400, "No content provided");
            server.put(key, "").refused(400, "No content provided");
        }
        server.get("k").expect(200).is("v");
        server.get("absent").refused(404, "Not Found");
    });
}

#[test]
fn a_write_over_the_limit_is_413_with_bytes_and_writes_without() {
    with_every_set(|server, with| {
        server.post("k", "v").expect(200);
        for write in [server.post("photo", [b'x'; 1000]), server.put("k", [b'x'; 1001])] {
            if with.bytes {
                write.refused(413, "Max size exceeded").has("Vkog-Plugin", "bytes");
            } else {
                write.expect(200).begins("Ok");
            }
        }
        let (photo, k) = (server.get("photo"), server.get("k"));
        if with.bytes {
            photo.refused(404, "Not Found");
            k.expect(200).is("v");
        } else {
            photo.expect(200).is([b'x'; 1000]);
            k.expect(200).is([b'x'; 1001]);
        }
    });
}

#[test]
fn delete_of_a_present_key_removes_it() {
    with_every_set(|server, _| {
        server.post("k", "v").expect(200);
        server.delete("k").expect(200).begins("Ok");
        server.get("k").refused(404, "Not Found");
    });
}

#[test]
fn delete_of_an_absent_key_is_404() {
    with_every_set(|server, _| {
        server.delete("k").refused(404, "Not Found");
    });
}

#[test]
fn any_method_without_a_key_is_400() {
    with_every_set(|server, _| {
        for (method, body) in [("GET", ""), ("POST", "v"), ("PUT", "v"), ("DELETE", "")] {
            for path in ["/k/", "/k/?query"] {
                let request = server.path(method, path);
                let request = if body.is_empty() { request } else { request.body(body) };
                request.send().refused(400, "Key cannot be empty");
            }
        }
    });
}

#[test]
fn another_method_is_405_with_the_allowed_methods() {
    with_every_set(|server, _| {
        server.post("k", "v").expect(200);
        for method in ["PATCH", "BREW"] {
            let reply = server.key(method, "k").body("x").send().refused(405, "Method not allowed");
            let allow = reply.header("Allow").unwrap_or_else(|| panic!("no Allow in {reply}"));
            for allowed in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
                assert!(allow.split(',').any(|method| method.trim() == allowed), "no {allowed} in Allow of {reply}");
            }
        }
        server.get("k").expect(200).is("v");
    });
}

#[test]
fn another_path_is_404_with_the_right_one() {
    with_every_set(|server, _| {
        for path in ["/other", "/key/k", "/kk", "/K/k"] {
            server.path("GET", path).send().refused(404, "Invalid path. Use /k/<keyname>");
            server.path("POST", path).body("v").send().refused(404, "Invalid path. Use /k/<keyname>");
        }
    });
}
