//! A batch succeeds as a whole or has no effect: for plugins, which see each operation as any other; for readers, which
//! see it in one step; and for a crash.
//!
//! Provoked with operations that fail after others that succeed, with unreadable bodies, with clients that transfer
//! between the same keys in different orders, and with kills while batches are written.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use rmpv::Value as Packed;
use serde_json::{Value, json};
use vkog_tests::{
    DEADLINE, Reply, Server, Setup, Wire, amount, artefacts, assert_one_step, assert_successive, bytes, conflict,
    on_etcd, on_windows, pattern, ttl,
};

use super::ENGINE;

const JSON: &str = "application/json";
const MESSAGE_PACK: &str = "application/msgpack";

#[track_caller]
fn send(server: &Server, content_type: &str, body: impl AsRef<[u8]>) -> Reply {
    server.path("POST", "/batch").header("Content-Type", content_type).body(body).send()
}

/// Sends operations as JSON.
#[track_caller]
fn batch(server: &Server, operations: &Value) -> Reply {
    send(server, JSON, operations.to_string())
}

#[track_caller]
fn answer(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("no JSON, {error}: {reply}"))
}

/// Asserts that nothing was written, and the message and the operation of the failure.
#[track_caller]
fn refused(reply: Reply, status: u16, index: usize, key: &str, words: &str) -> Reply {
    let reply = reply.expect(status).has("Content-Type", "application/problem+json");
    let problem = answer(&reply);
    let told = (&problem["status"], &problem["index"], &problem["key"]);
    assert_eq!(told, (&json!(status), &json!(index), &json!(key)), "{reply}");
    assert!(problem["title"].as_str().is_some_and(|title| title.starts_with(words)), "no {words:?} in {reply}");
    reply
}

fn packed(operations: &[&[(&str, Packed)]]) -> Vec<u8> {
    let map = |fields: &&[(&str, Packed)]| {
        Packed::Map(fields.iter().map(|(name, value)| ((*name).into(), value.clone())).collect())
    };
    let mut body = Vec::new();
    let list = Packed::Array(operations.iter().map(map).collect());
    rmpv::encode::write_value(&mut body, &list).expect("a vector takes all");
    body
}

#[track_caller]
fn unpacked(reply: &Reply) -> Packed {
    let mut rest = &reply.body[..];
    let value = rmpv::decode::read_value(&mut rest).unwrap_or_else(|error| panic!("no MessagePack, {error}: {reply}"));
    assert!(rest.is_empty(), "something follows: {reply}");
    value
}

fn field<'a>(map: &'a Packed, name: &str) -> Option<&'a Packed> {
    map.as_map()?.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

#[test]
fn a_condition_may_be_the_text_of_an_etag_header() {
    let server = Setup::on(ENGINE).start();
    let tag = |key: &str| server.get(key).expect(200).header("ETag").map(str::to_owned).expect("it has one");
    for key in ["a", "b"] {
        server.put(key, "1").expect(200);
    }
    let put = |key: &str, value: &str, condition: Value| {
        batch(&server, &json!([{ "op": "put", "key": key, "value": value, "if_match": condition }]))
    };
    put("a", "2", json!(tag("a"))).expect(200);
    put("a", "3", json!(["\"7\"", tag("a"), 9])).expect(200);
    put("a", "4", json!(tag("b"))).expect(412);
    server.get("a").expect(200).is("3");
    let fields = [("op", "put".into()), ("key", "b".into()), ("value", "2".into()), ("if_match", tag("b").into())];
    send(&server, MESSAGE_PACK, packed(&[&fields])).expect(200);
    // Quotation marks make the difference between a tag and a mistake.
    let (revision, weak) = (tag("a").trim_matches('"').to_owned(), format!("W/{}", tag("a")));
    for wrong in [json!(revision), json!(weak), json!("\"\""), json!("\"07\""), json!(["*"])] {
        put("a", "5", wrong).expect(400).says("entity tag");
    }
    server.get("a").expect(200).is("3");
}

