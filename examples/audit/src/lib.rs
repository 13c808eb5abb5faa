//! Records who changed what. Decides the content of a line; `journal` writes it to the file.

#![forbid(unsafe_code)]

mod journal;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use vkog_plugin_api::serde::{Deserialize, Serialize};
use vkog_plugin_api::*;

use journal::Journal;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    file: PathBuf,
}

#[derive(Serialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Line<'a> {
    time_ms: u64,
    client: &'a str,
    method: &'static str,
    key: &'a str,
    /// The revisions of the entry.
    before: Option<u64>,
    after: Option<u64>,
    value_bytes: usize,
}

impl Line<'_> {
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }
}

struct Audit {
    journal: Journal,
}

impl Plugin for Audit {
    type Settings = Settings;
    const STAGE: Stage = Stage::Observe;

    fn create(host: Host, Settings { file }: Settings) -> Result<Self, CreateError> {
        let opened = OpenOptions::new().create(true).append(true).open(&file);
        let sink = opened.map_err(|error| {
            format!("file: cannot open {file:?}: {error}; correct the path, or let this user write there")
        })?;
        let report = move |line: &str| host.log(Level::Error, &format!("{}: {line}", file.display()));
        Ok(Audit { journal: Journal::start(sink, report)? })
    }
}

impl Audit {
    fn record<O: Operation>(&self, done: &After<'_, O>) {
        let line = Line {
            // A clock before 1970 is a clock that was never set.
            time_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            client: done.client(),
            method: O::VERB.method(),
            key: done.key(),
            before: done.entry_before().map(|entry| entry.revision()),
            after: done.entry_after().map(|entry| entry.revision()),
            value_bytes: done.value().len(),
        };
        self.journal.record(line.to_json());
    }
}

impl AfterPost for Audit {
    fn after_post(&self, post: &After<'_, Post>) {
        self.record(post);
    }
}

impl AfterPut for Audit {
    fn after_put(&self, put: &After<'_, Put>) {
        self.record(put);
    }
}

impl AfterDelete for Audit {
    fn after_delete(&self, delete: &After<'_, Delete>) {
        self.record(delete);
    }
}

// A record with a verb missing is worse than none.
export_plugin!(Audit, required: [after_post, after_put, after_delete]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_any_key_is_one_line_of_json() {
        let key = "two\nlines and a \"quote\"";
        let (client, method) = ("127.0.0.1:50000", Verb::Put.method());
        let line = Line { time_ms: 7, client, method, key, before: None, after: Some(2), value_bytes: 3 }.to_json();
        assert_eq!(
            line,
            r#"{"time_ms":7,"client":"127.0.0.1:50000","method":"PUT","key":"two\nlines and a \"quote\"","before":null,"after":2,"value_bytes":3}"#
        );
    }
}
