//! The plugin in the hook chain, with a clock that the tests set.

use std::thread;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Barrier};

use vkog_plugin_testing::{Reply, Setup, TestHost, plugin};

use super::*;

fn host() -> TestHost {
    Setup::new().load::<Ttl>().start()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Advances the clock without a tick, so that expired entries are not removed.
fn pass(host: &TestHost, time: Duration) {
    host.set_time(host.now() + time);
}

fn write(host: &TestHost, verb: Verb, key: &str, ttl: &str) -> Reply {
    host.request(verb, key).header("Vkog-TTL", ttl).body("value").send()
}

/// Separates create and update, and counts keys and bytes.
struct Strict {
    bytes: Gauge,
}

impl Plugin for Strict {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Strict { bytes: host.gauge("bytes", "The stored bytes.") })
    }
}

impl GuardPost for Strict {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        if post.entry().is_some() { Err(Refusal::new(409, "Key already exists")) } else { Ok(()) }
    }
}

impl GuardPut for Strict {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        if put.entry().is_none() { Err(Refusal::new(404, "Key does not exist")) } else { Ok(()) }
    }
}

impl AfterPost for Strict {
    fn after_post(&self, post: &After<'_, Post>) {
        self.bytes.add((post.key().len() + post.value().len()) as i64);
    }
}

impl AfterDelete for Strict {
    fn after_delete(&self, delete: &After<'_, Delete>) {
        let value = delete.entry_before().map_or(0, |entry| entry.value().len());
        self.bytes.add(-((delete.key().len() + value) as i64));
    }
}

fn strict() -> TestHost {
    Setup::new().load::<Ttl>().load_other(plugin!(Strict, "strict")).start()
}

#[test]
fn an_entry_lives_until_its_expiry_to_the_millisecond_and_is_then_absent_at_once() {
    let host = host();
    write(&host, Verb::Put, "a", "60").expect(200);
    host.get("a").expect(200).has("Vkog-TTL", "60");
    pass(&host, Duration::from_millis(59_999));
    host.get("a").expect(200).has("Vkog-TTL", "1");
    pass(&host, Duration::from_millis(1));
    host.get("a").refused(404, "Not Found");
    let conditional = |name| host.request(Verb::Get, "a").header(name, "\"1\"").if_revision(1).send().status;
    assert_eq!(["If-None-Match", "If-Match"].map(conditional), [404, 404]);
}

#[test]
fn an_expired_entry_is_absent_for_every_verb_and_plugin_before_its_removal() {
    let host = strict();
    for key in ["a", "b", "c"] {
        write(&host, Verb::Post, key, "1m").expect(200);
    }
    write(&host, Verb::Post, "a", "1m").refused(409, "Key already exists");
    pass(&host, seconds(60));
    assert_eq!(host.metric("strict", "bytes"), 18);
    write(&host, Verb::Post, "a", "2m").expect(200);
    write(&host, Verb::Put, "b", "2m").refused(404, "Key does not exist");
    host.delete("c").refused(404, "Not Found");
    assert_eq!(host.metric("strict", "bytes"), 6);
    host.get("a").expect(200).has("Vkog-TTL", "120");
    assert_eq!((host.metric("ttl", "expired_total"), host.metric("ttl", "entries")), (3, 1));
}

#[test]
fn the_tick_removes_only_expired_entries() {
    let host = strict();
    for (key, ttl) in [("a", "5s"), ("b", "10s"), ("c", "none")] {
        write(&host, Verb::Post, key, ttl).expect(200);
    }
    host.advance(seconds(5));
    assert_eq!((host.metric("strict", "bytes"), host.metric("ttl", "entries")), (12, 1));
    host.advance(seconds(3600));
    assert_eq!((host.metric("strict", "bytes"), host.metric("ttl", "entries")), (6, 0));
    host.get("c").expect(200);
}

#[test]
fn an_update_keeps_the_expiry_unless_it_sets_one() {
    let host = host();
    write(&host, Verb::Post, "a", "60").expect(200);
    pass(&host, seconds(20));
    host.put("a", "2").expect(200);
    host.get("a").has("Vkog-TTL", "40");
    host.request(Verb::Put, "a").query("x=1&ttl=90s").body("3").send().expect(200);
    host.get("a").has("Vkog-TTL", "90");
    write(&host, Verb::Put, "a", "none").expect(200);
    assert_eq!(host.get("a").header("Vkog-TTL"), None);
    host.put("a", "4").expect(200);
    host.advance(seconds(7200));
    host.get("a").expect(200);
    assert_eq!(host.metric("ttl", "entries"), 0);
}