#[test]
fn each_operation_has_its_result_in_order_and_in_the_format_of_the_request() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    let first = server.post("there", "before").expect(200).revision();
    let operations = json!([
        { "op": "post", "key": "é/1", "value": "ü", "content_type": "text/plain" },
        { "op": "put", "key": "there", "base64": "/wD/" },
        { "op": "get", "key": "é/1" },
        { "op": "get", "key": "there" },
        { "op": "get", "key": "absent" },
        { "op": "delete", "key": "é/1" },
    ]);
    let reply = batch(&server, &operations).expect(200).has("Content-Type", JSON);
    let revisions = [0, 1, 5].map(|index| reply.revision_at(index));
    assert_one_step(first, &revisions);
    let [posted, put, deleted] = revisions;
    let expected = json!([
        { "status": 200, "revision": posted },
        { "status": 200, "revision": put },
        { "status": 200, "revision": posted, "content_type": "text/plain", "value": "ü" },
        { "status": 200, "revision": put, "content_type": "application/octet-stream", "base64": "/wD/" },
        { "status": 404 },
        { "status": 200, "revision": deleted },
    ]);
    assert_eq!(answer(&reply), expected, "{reply}");
    server.get("é/1").expect(404);
    server.get("there").expect(200).is([0xff, 0, 0xff]).has("ETag", &format!("\"{put}\""));

    for content_type in [MESSAGE_PACK, "application/x-msgpack", "Application/vnd.msgpack; v=5"] {
        let body = packed(&[
            &[("op", "put".into()), ("key", "there".into()), ("value", Packed::Binary(vec![0xfe, 0]))],
            &[("op", "get".into()), ("key", "there".into())],
            &[("op", "put".into()), ("key", "there".into()), ("value", "text".into())],
        ]);
        let reply = send(&server, content_type, body).expect(200).has("Content-Type", MESSAGE_PACK);
        let list = unpacked(&reply);
        let done = list.as_array().expect("an array");
        assert_eq!(field(&done[1], "value"), Some(&Packed::Binary(vec![0xfe, 0])), "{reply}");
        assert_eq!(field(&done[1], "revision"), field(&done[0], "revision"), "{reply}");
        server.get("there").expect(200).is("text");
    }
    // The response can have the other format.
    let get = json!([{ "op": "get", "key": "there" }]).to_string();
    let mixed = server.path("POST", "/batch").header("Content-Type", JSON).header("Accept", MESSAGE_PACK);
    let reply = mixed.body(&get).send().expect(200);
    let list = unpacked(&reply);
    assert_eq!(field(&list.as_array().expect("an array")[0], "value"), Some(&Packed::Binary(b"text".to_vec())));
    let again = packed(&[&[("op", "post".into()), ("key", "there".into()), ("value", "v".into())]]);
    let reply = send(&server, MESSAGE_PACK, again).expect(409).has("Content-Type", MESSAGE_PACK);
    let problem = unpacked(&reply.has("Vkog-Plugin", "conflict"));
    let text = |name| field(&problem, name).and_then(Packed::as_str);
    assert_eq!(
        (text("title"), text("plugin"), text("key")),
        (Some("Key already exists"), Some("conflict"), Some("there"))
    );
    assert_eq!(field(&problem, "index").and_then(Packed::as_u64), Some(0));
    batch(&server, &json!([])).expect(200).is("[]\n");
}

#[test]
fn a_failed_precondition_fails_a_batch_of_128_operations_and_is_named() {
    let setup = Setup::on(ENGINE).load(bytes()).load(conflict()).args(["-s", "100000", "--max-value", "1MiB"]);
    let server = setup.start();
    let put = |number: usize, value: &str| json!({ "op": "put", "key": format!("k{number}"), "value": value });
    let all = |value: &str| (0..128).map(|number| put(number, value)).collect::<Vec<_>>();
    let mut created = all("old");
    created.iter_mut().for_each(|operation| operation["if_none_match"] = json!("*"));
    let first = answer(&batch(&server, &json!(created)).expect(200))[0]["revision"].as_u64().expect("a revision");
    let state = || (server.path("GET", "/keys").send().expect(200).body, free(&server));
    let before = state();
    for (place, condition) in [
        (77, json!({ "if_match": first })),
        (0, json!({ "if_match": [first + 999, first + 1999] })),
        (127, json!({ "if_none_match": "*" })),
        (64, json!({ "if_none_match": [first, first + 64] })),
    ] {
        let mut operations = all("a value that is longer");
        for (name, value) in condition.as_object().expect("a map") {
            operations[place][name] = value.clone();
        }
        let reply = batch(&server, &json!(operations));
        refused(reply, 412, place, &format!("k{place}"), "Precondition failed");
        assert_eq!(state(), before, "after a failure at {place}");
    }
    // The other operations can depend on a read.
    let read_first = |condition: Value| {
        let mut get = json!({ "op": "get", "key": "k1" });
        get.as_object_mut().expect("a map").extend(condition.as_object().expect("a map").clone());
        batch(&server, &json!([put(0, "new"), get]))
    };
    refused(read_first(json!({ "if_match": first })), 412, 1, "k1", "Precondition failed");
    refused(read_first(json!({ "if_none_match": "*" })), 412, 1, "k1", "Precondition failed");
    assert_eq!(state(), before);
    read_first(json!({ "if_match": [first, first + 1] })).expect(200);
    server.stop().expect(0);
    let server = setup.start();
    server.get("k0").expect(200).is("new");
    server.get("k77").expect(200).is("old");
}

