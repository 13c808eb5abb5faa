//! A request of an HTTP client succeeds as a whole or leaves no trace, wherever it ends: by a refusal, a panic or a failed disk in
//! `before_request`, in a route, in any hook of its operations, of the writes that guards add, and of the store calls of
//! plugins.
//!
//! The five plugins of `actors` transform values, set key prefixes, add writes, call the store and fail at random, behind the
//! HTTP interface. A model runs the same script. Both must agree on all calls of hooks and their order, on the results of store
//! calls, on the response, and on what the store holds. Each hook finds the state that the previous hook of the same plugin for
//! the same operation has set, and no state exists when the operation has ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::bounded;
use serde_json::{Value, json};
use vkog::api::{Api, Authorizer};
use vkog::http::{Body, Headers, Method, RequestHead, Responder, Response, Service};
use vkog_engine::Engine;
use vkog_plugin_host::Verb;

use crate::actors::{PLACE, PLAY, Play, STAGE, files_of, stage};
use crate::client::{ALWAYS, DEADLINE, close, contents, open};
use crate::disk::SimulatedDisk;
use crate::model::{Done, Model, Reply, Stored, Values};
use crate::random::Random;
use crate::script::{Operation, Path, Phase, Script, failure};

/// The number of requests, in the quick and in the full tier.
const REQUESTS: [usize; 2] = [2500, 10_000];

fn method(verb: Verb) -> Method {
    match verb {
        Verb::Get => Method::Get,
        Verb::Post => Method::Post,
        Verb::Put => Method::Put,
        Verb::Delete => Method::Delete,
    }
}

/// The request of a script: method, path and body.
fn request(script: &Script) -> (Method, String, Vec<u8>) {
    match script.path {
        Path::Route(plugin) => (Method::Post, format!("/x/actor-{plugin}/run"), Vec::new()),
        Path::Entry => {
            let Operation { verb, key, value, .. } = &script.operations[0];
            (method(*verb), format!("/k/{}", key.replace('/', "%2F")), value.clone().into_bytes())
        }
        Path::Batch => {
            let operations = script.operations.iter().map(|Operation { place, verb, key, value }| {
                let mut operation = json!({
                    "op": verb.method().to_ascii_lowercase(), "key": key, "headers": { PLACE: place.to_string() },
                });
                if !value.is_empty() {
                    operation["value"] = json!(value);
                }
                operation
            });
            let body = Value::from(operations.collect::<Vec<_>>());
            (Method::Post, "/batch".to_owned(), body.to_string().into_bytes())
        }
    }
}

/// Sends the request of a script. Returns the response, and the number of states that existed then.
fn send(api: &Api, script: &Script) -> (Response, usize) {
    let (method, path, body) = request(script);
    let mut headers = Headers::default();
    headers.push("Accept", b"application/json");
    if script.path == Path::Batch {
        headers.push("Content-Type", b"application/json");
    }
    headers.push("Content-Length", body.len().to_string().as_bytes());
    let head = Arc::new(RequestHead::new(method, path, headers, None));
    let admitted = match api.admit(head) {
        Ok(admitted) => admitted,
        Err(response) => return (response, PLAY.lock().kept.len()),
    };
    let (tell, told) = bounded(1);
    api.serve(admitted, body, Responder::new(move |response| _ = tell.send((response, PLAY.lock().kept.len()))));
    told.recv_timeout(DEADLINE).expect("every request gets a response")
}

