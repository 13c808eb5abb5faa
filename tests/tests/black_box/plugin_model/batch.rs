//! Batches: several operations in one step. Each sees the effects of those before it.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::session::{Session, Step, parsed};
use super::tenant::{Effect, Entry};

/// The expected result of an operation.
enum Expected {
    /// A write.
    Written,
    Found(Entry),
    /// An entry that an earlier operation has written, by the number of its effect.
    FoundNew(usize),
    Absent,
}

/// A batch in preparation.
#[derive(Default)]
struct Batch {
    operations: Vec<Value>,
    expected: Vec<Expected>,
    effects: Vec<Effect>,
    /// The operation of each effect.
    writers: Vec<usize>,
    /// The numbers of the latest effects, by key.
    written: BTreeMap<String, usize>,
    /// The keys of all writes, also behind a failure: a patch of them is malformed.
    keys: BTreeSet<String>,
    /// The first operation that fails, with its status.
    failure: Option<(usize, u16)>,
    /// The first patch of an absent key. It goes before all other failures.
    unpatched: Option<usize>,
}

impl Batch {
    fn fail(&mut self, status: u16) {
        self.failure = self.failure.or(Some((self.operations.len(), status)));
    }

    /// Adds an operation that changes an entry. Behind one that fails, it changes nothing.
    fn write(&mut self, operation: Value, key: &str, after: Option<Entry>) {
        self.keys.insert(key.to_owned());
        if self.failure.is_none() {
            self.written.insert(key.to_owned(), self.effects.len());
            self.expected.push(Expected::Written);
            self.effects.push(Effect { key: key.to_owned(), after });
            self.writers.push(self.operations.len());
        }
        self.operations.push(operation);
    }
}

/// Returns the value of a result or an event, as text or base64.
pub(super) fn value_of(data: &Value, base64: &str) -> Option<Vec<u8>> {
    if let Some(text) = data["value"].as_str() {
        return Some(text.as_bytes().to_vec());
    }
    data[base64].as_str().map(|text| BASE64.decode(text).expect("it is base64"))
}

