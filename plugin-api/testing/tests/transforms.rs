//! Clients and plugins read values as they were sent, and everything else sees them as they are stored, also after the chain
//! has changed.
//!
//! Provoked with two plugins that transform values, in every operation that reads, also after one of them is gone, in
//! quarantine, or fails.

use std::ops::ControlFlow;

use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, plugin};

/// Wraps values: `NAME(value)`. Details and headers say that it was called.
struct Wrap<const NAME: char> {
    reads: Counter,
}

impl<const NAME: char> Plugin for Wrap<NAME> {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Transform;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Wrap { reads: host.counter("reads", "Calls of read_get.") })
    }
}

impl<const NAME: char> Wrap<NAME> {
    fn wrapped(value: &[u8]) -> Vec<u8> {
        [NAME.to_string().as_bytes(), b"(", value, b")"].concat()
    }
}

impl<const NAME: char> BeforePut for Wrap<NAME> {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if !put.value().starts_with(b"plain") {
            put.replace_value(&Self::wrapped(put.value()));
        }
        Ok(())
    }
}

impl<const NAME: char> BeforePost for Wrap<NAME> {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        post.replace_value(&Self::wrapped(post.value()));
        Ok(())
    }
}

impl<const NAME: char> GuardPut for Wrap<NAME> {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        put.set_details(&[NAME as u8]);
        Ok(())
    }
}

impl<const NAME: char> ReadGet for Wrap<NAME> {
    fn read_get(&self, read: &mut Read<'_>) -> Verdict {
        self.reads.add(1);
        if read.key().contains("panic") {
            panic!("a deliberate panic");
        }
        let status = read.key().strip_prefix("refuse-").map(|status| status.parse().expect("a status"));
        if let Some(status) = status {
            return Err(Refusal::new(status, "not readable"));
        }
        let entry = read.entry().expect("the host passes the entry");
        if entry.details() != [NAME as u8] && !["posted", "touched"].contains(&read.key()) {
            return Err(Refusal::new(500, "not the plugin's own details"));
        }
        let begin = format!("{NAME}(");
        let inner = read.value().strip_prefix(begin.as_bytes()).and_then(|rest| rest.strip_suffix(b")"));
        read.replace_value(inner.ok_or_else(|| Refusal::new(500, "not wrapped"))?);
        if read.key() == "typed" {
            read.replace_content_type(&format!("text/{}; was={}", NAME.to_lowercase(), read.content_type()));
            read.add_header("X-Read", &NAME.to_string());
        }
        Ok(())
    }
}

/// Publishes what its hooks see of the value, and reads entries when a test asks it to.
struct Witness {
    host: Host,
    guarded: Gauge,
    undone: Counter,
    after: Gauge,
}

impl Plugin for Witness {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let gauge = |name: &str| host.gauge(name, "The length of a value.");
        let undone = host.counter("undone", "Calls of undo_get.");
        Ok(Witness { guarded: gauge("guarded"), after: gauge("after"), undone, host })
    }
}

impl GuardGet for Witness {
    fn guard_get(&self, get: &mut Guard<'_, Get>) -> Verdict {
        self.guarded.set(get.entry().map_or(0, |entry| entry.value().len()) as i64);
        Ok(())
    }
}

impl UndoGet for Witness {
    fn undo_get(&self, _: &Undo<'_, Get>) {
        self.undone.add(1);
    }
}

impl AfterGet for Witness {
    fn after_get(&self, get: &After<'_, Get>) {
        self.after.set(get.entry_before().map_or(0, |entry| entry.value().len()) as i64);
        if let Some(key) = get.query().strip_prefix("get=") {
            let found = self.host.get(key).expect("it can be read").expect("it exists");
            get.add_header("X-Found", &String::from_utf8_lossy(&found.value));
        }
        if let Some(prefix) = get.query().strip_prefix("list=") {
            let mut all = Vec::new();
            let listed = self.host.for_each(prefix, |key, entry| {
                all.push(format!("{key}={}", String::from_utf8_lossy(entry.value())));
                ControlFlow::Continue(())
            });
            all.sort();
            get.add_header("X-Listed", &all.join(" "));
            get.add_header("X-Status", &listed.map_or_else(|refusal| refusal.status(), |()| 200).to_string());
        }
    }
}

fn setup() -> Setup {
    let setup = Setup::new().load_other(plugin!(Wrap<'A'>, "wrap-a")).load_other(plugin!(Wrap<'B'>, "wrap-b"));
    setup.load_other(plugin!(Witness, "witness"))
}

#[test]
fn a_value_is_stored_transformed_and_read_as_it_was_sent() {
    let host = setup().start();
    let revision = host.put("k", "value").expect(200).revision();
    assert_eq!(host.stored("k").as_deref(), Some(&b"B(A(value))"[..]));
    assert_eq!(host.get("k").expect(200).is("value").revision(), revision);
    host.post("posted", "new").expect(200);
    host.get("posted").is("new");
    assert_eq!([host.metric("wrap-a", "reads"), host.metric("wrap-b", "reads")], [2, 2]);
}

