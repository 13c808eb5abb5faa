//! A plugin that declares that its hooks block delays only the requests that wait for it.
//!
//! Provoked with a plugin that waits for another request, before a read, after a write and before a watch event, while 16
//! other connections send requests: more than there are threads that serve. Both engines are started.

use vkog_tests::{ENGINES, Setup, artefacts, conflict};

#[test]
fn a_blocking_hook_delays_no_other_connection() {
    for engine in ENGINES {
        let server = Setup::new().args(["--http", engine]).load(artefacts().library("waits")).start();
        server.put("before", "v").expect(200);
        let (mut reads, mut writes) = (server.wire(), server.wire());
        reads.send("GET /k/before HTTP/1.1\r\nHost: localhost\r\n\r\n");
        writes.send("PUT /k/after HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nw");
        for hook in ["before_get waits", "after_put waits"] {
            server.logs(&[hook]);
        }
        // The write is durable, and its response waits.
        for mut wire in server.wires(16) {
            wire.request("PUT", "/k/k", b"value").expect(200);
            wire.request("GET", "/k/k", b"").expect(200).is("value");
            wire.request("GET", "/k/after", b"").expect(200).is("w");
        }
        server.post("open", "now").expect(200);
        reads.reply().expect(200).is("v");
        writes.reply().expect(200).begins("Ok");
        server.stop().expect(0);
    }
}

#[test]
fn a_blocking_hook_of_a_watch_event_delays_no_other_connection() {
    for engine in ENGINES {
        let server = Setup::new().args(["--http", engine]).load(artefacts().library("waits")).start();
        let mut watchers: Vec<_> = (0..4).map(|_| server.watch("prefix=before", "")).collect();
        server.put("before", "v").expect(200);
        server.logs(&["before_get waits"]);
        for mut wire in server.wires(16) {
            wire.request("PUT", "/k/k", b"value").expect(200);
        }
        server.post("open", "now").expect(200);
        for watcher in &mut watchers {
            assert_eq!(watcher.event().expect("the watch continues").key(), "before");
        }
        server.stop().expect(0);
    }
}

#[test]
fn plugins_and_check_report_whether_a_plugin_blocks() {
    let server = Setup::new().load(artefacts().library("waits")).load(conflict()).start();
    let plugins = server.plugins();
    let told: Vec<_> = plugins.iter().map(|plugin| (plugin["name"].as_str(), plugin["blocks"].as_bool())).collect();
    assert_eq!(told, [(Some("conflict"), Some(false)), (Some("waits"), Some(true))]);
}
