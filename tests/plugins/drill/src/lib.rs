#![forbid(unsafe_code)]
//! Calls the functions of the host as a test requests.
//!
//! A query selects a hook and a store call: `ask=HOOK:VERB:KEY`, `list=HOOK:PREFIX`, or `again=HOOK` for the same operation
//! with the same query. The plugin logs the outcome as `HOOK: ...`. A hook that may refuse passes a refusal on, and `after_*`
//! adds the outcome in the header `X-Asked`.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize, Clone)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// The label in the log and in the header `X-Label`.
    #[serde(default)]
    label: String,
    /// The duration of `before_get` and `before_put`.
    #[serde(default)]
    sleep_ms: u64,
    /// The time between two ticks; if it is not set, the plugin ticks once and does nothing.
    #[serde(default)]
    tick_ms: Option<u64>,
    /// The duration of a tick.
    #[serde(default)]
    tick_takes_ms: u64,
    /// A tick removes the entries with this prefix.
    #[serde(default)]
    sweep: Option<String>,
    /// It reads this key in `create`, in `start`, and time and again on its own thread.
    #[serde(default)]
    watch: Option<String>,
}

struct Drill {
    host: Host,
    settings: Mutex<Settings>,
    ticks: Counter,
    swept: Gauge,
    ended: &'static AtomicBool,
    watcher: Option<JoinHandle<()>>,
}

impl Plugin for Drill {
    type Settings = Settings;
    const STAGE: Stage = Stage::Transform;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        let ended: &AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let watcher = settings.watch.clone().map(|key| {
            host.log(Level::Info, &format!("create: {}", told(host.ask(&Ask::get(&key)))));
            thread::spawn(move || {
                while !ended.load(Relaxed) {
                    // With a write of its own, which waits for the disk.
                    let _ = host.ask(&Ask::get(&key));
                    let _ = host.ask(&Ask::put(&key, b"watched"));
                }
            })
        });
        let ticks = host.counter("ticks_total", "Ticks.");
        let swept = host.gauge("swept", "Entries that the last tick removed.");
        Ok(Drill { host, settings: Mutex::new(settings), ticks, swept, ended, watcher })
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.join().expect("it does not panic");
        }
        self.log(&format!("{} is dropped", self.settings().label));
    }
}

/// Describes the outcome of a store call in a few words.
fn told(answer: Result<Answer, Refusal>) -> String {
    match answer {
        Ok(Answer::Found(found)) => format!("found {}", String::from_utf8_lossy(&found.value)),
        Ok(Answer::Done(_)) => "done".to_owned(),
        Ok(Answer::Absent) => "absent".to_owned(),
        Err(refusal) => format!("refused {} {}", refusal.status(), refusal.message()),
    }
}

impl Drill {
    fn log(&self, line: &str) {
        self.host.log(Level::Info, line);
    }

    fn settings(&self) -> Settings {
        self.settings.lock().expect("no holder of this lock panics").clone()
    }

    fn list(&self, prefix: &str) -> Result<String, Refusal> {
        let mut keys = Vec::new();
        self.host.for_each(prefix, |key, entry| {
            keys.push(format!("{key}={}", String::from_utf8_lossy(entry.value())));
            ControlFlow::Continue(())
        })?;
        keys.sort();
        Ok(keys.join(" "))
    }