#[test]
fn hooks_see_the_stored_value_and_store_calls_the_sent_one() {
    let host = setup().start();
    host.put("k", "value").expect(200);
    let reply = host.request(Verb::Get, "k").query("get=k").send().is("value").has("X-Found", "value");
    assert_eq!([host.metric("witness", "guarded"), host.metric("witness", "after")], [11, 11], "{reply}");
    host.put("l", "plain").expect(200);
    host.request(Verb::Get, "k").query("list=").send().has("X-Listed", "k=value l=plain").has("X-Status", "200");
}

#[test]
fn the_chain_of_the_write_counts_and_not_that_of_the_read() {
    let mut host = Setup::new().start();
    host.put("before", "B(1)").expect(200);
    host.restart_with(setup());
    host.get("before").is("B(1)");
    host.put("ab", "1").expect(200);
    host.restart_with(setup().order(&["wrap-b"]));
    host.get("ab").is("1");
    host.put("ba", "2").expect(200);
    assert_eq!(host.stored("ba").as_deref(), Some(&b"A(B(2))"[..]));
    host.restart_with(setup());
    assert_eq!(["ab", "ba", "before"].map(|key| host.get(key).text()), ["1", "2", "B(1)"]);
}

#[test]
fn without_the_plugin_a_value_cannot_be_read_but_replaced_and_removed() {
    let mut host = setup().start();
    for key in ["a", "b", "c", "touched"] {
        host.put(key, "1").expect(200);
    }
    host.put("plain", "plain").expect(200);
    host.restart_with(Setup::new().load_other(plugin!(Wrap<'A'>, "wrap-a")).load_other(plugin!(Witness, "witness")));
    let gone = "plugin \"wrap-b\" is not loaded";
    host.get("a").refused(503, gone);
    assert_eq!(host.metric("witness", "undone"), 1);
    host.batch([host.request(Verb::Get, "plain"), host.request(Verb::Get, "a")]).failed(1, 503, gone);
    assert_eq!(host.metric("witness", "undone"), 3, "both gets of the batch");
    host.batch([host.request(Verb::Put, "d").body("1"), host.request(Verb::Get, "a")]).failed(1, 503, gone);
    host.get("d").expect(404);
    let refused = host.keys("").expect_err("a page without the key would look complete");
    refused.refused(503, &format!("Key \"a\": {gone}"));
    assert_eq!(host.count("").ok(), Some(5), "a count shows no value");
    host.touch("touched").send().expect(200);
    host.request(Verb::Get, "plain").query("list=").send().has("X-Status", "503");
    host.put("b", "2").expect(200);
    host.get("b").is("2");
    host.delete("c").expect(200);
    host.get("c").expect(404);
    host.restart_with(setup());
    host.get("a").is("1");
    host.get("touched").is("1");
}

#[test]
fn a_batch_reads_values_as_they_were_sent_also_those_that_it_writes() {
    let host = setup().start();
    host.put("a", "1").expect(200);
    let get = |key| host.request(Verb::Get, key);
    let put = |key, value: &str| host.request(Verb::Put, key).body(value);
    let read = |replies: Vec<vkog_plugin_testing::Reply>| replies.iter().map(|reply| reply.text()).collect::<Vec<_>>();
    assert_eq!(read(host.batch([get("a"), get("a"), get("x")]).succeeded()), ["1", "1", "Not Found"]);
    let replies = host.batch([get("a"), put("a", "2"), get("a"), put("b", "3"), get("b"), get("a")]).succeeded();
    assert_eq!(replies[2].revision(), replies[1].revision());
    assert_eq!(read(replies), ["1", "Ok", "2", "Ok", "3", "2"]);
    assert_eq!(host.get("a").is("2").revision(), host.batch([get("a")]).succeeded()[0].revision());
    host.put("panic", "1").expect(200);
    host.batch([put("a", "5"), get("panic"), put("b", "5")]).failed(1, 500, "plugin \"wrap-b\" failed in read_get");
    host.get("a").is("2");
    host.get("b").is("3");
}

#[test]
fn the_guards_of_a_batch_that_is_decided_again_are_undone() {
    let host = setup().start();
    host.put("a", "1").expect(200);
    host.put("b", "1").expect(200);
    let get = |key| host.request(Verb::Get, key);
    host.batch([get("a"), host.request(Verb::Put, "c").body("1"), get("b")]).succeeded();
    assert_eq!(host.metric("witness", "undone"), 2, "once for each get of the first attempt");
}