/// Returns the free bytes of the bytes plugin, from the refusal of a write.
fn free(server: &Server) -> String {
    let refusal = server.post("no such key", pattern(200_000)).refused(413, "Max size exceeded").text();
    refusal.split(", ").nth(1).expect("what is free").to_owned()
}

#[test]
fn later_operations_see_the_results_of_earlier_ones() {
    let server =
        Setup::on(ENGINE).load(bytes()).load(conflict()).config("[plugins.conflict]\noverlap = \"refuse\"\n").start();
    let post = |key: &str| json!({ "op": "post", "key": key, "value": "v" });
    let before = server.post("before", "v").expect(200).revision();
    let reply = batch(&server, &json!([post("a"), post("b"), post("a")]));
    refused(reply, 409, 2, "a", "Key already exists").has("Vkog-Plugin", "conflict");
    server.get("b").expect(404);
    let operations = json!([
        post("a"),
        { "op": "put", "key": "a", "value": "2", "if_match": "*" },
        { "op": "get", "key": "a" },
        { "op": "delete", "key": "a" },
        { "op": "get", "key": "a" },
        { "op": "put", "key": "a", "value": "3", "if_none_match": "*" },
        { "op": "get", "key": "a" },
    ]);
    let reply = batch(&server, &operations).expect(200);
    let found = |index: usize| answer(&reply)[index]["value"].clone();
    assert_eq!([2, 4, 6].map(found), [json!("2"), Value::Null, json!("3")], "{reply}");
    let revisions = [0, 1, 3, 5].map(|index| reply.revision_at(index));
    assert_one_step(before, &revisions);
    let last = revisions[3];
    assert_eq!(reply.revision_at(6), last, "{reply}");
    server.get("a").expect(200).is("3").has("ETag", &format!("\"{last}\""));
    let reply = batch(&server, &json!([{ "op": "delete", "key": "a" }, { "op": "put", "key": "a", "value": "4" }]));
    refused(reply, 404, 1, "a", "Key does not exist").has("Vkog-Plugin", "conflict");
    let reply = batch(&server, &json!([post("c"), { "op": "delete", "key": "none" }]));
    refused(reply, 404, 1, "none", "Not Found");
    // A failed batch uses no revision.
    assert_successive(last, &[server.post("last", "v").expect(200).revision()]);
}

#[test]
fn a_rejected_batch_releases_every_reservation() {
    const LIMIT: &str = "100000";
    let setup = Setup::on(ENGINE).load(bytes()).load(conflict()).load(artefacts().library("fault-refuses"));
    let setup = setup.args(["-s", LIMIT, "--max-value", "1MiB"]);
    let server = setup.config("[plugins.fault-refuses]\nwhere = \"guard_put\"\nvalue = \"!\"\n").start();
    server.post("a", pattern(1000)).expect(200);
    let before = free(&server);
    let put = |value: String| json!({ "op": "put", "key": "a", "value": value });
    let (small, large) = ("x".repeat(10), "x".repeat(5000));
    for _ in 0..5 {
        let reply =
            batch(&server, &json!([put(large.clone()), put(small.clone()), put(large.clone()), put("!".into())]));
        refused(reply, 403, 3, "a", "refused on purpose")
            .has("Vkog-Plugin", "fault-refuses")
            .has("X-Purpose", "guard_put");
        let reply = batch(
            &server,
            &json!([
                put(large.clone()),
                { "op": "delete", "key": "a" },
                { "op": "post", "key": "b", "value": "x".repeat(99_000) },
            ]),
        );
        refused(reply, 413, 2, "b", "Max size exceeded").has("Vkog-Plugin", "bytes");
        assert_eq!(free(&server), before);
    }
    batch(&server, &json!([put(large), put(small), { "op": "delete", "key": "a" }])).expect(200);
    assert_eq!(free(&server), format!("{LIMIT} of {LIMIT} are free\n"));
}

