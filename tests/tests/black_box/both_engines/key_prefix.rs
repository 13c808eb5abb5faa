//! A key prefix that a plugin sets for a request is invisible to its client, in every response of every route.
//!
//! Provoked with two servers, on one of which the requests have a prefix among entries of others. For all requests of clients, both give
//! the same responses, except for revisions; and the entries of others stay as they are.

use serde_json::{Value, json};
use vkog_tests::{Reply, Server, Setup, TOKEN, administered, amount, artefacts, encode, on_etcd};

use super::ENGINE;

const PREFIX: &str = "t/";
/// The keys that clients use. Some begin with the prefix themselves.
const KEYS: [&str; 9] = ["a", "a/1", "a/2", "a/b/c", "b", "t/", "t/a", "\u{e9}", "x y"];
/// The entries of others: around the prefix, and under the keys of the clients.
const OTHERS: [&str; 6] = ["t", "t.", "t0", "u/a", "a", "a/1"];

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % end
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// A request.
struct Ask {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

fn setup(plugin: &str) -> Setup {
    let setup = Setup::on(ENGINE).load(artefacts().library(plugin)).load(artefacts().library("serves"));
    setup.args(["--fsync", "never"]).config(administered(""))
}

/// Sends a request, with a prefix or without.
#[track_caller]
fn send(server: &Server, ask: &Ask, prefix: &str) -> Reply {
    let mut request = server.path(ask.method, &ask.path);
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    if ask.path == "/batch" {
        request = request.header("Content-Type", "application/json");
    }
    if !prefix.is_empty() {
        request = request.header("X-Prefix", prefix);
    }
    if ask.body.is_empty() { request.send() } else { request.body(&ask.body).send() }
}

fn ask(method: &'static str, path: impl Into<String>) -> Ask {
    Ask { method, path: path.into(), headers: Vec::new(), body: String::new() }
}

/// Sets all revisions to 0.
fn without_revisions(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("revision");
            fields.values_mut().for_each(without_revisions);
        }
        Value::Array(all) => all.iter_mut().for_each(without_revisions),
        _ => {}
    }
}

/// The parts of a response that a prefix must not change.
fn seen(reply: &Reply) -> Value {
    let headers = ["content-type", "content-range", "allow", "vkog-plugin", "x-key", "x-hooks", "accept-ranges"];
    let headers: Vec<_> = headers.map(|name| reply.header(name).map(str::to_owned)).to_vec();
    let mut body = serde_json::from_slice(&reply.body).unwrap_or_else(|_| Value::from(reply.text()));
    without_revisions(&mut body);
    json!([reply.status, headers, body])
}

/// Makes a request at random.
fn any(random: &mut Random) -> Ask {
    let key = random.of(&KEYS);
    let path = format!("/k/{}", encode(key));
    let prefix = ["", "a", "a/", "t", "t/", "\u{e9}", "none"][random.below(7)];
    let query = format!("prefix={}", encode(prefix));
    let mut ask = match random.below(17) {
        0..=3 => Ask { body: format!("value {}", random.below(1000)), ..ask("PUT", path) },
        4 => Ask { body: "posted".to_owned(), ..ask("POST", path) },
        5 => ask("GET", path),
        6 => Ask { headers: vec![("Range", "bytes=1-3".to_owned())], ..ask("GET", path) },
        7 => ask("PATCH", path),
        8 => ask("DELETE", path),
        9 => ask("GET", format!("/keys?count&{query}")),
        10 => {
            let (delimiter, limit) = (["", "&delimiter=/"][random.below(2)], 1 + random.below(4));
            let after = [String::new(), format!("&after={}", encode(random.of(&KEYS)))];
            ask("GET", format!("/keys?{query}{delimiter}&limit={limit}{}", after[random.below(2)]))
        }
        11 => ask("DELETE", format!("/keys?dry_run&limit=2&prefix={}", ["a", "t", "t/"][random.below(3)])),
        12 => ask("DELETE", format!("/keys?limit={}&{}", 1 + random.below(3), ["prefix=a/", "all"][random.below(2)])),
        16 => Ask { body: "+".to_owned(), ..ask("POST", format!("/x/serves/append/{}", encode(key))) },
        13 => Ask { body: "[{\"op\":\"get\",\"key\":\"\"}]".to_owned(), ..ask("POST", "/batch") },
        _ => {
            let operations: Vec<_> = (0..1 + random.below(4))
                .map(|_| {
                    let (op, key) = (random.of(&["get", "put", "put", "delete", "post"]), random.of(&KEYS));
                    let has_value = matches!(op, "put" | "post");
                    if has_value {
                        json!({ "op": op, "key": key, "value": "batch" })
                    } else {
                        json!({ "op": op, "key": key })
                    }
                })
                .collect();
            Ask { body: json!(operations).to_string(), ..ask("POST", "/batch") }
        }
    };
    match random.below(12) {
        0 => ask.headers.push(("X-Lock", "yes".to_owned())),
        1 if ask.path.starts_with("/k/") => ask.headers.push(("If-None-Match", "*".to_owned())),
        2 if ask.path.starts_with("/k/") => ask.headers.push(("If-Match", "*".to_owned())),
        3 => ask.headers.push(("Accept", "application/json".to_owned())),
        _ => {}
    }
    ask
}

