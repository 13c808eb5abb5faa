//! Guards that passed are rolled back exactly once, the last first, after any failure, and each hook is counted as often
//! as it is called. Provoked with three plugins that record their calls and return the results that the test sets.

#![allow(unsafe_code)]

use std::sync::{Arc, Mutex};

use vkog_plugin_api::export::module;
use vkog_plugin_api::*;
use vkog_plugin_host::{Chain, FailurePolicy, HostContext, Member, NoOrigin, OpContext, Passed, Verb};

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
    let module = module::<Recorder<N>>(NAMES[N], "1.0.0", true, &vkog_plugin_api::__hooks!(Recorder<N>));
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
