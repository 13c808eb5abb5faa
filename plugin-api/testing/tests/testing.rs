//! The host that plugin authors test with does what a server does: each property is provoked by a plugin made for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, TestHost, plugin};

/// Holds as much as its guards reserved, and gives it back.
struct Holder {
    held: Gauge,
}

impl Plugin for Holder {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Holder { held: host.gauge("held", "What is reserved.") })
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

/// Refuses and panics as it is told by the value.
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
    host.put("a", "five!").refused(503, "Not kept");
    assert_eq!(host.metric("holder", "held"), 4);
    host.get("a").is("four");
    assert!(host.log().contains("ERROR moody: plugin \"moody\" failed in guard_put: never that"), "{}", host.log());
}

#[test]
fn the_order_that_a_test_names_is_the_order_of_the_chain() {
    let setup = Setup::new().load_other(plugin!(Moody, "moody")).load_other(plugin!(Holder, "holder"));
    let host = setup.order(&["moody"]).start();
    host.put("a", "refuse").expect(422);
    assert_eq!(host.metric("holder", "held"), 0, "the holder was not asked");
}

#[test]
fn a_plugin_that_panics_again_and_again_goes_into_quarantine_until_it_is_made_anew() {
    let mut host = held_and_moody();
    for _ in 0..5 {
        host.put("a", "panic").expect(500);
    }
    assert!(host.is_quarantined("moody"));
    host.put("a", "fine").refused(503, "plugin \"moody\" is in quarantine");
    host.restart();
    host.put("a", "fine").expect(200);
}

/// Writes what it is told of into the entry "last", and asks deeper and deeper for "deep".
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
            self.host.ask(&Ask::post("last", post.key().as_bytes()).header("X-By", "teller")).expect("nobody refuses");
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
        self.host.for_each("", each).expect("nobody refuses");
        delete.add_header("X-Left", &keys.join(","));
    }
}

#[test]
fn what_a_plugin_asks_of_the_store_passes_the_chain_eight_deep_and_nothing_is_asked_under_a_lock() {
    let host = Setup::new().load_other(plugin!(Teller, "teller")).start();
    host.post("a", "1").expect(200);
    host.get("last").is("a");
    host.post("deep", "1").refused(508, "plugins ask each other more than 8 deep");
    host.post("guard", "1").refused(508, "nothing can be asked of the store in guard");
    host.delete("a").expect(200).has("X-Left", "last");
    assert_eq!(host.log(), "");
}

/// Counts in the entry's details how often it was written, and ticks as it is set to.
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
        self.host.gauge("found", "What the entries' details counted at the start.").set(found);
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
        self.host.put(&format!("tick {count}"), at.to_string().as_bytes()).expect("nobody refuses");
        Duration::from_secs(self.settings.lock().expect("nobody panics").seconds)
    }
}

impl SettingsChanged for Counting {
    fn settings_changed(&self, settings: Pace) -> Result<(), String> {
        if settings.seconds == 0 {
            return Err("seconds is 0; give 1 or more".into());
        }
        *self.settings.lock().expect("nobody panics") = settings;
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
fn settings_that_cannot_be_read_are_an_error_that_names_the_plugin_and_the_known_keys() {
    let error = counting(0).try_start().err().expect("0 is refused");
    assert_eq!(error.to_string(), "plugin \"counting\" does not start: seconds is 0; give 1 or more");
    let error = counting(1).settings(r#"{"second": 1}"#).try_start().err().expect("there is no second");
    assert_eq!(
        error.to_string(),
        "plugin \"counting\" cannot read its settings: unknown key \"second\"; known keys: seconds"
    );
}

/// Refuses a key that is there.
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
fn of_threads_that_create_one_key_exactly_one_does() {
    let host = Setup::new().load_other(plugin!(Once, "once")).start();
    let create = || host.post("a", "1").status;
    let statuses: Vec<u16> = thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it answers")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
}

#[test]
fn what_a_server_refuses_by_itself_a_bench_refuses_too() {
    let host = Setup::new().start();
    host.post("", "1").refused(400, "Key cannot be empty");
    host.post("a", "").refused(400, "No content provided");
    host.post(&"k".repeat(1025), "1").expect(414);
    host.delete("a").expect(404);
    let revision = host.post("a", "1").revision();
    host.request(Verb::Get, "a").if_revision(revision + 1).send().expect(412);
    host.request(Verb::Put, "a").if_revision(revision).body("2").send().expect(200);
}