impl Session<'_> {
    pub(super) fn batch(&mut self) -> Step {
        let mut batch = Batch::default();
        let count = if self.random.percent(5) { 30 } else { 1 + self.random.below(6) };
        for _ in 0..count {
            self.add_operation(&mut batch);
        }
        let full = match batch.unpatched {
            Some(_) => None,
            None => self.refusal(&batch.effects, batch.failure.is_some()),
        };
        let is_refused = full.is_some() || batch.unpatched.is_some() || batch.failure.is_some();
        let request = self.request("POST", "/batch").header("Content-Type", "application/json");
        let lost = if is_refused { &[][..] } else { &batch.effects };
        let reply = self.send(request.body(json!(batch.operations).to_string()), lost)?;
        let body = parsed(&reply);
        let fails_at = |index: usize, status: u16| {
            assert_eq!((&body["index"], reply.status), (&json!(index), status), "{:?}: {reply}", batch.operations);
            assert_eq!(body["key"], batch.operations[index]["key"], "{reply}");
        };
        if let Some(index) = batch.unpatched {
            fails_at(index, 404);
        } else if let Some((effect, message)) = full {
            fails_at(batch.writers[effect], 413);
            assert_eq!((&body["title"], &body["plugin"]), (&json!(message), &json!("bytes")), "{reply}");
        } else if reply.status == 413 {
            self.is_full(body["title"].as_str().unwrap_or_default(), &reply);
            assert_eq!(body["plugin"], "bytes", "{reply}");
        } else if let Some((index, status)) = batch.failure {
            fails_at(index, status);
        } else {
            let reply = reply.expect(200);
            let results = body.as_array().unwrap_or_else(|| panic!("no list: {reply}"));
            assert_eq!(results.len(), batch.operations.len(), "{reply}");
            let effects = with_revisions(&batch, results);
            for (result, expected) in results.iter().zip(&batch.expected) {
                check(result, expected, &effects);
            }
            self.tenant.apply(effects, self.rounds, self.round.fields());
        }
        Ok(())
    }

    fn add_operation(&mut self, batch: &mut Batch) {
        let key = self.key();
        let new = batch.written.get(&key).copied();
        let found = match new {
            Some(effect) => batch.effects[effect].after.clone(),
            None => self.tenant.entries.get(&key).cloned(),
        };
        match self.random.below(20) {
            0..9 => self.add_write(batch, key, found, new.is_some()),
            9..12 => {
                if found.is_none() {
                    batch.fail(404);
                }
                batch.write(json!({ "op": "delete", "key": key }), &key, None);
            }
            12..14 if !batch.keys.contains(&key) && (found.is_some() || self.random.percent(10)) => {
                if found.is_none() {
                    batch.unpatched = batch.unpatched.or(Some(batch.operations.len()));
                    batch.fail(404);
                }
                batch.write(json!({ "op": "patch", "key": key }), &key, found);
            }
            _ => {
                let expected = match (new, found) {
                    (_, None) => Expected::Absent,
                    (Some(effect), Some(_)) => Expected::FoundNew(effect),
                    (None, Some(entry)) => Expected::Found(entry),
                };
                if batch.failure.is_none() {
                    batch.expected.push(expected);
                }
                batch.operations.push(json!({ "op": "get", "key": key }));
            }
        }
    }

    fn add_write(&mut self, batch: &mut Batch, key: String, found: Option<Entry>, is_new: bool) {
        let entry = self.new_entry();
        let op = *self.random.of(&["put", "post"]);
        let mut operation = json!({ "op": op, "key": key, "content_type": entry.content_type });
        match str::from_utf8(&entry.value) {
            Ok(text) => operation["value"] = json!(text),
            Err(_) => operation["base64"] = json!(BASE64.encode(&entry.value)),
        }
        if entry.is_coded {
            operation["headers"] = json!({ "Content-Encoding": "gzip" });
        }
        let revision = found.as_ref().map_or(1, |entry| entry.revision.max(1));
        // Conditions that fail are rare, because then the whole batch fails.
        let holds = match self.random.below(40) {
            0..3 => {
                operation["if_match"] = json!(revision);
                found.is_some() && !is_new
            }
            3 => {
                operation["if_match"] = json!("*");
                found.is_some()
            }
            4 => {
                operation["if_none_match"] = json!("*");
                found.is_none()
            }
            _ => true,
        };
        if !holds {
            batch.fail(412);
        }
        batch.write(operation, &key, Some(entry));
    }
}

/// Returns the effects with the revisions that the server has assigned, which increase.
fn with_revisions(batch: &Batch, results: &[Value]) -> Vec<Effect> {
    let mut effects = batch.effects.clone();
    let mut last = 0;
    for (effect, writer) in effects.iter_mut().zip(&batch.writers) {
        let revision = results[*writer]["revision"].as_u64().expect("a write has a revision");
        assert!(last < revision, "{results:?}");
        last = revision;
        if let Some(after) = &mut effect.after {
            after.revision = revision;
        }
    }
    effects
}

fn check(result: &Value, expected: &Expected, effects: &[Effect]) {
    let entry = match expected {
        Expected::Written => return assert_eq!(result["status"], 200, "{result}"),
        Expected::Absent => return assert_eq!(result["status"], 404, "{result}"),
        Expected::Found(entry) => entry,
        Expected::FoundNew(effect) => effects[*effect].after.as_ref().expect("it was written"),
    };
    assert_eq!(result["status"], 200, "{result}");
    assert_eq!(value_of(result, "base64").as_deref(), Some(&*entry.value), "{result}");
    assert_eq!((&result["content_type"], &result["revision"]), (&json!(entry.content_type), &json!(entry.revision)));
}
