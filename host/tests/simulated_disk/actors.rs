//! Five plugins of the real chain that do what a script says in every hook: refuse, panic, replace the value, add writes, call the
//! store, or let the disk fail. They record all calls, and what they see.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use vkog_engine::{Batch, BatchOutcome, Conditions, Engine, Form, Operation, Outcome, Reads, Request, Transforms};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    After, AfterDelete, AfterGet, AfterPost, AfterPut, Answer, Ask, Before, BeforeDelete, BeforeGet, BeforePost,
    BeforePut, BeforeRequest, Change, CreateError, Delete, Get, Guard, GuardDelete, GuardGet, GuardPost, GuardPut,
    Host, HttpRequest, NoSettings, Permission, Plugin, Post, Put, Read, ReadGet, Refusal, Route, RouteRequest, Serve,
    Undo, UndoDelete, UndoGet, UndoPost, UndoPut, Verdict, Write,
};
use vkog_plugin_host::{FailurePolicy, HostContext, Member, NoOrigin, OnFailure, Registry, Verb, system_clock};

use crate::client::{ALWAYS, DEADLINE, open};
use crate::disk::{Call, Image, SimulatedDisk, without_room};
use crate::script::{
    Act, Add, Failing, Hook, How, Operation as Scripted, Phase, REQUEST, SERVE, Script, StoreCall, failure,
};

pub(crate) const PLUGINS: usize = 5;

/// The header that identifies an operation.
pub(crate) const PLACE: &str = "Place";

/// The state that a plugin keeps in each call.
struct Kept {
    hook: Hook,
    number: usize,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut play = PLAY.lock();
        let number = self.number;
        match play.kept.iter().position(|(_, kept)| *kept == number) {
            Some(at) => _ = play.kept.swap_remove(at),
            None => play.wrong.push("a state was dropped twice".to_owned()),
        }
    }
}

/// The script, and the calls of the plugins.
#[derive(Default)]
pub(crate) struct Play {
    pub(crate) script: Script,
    /// All calls, in order.
    pub(crate) called: Vec<Hook>,
    /// The results of the store calls of plugins, and the values that their updates saw.
    pub(crate) results: Vec<String>,
    /// The mistakes with states and values.
    pub(crate) wrong: Vec<String>,
    /// The states that exist: the place of the operation, and a number.
    pub(crate) kept: Vec<(usize, usize)>,
    /// The hook that has set the present state, by place and plugin.
    last: BTreeMap<(usize, usize), Hook>,
    /// The values that the last guards saw, by place and plugin.
    guarded: BTreeMap<(usize, usize), Vec<u8>>,
    is_armed: bool,
}

pub(crate) static PLAY: LazyLock<Mutex<Play>> = LazyLock::new(Mutex::default);
/// The disk that a script lets fail.
static DISK: Mutex<Option<SimulatedDisk>> = Mutex::new(None);
/// Only one test uses the script at a time.
pub(crate) static STAGE: Mutex<()> = Mutex::new(());

impl Play {
    pub(crate) fn of(script: Script) -> Self {
        Self { script, ..Self::default() }
    }

    /// Fails if a plugin saw a wrong state or value, or if a state exists after the response.
    pub(crate) fn check(&self, what: &str) {
        assert_eq!((&self.wrong, &self.kept), (&Vec::new(), &Vec::new()), "{what}");
    }
}

fn place_of(call: &vkog_plugin_api::Request<'_>) -> usize {
    call.header(PLACE).and_then(|place| str::from_utf8(place).ok()?.parse().ok()).unwrap_or(0)
}

/// Takes the state of the previous call, keeps one, compares the value, and then does what the script says.
fn pass(host: Host, plugin: usize, phase: Phase, call: &vkog_plugin_api::Request<'_>) -> Verdict {
    let place = place_of(call);
    let hook = (place, plugin, phase);
    let found = call.take_state::<Kept>();
    let mut play = PLAY.lock();
    let (found_of, previous) = (found.as_ref().map(|kept| kept.hook), play.last.insert((place, plugin), hook));
    if found_of != previous {
        play.wrong.push(format!("{hook:?} found the state of {found_of:?} instead of {previous:?}"));
    }
    let number = play.called.len();
    play.kept.push((place, number));
    drop(play);
    call.set_state(Kept { hook, number });
    drop(found);
    let mut play = PLAY.lock();
    match phase {
        Phase::Guard => _ = play.guarded.insert((place, plugin), call.value().to_vec()),
        Phase::Undo | Phase::After if play.guarded.get(&(place, plugin)).is_some_and(|seen| seen != call.value()) => {
            play.wrong.push(format!("{hook:?} saw another value than its guard: {:?}", call.value()));
        }
        _ => {}
    }
    drop(play);
    perform(host, hook)
}

