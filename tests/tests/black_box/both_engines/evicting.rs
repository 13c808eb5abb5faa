//! With `evict`, bytes makes room for writes instead of rejecting them; the limit holds and the count stays exact, with many
//! clients, and after a crash.
//!
//! Provoked with 16 clients that write far more than fits, with each policy and both ways of counting, and by killing the
//! server meanwhile. The plugin's count is known from the rejection of a value that never fits.

use std::io;
use std::thread;

use vkog_tests::{Reply, Server, Setup, Wire, amount, bytes, pattern};

use super::ENGINE;

const LIMIT: u64 = 64 * 1024;
const CLIENTS: usize = 16;
const KEYS: u64 = 400;

fn setup(evict: &str, count: &str) -> Setup {
    let config = format!("[plugins.bytes]\nmax_size = {LIMIT}\nevict = {evict:?}\ncount = {count:?}\n");
    Setup::on(ENGINE).load(bytes()).config(config).args(["--max-value", "1MiB"])
}

/// Returns the plugin's count, from the refusal of a write.
fn counted(server: &Server) -> u64 {
    let refusal: Reply = server.put("never", pattern(LIMIT as usize)).refused(413, "Max size exceeded");
    let text = refusal.text();
    let free = text.split(" bytes, ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    LIMIT - free.unwrap_or_else(|| panic!("not the free bytes: {refusal}"))
}

/// Returns the cost of all entries that the server has, as the README of the plugin says.
fn stored(server: &Server, count: &str) -> u64 {
    let cost = |key: String| {
        let reply = server.get(&key);
        let payload = (key.len() + reply.body.len()) as u64;
        match (reply.status, count) {
            (404, _) => 0,
            (_, "payload") => payload,
            _ => 21 + (8 + (32 + payload).next_multiple_of(8)).next_multiple_of(16),
        }
    };
    (0..KEYS).map(|number| cost(format!("{number}"))).sum()
}

/// Writes, reads and removes entries of random sizes until the server ends. Returns the number of writes that succeeded.
fn run(mut wire: Wire, client: u64, rounds: usize) -> u64 {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(client + 1);
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let mut ask = |method: &str, path: &str, body: &[u8]| -> io::Result<Reply> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        wire.try_send(&[head.as_bytes(), body].concat())?;
        wire.try_reply()
    };
    let mut written = 0;
    for _ in 0..rounds {
        let (path, value) = (format!("/k/{}", below(KEYS)), pattern(1 + below(1500) as usize));
        let reply = match below(10) {
            0..7 => ask("PUT", &path, &value),
            7..9 => ask("GET", &path, b""),
            _ => ask("DELETE", &path, b""),
        };
        // The server was killed.
        let Ok(reply) = reply else { break };
        assert!([200, 404].contains(&reply.status), "{reply}");
        written += u64::from(reply.status == 200);
    }
    written
}

#[test]
fn racing_writers_are_not_refused_and_the_count_stays_exact() {
    for (evict, count) in [("lru", "payload"), ("lfu", "payload"), ("lru", "memory"), ("lfu", "memory")] {
        let setup = setup(evict, count);
        let server = setup.start();
        let rounds = amount(60, 600);
        thread::scope(|scope| {
            let wires = (0..).zip(server.wires(CLIENTS));
            wires.for_each(|(client, wire)| _ = scope.spawn(move || run(wire, client, rounds)));
        });
        let own = counted(&server);
        let sum = stored(&server, count);
        assert!(sum > LIMIT / 4 && sum <= LIMIT, "{sum} of {LIMIT} bytes are used");
        assert_eq!(own, sum, "{evict}, {count}");
        server.stop().expect(0);
        assert_eq!(counted(&setup.start()), sum, "{evict}, {count}, after a restart");
    }
}

#[test]
fn the_count_is_exact_and_writes_go_on_after_the_server_was_killed() {
    let setup = setup("lru", "payload");
    for _ in 0..amount(3, 20) {
        let server = setup.start();
        let wires = (0..).zip(server.wires(CLIENTS));
        thread::scope(|scope| {
            let clients: Vec<_> =
                wires.map(|(client, wire)| scope.spawn(move || run(wire, client, 1_000_000))).collect();
            server.wait_for_evictions(100);
            // It is killed.
            drop(server);
            let written: u64 = clients.into_iter().map(|client| client.join().expect("its assertions hold")).sum();
            assert!(written > 0);
        });
        let server = setup.start();
        let sum = stored(&server, "payload");
        assert!(sum <= LIMIT, "{sum} of {LIMIT} bytes are used");
        assert_eq!(counted(&server), sum);
        server.put("0", pattern(60_000)).expect(200);
        server.stop().expect(0);
    }
}

/// Metrics and statistics of the plugin.
trait Evictions {
    fn evicted(&self) -> u64;
    fn wait_for_evictions(&self, count: u64);
}

impl Evictions for Server {
    fn evicted(&self) -> u64 {
        let text = self.path("GET", "/metrics").send().expect(200).text();
        let line = text.lines().find_map(|line| line.strip_prefix("vkog_plugin_bytes_evicted_total "));
        line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no evictions in {text}"))
    }

    fn wait_for_evictions(&self, count: u64) {
        let deadline = std::time::Instant::now() + vkog_tests::DEADLINE;
        while self.evicted() < count {
            assert!(std::time::Instant::now() < deadline, "{} evictions", self.evicted());
        }
    }
}

#[test]
fn without_the_setting_the_plugin_has_no_hook_for_it() {
    let hooks = |config: &str| {
        let server = Setup::on(ENGINE).load(bytes()).config(config).start();
        let plugin = server.plugin("bytes");
        let hooks = plugin["hooks"].as_array().unwrap_or_else(|| panic!("no hooks in {plugin}"));
        hooks.iter().map(|hook| hook["hook"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let (off, on) = (hooks(""), hooks("[plugins.bytes]\nevict = \"lfu\"\n"));
    for hook in ["after_get", "make_room"] {
        assert!(!off.contains(&hook.to_owned()) && on.contains(&hook.to_owned()), "{hook}: {off:?}, {on:?}");
    }
    assert_eq!(on.len(), off.len() + 2);
}
