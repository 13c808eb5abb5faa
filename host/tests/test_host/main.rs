//! The test host of vkog-plugin-testing and the server give the same responses: status, text and headers.
//!
//! Both get the same random operations, batches and listings, through the same five plugins: they refuse in every phase, hide
//! entries, replace values, set details, add headers, send their own requests, and free memory. Only the revisions differ,
//! which a server starts at the current time; they are compared by their distance from the first. VKOG_FULL runs ten times as
//! many operations; a failure prints the seed, and VKOG_SEED repeats it.

mod plugins;
mod server;

use std::time::{SystemTime, UNIX_EPOCH};

use vkog_plugin_api::Verb;
use vkog_plugin_testing::{Reply, Request, Setup, TestHost, plugin};

use plugins::{Bookkeeper, Clerk, Quota, Transform, Veil};
use server::Server;

const OPERATIONS: usize = 10_000;

/// The response of a client, without the parts that only one of the two sends.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    body: String,
    /// The distance of the revision from the first one.
    revision: Option<u64>,
    /// The media type of a value, the plugin that refused, and the headers of plugins, sorted.
    headers: Vec<(String, String)>,
}

/// One operation, to send to both.
#[derive(Clone, Debug)]
struct Op {
    verb: Verb,
    key: String,
    value: String,
    content_type: &'static str,
    /// The distance of a revision from the first one.
    if_revision: Option<u64>,
    headers: Vec<(&'static str, String)>,
}

impl Op {
    fn random(random: &mut Random, revision: u64) -> Self {
        let verb = [Verb::Get, Verb::Post, Verb::Put, Verb::Delete][random.below(4)];
        let writes = matches!(verb, Verb::Post | Verb::Put);
        let key = match random.below(40) {
            0 => String::new(),
            1 => "k".repeat(1025),
            2..6 => format!("spare-{}", random.below(4)),
            _ => format!("k{}", random.below(12)),
        };
        let words = ["", "up:loud", "hidden", "plain", "no room", "a longer value of some more bytes"];
        let value = if writes { words[random.below(words.len())].to_owned() } else { String::new() };
        let content_type = match random.below(8) {
            0 if writes => "text/plain",
            1 if writes => "text/caf\u{e9}",
            _ => "",
        };
        let mut headers = Vec::new();
        match random.below(12) {
            0 => headers.push(("X-Refuse", ["before", "guard"][random.below(2)].to_owned())),
            1 => headers.push(("X-Veil", "1".to_owned())),
            2 | 3 => headers.push((["X-Ask", "X-Ask-After"][random.below(2)], Self::asked(random))),
            _ => {}
        }
        let if_revision = (random.below(6) == 0).then(|| revision.saturating_sub(random.below(6) as u64));
        Self { verb, key, value, content_type, if_revision, headers }
    }

    /// A store call for a plugin: verb, key, value, media type; "=" means a revision that no entry has.
    fn asked(random: &mut Random) -> String {
        let verb = ["get", "post", "put", "delete", "list"][random.below(5)];
        let key = if random.below(10) == 0 { "k".repeat(1025) } else { format!("k{}", random.below(12)) };
        let value = ["", "up:asked", "asked"][random.below(3)];
        let long = "t".repeat(256);
        let rest = ["", "text/plain", "=", &long][random.below(4)];
        format!("{verb} {key} {value} {rest}")
    }