    /// Makes the store call that the request names for this hook. Returns its outcome, if there is one.
    fn asked(&self, hook: &str, request: &Request<'_>) -> Option<Result<String, Refusal>> {
        let named = |part: &'static str| {
            let parts = request.query().split('&').filter_map(move |query| query.strip_prefix(part));
            parts.filter_map(|rest| rest.strip_prefix(hook)).next()
        };
        let answer = if let Some(prefix) = named("list=") {
            self.list(prefix.trim_start_matches(':'))
        } else {
            let (verb, key, query) = if let Some(asked) = named("ask=") {
                let (verb, key) = asked.trim_start_matches(':').split_once(':').expect("VERB:KEY");
                (verb, key, "")
            } else if named("again=").is_some() {
                (request.verb().method(), request.key(), request.query())
            } else {
                return None;
            };
            let ask = match verb.to_ascii_lowercase().as_str() {
                "get" => Ask::get(key),
                "post" => Ask::post(key, b"sent"),
                "put" => Ask::put(key, b"sent"),
                _ => Ask::delete(key),
            };
            self.host.ask(&ask.query(query)).map(|answer| told(Ok(answer)))
        };
        let said = answer.as_ref().map_or_else(|refusal| told(Err(refusal.clone())), Clone::clone);
        self.log(&format!("{hook}: {said}"));
        Some(answer)
    }

    fn sleep(&self) {
        let sleep = self.settings().sleep_ms;
        if sleep > 0 {
            thread::sleep(Duration::from_millis(sleep));
        }
    }

    fn verdict(&self, hook: &str, request: &Request<'_>) -> Verdict {
        self.asked(hook, request).unwrap_or(Ok(String::new())).map(drop)
    }
}

impl Start for Drill {
    fn start(&self, _: &Stored<'_>) -> Result<(), String> {
        if let Some(key) = self.settings().watch {
            self.log(&format!("start: {}", told(self.host.ask(&Ask::get(&key)))));
        }
        Ok(())
    }
}

impl Tick for Drill {
    fn tick(&self) -> Duration {
        let Settings { label, tick_ms, tick_takes_ms, sweep, .. } = self.settings();
        let Some(pause) = tick_ms else { return Duration::from_secs(3600) };
        self.ticks.add(1);
        thread::sleep(Duration::from_millis(tick_takes_ms));
        let mut keys = Vec::new();
        if let Some(prefix) = &sweep {
            let listed = self.host.for_each(prefix, |key, _| {
                keys.push(key.to_owned());
                ControlFlow::Continue(())
            });
            if listed.is_ok() {
                self.swept.set(keys.iter().filter(|key| self.host.delete(key) == Ok(true)).count() as i64);
            }
        }
        self.log(&format!("{label} ticked"));
        Duration::from_millis(pause)
    }
}

impl SettingsChanged for Drill {
    fn settings_changed(&self, settings: Settings) -> Result<(), String> {
        if settings.label == "wrong" {
            return Err("label is wrong; give another".to_owned());
        }
        *self.settings.lock().expect("no holder of this lock panics") = settings;
        Ok(())
    }
}

impl BeforeGet for Drill {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        self.sleep();
        self.verdict("before_get", get)
    }
}

impl BeforePut for Drill {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        self.sleep();
        self.verdict("before_put", put)
    }
}

macro_rules! verdicts {
    ($($hook:ident $method:ident: $view:ty;)*) => {$(
        impl $hook for Drill {
            fn $method(&self, call: $view) -> Verdict {
                self.verdict(stringify!($method), call)
            }
        }
    )*};
}

verdicts! {
    BeforePost before_post: &mut Before<'_, Post>;
    BeforeDelete before_delete: &mut Before<'_, Delete>;
    GuardGet guard_get: &mut Guard<'_, Get>;
    GuardPost guard_post: &mut Guard<'_, Post>;
    GuardPut guard_put: &mut Guard<'_, Put>;
    GuardDelete guard_delete: &mut Guard<'_, Delete>;
}

macro_rules! told {
    ($($operation:ident: $after:ident $after_hook:ident, $undo:ident $undo_hook:ident;)*) => {$(
        impl $after for Drill {
            fn $after_hook(&self, done: &After<'_, $operation>) {
                done.add_header("X-Label", &self.settings().label);
                if let Some(answer) = self.asked(stringify!($after_hook), done) {
                    done.add_header("X-Asked", &answer.unwrap_or_else(|refusal| told(Err(refusal))));
                }
            }
        }

        impl $undo for Drill {
            fn $undo_hook(&self, undone: &Undo<'_, $operation>) {
                self.asked(stringify!($undo_hook), undone);
            }
        }
    )*};
}

told! {
    Get: AfterGet after_get, UndoGet undo_get;
    Post: AfterPost after_post, UndoPost undo_post;
    Put: AfterPut after_put, UndoPut undo_put;
    Delete: AfterDelete after_delete, UndoDelete undo_delete;
}

export_plugin!(Drill);