/// Records a call and does what the script says: lets the disk fail, calls the store, and refuses or panics.
fn perform(host: Host, hook: Hook) -> Verdict {
    let mut play = PLAY.lock();
    play.called.push(hook);
    let fault = play.script.fault.filter(|(at, _)| *at == hook && !play.is_armed).map(|(_, fault)| fault);
    play.is_armed |= fault.is_some();
    let calls: Vec<StoreCall> = play.script.calls.iter().filter(|call| call.at == hook).cloned().collect();
    let act = play.script.acts.iter().find(|(at, _)| *at == hook).map(|(_, act)| *act);
    drop(play);
    if let (Some(fault), Some(disk)) = (fault, &*DISK.lock()) {
        fail_once(disk, fault);
    }
    for call in &calls {
        match call_store(host, call) {
            Err(refusal) if call.is_passed_on => return Err(refusal),
            _ => {}
        }
    }
    match act {
        Some(Act::Panic) => panic!("on purpose"),
        Some(Act::Refuse) => Err(Refusal::new(403, format!("on purpose: {hook:?}"))),
        None => Ok(()),
    }
}

/// Lets the next write of the log fail.
pub(crate) fn fail_once(disk: &SimulatedDisk, fault: Failing) {
    disk.fault(Call::Write, ".log", fault(std::io::ErrorKind::StorageFull), 1);
}

/// Returns an operation as plugins request it. `place` is its place as text.
fn ask_of<'a>(operation: &'a Scripted, place: &'a str) -> Ask<'a> {
    let Scripted { verb, key, value, .. } = operation;
    let ask = match verb {
        Verb::Get => Ask::get(key),
        Verb::Post => Ask::post(key, value.as_bytes()),
        Verb::Put => Ask::put(key, value.as_bytes()),
        Verb::Delete => Ask::delete(key),
    };
    ask.header(PLACE, place)
}

/// Calls the store, and records the result.
fn call_store(host: Host, call: &StoreCall) -> Result<(), Refusal> {
    let texts: Vec<String> = call.operations.iter().map(|operation| operation.place.to_string()).collect();
    let asks: Vec<_> = call.operations.iter().zip(&texts).map(|(operation, place)| ask_of(operation, place)).collect();
    let first = &call.operations[0];
    let result = match call.how {
        How::Ask => host.ask(&asks[0]).map(|answer| vec![answer]).map_err(|refusal| (0, refusal)),
        How::Batch => host.batch(&asks).map_err(|failure| (failure.index, failure.refusal)),
        How::Update => {
            let update = |current: Option<vkog_plugin_api::Entry<'_>>| {
                let seen = current.map(|entry| String::from_utf8_lossy(entry.value()).into_owned());
                let mut play = PLAY.lock();
                play.results.push(format!("the update saw {seen:?}"));
                play.end(&[first.place]);
                Ok(first.value.clone().into_bytes())
            };
            host.update(&asks[0], update).map(|revision| vec![Answer::Done(revision)]).map_err(|refusal| (0, refusal))
        }
    };
    let text = match &result {
        Ok(answers) => answers.iter().map(text_of).collect::<Vec<_>>().join(", "),
        Err((index, refusal)) => format!("{index}: {}", failure(refusal.status(), refusal.message())),
    };
    let mut play = PLAY.lock();
    play.results.push(text);
    play.end(&call.operations.iter().map(|operation| operation.place).collect::<Vec<_>>());
    result.map(drop).map_err(|(_, refusal)| refusal)
}

fn text_of(answer: &Answer) -> String {
    match answer {
        Answer::Found(found) => format!("found {}", String::from_utf8_lossy(&found.value)),
        Answer::Done(_) => "done".to_owned(),
        Answer::Absent => "absent".to_owned(),
    }
}

