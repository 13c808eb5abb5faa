//! Random numbers, the same in every run, and the keys and values that are made of them.

use serde_json::{Map, json};

use super::config::MARKER;

/// The folders of keys. One has the prefix of a tenant, because a client may use it, too.
const FOLDERS: [&str; 3] = ["", "a b/", "ann/"];
/// The values of the indexed field `city`; two of them are percent-encoded in the index.
pub(super) const CITIES: [&str; 4] = ["Rome", "a/b", "São Paulo", "50%"];
/// The number of values of the indexed field `age`.
pub(super) const AGES: usize = 3;
/// The number of keys of a folder: few, so that most operations find an entry.
const KEYS: usize = 9;

pub(super) struct Random(vkog_tests::Random);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(vkog_tests::Random::new(seed))
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0.below(limit)
    }

    pub(super) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(super) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.below(256) as u8).take(length).collect()
    }

    pub(super) fn folder(&mut self) -> &'static str {
        FOLDERS[self.below(FOLDERS.len())]
    }

    pub(super) fn key(&mut self) -> String {
        format!("{}{}", self.folder(), self.below(KEYS))
    }

    /// Returns a value, and whether it is sent with a content coding. Each contains [`MARKER`].
    pub(super) fn value(&mut self) -> (Vec<u8>, bool) {
        let word = format!("{MARKER}{:x} ", self.below(1 << 30));
        match self.below(100) {
            0..40 => (self.object(word), false),
            40..60 => (word.into_bytes(), false),
            60..82 => (word.repeat(1 + self.below(100)).into_bytes(), false),
            82..94 => {
                let length = self.below(2500);
                ([word.as_bytes(), b"\xff", &self.bytes(length)].concat(), false)
            }
            // A watch leaves out its value, and transforms run on other threads.
            94..96 => (word.repeat(4000).into_bytes(), false),
            _ => (word.repeat(1 + self.below(20)).into_bytes(), true),
        }
    }

    fn object(&mut self, word: String) -> Vec<u8> {
        let mut object = Map::new();
        object.insert("note".to_owned(), json!(word.repeat(1 + self.below(10))));
        if self.percent(80) {
            object.insert("city".to_owned(), json!(self.of(&CITIES)));
        }
        if self.percent(60) {
            object.insert("age".to_owned(), json!(self.below(AGES)));
        }
        json!(object).to_string().into_bytes()
    }
}