#[test]
fn a_malformed_time_to_live_is_refused_with_the_accepted_forms() {
    let host = host();
    let refused = "Not a time to live: \"soon\"; use seconds such as 60, or 60s, 5m, 2h, 7d, or none";
    write(&host, Verb::Post, "a", "soon").refused(400, refused).has("Vkog-Plugin", "ttl");
    host.request(Verb::Put, "a").query("ttl=0").body("1").send().refused(400, "Not a time to live: \"0\"");
    let refused = "Time to live too long: 1000000000d; the entry must expire before the year 10000";
    write(&host, Verb::Post, "a", "1000000000d").refused(400, refused);
    let twice = host.request(Verb::Put, "a").query("ttl=1").header("vkog-ttl", "1");
    twice.body("1").send().refused(400, "The time to live is repeated");
    host.get("a").expect(404);
}

#[test]
fn settings_give_a_default_and_a_maximum() {
    let host = Setup::new().load::<Ttl>().settings(r#"{"default": 60, "max": "1h"}"#).start();
    host.post("a", "1").expect(200);
    host.get("a").has("Vkog-TTL", "60");
    write(&host, Verb::Post, "b", "2h").refused(400, "Time to live too long: 2h; the maximum is 1h");
    write(&host, Verb::Post, "b", "none").refused(400, "Every entry must expire: use at most 1h");
    let host = Setup::new().load::<Ttl>().settings(r#"{"max": "1h"}"#).start();
    host.post("a", "1").expect(200);
    host.get("a").has("Vkog-TTL", "3600");
    let wrong = |json| Setup::new().load::<Ttl>().settings(json).try_start().err().expect("it is wrong");
    let error = wrong(r#"{"default": "2h", "max": "1h"}"#);
    assert!(error.to_string().ends_with("default is 2h and max is 1h; set default to at most max"), "{error}");
    let error = wrong(r#"{"default": "4000000d"}"#);
    let fact = "default is 4000000d: entries must expire before the year 10000; set less";
    assert!(error.to_string().ends_with(fact), "{error}");
    let error = wrong(r#"{"max": "4000000d"}"#);
    let fact = "max, the default, is 4000000d: entries must expire before the year 10000; set less";
    assert!(error.to_string().ends_with(fact), "{error}");
    let error = wrong(r#"{"default": "soon"}"#);
    assert!(error.to_string().ends_with("expected seconds such as 60, or 60s, 5m, 2h, 7d"), "{error}");
}

#[test]
fn a_default_that_passes_the_year_9999_while_the_server_runs_is_refused() {
    let default = {
        let since = host().now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        time::LAST / 1000 - since.as_secs()
    };
    let host = Setup::new().load::<Ttl>().settings(&format!(r#"{{"default": {default}}}"#)).start();
    host.post("a", "1").expect(200);
    pass(&host, seconds(1));
    let fact = format!("Time to live too long: {default}s; the entry must expire before the year 10000");
    host.post("b", "1").refused(400, &fact);
    write(&host, Verb::Post, "b", "60").expect(200);
    host.put("a", "2").expect(200);
}

#[test]
fn an_expiry_survives_a_restart_and_entries_that_expired_meanwhile_are_absent() {
    let mut host = host();
    write(&host, Verb::Post, "a", "60").expect(200);
    write(&host, Verb::Post, "b", "90").expect(200);
    pass(&host, seconds(70));
    host.restart();
    host.get("a").expect(404);
    host.get("b").expect(200).has("Vkog-TTL", "20");
    assert_eq!((host.metric("ttl", "expired_total"), host.metric("ttl", "entries")), (1, 1));
}

#[test]
fn a_clock_set_back_revives_entries_that_were_not_removed() {
    let host = host();
    let begin = host.now();
    write(&host, Verb::Post, "a", "60").expect(200);
    host.set_time(begin + seconds(60));
    host.get("a").expect(404);
    host.set_time(begin + seconds(10));
    host.get("a").expect(200).has("Vkog-TTL", "50");
    host.advance(seconds(49));
    host.get("a").expect(200);
    host.advance(seconds(1));
    host.get("a").expect(404);
    assert_eq!(host.metric("ttl", "expired_total"), 1);
}

/// Refuses removals while a flag is set.
struct Keeper;

static KEEPS: AtomicBool = AtomicBool::new(true);
static ASKED: AtomicI64 = AtomicI64::new(0);

impl Plugin for Keeper {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Keeper)
    }
}

impl GuardDelete for Keeper {
    fn guard_delete(&self, _: &mut Guard<'_, Delete>) -> Verdict {
        ASKED.fetch_add(1, SeqCst);
        if KEEPS.load(SeqCst) { Err(Refusal::new(423, "nothing is removed now")) } else { Ok(()) }
    }
}

#[test]
fn a_refused_removal_is_retried_every_ten_seconds_and_the_entry_stays_absent() {
    let host = Setup::new().load::<Ttl>().load_other(plugin!(Keeper, "keeper")).start();
    write(&host, Verb::Post, "a", "1").expect(200);
    host.advance(seconds(25));
    assert_eq!(ASKED.load(SeqCst), 3, "at 1, 11 and 21 seconds");
    host.get("a").expect(404);
    host.post("a", "2").refused(423, "nothing is removed now").has("Vkog-Plugin", "ttl");
    let line = "WARN ttl: cannot remove 1 expired entries yet, such as \"a\": nothing is removed now";
    assert!(host.log().contains(line), "{}", host.log());
    KEEPS.store(false, SeqCst);
    host.advance(seconds(10));
    assert_eq!(host.metric("ttl", "expired_total"), 1);
}

/// Writes a key again just before its first removal.
struct Renewing {
    host: Host,
    is_done: AtomicBool,
}

impl Plugin for Renewing {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Observe;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Renewing { host, is_done: AtomicBool::new(false) })
    }
}

impl BeforeDelete for Renewing {
    fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
        if !self.is_done.swap(true, SeqCst) {
            self.host.ask(&Ask::put(delete.key(), b"renewed").header("Vkog-TTL", "60"))?;
        }
        Ok(())
    }
}

#[test]
fn an_entry_that_is_renewed_while_it_is_being_removed_stays() {
    let host = Setup::new().load::<Ttl>().load_other(plugin!(Renewing, "renewing")).start();
    write(&host, Verb::Post, "a", "5").expect(200);
    host.advance(seconds(5));
    host.get("a").expect(200).is("renewed").has("Vkog-TTL", "60");
    host.advance(seconds(60));
    host.get("a").expect(404);
}

/// Delays updates between their before-hooks and their write.
struct Waiting;

static WAITING: Barrier = Barrier::new(2);

impl Plugin for Waiting {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Observe;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Waiting)
    }
}

impl BeforePut for Waiting {
    fn before_put(&self, _: &mut Before<'_, Put>) -> Verdict {
        WAITING.wait();
        WAITING.wait();
        Ok(())
    }
}

#[test]
fn an_update_of_an_entry_that_expires_meanwhile_is_refused_once() {
    let host = Setup::new().load::<Ttl>().load_other(plugin!(Waiting, "waiting")).start();
    write(&host, Verb::Post, "a", "5").expect(200);
    let put = |passes| {
        thread::scope(|scope| {
            let put = scope.spawn(|| host.put("a", "2"));
            WAITING.wait();
            pass(&host, seconds(passes));
            WAITING.wait();
            put.join().expect("it answers")
        })
    };
    put(5).refused(409, "Entry expired while the request was in flight: send it again");
    put(0).expect(200);
    assert_eq!(host.get("a").is("2").header("Vkog-TTL"), None, "it is a new entry");
}

#[test]
fn a_write_whose_store_fails_leaves_the_expiry_as_it_was() {
    let host = host();
    write(&host, Verb::Post, "a", "60").expect(200);
    host.fail_writes(2);
    write(&host, Verb::Put, "a", "5").expect(503);
    write(&host, Verb::Post, "b", "5").expect(503);
    host.advance(seconds(10));
    host.get("a").expect(200).has("Vkog-TTL", "50");
    host.advance(seconds(50));
    assert_eq!((host.metric("ttl", "entries"), host.metric("ttl", "expired_total")), (0, 1));
}

/// A generator of pseudo-random numbers (xorshift), the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn a_jumping_clock_expires_20000_entries_neither_early_nor_late() {
    const ENTRIES: u64 = 20_000;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut host = host();
    let mut expiries = HashMap::new();
    for number in 0..ENTRIES {
        let (key, ttl) = (number.to_string(), random.below(3600) + 1);
        write(&host, Verb::Post, &key, &ttl.to_string()).expect(200);
        expiries.insert(key, host.now() + seconds(ttl));
    }
    let mut removed_by = host.now();
    for round in 0..60 {
        match round % 6 {
            0 => pass(&host, seconds(random.below(120))),
            1 => host.set_time(host.now() - seconds(random.below(100))),
            2 => host.restart(),
            _ => host.advance(Duration::from_millis(random.below(120_000))),
        }
        // The latest time of the clock at which the plugin could remove an entry.
        if round % 6 >= 2 {
            host.tick("ttl");
            removed_by = removed_by.max(host.now());
        }
        for _ in 0..200 {
            let key = random.below(ENTRIES).to_string();
            let (until, now) = (expiries[&key], host.now());
            let reply = host.get(&key);
            if until <= now {
                reply.expect(404);
            } else if until > removed_by {
                let left = until.duration_since(now).expect("it is later").as_millis().div_ceil(1000);
                reply.expect(200).has("Vkog-TTL", &left.to_string());
            }
        }
    }
    host.advance(seconds(7200));
    assert_eq!(host.metric("ttl", "entries"), 0);
    assert!(expiries.keys().all(|key| host.get(key).status == 404));
}