    fn request<'a>(&'a self, host: &'a TestHost) -> Request<'a> {
        let mut request = host.request(self.verb, &self.key).body(&self.value);
        if !self.content_type.is_empty() {
            request = request.content_type(self.content_type);
        }
        if let Some(revision) = self.if_revision {
            request = request.if_revision(revision);
        }
        self.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
    }
}

impl Seen {
    fn of(reply: &Reply) -> Self {
        let revision = reply.header("ETag").map(|_| reply.revision());
        let mut headers = reply.headers.clone();
        headers.retain(|(name, _)| name != "ETag");
        headers.sort();
        Self { status: reply.status, body: reply.text(), revision, headers }
    }
}

/// A generator of pseudo-random numbers: SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

fn seed() -> u64 {
    match std::env::var("VKOG_SEED") {
        Ok(seed) => seed.parse().expect("VKOG_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64),
    }
}

/// Sends an operation to both, and returns both responses.
fn operation(host: &TestHost, server: &Server, op: &Op, what: &str) -> Seen {
    let (reply, response) = (op.request(host).send(), server.operation(op));
    assert_eq!(Seen::of(&reply), response, "{what}: {op:?}\n{reply}");
    response
}

/// Sends a batch to both, and returns the index of the operation that failed, if one did.
fn batch(host: &TestHost, server: &Server, ops: &[Op], what: &str) -> Option<usize> {
    let (reply, response) = (host.batch(ops.iter().map(|op| op.request(host))), server.batch(ops));
    match (reply.0, response) {
        (Ok(replies), Ok(responses)) => {
            assert_eq!(replies.len(), responses.len(), "{what}");
            for (index, (reply, mut response)) in replies.iter().zip(responses).enumerate() {
                let mut seen = Seen::of(reply);
                if ops[index].verb != Verb::Get {
                    seen.body.clear();
                }
                if ops[index].verb == Verb::Delete {
                    // A batch has the revision of a removal, a response to DELETE has no ETag.
                    response.revision = None;
                }
                if seen.status == 404 {
                    seen.body.clear();
                }
                assert_eq!(seen, response, "{what}, operation {index} of {ops:?}\n{reply}");
            }
            None
        }
        (Err((index, reply)), Err((at, response))) => {
            let seen = Seen::of(&reply);
            let plugin = reply.header("Vkog-Plugin").map(str::to_owned);
            let expected = (index, seen.status, seen.body, plugin);
            assert_eq!(expected, (at, response.0, response.1, response.2), "{what}: {ops:?}\n{reply}");
            at
        }
        (reply, response) => panic!("{what}: {ops:?}\nthe test host: {reply:?}\nthe server: {response:?}"),
    }
}

#[test]
fn the_test_host_and_the_server_give_the_same_responses() {
    let setup = Setup::new()
        .load_other(plugin!(Quota, "quota"))
        .load_other(plugin!(Bookkeeper, "bookkeeper"))
        .load_other(plugin!(Transform, "transform"))
        .load_other(plugin!(Veil, "veil"))
        .load_other(plugin!(Clerk, "clerk"));
    let (host, server) = (setup.start(), Server::start("k0", "plain"));
    host.put("k0", "plain").expect(200);
    let seed = seed();
    let mut random = Random(seed);
    let operations = if std::env::var_os("VKOG_FULL").is_some() { 10 * OPERATIONS } else { OPERATIONS };
    let (mut done, mut statuses) = (0, std::collections::BTreeMap::new());
    let (mut batches, mut failed_batches) = (0, 0);
    while done < operations {
        let what = format!("VKOG_SEED={seed}, operation {done}");
        let revision = server.distance(server.revision());
        match random.below(12) {
            0 => {
                let ops: Vec<Op> = (0..1 + random.below(5)).map(|_| Op::random(&mut random, revision)).collect();
                done += ops.len();
                batches += 1;
                failed_batches += usize::from(batch(&host, &server, &ops, &what).is_some());
            }
            1 => {
                let prefix = ["", "k", "k1", "spare"][random.below(4)];
                assert_eq!(host.keys(prefix).expect("no plugin refuses a listing"), server.keys(prefix), "{what}");
                assert_eq!(host.count(prefix).expect("no plugin refuses a count"), server.count(prefix), "{what}");
                done += 1;
            }
            _ => {
                let seen = operation(&host, &server, &Op::random(&mut random, revision), &what);
                *statuses.entry(seen.status).or_insert(0) += 1;
                done += 1;
            }
        }
        assert_eq!(host.metric("bookkeeper", "open"), 0, "{what}: every guard is followed by undo or after");
        assert_eq!(server.metric("bookkeeper", "open"), 0, "{what}: every guard is followed by undo or after");
        assert_eq!(host.metric("quota", "entries"), server.metric("quota", "entries"), "{what}");
    }
    for status in [200, 400, 403, 404, 412, 413, 414, 422] {
        assert!(statuses.contains_key(&status), "VKOG_SEED={seed}: no {status} among {statuses:?}");
    }
    let made_room = host.metric("quota", "made_room");
    assert!(made_room > 0 && made_room == server.metric("quota", "made_room"), "VKOG_SEED={seed}: {made_room}");
    assert!(failed_batches > 0 && failed_batches < batches, "VKOG_SEED={seed}: {failed_batches} of {batches} failed");
}
