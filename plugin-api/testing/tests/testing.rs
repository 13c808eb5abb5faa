//! The host that plugin authors test with does what a server does: each property is provoked by a plugin made for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, TestHost, plugin};

/// Counts the bytes that its guards reserve, and releases them in undo.
struct Holder {
    held: Gauge,
}

impl Plugin for Holder {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Holder { held: host.gauge("held", "The reserved bytes.") })
    }
}

impl GuardPut for Holder {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.held.add(put.value().len() as i64);
        Ok(())
    }
}

impl UndoPut for Holder {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        self.held.add(-(put.value().len() as i64));
    }
}

/// Refuses or panics, as the value says.
struct Moody;

impl Plugin for Moody {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Observe;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Moody)
    }
}

impl GuardPut for Moody {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        match put.value() {
            b"refuse" => Err(Refusal::new(422, "not that").with_header("X-Mood", "bad")),
            b"panic" => panic!("never that"),
            _ => Ok(()),
        }
    }
}

impl AfterPut for Moody {
    fn after_put(&self, put: &After<'_, Put>) {
        put.add_header("X-Client", put.client());
    }
}

fn held_and_moody() -> TestHost {
    Setup::new().load_other(plugin!(Moody, "moody")).load_other(plugin!(Holder, "holder")).start()
}

#[test]
fn a_guard_is_undone_when_a_later_plugin_refuses_or_panics_or_the_store_fails() {
    let host = held_and_moody();
    host.put("a", "four").expect(200).has("X-Client", "127.0.0.1:50000");
    host.put("a", "refuse").refused(422, "not that").has("X-Mood", "bad").has("Vkog-Plugin", "moody");
    host.put("a", "panic").refused(500, "plugin \"moody\" failed in guard_put");
    host.fail_writes(1);
    host.put("a", "five!").refused(503, "Rolled back");
    assert_eq!(host.metric("holder", "held"), 4);
    host.get("a").is("four");
    assert!(host.log().contains("ERROR moody: plugin \"moody\" failed in guard_put: never that"), "{}", host.log());
}

#[test]
fn the_order_that_a_test_names_is_the_order_of_the_chain() {
    let setup = Setup::new().load_other(plugin!(Moody, "moody")).load_other(plugin!(Holder, "holder"));
    let host = setup.order(&["moody"]).start();
    host.put("a", "refuse").expect(422);
    assert_eq!(host.metric("holder", "held"), 0, "the holder was not called");
}

#[test]
fn a_plugin_that_panics_repeatedly_is_in_quarantine_until_a_restart() {
    let mut host = held_and_moody();
    for _ in 0..5 {
        host.put("a", "panic").expect(500);
    }
    assert!(host.is_quarantined("moody"));
    host.put("a", "fine").refused(503, "plugin \"moody\" is in quarantine");
    host.restart();
    host.put("a", "fine").expect(200);
}

#[test]
fn new_settings_replace_the_plugin_of_that_name_alone() {
    let mut host = held_and_moody();
    host.put("a", "four").expect(200);
    for _ in 0..5 {
        host.put("a", "panic").expect(500);
    }
    assert!(host.is_quarantined("moody"));
    let held = host.metric("holder", "held");
    host.change_settings("moody", "{}").expect("it has none");
    assert!(!host.is_quarantined("moody"), "it is a new one");
    host.put("b", "refuse").refused(422, "not that");
    host.put("b", "seven77").expect(200).has("X-Client", "127.0.0.1:50000");
    assert_eq!(host.metric("holder", "held"), held + 7, "the other one is as it was");
}

/// Writes each event into the entry "last", and sends nested requests for "deep".
struct Teller {
    host: Host,
}

impl Plugin for Teller {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Teller { host })
    }
}

impl BeforePost for Teller {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        if post.key() == "deep" {
            self.host.post("deep", post.value())?;
        }
        Ok(())
    }
}

impl GuardPost for Teller {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        if post.key() == "guard" { self.host.get("guard").map(drop) } else { Ok(()) }
    }
}

impl AfterPost for Teller {
    fn after_post(&self, post: &After<'_, Post>) {
        if post.asker().is_none() {
            self.host
                .ask(&Ask::post("last", post.key().as_bytes()).header("X-By", "teller"))
                .expect("no plugin refuses");
        } else {
            assert_eq!((post.asker(), post.header("x-by")), (Some("teller"), Some(&b"teller"[..])));
        }
    }
}

impl AfterDelete for Teller {
    fn after_delete(&self, delete: &After<'_, Delete>) {
        let mut keys = Vec::new();
        let each = |key: &str, _: Entry<'_>| {
            keys.push(key.to_owned());
            std::ops::ControlFlow::Continue(())
        };
        self.host.for_each("", each).expect("no plugin refuses");
        delete.add_header("X-Left", &keys.join(","));
    }
}

