//! The engine: entries with revisions, which are read from a file when it is opened and written when it is closed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use vkog_plugin_api::backend::{Change, CommitOutcome, Feed, Loaded, Write};

/// How the engine behaves.
#[derive(Copy, Clone, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Answering,
    Hanging,
    Disconnected,
    Closed,
}

#[derive(Default)]
pub(crate) struct Engine {
    pub(crate) mode: Mode,
    pub(crate) about: String,
    file: PathBuf,
    feed: Option<Feed>,
    revision: u64,
    entries: BTreeMap<String, (Vec<u8>, u64)>,
    /// The requests that came while it hung.
    waiting: Vec<Request>,
    /// Changes that the host does not know yet, with their revisions.
    late: Vec<(u64, Vec<OwnedChange>)>,
}

/// The answer to a question. It is sent without the lock of the engine, because the host may ask the next question at once.
pub(crate) struct Answer {
    feed: Feed,
    id: u64,
    /// None without a connection.
    revision: Option<u64>,
}

impl Answer {
    pub(crate) fn send(self) {
        self.feed.confirmed(self.id, self.revision.ok_or("there is no connection"));
    }
}

enum Request {
    Commit(OwnedWrite),
    Confirm(u64),
}

/// A key, its record (`None` for a removal), and whether it has expired.
type OwnedChange = (String, Option<Vec<u8>>, bool);

pub(crate) struct OwnedWrite {
    id: u64,
    conditions: Vec<(String, u64)>,
    changes: Vec<OwnedChange>,
}

impl From<&Write<'_>> for OwnedWrite {
    fn from(write: &Write<'_>) -> Self {
        let conditions = write.conditions().iter();
        let changes = write.changes().iter();
        Self {
            id: write.id(),
            conditions: conditions.map(|condition| (condition.key().to_owned(), condition.revision())).collect(),
            changes: changes
                .map(|change| (change.key().to_owned(), change.record().map(<[u8]>::to_vec), change.expired()))
                .collect(),
        }
    }
}

impl Engine {
    /// Reads the file, if there is one: a line for each entry, with its revision, and key and record as hexadecimal digits.
    pub(crate) fn open(&mut self, file: &str, about: &str, feed: Feed) {
        (self.file, self.about, self.feed, self.revision) = (file.into(), about.to_owned(), Some(feed), 1);
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        for line in text.lines() {
            let mut fields = line.split(' ');
            let mut field = || fields.next().unwrap_or_default();
            let (revision, key, record) = (field().parse().unwrap_or(1), bytes(field()), bytes(field()));
            self.revision = self.revision.max(revision);
            self.entries.insert(String::from_utf8(key).unwrap_or_default(), (record, revision));
        }
    }

    pub(crate) fn load(&mut self) {
        let Some(feed) = self.feed else { return };
        feed.connected(Ok(()));
        for (key, (record, revision)) in &self.entries {
            feed.load(&[Loaded::new(key, record, *revision)]);
        }
        feed.loaded(self.revision);
    }

    pub(crate) fn close(&mut self) {
        let lines = self.entries.iter();
        let lines = lines
            .map(|(key, (record, revision))| format!("{revision} {} {}\n", digits(key.as_bytes()), digits(record)));
        // A URL without a file is for tests that need none.
        let _ = std::fs::write(&self.file, lines.collect::<String>());
        self.mode = Mode::Closed;
    }

    /// Enters a mode. Returns the answers to questions that waited for it.
    #[must_use]
    pub(crate) fn enter(&mut self, mode: Mode) -> Vec<Answer> {
        self.mode = mode;
        let Some(feed) = self.feed else { return Vec::new() };
        match mode {
            Mode::Disconnected => feed.connected(Err("a test has disconnected it")),
            Mode::Answering => feed.connected(Ok(())),
            Mode::Hanging | Mode::Closed => return Vec::new(),
        }
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let answer = |request| match request {
            Request::Commit(write) => {
                self.commit(write);
                None
            }
            Request::Confirm(id) => self.confirm(id),
        };
        waiting.filter_map(answer).collect()
    }

    pub(crate) fn commit(&mut self, write: OwnedWrite) {
        let Some(feed) = self.feed else { return };
        match self.mode {
            Mode::Hanging => return self.waiting.push(Request::Commit(write)),
            Mode::Disconnected | Mode::Closed => {
                return feed.outcome(write.id, CommitOutcome::Dropped { message: "there is no connection".to_owned() });
            }
            Mode::Answering => {}
        }
        self.pass_on_late();
        let current = |key: &str| self.entries.get(key).map_or(0, |(_, revision)| *revision);
        if write.conditions.iter().any(|(key, revision)| current(key) != *revision) {
            return feed.outcome(write.id, CommitOutcome::Conflict { revision: self.revision });
        }
        let revision = self.apply(&write.changes, true);
        feed.outcome(write.id, CommitOutcome::Committed { revision });
    }

    /// Returns the answer to a question, unless it hangs.
    #[must_use]
    pub(crate) fn confirm(&mut self, id: u64) -> Option<Answer> {
        let feed = self.feed?;
        let revision = match self.mode {
            Mode::Hanging => {
                self.waiting.push(Request::Confirm(id));
                return None;
            }
            Mode::Disconnected | Mode::Closed => None,
            Mode::Answering => Some(self.revision),
        };
        self.pass_on_late();
        Some(Answer { feed, id, revision })
    }

    /// Puts a value as another host does.
    pub(crate) fn change(&mut self, key: &str, value: &[u8]) {
        self.pass_on_late();
        self.apply(&[(key.to_owned(), Some(record(value)), false)], false);
    }

    /// The same, and the host learns it only when it writes or requests the last revision.
    pub(crate) fn change_late(&mut self, key: &str, value: &[u8]) {
        let changes = vec![(key.to_owned(), Some(record(value)), false)];
        self.note(&changes);
        self.late.push((self.revision, changes));
    }

    fn pass_on_late(&mut self) {
        for (revision, changes) in std::mem::take(&mut self.late) {
            self.pass_on(revision, &changes, false);
        }
    }

    fn apply(&mut self, changes: &[OwnedChange], own: bool) -> u64 {
        self.note(changes);
        self.pass_on(self.revision, changes, own);
        self.revision
    }

    fn note(&mut self, changes: &[OwnedChange]) {
        self.revision += 1;
        for (key, record, _) in changes {
            match record {
                Some(record) => _ = self.entries.insert(key.clone(), (record.clone(), self.revision)),
                None => _ = self.entries.remove(key),
            }
        }
    }

    fn pass_on(&self, revision: u64, changes: &[OwnedChange], own: bool) {
        let applied: Vec<_> = changes
            .iter()
            .map(|(key, record, expired)| match record {
                Some(record) => Change::put(key, record),
                None => Change::delete(key, *expired),
            })
            .collect();
        if let Some(feed) = self.feed {
            feed.apply(revision, own, &applied);
        }
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(digits: &str) -> Vec<u8> {
    let byte = |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..digits.len()).step_by(2).map_while(byte).collect()
}

/// The record of a short value, as hosts write it: a MessagePack array of the media type (empty for the default one), the details and
/// the value.
fn record(value: &[u8]) -> Vec<u8> {
    let len = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[0x93, 0xa0, 0xc4, 0, 0xc4, len], &value[..usize::from(len)]].concat()
}
