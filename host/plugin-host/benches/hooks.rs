//! The cost of a hook call: plugins that do nothing, called as the host calls them. The time of a phase, divided by the number
//! of plugins, is the cost of one hook.

#![allow(unsafe_code)]

use std::sync::Arc;

use divan::{Bencher, black_box};
use vkog_plugin_api::*;
use vkog_plugin_host::{Chain, EntryView, FailurePolicy, HostContext, Member, NoOrigin, OpContext, Verb, system_clock};

fn main() {
    divan::main();
}

struct Idle;

impl Plugin for Idle {
    type Settings = NoSettings;

    fn create(_host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
        Ok(Idle)
    }
}

impl BeforeGet for Idle {
    fn before_get(&self, _: &mut Before<'_, Get>) -> Verdict {
        Ok(())
    }
}

impl BeforePut for Idle {
    fn before_put(&self, _: &mut Before<'_, Put>) -> Verdict {
        Ok(())
    }
}

impl GuardGet for Idle {
    fn guard_get(&self, _: &mut Guard<'_, Get>) -> Verdict {
        Ok(())
    }
}

impl GuardPut for Idle {
    fn guard_put(&self, _: &mut Guard<'_, Put>) -> Verdict {
        Ok(())
    }
}

impl AfterGet for Idle {
    fn after_get(&self, _: &After<'_, Get>) {}
}

impl AfterPut for Idle {
    fn after_put(&self, _: &After<'_, Put>) {}
}

impl UndoPut for Idle {
    fn undo_put(&self, _: &Undo<'_, Put>) {}
}

fn chain(plugins: usize) -> Arc<Chain> {
    let port = Arc::new(HostContext::new(0, system_clock));
    let member = |index| {
        let name: &'static str = format!("idle-{index:02}").leak();
        let module = export::module::<Idle>(name, "0.0.0", true, &__hooks!(Idle), &[]);
        // SAFETY: the module is of this program.
        let member = unsafe { Member::create(module, "{}", &port, FailurePolicy::default()) };
        Arc::new(member.expect("it does nothing"))
    };
    let chain = Arc::new(Chain::new((0..plugins).map(member).collect(), &[]));
    // At first all calls are timed, later one in 256.
    for _ in 0..1000 {
        for subject in [subject(Verb::Get), subject(Verb::Put)] {
            let _ = (chain.before(&subject), chain.guard(&subject, Some(ENTRY)));
            chain.undo(&subject, Some(ENTRY), &[]);
            chain.after(&subject, 8, Some(ENTRY), Some(ENTRY));
        }
    }
    chain
}

fn subject(verb: Verb) -> OpContext<'static> {
    OpContext {
        verb,
        key: "some/key",
        value: &[7; 64],
        content_type: "text/plain",
        query: "",
        arrived: 7,
        depth: 0,
        origin: &NoOrigin,
        guarded: Box::leak(Box::default()),
    }
}

const ENTRY: EntryView<'static> = EntryView { value: &[7; 64], content_type: "text/plain", details: &[], revision: 6 };

const PLUGINS: [usize; 3] = [0, 1, 10];

#[divan::bench(args = PLUGINS, sample_size = 6400)]
fn before_put(bencher: Bencher<'_, '_>, plugins: usize) {
    let (chain, subject) = (chain(plugins), subject(Verb::Put));
    bencher.bench_local(|| chain.before(black_box(&subject)).is_ok());
}

#[divan::bench(args = PLUGINS, sample_size = 6400)]
fn guard_put(bencher: Bencher<'_, '_>, plugins: usize) {
    let (chain, subject) = (chain(plugins), subject(Verb::Put));
    bencher.bench_local(|| chain.guard(black_box(&subject), black_box(Some(ENTRY))).is_ok());
}

#[divan::bench(args = PLUGINS, sample_size = 6400)]
fn undo_put(bencher: Bencher<'_, '_>, plugins: usize) {
    let (chain, subject) = (chain(plugins), subject(Verb::Put));
    bencher.bench_local(|| chain.undo(black_box(&subject), black_box(Some(ENTRY)), &[]));
}

#[divan::bench(args = PLUGINS, sample_size = 6400)]
fn after_put(bencher: Bencher<'_, '_>, plugins: usize) {
    let (chain, subject) = (chain(plugins), subject(Verb::Put));
    bencher.bench_local(|| chain.after(black_box(&subject), 8, black_box(Some(ENTRY)), Some(ENTRY)));
}

#[divan::bench(args = PLUGINS, sample_size = 6400)]
fn get_with_all_hooks(bencher: Bencher<'_, '_>, plugins: usize) {
    let (chain, subject) = (chain(plugins), subject(Verb::Get));
    bencher.bench_local(|| {
        let hidden = chain.before(black_box(&subject)).is_ok_and(|prepared| prepared.hidden);
        let passed = chain.guard(&subject, black_box(Some(ENTRY))).is_ok();
        (hidden, passed, chain.after(&subject, 6, Some(ENTRY), Some(ENTRY)))
    });
}
