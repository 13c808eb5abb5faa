#![forbid(unsafe_code)]
//! A backend whose engine is a file of this machine, `faults://FILE`, for tests of a host without a network. Its routes let it hang
//! or disconnect:
//!
//! | `POST /x/faults/…` | from then on |
//! |---|---|
//! | `hang` | it stays connected, but answers no write and no question; `answer` makes up for that |
//! | `disconnect` | it reports that it has no connection, and drops writes; `connect` ends that |
//! | `change/KEY` | nothing: another host puts the body under the key, once |
//! | `late/KEY` | the same, and this host learns it only when it writes or requests the last revision |
//!
//! With `gate = FILE` it begins to load when that file exists. With `hosts = […]` it reports other hosts with these announcements.

mod engine;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use vkog_plugin_api::backend::{Feed, Member, Status, Write};
use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

use engine::{Answer, Engine, Mode, OwnedWrite};

/// The interval of signs of life.
const ALIVE_EVERY: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde", default)]
#[derive(Default)]
struct Settings {
    gate: String,
    hosts: Vec<String>,
}

struct Faults {
    settings: Settings,
    engine: Arc<Mutex<Engine>>,
}

impl Faults {
    fn with_engine<R>(&self, run: impl FnOnce(&mut Engine) -> R) -> R {
        run(&mut self.engine.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Plugin for Faults {
    type Settings = Settings;

    fn create(_: Host, settings: Settings) -> Result<Self, CreateError> {
        Ok(Self { settings, engine: Arc::default() })
    }
}

impl Backend for Faults {
    const SCHEME: &'static str = "faults";

    fn open(&self, url: &str, about: &str, feed: Feed) -> Result<(), CreateError> {
        let file = url.strip_prefix("faults://").unwrap_or_default();
        if file == "refused" {
            return Err("the engine refuses this host".into());
        }
        self.with_engine(|engine| engine.open(file, about, feed));
        let (engine, gate) = (Arc::clone(&self.engine), self.settings.gate.clone());
        thread::spawn(move || {
            while !gate.is_empty() && !std::path::Path::new(&gate).exists() {
                feed.connected(Err("the gate is closed"));
                // Its load had begun when the connection was lost.
                feed.load(&[]);
                thread::sleep(Duration::from_millis(10));
            }
            engine.lock().unwrap_or_else(PoisonError::into_inner).load();
            loop {
                {
                    let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
                    match engine.mode {
                        Mode::Closed => return,
                        Mode::Disconnected => feed.connected(Err("a test has disconnected it")),
                        Mode::Answering | Mode::Hanging => feed.connected(Ok(())),
                    }
                }
                thread::sleep(ALIVE_EVERY);
            }
        });
        Ok(())
    }

    fn commit(&self, write: &Write<'_>) {
        self.with_engine(|engine| engine.commit(OwnedWrite::from(write)));
    }

    fn confirm(&self, id: u64) {
        if let Some(answer) = self.with_engine(|engine| engine.confirm(id)) {
            answer.send();
        }
    }

    fn status(&self) -> Status {
        self.with_engine(|engine| {
            let mut status = Status::default();
            status.connected = !matches!(engine.mode, Mode::Disconnected | Mode::Closed);
            (status.leads, status.id) = (true, "1".to_owned());
            (status.engine, status.engine_version) = ("file".to_owned(), "1".to_owned());
            (status.size, status.quota) = (1000, 2000);
            status.members.push(Member::new("1", engine.about.clone()));
            let others = (2..).zip(&self.settings.hosts);
            status.members.extend(others.map(|(id, about)| Member::new(id.to_string(), about.clone())));
            status
        })
    }

    fn announce(&self, about: &str) {
        self.with_engine(|engine| about.clone_into(&mut engine.about));
    }

    fn close(&self) {
        self.with_engine(Engine::close);
    }
}

impl Serve for Faults {
    const ROUTES: &'static [Route] = &[
        Route::new("POST", "/{mode}", Permission::None, "Change how the backend behaves."),
        Route::new("POST", "/change/{*key}", Permission::None, "Put a value as another host does."),
        Route::new("POST", "/late/{*key}", Permission::None, "Put a value as another host does, and report it late."),
    ];

    fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
        if let Some(key) = request.parameter("key") {
            let is_late = request.path().starts_with("/late/");
            self.with_engine(|engine| match is_late {
                true => engine.change_late(key, request.body()),
                false => engine.change(key, request.body()),
            });
            return Ok(());
        }
        let mode = match request.parameter("mode").unwrap_or_default() {
            "hang" => Mode::Hanging,
            "answer" | "connect" => Mode::Answering,
            "disconnect" => Mode::Disconnected,
            other => return Err(Refusal::new(400, format!("no such mode: {other}"))),
        };
        self.with_engine(|engine| engine.enter(mode)).into_iter().for_each(Answer::send);
        Ok(())
    }
}

export_plugin!(Faults);
