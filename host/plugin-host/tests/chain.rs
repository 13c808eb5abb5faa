//! Guards that passed are rolled back exactly once, the last first, after any failure, and each hook is counted as often
//! as it is called. Provoked with three plugins that record their calls and return the results that the test sets.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vkog_plugin_api::export::module;
use vkog_plugin_api::*;
use vkog_plugin_host::{
    Chain, EntryView, FailurePolicy, HostContext, Member, NoOrigin, OnFailure, OpContext, Origin, Passed, Verb,
    insert_details,
};

/// The scripted result of the guard of a plugin.
#[derive(Clone, Copy)]
enum Return {
    Pass,
    Refuse,
    Hide,
    Details(usize),
}

/// The names of the hooks in the order in which they were called, each with the number of the plugin.
type Calls = Arc<Mutex<Vec<(usize, &'static str)>>>;

/// The script of the plugin that is created next, because a plugin receives only its settings.
static SCRIPT: Mutex<Option<(Return, Calls)>> = Mutex::new(None);

struct Recorder<const N: usize> {
    guard: Return,
    calls: Calls,
}

impl<const N: usize> Recorder<N> {
    fn record(&self, hook: &'static str) {
        self.calls.lock().expect("no plugin panics").push((N, hook));
    }
}

impl<const N: usize> Plugin for Recorder<N> {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        let (guard, calls) = SCRIPT.lock().expect("no plugin panics").take().ok_or("no script")?;
        Ok(Self { guard, calls })
    }
}

impl<const N: usize> GuardGet for Recorder<N> {
    fn guard_get(&self, get: &mut Guard<'_, Get>) -> Verdict {
        self.record("guard");
        match self.guard {
            Return::Refuse => return Err(Refusal::new(403, "refused")),
            Return::Hide => get.hide(),
            Return::Pass | Return::Details(_) => {}
        }
        Ok(())
    }
}

impl<const N: usize> UndoGet for Recorder<N> {
    fn undo_get(&self, _: &Undo<'_, Get>) {
        self.record("undo");
    }
}

impl<const N: usize> GuardPut for Recorder<N> {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.record("guard");
        match self.guard {
            Return::Refuse => return Err(Refusal::new(403, "refused")),
            Return::Details(len) => put.set_details(&vec![7; len]),
            Return::Pass | Return::Hide => {}
        }
        Ok(())
    }
}

impl<const N: usize> UndoPut for Recorder<N> {
    fn undo_put(&self, _: &Undo<'_, Put>) {
        self.record("undo");
    }
}

/// Creates one plugin at a time, because the script is a static.
static CREATING: Mutex<()> = Mutex::new(());

fn member<const N: usize>(guard: Return, calls: &Calls, context: &Arc<HostContext>) -> Arc<Member> {
    const NAMES: [&str; 3] = ["plugin-0", "plugin-1", "plugin-2"];
    let _alone = CREATING.lock().expect("no other test panicked here");
    *SCRIPT.lock().expect("no plugin panics") = Some((guard, Arc::clone(calls)));
    let module = module::<Recorder<N>>(NAMES[N], "1.0.0", true, &vkog_plugin_api::__hooks!(Recorder<N>), &[]);
    // SAFETY: the module is part of this program.
    Arc::new(unsafe { Member::create(module, "{}", context, FailurePolicy::default()) }.expect("it has a script"))
}

/// Creates a chain of three plugins whose guards return this.
fn chain(guards: [Return; 3]) -> (Arc<Chain>, Calls) {
    let context = Arc::new(HostContext::new(0, || 0));
    let calls = Calls::default();
    let members = vec![
        member::<0>(guards[0], &calls, &context),
        member::<1>(guards[1], &calls, &context),
        member::<2>(guards[2], &calls, &context),
    ];
    (Arc::new(Chain::new(members, &[])), calls)
}