impl Play {
    /// Notes a mistake if plugins still keep states for operations that have ended, or for the writes that were added to them.
    fn end(&mut self, places: &[usize]) {
        let added = self.script.adds.iter().filter(|add| places.contains(&add.to)).map(|add| add.write.place);
        let ended: Vec<usize> = places.iter().copied().chain(added).collect();
        if self.kept.iter().any(|(place, _)| ended.contains(place)) {
            self.wrong.push(format!("a state of one of {ended:?} exists after its end"));
        }
        self.last.retain(|(place, _), _| !ended.contains(place));
    }
}

/// Adds the writes of the script to an operation.
fn add<O: Change>(plugin: usize, guard: &Guard<'_, O>) -> Verdict {
    let hook = (place_of(guard), plugin);
    let adds: Vec<Add> = PLAY.lock().script.adds.iter().filter(|add| (add.to, add.by) == hook).cloned().collect();
    adds.iter().try_for_each(|Add { write, .. }| guard.add(&ask_of(write, &write.place.to_string())))
}

/// Appends the number of the plugin to the value that is stored, if the script says so.
fn extend<O: Write>(plugin: usize, guard: &Guard<'_, O>) -> Verdict {
    if !PLAY.lock().script.extends.contains(&(place_of(guard), plugin)) {
        return Ok(());
    }
    guard.replace_value(&[guard.value(), format!("+{plugin}").as_bytes()].concat())
}

/// Appends a seal to the value, which `read_get` removes, if the script says so.
fn seal<O: Write>(plugin: usize, before: &Before<'_, O>) -> Verdict {
    if PLAY.lock().script.seals.contains(&(place_of(before), plugin)) {
        before.replace_value(&[before.value(), format!("~{plugin}").as_bytes()].concat());
    }
    Ok(())
}

struct Actor<const N: usize>(Host);

impl<const N: usize> Plugin for Actor<N> {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self(host))
    }
}

impl<const N: usize> BeforeRequest for Actor<N> {
    fn before_request(&self, request: &mut HttpRequest<'_>) -> Verdict {
        perform(self.0, (REQUEST, N, Phase::Request))?;
        let prefix = PLAY.lock().script.prefixes[N];
        if !prefix.is_empty() {
            request.set_key_prefix(prefix);
        }
        Ok(())
    }
}

impl<const N: usize> ReadGet for Actor<N> {
    fn read_get(&self, get: &mut Read<'_>) -> Verdict {
        pass(self.0, N, Phase::Read, get)?;
        match get.value().strip_suffix(format!("~{N}").as_bytes()) {
            Some(sent) => get.replace_value(sent),
            None => PLAY.lock().wrong.push(format!("{N} reads {:?}, without its seal", get.value())),
        }
        Ok(())
    }
}

impl<const N: usize> Serve for Actor<N> {
    const ROUTES: &'static [Route] = &[Route::new("POST", "/run", Permission::Write, "Run the script.")];

    fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
        if PLAY.lock().script.responds_early {
            request.respond(200, "text/plain", b"early");
        }
        perform(self.0, (SERVE, N, Phase::Serve))?;
        request.respond(200, "text/plain", b"late");
        Ok(())
    }
}

macro_rules! act {
    ($($operation:ident: $before:ident $before_hook:ident $($replace:ident)*, $guard:ident $guard_hook:ident $($also:ident)*,
       $undo:ident $undo_hook:ident, $after:ident $after_hook:ident;)*) => {$(
        impl<const N: usize> $before for Actor<N> {
            fn $before_hook(&self, call: &mut Before<'_, $operation>) -> Verdict {
                pass(self.0, N, Phase::Before, call)?;
                $($replace(N, call)?;)*
                Ok(())
            }
        }
        impl<const N: usize> $guard for Actor<N> {
            fn $guard_hook(&self, call: &mut Guard<'_, $operation>) -> Verdict {
                pass(self.0, N, Phase::Guard, call)?;
                $($also(N, call)?;)*
                Ok(())
            }
        }
        impl<const N: usize> $undo for Actor<N> {
            fn $undo_hook(&self, call: &Undo<'_, $operation>) {
                let _ = pass(self.0, N, Phase::Undo, call);
            }
        }
        impl<const N: usize> $after for Actor<N> {
            fn $after_hook(&self, call: &After<'_, $operation>) {
                let _ = pass(self.0, N, Phase::After, call);
            }
        }
    )*};
}

