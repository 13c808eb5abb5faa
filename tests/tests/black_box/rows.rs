//! The rows of the table of `/k/{key}`: status and first words of each operation. Each starts with an empty store that is
//! limited to 1,000 bytes, and a value to a million. They need a client only, so they also run through a proxy.

use vkog_tests::Client;

/// The plugins of the server.
#[derive(Clone, Copy)]
pub(crate) struct With {
    pub(crate) bytes: bool,
    pub(crate) conflict: bool,
}

/// A row.
pub(crate) type Row = fn(&Client, With);

pub(crate) const ALL: [(&str, Row); 13] = [
    ("get_of_a_present_key_is_its_value_byte_for_byte", get_of_a_present_key_is_its_value_byte_for_byte),
    ("get_of_an_absent_key_is_404", get_of_an_absent_key_is_404),
    ("post_of_an_absent_key_creates_it", post_of_an_absent_key_creates_it),
    (
        "post_of_a_present_key_is_409_with_conflict_and_writes_without",
        post_of_a_present_key_is_409_with_conflict_and_writes_without,
    ),
    ("put_of_a_present_key_updates_it", put_of_a_present_key_updates_it),
    (
        "put_of_an_absent_key_is_404_with_conflict_and_writes_without",
        put_of_an_absent_key_is_404_with_conflict_and_writes_without,
    ),
    ("an_empty_body_is_400_and_writes_nothing", an_empty_body_is_400_and_writes_nothing),
    (
        "a_write_over_the_limit_is_413_with_bytes_and_writes_without",
        a_write_over_the_limit_is_413_with_bytes_and_writes_without,
    ),
    ("delete_of_a_present_key_removes_it", delete_of_a_present_key_removes_it),
    ("delete_of_an_absent_key_is_404", delete_of_an_absent_key_is_404),
    ("any_method_without_a_key_is_400", any_method_without_a_key_is_400),
    ("another_method_is_405_with_the_allowed_methods", another_method_is_405_with_the_allowed_methods),
    ("another_path_is_404_with_the_right_one", another_path_is_404_with_the_right_one),
];

pub(crate) fn get_of_a_present_key_is_its_value_byte_for_byte(server: &Client, _: With) {
    let value: Vec<u8> = (0..=255).collect();
    server.post("k", &value).expect(200);
    server.get("k").expect(200).is(value);
}

pub(crate) fn get_of_an_absent_key_is_404(server: &Client, _: With) {
    server.get("k").refused(404, "Not Found");
}

pub(crate) fn post_of_an_absent_key_creates_it(server: &Client, _: With) {
    server.post("k", "v").expect(200).begins("Ok");
    server.get("k").expect(200).is("v");
}

pub(crate) fn post_of_a_present_key_is_409_with_conflict_and_writes_without(server: &Client, with: With) {
    server.post("k", "v1").expect(200);
    let second = server.post("k", "v2");
    if with.conflict {
        second.refused(409, "Key already exists").has("Vkog-Plugin", "conflict");
        server.get("k").expect(200).is("v1");
    } else {
        second.expect(200).begins("Ok");
        server.get("k").expect(200).is("v2");
    }
}

pub(crate) fn put_of_a_present_key_updates_it(server: &Client, _: With) {
    server.post("k", "v1").expect(200);
    server.put("k", "v2").expect(200).begins("Ok");
    server.get("k").expect(200).is("v2");
}

pub(crate) fn put_of_an_absent_key_is_404_with_conflict_and_writes_without(server: &Client, with: With) {
    let put = server.put("k", "v");
    if with.conflict {
        put.refused(404, "Key does not exist").has("Vkog-Plugin", "conflict");
        server.get("k").refused(404, "Not Found");
    } else {
        put.expect(200).begins("Ok");
        server.get("k").expect(200).is("v");
    }
}

pub(crate) fn an_empty_body_is_400_and_writes_nothing(server: &Client, _: With) {
    server.post("k", "v").expect(200);
    for key in ["k", "absent"] {
        server.post(key, "").refused(400, "No content provided");
        server.put(key, "").refused(400, "No content provided");
    }
    server.get("k").expect(200).is("v");
    server.get("absent").refused(404, "Not Found");
}

pub(crate) fn a_write_over_the_limit_is_413_with_bytes_and_writes_without(server: &Client, with: With) {
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
}

pub(crate) fn delete_of_a_present_key_removes_it(server: &Client, _: With) {
    server.post("k", "v").expect(200);
    server.delete("k").expect(200).begins("Ok");
    server.get("k").refused(404, "Not Found");
}

pub(crate) fn delete_of_an_absent_key_is_404(server: &Client, _: With) {
    server.delete("k").refused(404, "Not Found");
}

pub(crate) fn any_method_without_a_key_is_400(server: &Client, _: With) {
    for (method, body) in [("GET", ""), ("POST", "v"), ("PUT", "v"), ("PATCH", ""), ("DELETE", "")] {
        for path in ["/k/", "/k/?query"] {
            let request = server.path(method, path);
            let request = if body.is_empty() { request } else { request.body(body) };
            request.send().refused(400, "Key cannot be empty");
        }
    }
}

pub(crate) fn another_method_is_405_with_the_allowed_methods(server: &Client, _: With) {
    server.post("k", "v").expect(200);
    for method in ["PROPFIND", "BREW"] {
        let reply = server.key(method, "k").body("x").send().refused(405, "Method not allowed");
        let allow = reply.header("Allow").unwrap_or_else(|| panic!("no Allow in {reply}"));
        for allowed in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            assert!(allow.split(',').any(|method| method.trim() == allowed), "no {allowed} in Allow of {reply}");
        }
    }
    server.get("k").expect(200).is("v");
}

pub(crate) fn another_path_is_404_with_the_right_one(server: &Client, _: With) {
    for path in ["/other", "/key/k", "/kk", "/K/k"] {
        server.path("GET", path).send().refused(404, "Invalid path. Use /k/<keyname>");
        server.path("POST", path).body("v").send().refused(404, "Invalid path. Use /k/<keyname>");
    }
}