/// Calls the guards of an operation.
fn guard(chain: &Arc<Chain>, verb: Verb) -> Result<Passed, vkog_plugin_host::Refusal> {
    let (value, content_type): (&[u8], _) = if verb == Verb::Put { (b"value", "text/plain") } else { (b"", "") };
    let op = OpContext { verb, key: "k", value, content_type, query: "", arrived: 0, depth: 0, origin: &NoOrigin };
    chain.guard(&op, None)
}

#[track_caller]
fn called(calls: &Calls, expected: &[(usize, &str)]) {
    assert_eq!(*calls.lock().expect("no plugin panics"), expected);
}

/// Returns the number of calls of a hook of each plugin, from the statistics.
fn counts(chain: &Chain, hook: &str) -> Vec<u64> {
    let count = |member: &Arc<Member>| chain.stats(member).find(|(name, ..)| *name == hook).map(|(_, calls, _)| calls);
    chain.members().iter().map(|member| count(member).expect("every plugin has this hook")).collect()
}

#[test]
fn guards_that_passed_before_one_that_hides_are_undone_the_last_first() {
    let (chain, calls) = chain([Return::Pass, Return::Pass, Return::Hide]);
    assert!(guard(&chain, Verb::Get).expect("no guard refuses").hidden);
    called(&calls, &[(0, "guard"), (1, "guard"), (2, "guard"), (1, "undo"), (0, "undo")]);
    assert_eq!(counts(&chain, "undo_get"), [1, 1, 0]);
}

#[test]
fn a_plugin_may_set_4096_bytes_of_details() {
    let (chain, calls) = chain([Return::Pass, Return::Details(4096), Return::Pass]);
    let passed = guard(&chain, Verb::Put).expect("that is the maximum");
    assert!(passed.details.len() > 4096);
    called(&calls, &[(0, "guard"), (1, "guard"), (2, "guard")]);
}

#[test]
fn a_plugin_that_sets_4097_bytes_of_details_is_refused_and_undone_as_well() {
    let (chain, calls) = chain([Return::Pass, Return::Details(4097), Return::Pass]);
    let refusal = guard(&chain, Verb::Put).expect_err("that is more than the maximum");
    assert_eq!((refusal.status, refusal.plugin.as_str()), (500, "plugin-1"));
    called(&calls, &[(0, "guard"), (1, "guard"), (1, "undo"), (0, "undo")]);
}

#[test]
fn hooks_behind_a_refusal_are_neither_called_nor_counted() {
    let (chain, calls) = chain([Return::Pass, Return::Refuse, Return::Pass]);
    assert_eq!(guard(&chain, Verb::Put).expect_err("the second refuses").status, 403);
    called(&calls, &[(0, "guard"), (1, "guard"), (0, "undo")]);
    assert_eq!(counts(&chain, "guard_put"), [1, 1, 0]);
    assert_eq!(counts(&chain, "undo_put"), [1, 0, 0]);
}

/// Panics in `guard_delete` and `tick`, and refuses in `before_get`; counts how often it is dropped.
struct Failing(Arc<AtomicUsize>);

static DROPPED: Mutex<Option<Arc<AtomicUsize>>> = Mutex::new(None);

impl Plugin for Failing {
    type Settings = NoSettings;

    const STAGE: Stage = Stage::Observe;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self(DROPPED.lock().expect("no plugin panics").take().ok_or("no counter")?))
    }
}

impl BeforeGet for Failing {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        get.hide();
        if get.key() == "k" { Err(Refusal::new(404, "not here")) } else { Ok(()) }
    }
}

impl GuardDelete for Failing {
    fn guard_delete(&self, _: &mut Guard<'_, Delete>) -> Verdict {
        panic!("on purpose")
    }
}