#[test]
fn requests_of_plugins_nest_eight_deep_and_are_refused_under_a_lock() {
    let host = Setup::new().load_other(plugin!(Teller, "teller")).start();
    host.post("a", "1").expect(200);
    host.get("last").is("a");
    host.post("deep", "1").refused(508, "requests of plugins are nested more than 8 deep");
    host.post("guard", "1").refused(508, "guard and undo hooks cannot send requests");
    host.delete("a").expect(200).has("X-Left", "last");
    assert_eq!(host.log(), "");
}

/// Counts the writes of an entry in its details, and ticks at the configured interval.
struct Counting {
    host: Host,
    settings: Mutex<Pace>,
    ticked: AtomicU64,
    found: AtomicI64,
}

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Pace {
    seconds: u64,
}

impl Plugin for Counting {
    type Settings = Pace;

    fn create(host: Host, settings: Pace) -> Result<Self, CreateError> {
        if settings.seconds == 0 {
            return Err("seconds is 0; give 1 or more".into());
        }
        let (ticked, found) = (AtomicU64::new(0), AtomicI64::new(-1));
        Ok(Counting { host, settings: Mutex::new(settings), ticked, found })
    }
}

impl Start for Counting {
    fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
        let mut found = 0;
        stored.for_each(|_, entry| found += i64::from(entry.details()[0]));
        self.found.store(found, SeqCst);
        self.host.gauge("found", "The sum of the entries' details at the start.").set(found);
        Ok(())
    }
}

impl GuardPut for Counting {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        put.set_details(&[put.entry().map_or(0, |entry| entry.details()[0]) + 1]);
        Ok(())
    }
}

impl Tick for Counting {
    fn tick(&self) -> Duration {
        let count = self.ticked.fetch_add(1, SeqCst);
        let at = self.host.now().duration_since(std::time::SystemTime::UNIX_EPOCH).expect("it is later").as_millis();
        self.host.put(&format!("tick {count}"), at.to_string().as_bytes()).expect("no plugin refuses");
        Duration::from_secs(self.settings.lock().expect("no plugin panics").seconds)
    }
}

impl SettingsChanged for Counting {
    fn settings_changed(&self, settings: Pace) -> Result<(), String> {
        if settings.seconds == 0 {
            return Err("seconds is 0; give 1 or more".into());
        }
        *self.settings.lock().expect("no plugin panics") = settings;
        Ok(())
    }
}

fn counting(seconds: u64) -> Setup {
    Setup::new().load_other(plugin!(Counting, "counting")).settings(&format!("{{\"seconds\": {seconds}}}"))
}

#[test]
fn ticks_run_at_their_time_and_a_clock_that_is_set_makes_none() {
    let mut host = counting(20).start();
    let begin = host.now();
    host.get("tick 0").expect(200);
    host.get("tick 1").expect(404);
    host.set_time(begin + Duration::from_secs(1000));
    host.get("tick 1").expect(404);
    host.advance(Duration::from_secs(59));
    let at = (begin + Duration::from_secs(1040)).duration_since(std::time::SystemTime::UNIX_EPOCH).expect("later");
    host.get("tick 2").is(at.as_millis().to_string());
    host.get("tick 3").expect(404);
    assert_eq!(host.now(), begin + Duration::from_secs(1059));
    assert_eq!(host.tick("counting"), Duration::from_secs(20));
    host.get("tick 3").expect(200);
    let error = host.change_settings("counting", r#"{"seconds": 0}"#).expect_err("0 is refused");
    assert!(error.to_string().ends_with("seconds is 0; give 1 or more"), "{error}");
    host.change_settings("counting", r#"{"seconds": 1}"#).expect("1 is fine");
    host.advance(Duration::from_secs(22));
    host.get("tick 6").expect(200);
    host.get("tick 7").expect(404);
}

#[test]
fn entries_and_their_details_outlive_the_plugins() {
    let mut host = counting(1000).start();
    for value in ["1", "2", "3"] {
        host.put("a", value).expect(200);
    }
    assert_eq!(host.metric("counting", "found"), 0);
    host.restart();
    assert_eq!(host.metric("counting", "found"), 4, "three writes and the first tick");
    host.get("a").is("3").has("ETag", "\"4\"");
}

#[test]
fn an_error_of_invalid_settings_names_the_plugin_and_the_known_keys() {
    let error = counting(0).try_start().err().expect("0 is refused");
    assert_eq!(error.to_string(), "plugin \"counting\" does not start: seconds is 0; give 1 or more");
    let error = counting(1).settings(r#"{"second": 1}"#).try_start().err().expect("there is no second");
    assert_eq!(
        error.to_string(),
        "plugin \"counting\" cannot read its settings: unknown key \"second\"; known keys: seconds"
    );
}

/// Refuses a key that exists.
struct Once;

impl Plugin for Once {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Once)
    }
}

impl GuardPost for Once {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        if post.entry().is_some() { Err(Refusal::new(409, "Key already exists")) } else { Ok(()) }
    }
}

