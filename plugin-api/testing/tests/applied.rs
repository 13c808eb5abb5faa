//! A plugin learns every change of another host once, with the entries before and after it, and none of this host.
//! Provoked with two test hosts, of which one reports what the other has written.

use std::sync::Mutex;

use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, TestHost, plugin};

/// Records the changes of other hosts in an entry of its log, and does what the value says.
struct Follower {
    host: Host,
    last: Mutex<u64>,
}

impl Plugin for Follower {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self { host, last: Mutex::new(0) })
    }
}

fn shown(entry: Option<Entry<'_>>) -> String {
    let Some(entry) = entry else { return "-".to_owned() };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}({})", text(entry.value()), text(entry.details()))
}

impl Applied for Follower {
    fn applied(&self, change: &AppliedChange<'_>) {
        let (before, after) = (shown(change.entry_before()), shown(change.entry_after()));
        let expired = if change.expired() { " expired" } else { "" };
        self.host.log(Level::Info, &format!("{}: {before} to {after}{expired}", change.key()));
        let mut last = self.last.lock().expect("no panic holds it");
        assert!(change.revision() > *last, "the revisions ascend");
        *last = change.revision();
        drop(last);
        if after.starts_with("get") {
            let refusal = self.host.get(change.key()).expect_err("the store waits for this hook");
            self.host.log(Level::Info, &refusal.status().to_string());
        }
        assert!(!after.starts_with("panic"), "as the value asks");
    }
}

impl GuardPut for Follower {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        put.set_details(b"own");
        Ok(())
    }
}

fn hosts() -> [TestHost; 2] {
    let setup = Setup::new().load_other(plugin!(Follower, "follower"));
    [setup.clone().start(), setup.start()]
}

/// Returns the lines that the follower has logged.
fn lines(host: &TestHost) -> Vec<String> {
    let log = host.log();
    log.lines().filter_map(|line| line.strip_prefix("INFO follower: ")).map(str::to_owned).collect()
}

#[test]
fn a_plugin_learns_the_changes_of_another_host_with_their_entries() {
    let [one, other] = hosts();
    other.put("a", "1").expect(200);
    one.apply(&other, "a");
    other.put("a", "2").expect(200);
    one.apply(&other, "a");
    other.delete("a").expect(200);
    one.apply(&other, "a");
    assert_eq!(lines(&one), ["a: - to 1(own)", "a: 1(own) to 2(own)", "a: 2(own) to -"]);
    one.get("a").expect(404);
    assert_eq!(lines(&other), [""; 0]);
}

#[test]
fn a_plugin_learns_no_change_of_its_own_host_and_no_removal_of_what_is_absent() {
    let [one, other] = hosts();
    one.put("a", "1").expect(200);
    one.delete("a").expect(200);
    one.apply(&other, "a");
    assert_eq!(lines(&one), [""; 0]);
}

#[test]
fn an_expiry_on_another_host_is_one() {
    let [one, _] = hosts();
    one.put("a", "1").expect(200);
    one.apply_expiry("a");
    assert_eq!(lines(&one), ["a: 1(own) to - expired"]);
    one.get("a").expect(404);
}

#[test]
fn the_hook_cannot_call_the_store_which_waits_for_it() {
    let [one, other] = hosts();
    other.put("a", "get").expect(200);
    one.apply(&other, "a");
    assert_eq!(lines(&one), ["a: - to get(own)", "508"]);
}

#[test]
fn a_panic_of_the_hook_changes_nothing_and_counts_towards_the_quarantine() {
    let [one, other] = hosts();
    other.put("a", "panic").expect(200);
    for _ in 0..5 {
        assert!(!one.is_quarantined("follower"));
        one.apply(&other, "a");
    }
    one.get("a").expect(200).is("panic");
    assert!(one.is_quarantined("follower"));
    one.apply(&other, "a");
    assert_eq!(lines(&one).len(), 5);
}

#[test]
fn changes_that_follow_a_restart_reach_the_new_plugins() {
    let [mut one, other] = hosts();
    one.restart();
    other.put("a", "1").expect(200);
    one.apply(&other, "a");
    assert_eq!(lines(&one), ["a: - to 1(own)"]);
}

/// Publishes whether its host leads.
struct Leading {
    host: Host,
    leads: Gauge,
}

impl Plugin for Leading {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self { host, leads: host.gauge("leads", "Whether this host leads.") })
    }
}

impl GuardPut for Leading {
    fn guard_put(&self, _: &mut Guard<'_, Put>) -> Verdict {
        self.leads.set(self.host.leads().into());
        Ok(())
    }
}

#[test]
fn a_plugin_asks_whether_its_host_leads_also_under_a_lock() {
    let host = Setup::new().load_other(plugin!(Leading, "leading")).start();
    for leads in [true, false, true] {
        host.set_leads(leads);
        host.put("a", "1").expect(200);
        assert_eq!(host.metric("leading", "leads"), i64::from(leads));
    }
}