impl Tick for Failing {
    fn tick(&self) -> Duration {
        panic!("on purpose")
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A plugin that fails, with this policy, and how often it was dropped.
fn failing(failure_policy: FailurePolicy) -> (Arc<Member>, Arc<AtomicUsize>) {
    let _alone = CREATING.lock().expect("no other test panicked here");
    let (context, dropped) = (Arc::new(HostContext::new(0, || 0)), Arc::new(AtomicUsize::new(0)));
    *DROPPED.lock().expect("no plugin panics") = Some(Arc::clone(&dropped));
    let module = module::<Failing>("failing", "1.0.0", true, &vkog_plugin_api::__hooks!(Failing), &[]);
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", &context, failure_policy) }.expect("it has a counter");
    (Arc::new(member), dropped)
}

fn op(verb: Verb, key: &str) -> OpContext<'_> {
    OpContext { verb, key, value: b"", content_type: "", query: "", arrived: 0, depth: 0, origin: &NoOrigin }
}

/// Returns the statistics of a hook of the only plugin: its calls, refusals, panics, overruns and timed calls.
fn stats(chain: &Chain, hook: &str) -> [u64; 5] {
    let mut all = chain.stats(&chain.members()[0]);
    let (_, calls, stats) = all.find(|(name, ..)| *name == hook).expect("it has this hook");
    [calls, stats.refusals(), stats.panics(), stats.overruns(), stats.times().count()]
}

#[test]
fn a_member_has_the_stage_policy_and_hooks_of_its_plugin() {
    let policy = FailurePolicy { on_failure: OnFailure::Keep, budget: Some(Duration::from_secs(3600)) };
    let (member, _) = failing(policy);
    assert_eq!((member.stage(), member.failure_policy()), (Stage::Observe as u32, policy));
    assert!(
        member.has("before_get") && member.has("guard_delete") && !member.has("guard_get") && !member.has("no_hook")
    );
    assert!(!member.blocks());
    let chain = Arc::new(Chain::new(vec![member], &[]));
    for (verb, unguarded, none, blocks) in [
        (Verb::Get, true, false, false),
        (Verb::Delete, false, false, false),
        (Verb::Put, true, true, false),
        (Verb::Post, true, true, false),
    ] {
        assert_eq!((chain.is_unguarded(verb), chain.has_no_hooks(verb)), (unguarded, none), "{verb:?}");
        assert_eq!(chain.blocks(verb), blocks, "{verb:?}");
    }
    assert!(!chain.may_make_room());
}

#[test]
fn statistics_count_calls_refusals_panics_and_overruns_across_chains() {
    let (member, dropped) = failing(FailurePolicy { on_failure: OnFailure::Keep, budget: Some(Duration::ZERO) });
    let chain = Arc::new(Chain::new(vec![Arc::clone(&member)], &[]));
    assert_eq!(chain.before(&op(Verb::Get, "k")).expect_err("it refuses").status, 404);
    assert!(chain.before(&op(Verb::Get, "other")).expect("it passes").hidden);
    for _ in 0..6 {
        assert_eq!(chain.guard(&op(Verb::Delete, "k"), None).expect_err("it panics").status, 500);
    }
    assert!(!member.is_quarantined(), "it remains loaded");
    assert_eq!(stats(&chain, "before_get"), [2, 1, 0, 2, 2]);
    assert_eq!(stats(&chain, "guard_delete"), [6, 0, 6, 6, 6]);
    drop(chain);
    let chain = Arc::new(Chain::new(vec![member], &[]));
    assert!(chain.before(&op(Verb::Get, "other")).expect("it passes").hidden);
    assert_eq!(stats(&chain, "before_get"), [3, 1, 0, 3, 3]);
    assert_eq!(dropped.load(SeqCst), 0);
    drop(chain);
    assert_eq!(dropped.load(SeqCst), 1);
}

#[test]
fn a_call_within_its_budget_is_no_overrun_and_all_calls_are_timed() {
    let (member, _) = failing(FailurePolicy { budget: Some(Duration::from_secs(3600)), ..FailurePolicy::default() });
    let chain = Arc::new(Chain::new(vec![member], &[]));
    for _ in 0..1000 {
        assert!(chain.before(&op(Verb::Get, "other")).is_ok());
    }
    assert_eq!(stats(&chain, "before_get"), [1000, 0, 0, 0, 1000]);
}

#[test]
fn without_a_budget_the_first_256_calls_and_one_in_256_are_timed() {
    let (member, _) = failing(FailurePolicy::default());
    let chain = Arc::new(Chain::new(vec![member], &[]));
    for _ in 0..1024 {
        assert!(chain.before(&op(Verb::Get, "other")).is_ok());
    }
    // The calls number 256, 512 and 768, counted from 0.
    assert_eq!(stats(&chain, "before_get"), [1024, 0, 0, 0, 256 + 3]);
}

#[test]
fn the_fifth_panic_puts_a_plugin_into_quarantine() {
    for on_failure in [OnFailure::Refuse, OnFailure::Skip] {
        let (member, _) = failing(FailurePolicy { on_failure, budget: None });
        let chain = Arc::new(Chain::new(vec![Arc::clone(&member)], &[]));
        for panics in 1..=5 {
            assert!(chain.guard(&op(Verb::Delete, "k"), None).is_err());
            assert_eq!(member.is_quarantined(), panics == 5);
        }
        drop(chain);
        let chain = Arc::new(Chain::new(vec![member], &[]));
        let guarded = chain.guard(&op(Verb::Delete, "k"), None);
        assert_eq!(guarded.err().map(|refusal| refusal.status), (on_failure == OnFailure::Refuse).then_some(503));
        assert_eq!(stats(&chain, "guard_delete")[0], 5, "it is not called any more");
    }
}

#[test]
fn a_tick_that_panics_is_counted_and_repeated_after_a_second() {
    let (member, _) = failing(FailurePolicy::default());
    assert_eq!(member.tick(), Some(Duration::from_secs(1)));
    let chain = Chain::new(vec![member], &[]);
    assert_eq!(stats(&chain, "tick"), [1, 0, 1, 0, 1]);
    let context = Arc::new(HostContext::new(0, || 0));
    assert_eq!(self::member::<0>(Return::Pass, &Calls::default(), &context).tick(), None, "it has no tick");
}

/// Adds its details of the entries before and after a write as a header.
struct Details;

impl Plugin for Details {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self)
    }
}