#[test]
fn exactly_one_of_several_threads_creates_a_key() {
    let host = Setup::new().load_other(plugin!(Once, "once")).start();
    let create = || host.post("a", "1").status;
    let statuses: Vec<u16> = thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it answers")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
}

#[test]
fn a_test_host_refuses_what_a_server_refuses() {
    let host = Setup::new().start();
    host.post("", "1").refused(400, "Key cannot be empty");
    host.post("a", "").refused(400, "No content provided");
    host.post(&"k".repeat(1025), "1").expect(414);
    host.delete("a").expect(404);
    let revision = host.post("a", "1").revision();
    let put = |content_type| host.request(Verb::Put, "a").body("2").content_type(content_type).send();
    put("text/caf\u{e9}").refused(400, "Content-Type must be ASCII text");
    put(&"t".repeat(256)).refused(400, "Content-Type too long: 256 bytes; the maximum is 255");
    let other = host.request(Verb::Get, "a").if_revision(revision + 1).send();
    other.refused(412, "Precondition failed: the entry is not as expected");
    host.request(Verb::Put, "a").if_revision(revision).body("2").send().expect(200);
}

/// Logs its guards and undos in the order of their calls, refuses "refused", and hides keys that start with "hidden".
struct Noting {
    host: Host,
}

impl Plugin for Noting {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Noting { host })
    }
}

impl Noting {
    fn note(&self, hook: &str, key: &str) {
        self.host.log(Level::Info, &format!("{hook} {key}"));
    }
}

impl GuardPut for Noting {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.note("guard", put.key());
        if put.key() == "refused" { Err(Refusal::new(409, "not that one")) } else { Ok(()) }
    }
}

impl UndoPut for Noting {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        self.note("undo", put.key());
    }
}

impl GuardGet for Noting {
    fn guard_get(&self, get: &mut Guard<'_, Get>) -> Verdict {
        if get.key().starts_with("hidden") {
            get.hide();
        }
        Ok(())
    }
}

#[test]
fn a_batch_undoes_its_guards_from_the_last_to_the_first() {
    let host = Setup::new().load_other(plugin!(Noting, "noting")).start();
    let put = |key| host.request(Verb::Put, key).body("1");
    let logged = || host.log().replace("INFO noting: ", "").replace('\n', ", ");
    let failed = host.batch([put("a"), put("b"), put("refused"), put("c")]).failed(2, 409, "not that one");
    failed.has("Vkog-Plugin", "noting");
    let refused = "guard a, guard b, guard refused, undo b, undo a, ";
    assert_eq!(logged(), refused);
    host.fail_writes(1);
    let (index, reply) = host.batch([put("a"), put("b")]).0.expect_err("the store fails");
    assert_eq!(index, None, "no single operation failed");
    reply.refused(503, "Rolled back");
    assert_eq!(logged(), format!("{refused}guard a, guard b, undo b, undo a, "));
    host.get("a").expect(404);
    assert_eq!(host.batch([put("a"), put("b")]).succeeded()[1].revision(), 2);
}

#[test]
fn listings_and_watches_show_what_plugins_let_a_client_see() {
    let host = Setup::new().load_other(plugin!(Noting, "noting")).start();
    let mut watch = host.watch("");
    for key in ["b", "a", "hidden"] {
        host.put(key, "1").expect(200);
    }
    assert_eq!(host.keys("").expect("no plugin refuses"), ["a", "b"]);
    assert_eq!(host.count("").expect("no plugin refuses"), 2);
    let seen: Vec<_> = watch.changes().into_iter().map(|change| (change.key, change.revision)).collect();
    assert_eq!(seen, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
    host.delete("hidden").expect(200);
    let [change] = &watch.changes()[..] else { panic!("one change") };
    assert_eq!((change.key.as_str(), &change.value), ("hidden", &None), "that an entry is gone is no secret");
    assert!(watch.changes().is_empty() && watch.end().is_none());
}

/// Accepts one entry, and makes room by removing "old".
struct One {
    host: Host,
    entries: AtomicI64,
}

impl Plugin for One {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(One { host, entries: AtomicI64::new(0) })
    }
}

impl GuardPost for One {
    fn guard_post(&self, _: &mut Guard<'_, Post>) -> Verdict {
        if self.entries.fetch_add(1, SeqCst) > 0 {
            self.entries.fetch_sub(1, SeqCst);
            return Err(Refusal::new(413, "one entry is the most"));
        }
        Ok(())
    }
}