/// The plugin's hooks in a DELETE, on an instance that the test can inspect.
struct Visible(Arc<Ttl>);

static VISIBLE: Mutex<Option<Arc<Ttl>>> = Mutex::new(None);

impl Plugin for Visible {
    type Settings = Settings;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        let ttl = Arc::new(Ttl::create(host, settings)?);
        *VISIBLE.lock().expect("no holder of this lock panics") = Some(Arc::clone(&ttl));
        Ok(Visible(ttl))
    }
}

impl GuardDelete for Visible {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        self.0.guard_delete(delete)
    }
}

impl UndoDelete for Visible {
    fn undo_delete(&self, delete: &Undo<'_, Delete>) {
        self.0.undo_delete(delete);
    }
}

/// Refuses every removal.
struct Refuses;

impl Plugin for Refuses {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Refuses)
    }
}

impl GuardDelete for Refuses {
    fn guard_delete(&self, _: &mut Guard<'_, Delete>) -> Verdict {
        Err(Refusal::new(423, "nothing is removed"))
    }
}

#[test]
fn a_delete_that_a_later_guard_refuses_leaves_no_key_behind() {
    let bench = Setup::new().load_other(plugin!(Visible, "first")).load_other(plugin!(Refuses, "second")).start();
    bench.put("k", "v").expect(200);
    bench.delete("k").expect(423).has("Vkog-Plugin", "second");
    let ttl = VISIBLE.lock().expect("no holder of this lock panics").clone().expect("it was created");
    assert_eq!(ttl.index().remembered(), 0);
}