act! {
    Get: BeforeGet before_get, GuardGet guard_get, UndoGet undo_get, AfterGet after_get;
    Post: BeforePost before_post seal, GuardPost guard_post add extend, UndoPost undo_post, AfterPost after_post;
    Put: BeforePut before_put seal, GuardPut guard_put add extend, UndoPut undo_put, AfterPut after_put;
    Delete: BeforeDelete before_delete, GuardDelete guard_delete add, UndoDelete undo_delete, AfterDelete after_delete;
}

fn member<const N: usize>(port: &Arc<HostContext>) -> Arc<Member> {
    const NAMES: [&str; PLUGINS] = ["actor-0", "actor-1", "actor-2", "actor-3", "actor-4"];
    let (hooks, routes) = (vkog_plugin_api::__hooks!(Actor<N>), vkog_plugin_api::__routes!(Actor<N>));
    let module = module::<Actor<N>>(NAMES[N], "1.0.0", true, &hooks, routes);
    // Five panics would happen at once.
    let failure_policy = FailurePolicy { on_failure: OnFailure::Keep, ..FailurePolicy::default() };
    // SAFETY: the module is of this program, made by the same vkog-plugin-api.
    Arc::new(unsafe { Member::create(module, "{}", port, failure_policy) }.expect("it is created"))
}

pub(crate) fn ask(engine: &Arc<Engine>, verb: Verb, key: &str, value: &str) -> Outcome {
    let request = Request {
        verb,
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        content_type: "text/plain".into(),
        query: String::new(),
        conditions: Conditions::default(),
        arrived: engine.revision(),
        depth: 0,
        cause: vkog_plugin_host::Cause::Request,
        states: Default::default(),
        origin: Arc::new(NoOrigin),
        form: Form::Sent,
        reads: Reads::Linearizable,
        transforms: Transforms::default(),
        guarded: Default::default(),
    };
    let (tell, told) = bounded(1);
    engine.run(request, move |answer, _| {
        let _ = tell.send(answer);
    });
    told.recv_timeout(DEADLINE).expect("every request gets a response")
}

pub(crate) fn ask_all(engine: &Arc<Engine>, operations: &[(Verb, String)], value: &str) -> BatchOutcome {
    let operation = |(place, (verb, key)): (usize, &(Verb, String))| Operation {
        verb: *verb,
        key: key.clone(),
        value: if matches!(verb, Verb::Post | Verb::Put) {
            format!("{value} {place}").into()
        } else {
            Vec::new().into()
        },
        content_type: "text/plain".into(),
        conditions: Conditions::default(),
        headers: vec![(PLACE.into(), place.to_string())],
        hidden: false,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
        touches: false,
    };
    let batch = Batch {
        operations: operations.iter().enumerate().map(operation).collect(),
        query: String::new(),
        arrived: engine.revision(),
        values_max: usize::MAX,
        reads: Reads::Linearizable,
        origin: Arc::new(NoOrigin),
    };
    let (tell, told) = bounded(1);
    engine.run_batch(batch, move |outcome| {
        let _ = tell.send(outcome);
    });
    told.recv_timeout(DEADLINE).expect("every batch gets a response")
}

/// Returns the files without the preallocated zeros of the log.
pub(crate) fn files_of(disk: &SimulatedDisk) -> Image {
    let mut image = disk.now();
    for data in image.0.values_mut() {
        data.truncate(without_room(data).len());
    }
    image
}

/// A store with five scripted plugins.
pub(crate) fn stage(disk: &SimulatedDisk) -> Arc<Engine> {
    *DISK.lock() = Some(disk.clone());
    let store = open(disk, ALWAYS).expect("a store");
    let port = Arc::new(HostContext::new(1000, system_clock));
    let members =
        vec![member::<3>(&port), member::<0>(&port), member::<4>(&port), member::<1>(&port), member::<2>(&port)];
    // Deliberate panics print nothing, because there are thousands.
    drop(std::panic::take_hook());
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"on purpose") {
            print(info);
        }
    }));
    Engine::new(store, Registry::linked(members, Vec::new(), port)).expect("every plugin starts")
}