impl UndoPost for One {
    fn undo_post(&self, _: &Undo<'_, Post>) {
        self.entries.fetch_sub(1, SeqCst);
    }
}

impl AfterDelete for One {
    fn after_delete(&self, _: &After<'_, Delete>) {
        self.entries.fetch_sub(1, SeqCst);
    }
}

impl MakeRoom for One {
    fn make_room(&self) -> bool {
        self.host.delete("old").unwrap_or(false)
    }
}

#[test]
fn a_write_and_a_batch_are_decided_again_after_a_plugin_made_room() {
    let host = Setup::new().load_other(plugin!(One, "one")).start();
    let post = |key| host.request(Verb::Post, key).body("1");
    host.post("old", "1").expect(200);
    host.post("new", "1").expect(200);
    host.post("another", "1").refused(413, "one entry is the most");
    host.delete("new").expect(200);
    host.post("old", "1").expect(200);
    host.batch([host.request(Verb::Get, "old"), post("new")]).succeeded();
    host.get("old").expect(404);
    host.batch([post("another")]).failed(0, 413, "one entry is the most");
    assert_eq!(host.keys("").expect("no plugin refuses"), ["new"]);
}

/// Appends a mark to each value, and adds what its hooks see to the response.
struct Marks;

impl Plugin for Marks {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Transform;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Marks)
    }
}

impl BeforePut for Marks {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        put.replace_value(&[put.value(), b"!"].concat());
        Ok(())
    }
}

impl AfterPut for Marks {
    fn after_put(&self, put: &After<'_, Put>) {
        let headers = put.headers().map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)));
        let value = put.entry_after().map_or(&b""[..], |entry| entry.value());
        let headers = headers.collect::<Vec<_>>().join(" ");
        put.add_header("X-Seen", &format!("{} {} {headers}", String::from_utf8_lossy(value), put.content_type()));
    }
}

#[test]
fn a_touch_writes_the_stored_value_and_media_type_whatever_plugins_replace() {
    let host = Setup::new().load_other(plugin!(Marks, "marks")).start();
    host.request(Verb::Put, "a").content_type("text/x").body("1").send().expect(200);
    let touch = host.touch("a").header("Content-Type", "text/y").header("X-More", "2");
    touch.send().expect(200).has("X-Seen", "1! text/x Content-Type=text/x X-More=2");
    host.get("a").expect(200).is("1!").has("Content-Type", "text/x");
    let touch = host.touch("a").header("Content-Type", "text/y").header("X-More", "3");
    let mut replies = host.batch([host.request(Verb::Put, "b").body("1"), touch]).succeeded();
    replies.remove(1).has("X-Seen", "1! text/x X-More=3 Content-Type=text/x");
    host.get("a").expect(200).is("1!").has("Content-Type", "text/x");
}

/// While a request with the header `X-Restless` is in flight, writes the number before the one that it puts, down to 0.
struct Restless {
    host: Host,
}

impl Plugin for Restless {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Restless { host })
    }
}

impl BeforePut for Restless {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        let number: u32 = std::str::from_utf8(put.value()).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        if put.header("X-Restless").is_some() && number > 0 {
            self.host.put(put.key(), (number - 1).to_string().as_bytes())?;
        }
        Ok(())
    }
}

#[test]
fn a_touch_is_repeated_after_writes_in_between_and_gives_up_after_64() {
    let host = Setup::new().load_other(plugin!(Restless, "restless")).start();
    let touch = || host.touch("a").header("X-Restless", "1").send();
    host.put("a", "63").expect(200);
    let touched = touch().expect(200).revision();
    assert_eq!(host.get("a").expect(200).is("0").revision(), touched);
    host.put("a", "64").expect(200);
    touch().refused(409, "Entry changed again and again while the request was in flight");
    host.get("a").expect(200).is("0");
}

#[test]
fn a_batch_with_a_touch_is_repeated_after_writes_in_between_and_gives_up_after_64() {
    let host = Setup::new().load_other(plugin!(Restless, "restless")).start();
    let put = || host.request(Verb::Put, "other").body("1");
    let batch = || host.batch([put(), host.touch("a").header("X-Restless", "1")]);
    host.put("a", "63").expect(200);
    let touched = batch().succeeded()[1].revision();
    assert_eq!(host.get("a").expect(200).is("0").revision(), touched);
    host.delete("other").expect(200);
    host.put("a", "64").expect(200);
    batch().failed(1, 409, "Entry changed again and again while the request was in flight");
    host.get("a").expect(200).is("0");
    host.get("other").expect(404);
}