#[test]
fn an_entry_written_between_two_ticks_is_removed_in_the_millisecond_of_its_expiry() {
    let host = strict();
    let millis = Duration::from_millis;
    host.advance(millis(400));
    write(&host, Verb::Post, "a", "1").expect(200);
    host.advance(millis(999));
    assert_eq!((host.metric("strict", "bytes"), host.metric("ttl", "entries")), (6, 1));
    host.advance(millis(1));
    assert_eq!((host.metric("strict", "bytes"), host.metric("ttl", "entries")), (0, 0));
}

#[test]
fn a_touch_changes_the_expiry_and_keeps_the_value() {
    let host = host();
    let touch = |key, ttl| host.touch(key).header("Vkog-TTL", ttl).send();
    let first = write(&host, Verb::Post, "a", "60").revision();
    pass(&host, seconds(20));
    let second = touch("a", "90").expect(200).revision();
    assert!(second > first);
    host.get("a").expect(200).is("value").has("Vkog-TTL", "90").has("ETag", &format!("\"{second}\""));
    host.touch("a").send().expect(200);
    host.get("a").has("Vkog-TTL", "90");
    host.advance(seconds(89));
    host.touch("a").query("ttl=2").send().expect(200);
    host.advance(Duration::from_millis(1999));
    host.get("a").expect(200).is("value");
    host.touch("a").header("Vkog-TTL", "5").if_revision(first).send().expect(412);
    touch("a", "soon").refused(400, "Not a time to live: \"soon\"");
    touch("a", "none").expect(200);
    host.advance(seconds(7200));
    assert_eq!(host.get("a").expect(200).is("value").header("Vkog-TTL"), None);
    touch("absent", "5").refused(404, "Not Found");
}