impl AfterPut for Details {
    fn after_put(&self, put: &After<'_, Put>) {
        let text = |entry: Option<Entry<'_>>| {
            entry.map_or_else(String::new, |entry| String::from_utf8_lossy(entry.details()).into_owned())
        };
        put.add_header("X-Details", &format!("{} {}", text(put.entry_before()), text(put.entry_after())));
    }
}

#[test]
fn an_after_hook_sees_its_own_details_of_both_entries() {
    let context = Arc::new(HostContext::new(0, || 0));
    let module = module::<Details>("details", "1.0.0", true, &vkog_plugin_api::__hooks!(Details), &[]);
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("it is created");
    let chain = Arc::new(Chain::new(vec![Arc::new(member)], &[]));
    let details =
        ["old", "new"].map(|own| insert_details(&insert_details(&[], "other", b"x"), "details", own.as_bytes()));
    let entry = |details| EntryView { value: b"v", content_type: "text/plain", details, revision: 1 };
    let [before, after] = [&details[0], &details[1]].map(|details| Some(entry(details)));
    let headers = chain.after(&op(Verb::Put, "k"), 2, before, after);
    assert_eq!(headers, [("X-Details".to_owned(), "old new".to_owned())]);
}

#[test]
fn a_call_without_a_request_has_no_headers_and_no_client() {
    assert!(NoOrigin.header("host").is_none() && NoOrigin.header_at(0).is_none());
    assert_eq!((NoOrigin.client(), NoOrigin.asker()), ("", ""));
}

#[test]
fn plugins_without_a_hook_for_it_make_no_room() {
    let (chain, calls) = chain([Return::Pass; 3]);
    assert!(!chain.may_make_room() && !chain.make_room(0));
    called(&calls, &[]);
}