fn text(response: &Response) -> String {
    match &response.body {
        Body::Whole(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Body::Stream(_) => panic!("all responses are short"),
    }
}

/// The response as the model expresses it.
fn reply(script: &Script, response: &Response) -> Result<Reply, String> {
    let text = text(response);
    if response.status >= 400 {
        let problem: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if response.status == 404 && script.path == Path::Entry && problem["plugin"].is_null() {
            return Ok(Reply::Done(vec![Done::Absent]));
        }
        let index = problem["index"].as_u64().map(|index| index as usize);
        let title = problem["title"].as_str().unwrap_or_default();
        return Ok(Reply::Failed(index, failure(response.status, title)));
    }
    let done = |verb: Verb, value: &str| if verb == Verb::Get { Done::Found(value.to_owned()) } else { Done::Written };
    match script.path {
        Path::Route(_) if text == "early" => Ok(Reply::Served("early")),
        Path::Route(_) if text == "late" => Ok(Reply::Served("late")),
        Path::Route(_) => Err(text),
        Path::Entry => Ok(Reply::Done(vec![done(script.operations[0].verb, &text)])),
        Path::Batch => {
            let results: Vec<Value> = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            let results =
                script.operations.iter().zip(&results).map(|(operation, result)| match result["status"].as_u64() {
                    Some(404) => Done::Absent,
                    _ => done(operation.verb, result["value"].as_str().unwrap_or_default()),
                });
            Ok(Reply::Done(results.collect()))
        }
    }
}

/// The content of the store, by key.
fn values(engine: &Engine) -> Values {
    let held = contents(engine.store()).into_iter().map(|(key, (_, held))| {
        let value = String::from_utf8(held.value).expect("all values are text");
        // The seals at the end of the value are those that the host has recorded.
        let recorded = vkog_plugin_host::Transforms::of(&held.details);
        let seals: Vec<usize> = value.split('~').skip(1).map(|seal| seal.parse().expect("a number")).collect();
        let expected = seals.iter().map(|plugin| format!("actor-{plugin}")).collect::<Vec<_>>().join(",");
        assert!(format!("{recorded:?}").contains(&format!("\"{expected}\"")), "{recorded:?} of {value}");
        (key, Stored { value, seals })
    });
    held.collect()
}

/// How often each act was reached in each hook.
type Reached = BTreeMap<(Phase, &'static str), usize>;

/// Runs one script against the server and the model, and compares both.
fn run(
    api: &Api,
    engine: &Engine,
    disk: &SimulatedDisk,
    script: Script,
    held: Values,
    reached: &mut Reached,
) -> Values {
    let (before, files, revision) = (contents(engine.store()), files_of(disk), engine.revision());
    let mut model = Model::new(&script, held);
    let expected = model.run();
    *PLAY.lock() = Play::of(script.clone());
    let (response, states) = send(api, &script);
    disk.mend();
    let play = PLAY.lock();
    assert_eq!(play.called, model.calls, "{script:#?}");
    assert_eq!(play.results, model.results, "{script:#?}");
    play.check(&format!("{script:#?}"));
    assert_eq!(states, 0, "states when the response was delivered: {script:#?}");
    drop(play);
    assert_eq!(reply(&script, &response), Ok(expected), "{script:#?}");
    let values = values(engine);
    assert_eq!(values, model.values, "{script:#?}");
    if model.revisions == 0 {
        assert_eq!(contents(engine.store()), before, "the map after {script:#?}");
        assert_eq!(files_of(disk), files, "the files after {script:#?}");
    } else if !model.was_full() {
        assert_eq!(engine.revision(), revision + model.revisions, "{script:#?}");
    }
    for what in &model.reached {
        *reached.entry(*what).or_default() += 1;
    }
    values
}

#[test]
fn a_request_that_fails_in_any_hook_leaves_what_the_model_says() {
    let _alone = STAGE.lock();
    let disk = SimulatedDisk::empty();
    let engine = stage(&disk);
    let access = Arc::new(Authorizer::new(vkog::config::Auth { open: true, ..Default::default() }));
    let api = Api::new(Arc::clone(&engine), 1000, access, Arc::new(|| Ok(Vec::new())));
    let mut random = Random::new(19);
    let (mut values, mut reached) = (Values::new(), Reached::new());
    let requests = REQUESTS[usize::from(std::env::var_os("VKOG_FULL").is_some())];
    for _ in 0..requests {
        let script = Script::random(&mut random);
        values = run(&api, &engine, &disk, script, values, &mut reached);
    }
    for (what, times) in &reached {
        println!("{what:?}: {times}");
    }
    use Phase::{After, Before, Guard, Read, Request, Serve, Undo};
    let of = |phases: &[Phase], what| phases.iter().map(|phase| (*phase, what)).collect::<Vec<_>>();
    let all = [Request, Before, Guard, Undo, Read, After, Serve];
    let calling = [Request, Before, Read, After, Serve];
    let expected = [
        of(&all, "refuse"),
        of(&all, "panic"),
        of(&[Request, Before, Guard, Read, Serve], "full"),
        of(&calling, "called"),
        of(&calling, "failed"),
        of(&[Guard, Undo], "508"),
    ]
    .concat();
    for what in expected {
        let times = reached.get(&what).copied().unwrap_or_default();
        assert!(times > requests / 1000, "{what:?}: {times}");
    }
    drop((api, engine));
    let store = open(&disk, ALWAYS).expect("a store");
    let held: BTreeMap<_, _> = contents(&store)
        .into_iter()
        .map(|(key, (_, held))| (key, String::from_utf8_lossy(&held.value).into_owned()))
        .collect();
    assert_eq!(held, values.into_iter().map(|(key, stored)| (key, stored.value)).collect(), "memory and disk");
    close(store);
}