#[test]
fn an_operation_can_have_its_own_headers() {
    let server = Setup::on(ENGINE).load(ttl()).start();
    let operations = json!([
        { "op": "put", "key": "short", "value": "v", "headers": { "vkog-ttl": "5m" } },
        { "op": "put", "key": "long", "value": "v" },
        { "op": "get", "key": "short" },
        { "op": "put", "key": "bad", "value": "v", "headers": { "Vkog-TTL": "soon" } },
    ]);
    let send = |operations: &Value| {
        let request = server.path("POST", "/batch").header("Content-Type", JSON).header("Vkog-TTL", "1h");
        request.body(operations.to_string()).send()
    };
    refused(send(&operations), 400, 3, "bad", "").has("Vkog-Plugin", "ttl");
    server.get("long").expect(404);
    let reply = send(&json!(operations.as_array().expect("an array")[..3])).expect(200);
    assert_eq!(answer(&reply)[2]["headers"]["Vkog-TTL"], json!("300"), "{reply}");
    let left: u32 =
        server.get("long").expect(200).header("Vkog-TTL").and_then(|left| left.parse().ok()).expect("a number");
    assert!((3000..=3600).contains(&left), "{left} seconds");
}

#[test]
fn an_unreadable_batch_is_refused_with_position_and_reason() {
    let server = Setup::on(ENGINE).start();
    let before = server.post("before", "v").expect(200).revision();
    let known =
        "expected one of `op`, `key`, `value`, `base64`, `content_type`, `if_match`, `if_none_match`, `headers`";
    for (body, index, words) in [
        (r#"[{"op":"put","key":"k","value":"v"},{"op":"put","key":"k","valu":"v"}]"#, Some(1), known),
        (r#"[{"op":"put","key":"k","value":"v","key":"l"}]"#, Some(0), "duplicate field `key` at line 1 column 40"),
        (r#"[{"op":"touch","key":"k"}]"#, Some(0), "use get, post, put, patch or delete"),
        (r#"[{"op":"put","value":"v"}]"#, Some(0), "missing field `key`"),
        (r#"[["put","k","v"]]"#, Some(0), "an operation, which is a map"),
        (r#"[{"op":"put","key":"k","value":7}]"#, Some(0), "text or bytes"),
        (r#"[{"op":"put","key":"k","base64":"/x"}]"#, Some(0), "base64"),
        (r#"[{"op":"put","key":"k","value":"v","base64":"eA=="}]"#, Some(0), "both"),
        (r#"[{"op":"get","key":"k","value":"v"}]"#, Some(0), "neither value nor content_type"),
        (r#"[{"op":"get","key":"k","if_match":0}]"#, Some(0), "0 is no revision"),
        (
            r#"[{"op":"get","key":"k","if_match":"1"}]"#,
            Some(0),
            "a revision or its entity tag, an array of these, or \"*\"",
        ),
        (r#"[{"op":"get","key":"k","if_match":[[1]]}]"#, Some(0), "invalid type: sequence, expected a revision"),
        (r#"[{"op":"get","key":"k","headers":{"If-Match":"1"}}]"#, Some(0), "not allowed in headers"),
        (r#"[{"op":"get","key":"k","headers":{"X":"a\r\nY: b"}}]"#, Some(0), "not a header of ASCII text"),
        (r#"[{"op":"get","key":"k"}] []"#, None, "trailing characters at line 1 column 26"),
        (r#"{"op":"get","key":"k"}"#, None, "an array of operations"),
        (r#"[{"op":"get","key":"k"}"#, Some(1), "EOF"),
        ("", None, "EOF"),
    ] {
        let reply = send(&server, JSON, body).expect(400).has("Content-Type", "application/problem+json");
        let problem = answer(&reply);
        assert_eq!(problem.get("index").and_then(Value::as_u64), index, "{body}: {reply}");
        assert!(
            problem["title"].as_str().is_some_and(|title| title.contains(words)),
            "{body}: no {words:?} in {reply}"
        );
    }
    let get = || [("op", Packed::from("get")), ("key", "k".into())];
    let many = Packed::Map((0..101).map(|number| (format!("X-{number}").into(), "v".into())).collect());
    let nested = [&b"\x91\x82\xa2op\xa3put\xa5value"[..], &[0x91; 100_000]].concat();
    for (body, index, words) in [
        (b"\xdd\xff\xff\xff\xff".to_vec(), None, "more than 1024 operations; send several at byte 5"),
        (vec![0x91; 100_000], Some(0), "an operation, which is a map at byte 2"),
        (b"\x91\xdf\xff\xff\xff\xff".to_vec(), Some(0), "it ends too early at byte 6"),
        (b"\x91\x82\xa2op\xa3put\xa5value\xc6\xff\xff\xff\xff".to_vec(), Some(0), "it ends too early"),
        (nested, Some(0), "text or bytes"),
        (b"\x91\x81\xa2op\xd9".to_vec(), Some(0), "it ends too early"),
        ([packed(&[&get()]), vec![0xc0]].concat(), None, "data follows"),
        (packed(&[&get(), &[("op", "get".into()), ("x", 1.into())]]), Some(1), known),
        (packed(&[&[("op", "get".into()), ("key", Packed::Binary(vec![0xff]))]]), Some(0), "expected a string"),
        (packed(&[&[("if_match", Packed::Array(vec![1.into(); 65]))]]), Some(0), "more than 64 revisions"),
        (packed(&[&[("headers", many)]]), Some(0), "more than 100 header fields"),
        (Vec::new(), None, "it ends too early at byte 0"),
    ] {
        let reply = send(&server, MESSAGE_PACK, &body).expect(400).has("Content-Type", MESSAGE_PACK);
        let problem = unpacked(&reply);
        let shown = body[..body.len().min(50)].escape_ascii().to_string();
        assert_eq!(field(&problem, "index").and_then(Packed::as_u64), index, "{shown}: {reply}");
        let title = field(&problem, "title").and_then(Packed::as_str).unwrap_or_default();
        assert!(title.contains(words), "{shown}: no {words:?} in {title}");
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonl", ""] {
        send(&server, content_type, "[]").refused(415, "A batch is application/msgpack or application/json");
    }
    server.path("POST", "/batch").body("[]").send().refused(415, "A batch is application/msgpack or application/json");
    server.path("GET", "/batch").send().refused(405, "Method not allowed").has("Allow", "POST, OPTIONS");
    server.path("OPTIONS", "/batch").send().expect(204).has("Allow", "POST, OPTIONS");
    assert_successive(before, &[server.post("first", "v").expect(200).revision()]);
}

#[test]
fn a_batch_has_at_most_1024_operations_and_none_of_them_is_too_large() {
    let server = Setup::on(ENGINE).args(["--max-value", "1MiB"]).start();
    let put = |number: usize| json!({ "op": "put", "key": format!("k{number}"), "value": "v" });
    let many = |count: usize| json!((0..count).map(put).collect::<Vec<_>>());
    batch(&server, &many(1025)).expect(400).says("more than 1024 operations");
    server.get("k0").expect(404);
    let reply = batch(&server, &many(1024)).expect(200);
    let first = answer(&reply)[0]["revision"].as_u64().expect("a revision");
    assert_eq!(answer(&reply)[1023]["revision"], json!(first + 1023), "{reply}");
    let of = |value: Value| json!([put(1), { "op": "put", "key": "k2", "value": value }]);
    refused(batch(&server, &of(json!("x".repeat((1 << 20) + 1)))), 413, 1, "k2", "Value too large: 1048577 bytes");
    refused(batch(&server, &of(json!(""))), 400, 1, "k2", "No content provided");
    batch(&server, &of(json!("x".repeat(1 << 20)))).expect(200);
    let at = |key: String| batch(&server, &json!([put(1), { "op": "get", "key": key }]));
    refused(at(String::new()), 400, 1, "", "Key cannot be empty");
    let long = "k".repeat(1025);
    refused(at(long.clone()), 414, 1, &long, "Key too long: 1025 bytes");
    let typed = |name: &str| batch(&server, &json!([{ "op": "put", "key": "k", "value": "v", "content_type": name }]));
    refused(typed("a\nb"), 400, 0, "k", "Content-Type must be ASCII text");
    refused(typed(&"x".repeat(256)), 400, 0, "k", "Content-Type too long");

    // The body as a whole has its own limit, and is not read beyond it.
    let mut wire = server.wire();
    let head =
        format!("POST /batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: 16777217\r\n\r\n");
    wire.send(head).reply().refused(413, "Batch too large: 16777217 bytes; the maximum is 16777216");
    // The values that are read have one, too.
    let one = vec![b'x'; 1 << 20];
    (0..17).for_each(|number| _ = server.put(&format!("large{number}"), &one).expect(200));
    let gets = |count: usize| {
        (0..count).map(|number| json!({ "op": "get", "key": format!("large{number}") })).collect::<Vec<_>>()
    };
    batch(&server, &json!(gets(16))).expect(200);
    refused(batch(&server, &json!(gets(17))), 413, 16, "large16", "Batch too large");
    let mixed = [vec![json!({ "op": "put", "key": "k", "value": "changed" })], gets(16)].concat();
    refused(batch(&server, &json!(mixed)), 413, 16, "large15", "Batch too large");
    server.get("k").expect(404);
}

/// Sends a batch on a new connection.
fn ask(wire: &mut Wire, operations: &Value) -> io::Result<Reply> {
    let body = operations.to_string();
    let head = format!(
        "POST /batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    wire.try_send(&[head.as_bytes(), body.as_bytes()].concat())?;
    wire.try_reply()
}

#[test]
fn a_batch_of_gets_sees_a_constant_sum_during_transfers() {
    const ACCOUNTS: usize = 12;
    const EACH: i64 = 100;
    const TRANSFERS: u64 = 1500;

    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    let key = |account: usize| format!("account/{account}");
    let opened: Vec<_> =
        (0..ACCOUNTS).map(|account| json!({ "op": "post", "key": key(account), "value": EACH.to_string() })).collect();
    let first = answer(&batch(&server, &json!(opened)).expect(200))[0]["revision"].as_u64().expect("a revision");
    let (done, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let amounts = |reply: &Reply| -> Vec<i64> {
        let list = answer(reply);
        let amount = |entry: &Value| entry["value"].as_str().and_then(|text| text.parse().ok());
        list.as_array().expect("an array").iter().filter_map(amount).collect()
    };
    let mut wires = server.wires(10);
    let readers = wires.split_off(8);
    thread::scope(|scope| {
        for (client, mut wire) in wires.into_iter().enumerate() {
            let (done, ended) = (&done, &ended);
            scope.spawn(move || {
                let mut random = 0x9e37_79b9_u64.wrapping_mul(client as u64 + 1) | 1;
                while done.load(Ordering::Relaxed) < TRANSFERS && !ended.load(Ordering::Relaxed) {
                    // Xorshift. Three keys, in random order.
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let from = random as usize % ACCOUNTS;
                    let chosen = [from, (from + 1 + (random >> 20) as usize % 5) % ACCOUNTS, (from + 7) % ACCOUNTS];
                    let gets: Vec<_> =
                        chosen.iter().map(|account| json!({ "op": "get", "key": key(*account) })).collect();
                    let read = ask(&mut wire, &json!(gets)).expect("an answer").expect(200);
                    let (held, list) = (amounts(&read), answer(&read));
                    let next = [held[0] - 2, held[1] + 1, held[2] + 1];
                    let puts = (0..3).map(|place| {
                        json!({
                            "op": "put", "key": key(chosen[place]), "value": next[place].to_string(),
                            "if_match": list[place]["revision"],
                        })
                    });
                    let puts: Vec<_> = puts.collect();
                    let reply = ask(&mut wire, &json!(puts)).expect("an answer");
                    match reply.status {
                        200 => _ = done.fetch_add(1, Ordering::Relaxed),
                        412 => {}
                        _ => panic!("{reply}"),
                    }
                }
                ended.store(true, Ordering::Relaxed);
            });
        }
        for (reader, mut wire) in readers.into_iter().enumerate() {
            let ended = &ended;
            scope.spawn(move || {
                let mut last = 0;
                while !ended.load(Ordering::Relaxed) {
                    let mut all: Vec<_> =
                        (0..ACCOUNTS).map(|account| json!({ "op": "get", "key": key(account) })).collect();
                    all.rotate_left(reader * 5);
                    let reply = ask(&mut wire, &json!(all)).expect("an answer").expect(200);
                    let sum: i64 = amounts(&reply).iter().sum();
                    if sum != EACH * ACCOUNTS as i64 {
                        ended.store(true, Ordering::Relaxed);
                        panic!("the sum is {sum}: {reply}");
                    }
                    let list = answer(&reply);
                    let newest =
                        list.as_array().expect("an array").iter().filter_map(|entry| entry["revision"].as_u64()).max();
                    assert!(newest >= Some(last), "a reader goes back from {last} to {newest:?}");
                    last = newest.unwrap_or_default();
                }
            });
        }
    });
    let done = done.into_inner();
    assert!(done >= TRANSFERS, "{done} transfers");
    if !on_etcd() {
        // Each batch has three revisions, a refused one none.
        assert_eq!(server.post("last", "v").expect(200).revision(), first + ACCOUNTS as u64 + 3 * done);
    }
}

const CLIENTS: usize = 8;
const KEYS: usize = 24;

/// Returns the values of a client's keys after its batch with this number.
fn state(number: u64) -> BTreeMap<usize, u64> {
    (0..KEYS).filter(|key| !(number + *key as u64).is_multiple_of(5)).map(|key| (key, number)).collect()
}

/// Returns the operations of that batch; each key has another position every time.
fn operations(client: usize, number: u64) -> Value {
    let mut all = Vec::new();
    for place in 0..KEYS {
        let key = (place * 7 + number as usize) % KEYS;
        let name = format!("{client}/{key}");
        // Long, so that a kill is likely to come in the middle of its record.
        all.push(json!({ "op": "put", "key": name, "value": format!("{number} {}", "v".repeat(10_000)) }));
        if (number + key as u64).is_multiple_of(5) {
            all.push(json!({ "op": "delete", "key": name }));
        }
    }
    json!(all)
}

/// The last acknowledged batch of a client, and the one in flight.
#[derive(Clone, Default)]
struct Known {
    kept: u64,
    asked: u64,
}

impl Known {
    fn run(&mut self, client: usize, mut wire: Wire, done: &Sender<()>) {
        loop {
            self.asked += 1;
            match ask(&mut wire, &operations(client, self.asked)) {
                Ok(reply) if reply.status == 200 => {
                    self.kept = self.asked;
                    let _ = done.send(());
                }
                Ok(reply) => panic!("client {client}: {reply}"),
                Err(_) => return,
            }
        }
    }

    fn check(&mut self, client: usize, server: &Server) {
        let gets: Vec<_> = (0..KEYS).map(|key| json!({ "op": "get", "key": format!("{client}/{key}") })).collect();
        let reply = batch(server, &json!(gets)).expect(200);
        let list = answer(&reply);
        let found = |key: usize| Some((key, list[key]["value"].as_str()?.split_once(' ')?.0.parse().ok()?));
        let found: BTreeMap<usize, u64> = (0..KEYS).filter_map(found).collect();
        let of = |number: u64| if number == 0 { BTreeMap::new() } else { state(number) };
        let number = [self.kept, self.asked].into_iter().find(|number| of(*number) == found);
        let Some(number) = number else {
            panic!("client {client}: batch {} was acknowledged, {} was sent, found {found:?}", self.kept, self.asked);
        };
        *self = Self { kept: number, asked: self.asked };
    }
}

/// Kills the server while clients write batches, starts it again, and checks that each batch is present as a whole or not at all.
fn kills(rounds: usize, setup: &Setup) {
    // Wine takes its time to start a program.
    let rounds = if on_windows() { rounds / 20 } else { rounds };
    let mut clients = vec![Known::default(); CLIENTS];
    let mut total = 0;
    for round in 0..=rounds {
        let server = setup.start();
        for (client, known) in clients.iter_mut().enumerate() {
            known.check(client, &server);
        }
        if round == rounds {
            break;
        }
        let (done, acknowledged) = channel();
        let wires = server.wires(CLIENTS);
        thread::scope(|scope| {
            for ((client, known), wire) in clients.iter_mut().enumerate().zip(wires) {
                let done = done.clone();
                scope.spawn(move || known.run(client, wire, &done));
            }
            for _ in 0..10 + round * 7 % 60 {
                acknowledged.recv_timeout(DEADLINE).expect("the clients continue to write");
                total += 1;
            }
            server.stop_with("KILL");
        });
        total += acknowledged.try_iter().count();
    }
    println!("{rounds} kills, {total} acknowledged batches, none in part");
}

#[test]
fn no_kill_leaves_a_partial_batch() {
    kills(amount(20, 60), &Setup::on(ENGINE));
}

#[test]
fn no_kill_without_any_sync_leaves_a_partial_batch() {
    kills(amount(10, 30), &Setup::on(ENGINE).args(["--fsync", "never"]));
}
