//! A power cut leaves an entry and the writes that a guard added to its step, or neither of them.
//!
//! Provoked with a plugin that keeps an index by value as separate entries, with clients that write the same keys, and with
//! a power cut at a random change of the disk, time and again.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use vkog_engine::{Engine, Outcome};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    Ask, Change, CreateError, Delete, Guard, GuardDelete, GuardPut, Host, NoSettings, Plugin, Put, Verdict,
};
use vkog_plugin_host::{FailurePolicy, HostContext, Member, Registry, Verb, system_clock};

use crate::actors::{ask, ask_all};
use crate::client::{ALWAYS, Contents, contents, open};
use crate::disk::{Image, SimulatedDisk};
use crate::random::Random;

/// The number of power cuts, in the quick and in the full tier.
const CUTS: [usize; 2] = [100, 2000];
const CLIENTS: u64 = 3;
const INDEX: &str = "index/";

/// Keeps an entry `index/VALUE/KEY` for each other entry, and the value as its details.
struct Mirror;

impl Plugin for Mirror {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self)
    }
}

fn index_key(value: &[u8], key: &str) -> String {
    format!("{INDEX}{}/{key}", String::from_utf8_lossy(value))
}

fn replace<O: Change>(guard: &Guard<'_, O>, value: Option<&[u8]>) -> Verdict {
    let before = guard.entry().map(|entry| entry.details());
    if let Some(before) = before.filter(|before| Some(*before) != value) {
        guard.add(&Ask::delete(&index_key(before, guard.key())))?;
    }
    match value.filter(|value| Some(*value) != before) {
        Some(value) => guard.add(&Ask::put(&index_key(value, guard.key()), b"1")),
        None => Ok(()),
    }
}

impl GuardPut for Mirror {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        if put.asker().is_some() {
            return Ok(());
        }
        put.set_details(put.value());
        replace(put, Some(put.value()))
    }
}

impl GuardDelete for Mirror {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        if delete.asker().is_some() { Ok(()) } else { replace(delete, None) }
    }
}

/// Opens the store with the plugin. Returns none if the power is cut meanwhile.
fn start(disk: &SimulatedDisk) -> Option<Arc<Engine>> {
    let store = match open(disk, ALWAYS) {
        Ok(store) => store,
        Err(error) => {
            assert!(disk.crashed(), "the store does not open: {error}");
            return None;
        }
    };
    let context = Arc::new(HostContext::new(1000, system_clock));
    let module = module::<Mirror>("mirror", "1.0.0", true, &vkog_plugin_api::__hooks!(Mirror), &[]);
    // SAFETY: the module is of this program, made by the same vkog-plugin-api.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("it is created");
    let registry = Registry::linked(vec![Arc::new(member)], Vec::new(), context);
    Some(Engine::new(store, registry).expect("the plugin starts"))
}

/// Writes until the power is cut. Returns the number of writes that succeeded.
fn write(engine: &Arc<Engine>, mut random: Random) -> usize {
    for done in 0.. {
        let key = |random: &mut Random| format!("key-{}", random.below(4));
        let value = format!("v{}", random.below(3));
        let failed = if random.percent(30) {
            let operations = [(Verb::Put, key(&mut random)), (Verb::Put, key(&mut random))];
            ask_all(engine, &operations, &value).err().map(|failure| failure.outcome)
        } else {
            let verb = if random.percent(30) { Verb::Delete } else { Verb::Put };
            let value = if verb == Verb::Put { value.as_str() } else { "" };
            Some(ask(engine, verb, &key(&mut random), value))
        };
        match failed {
            Some(Outcome::StoreFailed(_)) => return done,
            Some(Outcome::Refused(refusal)) => panic!("{refusal:?}"),
            _ => {}
        }
    }
    unreachable!("the power is cut")
}

fn is_exact(held: &Contents) {
    let (index, entries): (Vec<_>, Vec<_>) = held.iter().partition(|(key, _)| key.starts_with(INDEX));
    let index: BTreeSet<String> = index.into_iter().map(|(key, _)| key.clone()).collect();
    let expected = entries.into_iter().map(|(key, (_, held))| index_key(&held.value, key)).collect();
    assert_eq!(index, expected);
}

#[test]
fn a_power_cut_leaves_an_entry_and_its_added_writes_or_neither() {
    let mut random = Random::new(17);
    let (mut image, mut done) = (Image::default(), 0);
    for _ in 0..CUTS[usize::from(std::env::var_os("VKOG_FULL").is_some())] {
        let disk = SimulatedDisk::of(&image);
        disk.crash_at(1 + random.below(60) as u64);
        if let Some(engine) = start(&disk) {
            is_exact(&contents(engine.store()));
            thread::scope(|scope| {
                let clients = (0..CLIENTS).map(|client| {
                    let random = Random::new(random.below(1 << 20) as u64 * CLIENTS + client);
                    let engine = &engine;
                    scope.spawn(move || write(engine, random))
                });
                let clients: Vec<_> = clients.collect();
                done += clients.into_iter().map(|client| client.join().expect("no client panics")).sum::<usize>();
            });
        }
        for _ in 0..3 {
            image = disk.after_power_cut(&mut random);
            if let Ok(store) = open(&SimulatedDisk::of(&image), ALWAYS) {
                is_exact(&contents(&store));
            } else {
                panic!("the store does not open after a power cut");
            }
        }
    }
    assert!(done > 100, "{done} writes");
}
