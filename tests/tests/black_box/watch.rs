//! `/watch` delivers each durable change once and in the order of revisions to each permitted client. A client that
//! reconnects resumes after its last event or gets 410. A client that does not read is left behind.
//!
//! Provoked on both engines with clients that connect and disconnect while others write, with short change histories,
//! and with clients that stop reading.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;
use vkog_tests::{
    Client, ENGINES, Event, Server, Setup, amount, artefacts, assert_successive, encode, on_etcd, ttl, wait_until,
    with_background,
};

fn start(engine: &str, arguments: &[&str]) -> Server {
    Setup::new().args(["--http", engine]).args(arguments).start()
}

/// Returns the value of this metric.
#[track_caller]
fn number(server: &Client, name: &str) -> u64 {
    let text = server.path("GET", "/metrics").send().expect(200).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn an_event_has_the_revision_and_describes_the_entry() {
    for engine in ENGINES {
        let server = start(engine, &[]);
        let before = server.revision();
        let mut watching = server.watch("", "");
        assert_eq!(watching.head.header("Content-Type"), Some("text/event-stream"));
        assert_eq!(watching.head.header("Cache-Control"), Some("no-store, no-transform"));
        let now = before..=server.revision();
        assert!(watching.last_id.is_some_and(|id| now.contains(&id)), "{:?} is not in {now:?}", watching.last_id);
        let mut with_values = server.watch("values", "");
        let key = "\n\r\u{2028}\"\\\u{1d11e}";
        let first = server.key("POST", key).header("Content-Type", "text/plain").body("a\nb").send().revision();
        let second = server.put("b", b"\xff\xfe").expect(200).revision();
        server.delete(key).expect(200);
        let large = vec![b'x'; (64 << 10) + 1];
        let fourth = server.put("b", &large).expect(200).revision();
        let fifth = server.put("b", &large[1..]).expect(200).revision();
        let events = watching.events(5);
        // The response to the removal does not have it.
        let third = events[2].id.expect("every event has one");
        assert_successive(first, &[second, third, fourth, fifth]);
        let event = |id: u64, name: &str, data| Event { id: Some(id), name: name.to_owned(), data };
        let bytes = "application/octet-stream";
        let expected = [
            event(first, "put", json!({ "key": key, "revision": first, "size": 3, "content_type": "text/plain" })),
            event(second, "put", json!({ "key": "b", "revision": second, "size": 2, "content_type": bytes })),
            event(third, "delete", json!({ "key": key, "revision": third })),
            event(fourth, "put", json!({ "key": "b", "revision": fourth, "size": 65_537, "content_type": bytes })),
            event(fifth, "put", json!({ "key": "b", "revision": fifth, "size": 65_536, "content_type": bytes })),
        ];
        assert_eq!(events, expected, "{engine}");
        let mut with = expected;
        with[0].data["value"] = "a\nb".into();
        with[1].data["value_base64"] = "//4=".into();
        // A longer value must be read by its key.
        with[4].data["value"] = String::from_utf8_lossy(&large[1..]).into();
        assert_eq!(with_values.events(5), with, "{engine}");
    }
}

#[test]
fn a_reconnecting_client_resumes_after_its_last_event() {
    for engine in ENGINES {
        let server = start(engine, &[]);
        let before = server.revision();
        let put = |key: &str| server.put(key, "v").expect(200).revision();
        let written = ["a/1", "b/2", "a/3", "b/4", "a/5"].map(put);
        assert_successive(written[0], &written[1..]);
        let first = format!("since={before}");
        let ids = |query: &str, fields: &str, count| {
            let mut watching = server.watch(query, fields);
            watching.events(count).iter().map(|event| event.id.expect("it has one")).collect::<Vec<_>>()
        };
        assert_eq!(ids(&first, "", 5), written);
        assert_eq!(ids(&format!("{first}&prefix=a/"), "", 3), [written[0], written[2], written[4]]);
        assert_eq!(ids(&format!("since={}", written[2]), "", 2), written[3..]);
        // A browser repeats its first query, too.
        assert_eq!(ids(&first, &format!("Last-Event-ID: {}\r\n", written[3]), 1), written[4..]);
        assert_eq!(ids(&format!("since={}&prefix=%62%2f", written[1]), "Last-Event-ID:\r\n", 1), [written[3]]);
        let mut now = server.watch("", "");
        let mut behind = server.watch(&format!("since={}", written[4]), "");
        let sixth = Some(server.put("b/6", "v").expect(200).revision());
        assert_eq!((now.events(1)[0].id, behind.events(1)[0].id), (sixth, sixth));
    }
}

#[test]
fn an_invalid_watch_query_is_refused() {
    for engine in ENGINES {
        let server = start(engine, &[]);
        for (query, words) in [
            ("since=-1", "since is \"-1\"; use a revision"),
            ("since=%2B1", "since is \"+1\""),
            ("since=", "since is \"\""),
            ("since=99999999999999999999", "since is \"99999999999999999999\""),
            ("values=1", "values takes no value"),
            ("prefix=a&prefix=b", "The parameter prefix is repeated"),
            ("prefix=%zz", "prefix is not percent-encoded correctly at byte 0"),
        ] {
            server.path("GET", &format!("/watch?{query}")).send().refused(400, words);
        }
        server.path("GET", "/watch").header("Last-Event-ID", "x").send().refused(400, "Last-Event-ID is \"x\"");
        server.path("HEAD", "/watch").send().expect(200).has("Content-Type", "text/event-stream");
        server.path("HEAD", "/watch?since=1").send().expect(410);
        server.path("OPTIONS", "/watch").send().expect(204).has("Allow", "GET, HEAD, OPTIONS");
        server.path("POST", "/watch").body("x").send().refused(405, "Method not allowed");
        wait_until("no client watches", || number(&server, "vkog_watchers") == 0);
    }
}

#[test]
fn a_client_with_fifty_reconnects_receives_each_change_once_in_order() {
    // In etcd, each writer waits for a round of Raft.
    let changes = if on_etcd() { amount(4_000, 20_000) } else { amount(20_000, 100_000) };
    const WRITERS: usize = 4;
    for engine in ENGINES {
        let server = start(engine, &["--fsync", "never"]);
        let before = server.revision();
        let (written, left) = (Mutex::new(HashSet::new()), AtomicUsize::new(changes));
        let writers = (0..WRITERS).map(|writer| {
            let (client, written, left) = (server.client(), &written, &left);
            let mut step = 0;
            move || {
                let taken = left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
                if taken.is_err() {
                    return std::thread::yield_now();
                }
                step += 1;
                let key = format!("{writer}/{}", step / 2 % 10);
                // Each removal is of an entry that the same client has just written.
                if step % 2 == 0 {
                    let revision = client.put(&key, "v").expect(200).revision();
                    written.lock().expect("no writer panics with it").insert((revision, key));
                } else if client.delete(&key).status == 404 {
                    left.fetch_add(1, Relaxed);
                }
            }
        });
        let begun = Instant::now();
        let (received, reconnects) = with_background(writers, || {
            let (mut received, mut reconnects) = (Vec::<Event>::new(), 0);
            while received.len() < changes {
                // Only the last change of a revision has its id, so the client receives the others again.
                while received.last().is_some_and(|event| event.data["revision"].as_u64() != event.id) {
                    received.pop();
                }
                let since = received.last().map_or(before, |event| event.id.expect("it has one"));
                let mut watching = server.watch(&format!("since={before}"), &format!("Last-Event-ID: {since}\r\n"));
                // The connection ends in the middle of an event.
                let share = if reconnects == 50 { changes } else { changes / 51 };
                received.extend(watching.events(share.min(changes - received.len())));
                reconnects += 1;
            }
            (received, reconnects - 1)
        });
        eprintln!("{engine}: {} changes, {reconnects} reconnects, in {:?}", received.len(), begun.elapsed());
        assert_eq!(reconnects, 50);
        let changed: Vec<_> = received.iter().map(|event| (event.data["revision"].as_u64(), event.key())).collect();
        let revisions: Vec<_> = changed.iter().map(|(revision, _)| revision.expect("it has one")).collect();
        if on_etcd() {
            assert!(revisions[0] > before && revisions.is_sorted(), "in order");
            assert_eq!(HashSet::<_>::from_iter(&changed).len(), changes, "each once");
        } else {
            assert_successive(revisions[0], &revisions[1..]);
            assert!(received.iter().map(|event| event.id).eq(revisions.iter().copied().map(Some)));
        }
        let written = written.into_inner().expect("no writer panicked with it");
        let mut puts = 0;
        for (event, revision) in received.iter().zip(revisions) {
            let is_put = written.contains(&(revision, event.key().to_owned()));
            assert_eq!(event.name, if is_put { "put" } else { "delete" }, "{event:?}");
            puts += usize::from(is_put);
        }
        assert_eq!(puts, written.len());
    }
}

#[test]
fn a_revision_before_the_change_history_is_410() {
    for engine in ENGINES {
        let server = start(engine, &["--watch-history", "20KiB"]);
        let revisions: Vec<u64> = (0..30).map(|_| server.put("k", [b'x'; 1000]).expect(200).revision()).collect();
        let held = number(&server, "vkog_watch_history_bytes");
        assert!((19 << 10..=20 << 10).contains(&held), "{held}");
        let first = format!("/watch?since={}", revisions[0]);
        let refused = server.path("GET", &first).send().refused(410, "Too far back: changes up to revision ");
        let begins =
            refused.text().split_whitespace().find_map(|word| word.parse::<u64>().ok()).expect("it says which");
        server.path("GET", "/watch").header("Last-Event-ID", (begins - 1).to_string()).send().expect(410);
        let rest: Vec<_> = revisions.iter().copied().filter(|revision| *revision > begins).collect();
        assert!((15..25).contains(&rest.len()), "{rest:?}");
        let events = server.watch(&format!("since={begins}"), "").events(rest.len());
        assert_eq!(events.iter().filter_map(|event| event.id).collect::<Vec<_>>(), rest);
        // An event larger than the history reaches a watcher that keeps up.
        let mut watching = server.watch("", "");
        server.put("k", [b'x'; 100_000]).expect(200);
        assert_eq!(watching.events(1)[0].data["size"], 100_000);
        let document = server.path("GET", &first).header("Accept", "application/json").send().expect(410);
        assert_eq!(document.header("Content-Type"), Some("application/problem+json"));
    }
}

#[test]
fn a_restart_ends_the_change_history() {
    for engine in ENGINES {
        let setup = Setup::new().args(["--http", engine]);
        let server = setup.start();
        let [first, last] = ["1", "2"].map(|value| server.put("k", value).expect(200).revision());
        let since = |revision: u64| format!("/watch?since={revision}");
        let ahead = format!("Too far ahead: {last} is the last revision");
        server.path("GET", &since(last + 1)).send().refused(410, &ahead);
        server.stop().expect(0);

        let server = setup.start();
        let back = format!("Too far back: changes up to revision {last} are no longer in the history");
        server.path("GET", &since(first)).send().refused(410, &back);
        let mut watching = server.watch(&format!("since={last}"), "");
        server.path("GET", &since(last + 1)).send().refused(410, &ahead);
        server.delete("k").expect(200);
        assert_eq!(watching.events(1)[0].name, "delete");
        // Between the last revision of the previous opening and the first of this one.
        server
            .path("GET", &since(last + 1))
            .send()
            .refused(410, "Unknown revision: this server's revisions start after ");
    }
}

#[test]
fn a_watcher_that_stops_reading_delays_no_other_client() {
    for engine in ENGINES {
        let server = start(engine, &["--fsync", "never", "--watch-history", "1MiB"]);
        let before = server.revision();
        let mut stopped = server.watch("values", "");
        let mut reads = server.watch("values", "");
        // More than any socket buffers.
        let value = "x".repeat(60 << 10);
        let mut written = Vec::new();
        for _ in 0..400 {
            let revision = server.put("k", &value).expect(200).revision();
            written.push(revision);
            assert_eq!(reads.events(1)[0].id, Some(revision), "{engine}");
        }
        let held = number(&server, "vkog_watch_history_bytes");
        assert!(held <= 1 << 20, "{held}");
        // Events in flight arrive complete and once; then the stream reports the reason.
        let mut came = Vec::new();
        let end = loop {
            let event = stopped.event().expect("it ends with an event");
            if event.name == "end" {
                break event;
            }
            came.push(event.id.expect("it has one"));
        };
        assert!(came.len() < 400 && written.starts_with(&came), "{engine}: {came:?}");
        assert_eq!((&end.data["status"], end.id), (&json!(410), came.last().copied()), "{engine}");
        assert!(end.data["title"].as_str().is_some_and(|title| title.starts_with("Too far back")), "{end:?}");
        assert_eq!(stopped.event(), None);
        server.path("GET", &format!("/watch?since={}", came.last().copied().unwrap_or(before))).send().expect(410);
    }
}

#[test]
fn hyper_closes_the_connection_of_a_watcher_that_never_reads() {
    let server = start("hyper", &["--fsync", "never"]);
    let _stopped = server.watch("values", "");
    let mut reads = server.watch("values", "");
    let value = "x".repeat(60 << 10);
    for _ in 0..400 {
        server.put("k", &value).expect(200);
        reads.events(1);
    }
    assert_eq!(number(&server, "vkog_watchers"), 2);
    // 30 to 40 seconds without progress; a watcher that reads the few bytes of that time stays.
    let deadline = Duration::from_secs(60);
    let begun = Instant::now();
    while number(&server, "vkog_watchers") > 1 {
        assert!(begun.elapsed() < deadline, "it is still there\n{}", server.log());
        assert!(reads.read());
    }
    server.put("k", "v").expect(200);
    assert_eq!(reads.events(1)[0].data["value"], "v");
}

#[test]
fn an_idle_watcher_receives_its_position_within_15_seconds() {
    for engine in ENGINES {
        let server = start(engine, &[]);
        let mut quiet = server.watch("prefix=a/", "");
        let begun = Instant::now();
        for _ in 0..299 {
            server.put("b/k", "v").expect(200);
        }
        let last = server.put("b/k", "v").expect(200).revision();
        while quiet.bare_ids == 0 {
            assert!(quiet.read());
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{engine}: {:?}", begun.elapsed());
        assert_eq!(quiet.last_id, Some(last), "{engine}");
        let next = server.put("a/k", "v").expect(200).revision();
        assert_eq!(quiet.events(1)[0].id, Some(next));
    }
}

const TOKENS: &str = r#"
[[access.tokens]]
name = "watcher"
token = "watcher"
right = "read"

[[access.tokens]]
name = "operator"
token = "operator"
right = "admin"
"#;

#[test]
fn removing_a_token_ends_its_watches_and_a_reload_alone_ends_none() {
    for engine in ENGINES {
        let setup = Setup::new().args(["--http", engine]).config(TOKENS);
        let server = setup.start();
        let put = |key: &str| {
            server.key("PUT", key).header("Authorization", "Bearer operator").body("v").send().expect(200);
        };
        let reload = || {
            server
                .path("POST", "/plugins/reload")
                .header("Authorization", "Bearer operator")
                .body("")
                .send()
                .expect(200);
        };
        let fields = "Authorization: Bearer watcher\r\n";
        let mut watching = server.watch("", fields);
        let mut silent = server.watch("prefix=nothing", fields);
        reload();
        put("k");
        assert_eq!(watching.events(1)[0].key(), "k");
        setup.write_config(&TOKENS.replace("\"watcher\"", "\"other\""));
        reload();
        put("secret");
        for watching in [&mut watching, &mut silent] {
            let end = watching.events(1).remove(0);
            assert_eq!((end.name.as_str(), &end.data["status"]), ("end", &json!(401)), "{engine}: {end:?}");
            assert_eq!(watching.event(), None);
        }
        assert_eq!(server.try_watch("", fields).err().map(|reply| reply.status), Some(401));
    }
}

#[test]
fn a_plugin_that_refuses_the_client_ends_its_watch() {
    for engine in ENGINES {
        let setup = Setup::new().load(artefacts().library("vkog-bearer")).args(["--http", engine]);
        let server = setup.config("[plugins.bearer]\ntoken = \"s3cret\"\n").start();
        let put = |key: &str| {
            server.key("PUT", key).header("Authorization", "Bearer s3cret").body("v").send().expect(200);
        };
        // Without a change, no plugin is called.
        let mut unknown = server.watch("", "");
        let begun = unknown.last_id;
        let mut known = server.watch("", "Authorization: Bearer s3cret\r\n");
        put("hidden");
        assert_eq!(known.events(1)[0].key(), "hidden");
        let end = unknown.events(1).remove(0);
        assert_eq!(
            (end.name.as_str(), &end.data["status"], &end.data["plugin"]),
            ("end", &json!(401), &json!("bearer"))
        );
        assert_eq!((unknown.last_id, unknown.event()), (begun, None));
        // When it reconnects, the status says that it should stop.
        let begun = begun.expect("the first line is an id").to_string();
        let refused = server.path("GET", "/watch").header("Last-Event-ID", begun).send().refused(401, "Send the token");
        assert_eq!(refused.header("Vkog-Plugin"), Some("bearer"));
    }
}

#[test]
fn a_watch_omits_expired_entries_and_delivers_their_removal() {
    for engine in ENGINES {
        let server = Setup::new().load(ttl()).args(["--http", engine]).start();
        let before = server.revision();
        let mut watching = server.watch("", "");
        let short = server.key("POST", "short").header("Vkog-TTL", "1s").body("v").send().expect(200).revision();
        let long = server.key("POST", "long").header("Vkog-TTL", "1h").body("v").send().expect(200).revision();
        let events = watching.events(3);
        let received: Vec<_> = events.iter().map(|event| (event.name.clone(), event.key().to_owned())).collect();
        let event = |name: &str, key: &str| (name.to_owned(), key.to_owned());
        assert_eq!(received, [event("put", "short"), event("put", "long"), event("delete", "short")], "{engine}");
        let removed = events[2].id.expect("every event has one");
        assert_successive(short, &[long, removed]);
        let resumed = server.watch(&format!("since={before}"), "").events(2);
        assert_eq!(resumed.iter().map(|event| event.id).collect::<Vec<_>>(), [Some(long), Some(removed)], "{engine}");
    }
}

#[test]
fn a_stop_ends_all_watches_and_waits_for_none() {
    for engine in ENGINES {
        let setup = Setup::new().args(["--http", engine, "--fsync", "never"]);
        let server = setup.start();
        let mut quiet = server.watch("prefix=nothing", "");
        let mut busy = server.watch("values", "");
        let _stopped = server.watch("values", "");
        let value = "x".repeat(60 << 10);
        for _ in 0..400 {
            server.put("k", &value).expect(200);
            busy.events(1);
        }
        let exit = server.stop().expect(0);
        assert!(!exit.stderr.contains("still in flight"), "{engine}: {exit}");
        assert_eq!((quiet.event(), busy.event()), (None, None), "{engine}");
    }
}

#[test]
fn tiny_http_serves_64_watchers_and_drops_those_that_do_not_read() {
    let server = start("tiny", &["--fsync", "never"]);
    let mut watchers: Vec<_> = (0..64).map(|_| server.watch("prefix=a", "")).collect();
    let refused = server.path("GET", "/watch").send().refused(503, "Too many streams at once: 64 are the most");
    assert_eq!(refused.header("Retry-After"), Some("1"));
    server.put("a", "v").expect(200);
    watchers.iter_mut().for_each(|watching| assert_eq!(watching.events(1)[0].key(), "a"));
    // A watcher that reads keeps its slot when another one connects, also while an event is being sent.
    for _ in 0..50 {
        server.put("a", "v").expect(200);
        (0..4).for_each(|_| drop(server.path("GET", "/watch").send().expect(503)));
    }
    watchers.iter_mut().for_each(|watching| drop(watching.events(50)));
    watchers.truncate(32);
    // A closed connection is detected when an event is sent.
    wait_until("32 have left", || {
        server.put("a", "v").expect(200);
        number(&server, "vkog_watchers") <= 32
    });
    let stopped: Vec<_> = (0..32).map(|_| server.watch("prefix=b&values", "")).collect();
    let value = "x".repeat(60 << 10);
    let mut place = server.try_watch("prefix=c", "");
    wait_until("a place among those that do not read", || {
        server.put(&encode("b"), &value).expect(200);
        if place.is_err() {
            place = server.try_watch("prefix=c", "");
        }
        place.is_ok()
    });
    server.put("c", "v").expect(200);
    assert_eq!(place.ok().expect("there is one").events(1)[0].key(), "c");
    drop(stopped);
}

#[test]
fn an_http_1_0_client_gets_a_stream_that_ends_with_its_connection() {
    for engine in ENGINES {
        let server = start(engine, &[]);
        let before = server.revision();
        let first = server.put("k", "v").expect(200).revision();
        let mut wire = server.wire();
        wire.send(format!("GET /watch?since={before} HTTP/1.0\r\n\r\n"));
        let head = wire.try_head().expect("a reply");
        assert_eq!((head.status, head.header("Transfer-Encoding")), (200, None), "{head}");
        server.stop().expect(0);
        let rest = String::from_utf8(wire.rest().expect("it is closed")).expect("events are UTF-8");
        let begin = format!("retry: 1000\nid: {before}\n\nid: {first}\nevent: put\ndata: {{\"key\":\"k\"");
        assert!(rest.starts_with(&begin), "{engine}: {rest}");
    }
}