#[test]
fn a_touch_revives_no_entry_that_has_expired() {
    let host = host();
    write(&host, Verb::Post, "a", "1").expect(200);
    pass(&host, seconds(1));
    host.touch("a").header("Vkog-TTL", "5").send().refused(404, "Not Found");
    host.advance(seconds(1));
    host.get("a").expect(404);
    assert_eq!(host.metric("ttl", "expired_total"), 1);
}

#[test]
fn watchers_see_the_reason_of_a_removal_only_if_the_entry_has_expired() {
    let host = host();
    let mut watch = host.watch("");
    for key in ["a", "b", "c"] {
        write(&host, Verb::Post, key, "1").expect(200);
    }
    assert_eq!(watch.changes().len(), 3);
    // The header is the plugin's; that of a client means nothing.
    host.request(Verb::Delete, "a").header("Vkog-Reason", "expired").send().expect(200);
    pass(&host, seconds(1));
    // Removed by the request that finds it.
    write(&host, Verb::Post, "b", "1h").expect(200);
    host.advance(seconds(1));
    let seen = watch.changes().into_iter().map(|change| (change.key, change.value.is_none(), change.expired));
    let expected = [("a", true, false), ("b", true, true), ("b", false, false), ("c", true, true)];
    assert_eq!(seen.collect::<Vec<_>>(), expected.map(|(key, removed, expired)| (key.to_owned(), removed, expired)));
}

#[test]
fn a_read_returns_the_time_of_the_expiry() {
    let host = host();
    host.set_time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123));
    write(&host, Verb::Post, "a", "1h").expect(200);
    host.get("a").expect(200).has("Vkog-Expires", "2026-01-01T01:00:00.123Z");
}

/// Returns two hosts of one store, of which the first leads.
fn two_hosts() -> [TestHost; 2] {
    let [leader, follower] = [host(), host()];
    follower.set_leads(false);
    [leader, follower]
}

#[test]
fn an_entry_of_another_host_expires_here_and_is_removed_by_the_leader_only() {
    let [leader, follower] = two_hosts();
    write(&leader, Verb::Put, "a", "60").expect(200);
    follower.apply(&leader, "a");
    assert_eq!(follower.metric("ttl", "entries"), 1);
    follower.get("a").expect(200).has("Vkog-TTL", "60");
    follower.advance(seconds(60));
    follower.get("a").refused(404, "Not Found");
    assert!(follower.stored("a").is_some(), "the leader removes it");
    leader.advance(seconds(60));
    assert_eq!((leader.stored("a"), leader.metric("ttl", "expired_total")), (None, 1));
    follower.apply_expiry("a");
    assert_eq!((follower.metric("ttl", "entries"), follower.metric("ttl", "expired_total")), (0, 0));
}

#[test]
fn a_host_that_leads_next_removes_what_has_expired_on_others() {
    let [leader, follower] = two_hosts();
    for key in ["a", "b"] {
        write(&leader, Verb::Put, key, "60").expect(200);
        follower.apply(&leader, key);
    }
    write(&leader, Verb::Put, "b", "none").expect(200);
    follower.apply(&leader, "b");
    follower.advance(seconds(100));
    assert!(follower.stored("a").is_some());
    follower.set_leads(true);
    follower.advance(LOOK);
    assert_eq!((follower.stored("a"), follower.metric("ttl", "expired_total")), (None, 1));
    follower.get("b").expect(200);
}

#[test]
fn a_host_that_does_not_lead_ticks_once_a_second_also_while_entries_are_due() {
    let [_, follower] = two_hosts();
    write(&follower, Verb::Put, "a", "1").expect(200);
    pass(&follower, seconds(5));
    assert_eq!(follower.tick("ttl"), LOOK);
}

#[test]
fn a_write_of_what_has_expired_removes_it_on_any_host() {
    let [leader, follower] = two_hosts();
    write(&leader, Verb::Put, "a", "60").expect(200);
    follower.apply(&leader, "a");
    pass(&follower, seconds(60));
    follower.delete("a").refused(404, "Not Found");
    assert_eq!((follower.stored("a"), follower.metric("ttl", "expired_total")), (None, 1));
}
