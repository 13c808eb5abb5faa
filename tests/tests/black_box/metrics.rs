//! `/metrics`: the counts agree with the requests that were sent, and Prometheus can parse every line.

use vkog_tests::{ENGINES, Server, Setup, assert_successive, bytes, conflict, guard_runs, on_etcd, ttl};

/// Returns the value of a metric, by its name with labels.
fn number(server: &Server, name: &str) -> f64 {
    let reply = server.path("GET", "/metrics").send().expect(200);
    let text = reply.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
}

#[test]
fn the_metrics_count_exactly_the_requests_that_were_sent() {
    let server = Setup::new().load(bytes()).load(conflict()).start();
    server.post("a", "12345").expect(200);
    let second = server.post("b", "12345").expect(200).revision();
    server.post("b", "12345").expect(409);
    server.delete("a").expect(200);
    // Beside the two creates that succeeded.
    let refused = guard_runs() as f64;
    for (name, value) in [
        ("vkog_entries", 1.0),
        ("vkog_entry_bytes", 6.0),
        ("vkog_writable", 1.0),
        ("vkog_plugin_calls_total{plugin=\"conflict\",hook=\"guard_post\"}", 2.0 + refused),
        ("vkog_plugin_refusals_total{plugin=\"conflict\",hook=\"guard_post\"}", refused),
        // After the plugin that refused.
        ("vkog_plugin_calls_total{plugin=\"bytes\",hook=\"guard_post\"}", 2.0),
        ("vkog_plugin_calls_total{plugin=\"bytes\",hook=\"after_delete\"}", 1.0),
        ("vkog_plugin_call_seconds_count{plugin=\"bytes\",hook=\"guard_post\"}", 2.0),
        ("vkog_plugin_call_seconds_bucket{le=\"+Inf\",plugin=\"bytes\",hook=\"guard_post\"}", 2.0),
        ("vkog_plugin_quarantined{plugin=\"bytes\"}", 0.0),
    ] {
        assert_eq!(number(&server, name), value, "{name}");
    }
    assert_successive(second, &[server.revision()]);
    assert!(on_etcd() || number(&server, "vkog_log_bytes") > 0.0);
    #[cfg(target_os = "linux")]
    assert!((1e6..1e10).contains(&number(&server, "process_resident_memory_bytes")));
}

#[test]
fn requests_connections_and_syncs_are_counted_to_the_last_one() {
    for engine in ENGINES {
        let server = Setup::new().args(["--http", engine]).start();
        // All send requests until the last round: the server closes a connection that is idle for 30 s, and on a busy
        // machine 1000 rounds take longer.
        let mut wires = server.wires(2);
        for round in 0..=2000 {
            if round == 2000 {
                wires.extend(server.wires(1));
            }
            let sending = wires.len() - round % 2;
            for wire in &mut wires[..sending] {
                wire.request("PUT", "/k/k", b"v").expect(200);
                wire.request("GET", "/k/k", b"").expect(200);
                wire.request("GET", "/k/absent", b"").expect(404);
            }
        }
        wires[0].request("DELETE", "/k/absent", b"").expect(404);
        wires[0].request("BREW", "/k/k", b"").expect(405);
        wires[0].request("PUT", "/k/k", b"").expect(400);
        let count = 3.0 + 3000.0;
        for (labels, value) in [
            ("{method=\"OPTIONS\",status=\"2xx\"}", 3.0),
            ("{method=\"PUT\",status=\"2xx\"}", count),
            ("{method=\"PUT\",status=\"4xx\"}", 1.0),
            ("{method=\"GET\",status=\"4xx\"}", count),
            ("{method=\"DELETE\",status=\"4xx\"}", 1.0),
            ("{method=\"other\",status=\"4xx\"}", 1.0),
        ] {
            assert_eq!(number(&server, &format!("vkog_requests_total{labels}")), value, "{engine}: {labels}");
        }
        // The request for the metrics is itself in flight.
        assert_eq!(number(&server, "vkog_requests_under_way"), 1.0, "{engine}");
        // Only some are timed, and all are counted.
        assert_eq!(number(&server, "vkog_request_seconds_count{method=\"PUT\"}"), count + 1.0, "{engine}");
        let infinite = number(&server, "vkog_request_seconds_bucket{le=\"+Inf\",method=\"PUT\"}");
        assert_eq!(infinite, count + 1.0, "{engine}");
        assert_eq!(number(&server, "vkog_fsync_mode{mode=\"always\"}"), 1.0);
        let syncs = number(&server, "vkog_fsync_seconds_count");
        assert!((1000.0..=count).contains(&syncs), "{engine}: {syncs} syncs");
        assert!(number(&server, "vkog_fsync_seconds_sum") > 0.0);
        if engine == "hyper" {
            // And the client that requests the metrics.
            assert_eq!(number(&server, "vkog_connections"), 4.0);
            drop(wires);
            assert!((0..10_000).any(|_| number(&server, "vkog_connections") == 1.0), "three connections have ended");
            assert_eq!(number(&server, "vkog_connections_accepted_total"), 4.0);
        }
    }
    let server = Setup::new().args(["--fsync", "never"]).start();
    server.put("k", "v").expect(200);
    assert_eq!(number(&server, "vkog_fsync_seconds_count"), 0.0);
    assert_eq!(number(&server, "vkog_fsync_mode{mode=\"never\"}"), 1.0);
}

#[test]
fn requests_that_the_engine_rejects_are_counted() {
    let server = Setup::new().args(["--http", "hyper"]).start();
    assert_eq!(number(&server, "vkog_requests_rejected_total"), 0.0);
    server.wire().send("GET /k/a\r\n\r\n").reply().expect(400);
    server.wire().send(format!("GET /k/a HTTP/1.1\r\n{}\r\n", "X-Many: 1\r\n".repeat(101))).reply().expect(431);
    server.get("a").expect(404);
    // Counted when the connection ends, after the response.
    let is_counted = |_| number(&server, "vkog_requests_rejected_total") == 2.0;
    assert!((0..10_000).any(is_counted), "two requests were rejected");
}

#[test]
fn every_line_of_the_metrics_is_a_sample_or_a_description() {
    let server = Setup::new().load(bytes()).start();
    server.post("a", "1").expect(200);
    let ask = |accept: &str| server.path("GET", "/metrics").header("Accept", accept).send().expect(200);
    // The first one is not among its own numbers.
    ask("*/*");
    let reply = ask("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2");
    let reply = reply.has("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = reply.text();
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE vkog_requests counter\n"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(name.starts_with("vkog_") || name == "process_resident_memory_bytes", "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    for accept in ["*/*", "text/plain", "application/openmetrics-text;q=0.1, text/plain"] {
        let reply = ask(accept).has("Content-Type", "text/plain; version=0.0.4; charset=utf-8");
        let text = reply.text();
        assert!(text.contains("# TYPE vkog_requests_total counter\n"), "{text}");
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }
    let all = ask("*/*").text().lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), all);
    server.path("POST", "/metrics").body("1").send().expect(405).has("Allow", "GET, HEAD, OPTIONS");
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    use std::process::{Command, Stdio};

    if Command::new("promtool").arg("--version").output().is_err() {
        return println!("skipped: promtool is not installed (apt-get install prometheus)");
    }
    let server = Setup::new().load(bytes()).load(conflict()).load(ttl()).start();
    server.post("a", "1").expect(200);
    let metrics = server.path("GET", "/metrics").send().expect(200).text();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("metrics");
    std::fs::write(&file, metrics).expect("a file can be written");
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::from(std::fs::File::open(&file).expect("it was just written")));
    let output = command.output().expect("it ran just now");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}