#[test]
fn a_watch_shows_values_as_they_were_sent() {
    let host = setup().start();
    let mut watch = host.watch("");
    host.put("k", "value").expect(200);
    host.put("k", "plain").expect(200);
    host.delete("k").expect(200);
    let values: Vec<_> = watch.changes().into_iter().map(|change| change.value).collect();
    assert_eq!(values, [Some(b"value".to_vec()), Some(b"plain".to_vec()), None]);
    host.put("panic", "1").expect(200);
    host.put("z", "1").expect(200);
    assert_eq!(watch.changes(), []);
    let end = watch.end().expect("the watch has ended").clone();
    end.refused(500, "Key \"panic\": plugin \"wrap-b\" failed in read_get");
    assert_eq!(host.metric("witness", "undone"), 1);
}

/// Stores values of equal bytes as one byte and their number.
struct Shrink;

impl Plugin for Shrink {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Shrink)
    }
}

impl BeforePut for Shrink {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        let number = (put.value().len() as u32).to_le_bytes();
        put.replace_value(&[&put.value()[..1], &number].concat());
        Ok(())
    }
}

impl ReadGet for Shrink {
    fn read_get(&self, read: &mut Read<'_>) -> Verdict {
        let &[byte, a, b, c, d] = read.value() else { return Err(Refusal::new(500, "not 5 bytes")) };
        read.replace_value(&vec![byte; u32::from_le_bytes([a, b, c, d]) as usize]);
        Ok(())
    }
}

#[test]
fn a_watch_of_many_large_values_delivers_each_once() {
    let host = Setup::new().load_other(plugin!(Shrink, "shrink")).start();
    let mut watch = host.watch("");
    let value = |index: usize| vec![b'a' + (index % 26) as u8; 40_000];
    for index in 0..100 {
        host.put(&format!("{index:02}"), value(index)).expect(200);
    }
    let seen: Vec<_> = watch.changes().into_iter().map(|change| (change.key, change.value)).collect();
    let expected: Vec<_> = (0..100).map(|index| (format!("{index:02}"), Some(value(index)))).collect();
    assert!(seen == expected, "{:?}", seen.iter().map(|(key, _)| key).collect::<Vec<_>>());
}

#[test]
fn a_refusal_of_read_get_concerns_the_key_or_the_whole_listing() {
    let host = setup().start();
    for status in ["404", "451"] {
        host.put(&format!("refuse-{status}"), "1").expect(200);
    }
    host.put("a", "1").expect(200);
    host.get("refuse-404").refused(404, "not readable").has("Vkog-Plugin", "wrap-b");
    host.get("refuse-451").refused(451, "not readable");
    assert_eq!(host.keys("refuse-404").expect("404 leaves the key out"), [] as [&str; 0]);
    host.keys("").expect_err("451 does not").refused(451, "not readable");
    assert_eq!(host.metric("witness", "undone"), 5);
}

#[test]
fn a_plugin_in_quarantine_lets_no_transformed_value_pass() {
    let host = setup().start();
    host.put("panic", "1").expect(200);
    host.put("k", "1").expect(200);
    host.put("plain", "plain").expect(200);
    for _ in 0..5 {
        host.get("panic").refused(500, "plugin \"wrap-b\" failed in read_get");
    }
    assert!(host.is_quarantined("wrap-b"));
    host.get("k").refused(503, "plugin \"wrap-b\" is in quarantine").has("Vkog-Plugin", "wrap-b");
    host.get("plain").is("plain");
    host.put("k", "2").expect(503);
}

#[test]
fn a_touch_keeps_the_stored_form() {
    let host = setup().start();
    let revision = host.put("k", "value").expect(200).revision();
    assert!(host.touch("k").send().expect(200).revision() > revision);
    assert_eq!(host.stored("k").as_deref(), Some(&b"B(A(value))"[..]));
    assert_eq!(host.metric("wrap-a", "reads"), 0);
    host.get("k").is("value");
}

#[test]
fn read_get_may_change_the_media_type_and_add_headers() {
    let host = setup().start();
    host.request(Verb::Put, "typed").content_type("x/y").body("1").send().expect(200);
    let reply = host.get("typed").is("1").has("Content-Type", "text/a; was=text/b; was=x/y");
    let added: Vec<_> = reply.headers.iter().filter(|(name, _)| name == "X-Read").map(|(_, value)| &**value).collect();
    assert_eq!(added, ["B", "A"]);
    let reply = &host.batch([host.request(Verb::Get, "typed")]).succeeded()[0];
    assert_eq!(
        (reply.header("Content-Type"), reply.header("X-Read")),
        (Some("text/a; was=text/b; was=x/y"), Some("B"))
    );
}

#[test]
fn a_plugin_without_read_get_leaves_no_record() {
    struct Trim;
    impl Plugin for Trim {
        type Settings = NoSettings;

        fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
            Ok(Trim)
        }
    }
    impl BeforePut for Trim {
        fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
            put.replace_value(put.value().trim_ascii());
            Ok(())
        }
    }
    let mut host = Setup::new().load_other(plugin!(Trim, "trim")).start();
    host.put("k", " 1 ").expect(200);
    host.restart_with(Setup::new());
    host.get("k").is("1");
}