/// Returns the records of an export.
#[track_caller]
fn exported(server: &Server, query: &str, prefix: &str) -> Vec<Value> {
    let headers = vec![("Authorization", format!("Bearer {TOKEN}"))];
    let export = send(server, &Ask { headers, ..ask("GET", format!("/export{query}")) }, prefix).expect(200).text();
    let mut records: Vec<Value> = export.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    records.retain(|record: &Value| record["key"].is_string());
    records.iter_mut().for_each(without_revisions);
    if query.is_empty() {
        records.sort_by_key(|record| record["key"].as_str().map(str::to_owned));
    }
    records
}

/// Returns the keys and values of all entries.
#[track_caller]
fn entries(server: &Server) -> Vec<(String, String)> {
    let text = |record: &Value, name: &str| record[name].as_str().unwrap_or_default().to_owned();
    exported(server, "", "").iter().map(|record| (text(record, "key"), text(record, "value"))).collect()
}

#[test]
fn a_client_with_a_key_prefix_sees_what_it_would_see_alone() {
    for plugin in ["requests", "requests-blocking"] {
        let (alone, shared) = (setup(plugin).start(), setup(plugin).start());
        for key in OTHERS {
            shared.put(key, format!("of others: {key}")).expect(200);
        }
        let begin = |server: &Server| server.put("begin", "1").expect(200).revision();
        let since = [begin(&alone), begin(&shared)];
        alone.delete("begin").expect(200);
        let watch = |server: &Server, since: u64, prefix: &str, fields: &str| {
            server.watch(&format!("values&since={since}&prefix={prefix}"), fields)
        };
        let fields = format!("X-Prefix: {PREFIX}\r\n");
        let watching = [watch(&alone, since[0], "a", ""), watch(&shared, since[1], "a", &fields)];
        let mut random = Random(u64::try_from(plugin.len()).expect("it is short"));
        for number in 0..amount(600, 6000) {
            if number % 7 == 0 {
                let key = random.of(&OTHERS);
                shared.put(key, format!("of others: {key}")).expect(200);
            }
            let ask = any(&mut random);
            let (expected, reply) = (send(&alone, &ask, ""), send(&shared, &ask, PREFIX));
            assert_eq!(seen(&reply), seen(&expected), "request {number}: {reply}\n{expected}");
        }
        // The last change of both.
        let last = Ask { body: "last".to_owned(), ..ask("PUT", "/k/a/last") };
        let last = [send(&alone, &last, "").revision(), send(&shared, &last, PREFIX).revision()];
        let mut events = watching.map(|mut watching| {
            let mut events = Vec::new();
            while events.last().is_none_or(|event: &vkog_tests::Event| event.data["key"] != "a/last") {
                events.push(watching.event().expect("the watch continues"));
            }
            events
        });
        // A watch that resumes at an event continues behind it.
        let middle = events.each_ref().map(|events| {
            // A change that is not the last of its revision has no id.
            let has_id = |at: &usize| events[*at].data["revision"].as_u64() == events[*at].id;
            (events.len() / 2..).find(has_id).expect("the last change has an id")
        });
        let resumed = [(&alone, 0, ""), (&shared, 1, fields.as_str())].map(|(server, index, fields)| {
            let since = events[index][middle[index]].id.expect("an event has an id");
            watch(server, since, "a", fields).events(1).remove(0)
        });
        assert_eq!([resumed[0].id, resumed[1].id], [0, 1].map(|index: usize| events[index][middle[index] + 1].id));
        events.iter_mut().flatten().for_each(|event| without_revisions(&mut event.data));
        let [alone_events, shared_events] = events.map(|events| {
            let mut events: Vec<_> = events.into_iter().map(|event| (event.name, event.data)).collect();
            if on_etcd() {
                // The removals of a page are in no order there.
                events.sort_by_key(|(_, data)| data["key"].to_string());
            }
            events
        });
        assert_eq!(shared_events, alone_events);
        assert!(alone_events.len() > 50, "{}", alone_events.len());
        assert_eq!(exported(&shared, "", PREFIX), exported(&alone, "", ""));
        let behind = |revision: u64| format!("?since={}", revision - 1);
        if !on_etcd() {
            assert_eq!(exported(&shared, &behind(last[1]), PREFIX), exported(&alone, &behind(last[0]), ""));
        }

        // The entries as they are stored.
        let mut expected: Vec<_> = OTHERS.map(|key| (key.to_owned(), format!("of others: {key}"))).to_vec();
        expected.extend(entries(&alone).into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value)));
        expected.push(("begin".to_owned(), "1".to_owned()));
        expected.sort();
        assert_eq!(entries(&shared), expected);
    }
}

const TOKENS: &str = "[[access.tokens]]\nname = \"some\"\ntoken = \"some\"\nright = \"write\"\nprefix = \"t/a\"\n\
                      [[access.tokens]]\nname = \"operator\"\ntoken = \"operate\"\nright = \"admin\"\n";

#[test]
fn the_permission_of_a_token_is_for_whole_keys() {
    let setup = Setup::on(ENGINE).load(artefacts().library("requests")).load(artefacts().library("serves"));
    let server = setup.config(TOKENS).args(["--fsync", "never"]).start();
    let some = |ask: Ask, prefix: &str| {
        let headers = [ask.headers, vec![("Authorization", "Bearer some".to_owned())]].concat();
        send(&server, &Ask { headers, ..ask }, prefix)
    };
    let put = |key: &str| Ask { body: "v".to_owned(), ..ask("PUT", format!("/k/{key}")) };
    some(put("a1"), "t/").expect(200);
    some(put("t/a1"), "").expect(200);
    for (key, prefix) in [("b", "t/"), ("a", "u/"), ("t/a", "t/"), ("t/a", "u/")] {
        let reply = some(put(key), prefix).expect(403);
        assert!(!reply.text().contains("t/") && !reply.text().contains("u/"), "{reply}");
    }
    some(put("b"), "t/").says("it may write keys that begin with \"a\"");
    some(put("b"), "").says("it may write keys that begin with \"t/a\"");
    let append = |key: &str| Ask { body: "w".to_owned(), ..ask("POST", format!("/x/serves/append/{key}")) };
    some(append("a2"), "t/").expect(201).has("X-Key", "a2");
    some(append("b"), "t/").expect(403).says("it may write keys that begin with \"a\"");
    some(ask("GET", "/keys?prefix=a"), "t/").expect(200).says("\"key\": \"a1\"");
    some(ask("GET", "/keys"), "t/").expect(403);
    some(ask("DELETE", "/keys?all"), "t/").expect(403);
    some(ask("HEAD", "/watch?prefix=a"), "t/").expect(200);
    some(ask("HEAD", "/watch"), "t/").expect(403);
    let batch = |key: &str| Ask { body: json!([{ "op": "get", "key": key }]).to_string(), ..ask("POST", "/batch") };
    some(batch("a1"), "t/").expect(200).says("\"value\":\"v\"");
    let json = Ask { headers: vec![("Accept", "application/json".to_owned())], ..batch("b") };
    let problem: Value = serde_json::from_slice(&some(json, "t/").expect(403).body).expect("it is JSON");
    assert_eq!((&problem["index"], &problem["key"]), (&json!(0), &json!("b")));
}

#[test]
fn a_ticket_is_for_whole_keys() {
    let setup = Setup::on(ENGINE).load(artefacts().library("requests")).config(TOKENS).args(["--fsync", "never"]);
    let server = setup.start();
    let headers = || vec![("Authorization", "Bearer some".to_owned())];
    let issued = send(&server, &Ask { headers: headers(), ..ask("POST", "/watch/tickets?prefix=a") }, "t/").expect(200);
    let issued: Value = serde_json::from_slice(&issued.body).expect("it is JSON");
    let ticket = issued["ticket"].as_str().expect("a ticket");
    let fields = "X-Prefix: t/\r\n";
    let mut watching = server.watch(&format!("prefix=a&ticket={ticket}"), fields);
    for (key, prefix) in [("a1", "t/"), ("t/a2", "")] {
        let put = Ask { headers: headers(), body: "v".to_owned(), ..ask("PUT", format!("/k/{key}")) };
        send(&server, &put, prefix).expect(200);
    }
    let keys: Vec<_> = watching.events(2).iter().map(|event| event.key().to_owned()).collect();
    assert_eq!(keys, ["a1", "a2"]);
    for (prefix, fields) in [("a", ""), ("a", "X-Prefix: u/\r\n"), ("", fields)] {
        let refused = server.try_watch(&format!("prefix={prefix}&ticket={ticket}"), fields);
        let refused = refused.err().unwrap_or_else(|| panic!("a watch of {prefix:?} with {fields:?}"));
        refused.expect(403);
    }
}

#[test]
fn a_whole_key_is_not_longer_than_a_key() {
    let server = Setup::on(ENGINE).load(artefacts().library("requests")).args(["--fsync", "never"]).start();
    let put = |length: usize| Ask { body: "v".to_owned(), ..ask("PUT", format!("/k/{}", "k".repeat(length))) };
    send(&server, &put(1022), PREFIX).expect(200);
    send(&server, &put(1023), PREFIX).refused(414, "Key too long: 1023 bytes; the maximum is 1022");
    let batch = json!([{ "op": "put", "key": "k".repeat(1023), "value": "v" }]).to_string();
    send(&server, &Ask { body: batch, ..ask("POST", "/batch") }, PREFIX).expect(414);
    send(&server, &put(1), &"p".repeat(512)).expect(200);
    let refused = send(&server, &put(1), &"p".repeat(513));
    refused.refused(500, "plugin \"requests\" made the key prefix 513 bytes long; the maximum is 512");
}
