//! Records what clients tried and what was acknowledged, and checks whether a store agrees after a crash.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use vkog_store::{LocalStore, Store as _};

use crate::client::{Answer, Content, Contents, contents};
use crate::random::Random;

/// The attempts of clients and their outcomes.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    attempts: Vec<Attempt>,
    /// Keys and the revisions that readers have seen.
    told: Vec<(String, u64)>,
    /// No revision up to this one may be assigned again.
    revision: u64,
    /// Numbers the contents, so that no two are alike.
    serial: u64,
    acknowledged: Arc<AtomicU64>,
}

struct Attempt {
    key: String,
    /// `None` is a removal.
    content: Option<Content>,
    kept: Option<u64>,
    /// The first attempt of the step that this one belongs to.
    step: usize,
}

impl History {
    /// Continues from the entries of a store: all other earlier attempts must not come back.
    pub(crate) fn from(store: &LocalStore, serial: u64) -> Self {
        let attempts = contents(store)
            .into_iter()
            .enumerate()
            .map(|(step, (key, (revision, content)))| Attempt {
                key,
                content: Some(content),
                kept: Some(revision),
                step,
            })
            .collect();
        let record = Record { attempts, revision: store.revision(), serial, ..Record::default() };
        Self(Arc::new(Mutex::new(record)))
    }

    pub(crate) fn serial(&self) -> u64 {
        self.0.lock().serial
    }

    /// Also counts there what is acknowledged.
    pub(crate) fn count_in(&self, acknowledged: Arc<AtomicU64>) {
        self.0.lock().acknowledged = acknowledged;
    }

    /// Returns a content that was never used before.
    pub(crate) fn content(&self, random: &mut Random) -> Content {
        let serial = {
            let mut record = self.0.lock();
            record.serial += 1;
            record.serial
        };
        let mut value = format!("{serial}:").into_bytes();
        let length = match random.below(200) {
            0 => 100_000,
            1..10 => 5000,
            10..40 => 400 + random.below(1200),
            _ => random.below(100),
        };
        let binary = random.percent(30);
        // The bytes differ and are cheap to make, so that a misplaced piece is detected.
        let filler = (0..length as u64).map(|at| ((serial.wrapping_mul(31) + at * 7 + (at >> 8)) % 94) as u8 + 33);
        value.extend(filler.map(|byte| if binary { byte | 0x80 } else { byte }));
        let content_type = match random.below(4) {
            0 => "application/json".to_owned(),
            1 => format!("text/plain; of={}", "x".repeat(random.below(300))),
            _ => vkog_store::DEFAULT_CONTENT_TYPE.to_owned(),
        };
        let details = if random.percent(30) { vec![serial as u8; 1 + random.below(40)] } else { Vec::new() };
        Content { value, content_type, details }
    }

    /// Records an attempt. Returns the function that records its outcome.
    pub(crate) fn attempt(&self, key: &str, content: Option<&Content>) -> impl FnOnce(&Answer) + Send + 'static {
        self.attempt_all(&[(key.to_owned(), content.cloned())])
    }

    /// Records several attempts in one step.
    pub(crate) fn attempt_all(
        &self,
        changes: &[(String, Option<Content>)],
    ) -> impl FnOnce(&Answer) + Send + 'static + use<> {
        let mut record = self.0.lock();
        let step = record.attempts.len();
        let attempts = changes.iter().cloned().map(|(key, content)| Attempt { key, content, kept: None, step });
        record.attempts.extend(attempts);
        let (history, count) = (self.clone(), changes.len());
        move |answer| {
            if let Answer::Kept(revision) = answer {
                let mut record = history.0.lock();
                for (attempt, revision) in record.attempts[step..step + count].iter_mut().zip(*revision..) {
                    attempt.kept = Some(revision);
                }
                record.acknowledged.fetch_add(count as u64, Ordering::SeqCst);
            }
        }
    }

    /// Records that a reader has seen this revision.
    pub(crate) fn told(&self, key: &str, revision: u64) {
        self.0.lock().told.push((key.to_owned(), revision));
    }

    /// Checks that a store holds everything that was acknowledged, and nothing that was not tried.
    pub(crate) fn check(&self, found: &Contents, revision: u64) -> Result<(), String> {
        let record = self.0.lock();
        let mut last: BTreeMap<&str, &Attempt> = BTreeMap::new();
        let mut open_removals: Vec<&str> = Vec::new();
        let mut floor = record.revision;
        for attempt in &record.attempts {
            if let Some(kept) = attempt.kept {
                floor = floor.max(kept);
                let last = last.entry(&attempt.key).or_insert(attempt);
                if last.kept < attempt.kept {
                    *last = attempt;
                }
            } else if attempt.content.is_none() {
                open_removals.push(&attempt.key);
            }
        }
        if revision < floor {
            return Err(format!("the revision went back from {floor} to {revision}"));
        }
        for (key, (revision, content)) in found {
            let is_it = |attempt: &Attempt| attempt.key == *key && attempt.content.as_ref() == Some(content);
            let Some(at) = record.attempts.iter().position(is_it) else {
                let value = content.value[..content.value.len().min(20)].escape_ascii();
                return Err(format!("{key} has a value from nowhere: {value}, revision {revision}"));
            };
            record.check_step(at, *revision, found)?;
            let attempt = &record.attempts[at];
            if attempt.kept.is_some_and(|kept| kept != *revision) {
                return Err(format!("{key} has revision {revision}, it was {:?}", attempt.kept));
            }
            if let Some(last) = last.get(key.as_str())
                && last.kept > Some(*revision)
            {
                return Err(format!("{key} is of revision {revision}, {:?} was acknowledged", last.kept));
            }
        }
        for (key, last) in &last {
            if last.content.is_some() && !found.contains_key(*key) && !open_removals.contains(key) {
                return Err(format!("{key} is lost, {:?} was acknowledged", last.kept));
            }
        }
        for (key, told) in &record.told {
            let removed =
                |attempt: &Attempt| attempt.key == *key && attempt.content.is_none() && attempt.kept > Some(*told);
            let is_right = match found.get(key) {
                Some((revision, _)) => revision >= told,
                None => open_removals.contains(&key.as_str()) || record.attempts.iter().any(removed),
            };
            if !is_right {
                return Err(format!("a reader saw revision {told} of {key}, that is lost"));
            }
        }
        Ok(())
    }

    /// Whether a store holds what was acknowledged up to some point, that is not before `promised` acknowledgements, and
    /// nothing that was acknowledged after it.
    pub(crate) fn check_prefix(&self, found: &Contents, revision: u64, promised: u64) -> Result<(), String> {
        let record = self.0.lock();
        let mut kept: Vec<&Attempt> = record.attempts.iter().filter(|attempt| attempt.kept.is_some()).collect();
        kept.sort_by_key(|attempt| attempt.kept);
        let point = kept.partition_point(|attempt| attempt.kept <= Some(revision));
        if let [last, next] = kept[point.saturating_sub(1)..kept.len().min(point + 1)]
            && last.step == next.step
        {
            return Err(format!("a step ends in its midst, at revision {revision}"));
        }
        if (point as u64) < promised {
            return Err(format!("{point} of {} are there, {promised} were synced", kept.len()));
        }
        let mut expected: BTreeMap<&str, (u64, Option<&Content>)> = BTreeMap::new();
        for attempt in &kept[..point] {
            expected.insert(&attempt.key, (attempt.kept.unwrap_or_default(), attempt.content.as_ref()));
        }
        for (key, (revision, content)) in found {
            if expected.get(key.as_str()) == Some(&(*revision, Some(content))) {
                continue;
            }
            let is_open = record.attempts.iter().any(|attempt| {
                attempt.key == *key && attempt.kept.is_none() && attempt.content.as_ref() == Some(content)
            });
            let before = expected.get(key.as_str()).map_or(0, |(revision, _)| *revision);
            if !is_open || *revision <= before {
                return Err(format!("{key} has revision {revision}, at the end of the prefix it was {before}"));
            }
        }
        for (key, (revision, content)) in &expected {
            let is_open =
                |attempt: &Attempt| attempt.key == *key && attempt.kept.is_none() && attempt.content.is_none();
            if content.is_some() && !found.contains_key(*key) && !record.attempts.iter().any(is_open) {
                return Err(format!("{key} is lost, revision {revision} belongs to the prefix"));
            }
        }
        Ok(())
    }
}

impl Record {
    /// Checks that all attempts of the same step as this one, which has this revision, are present.
    fn check_step(&self, at: usize, revision: u64, found: &Contents) -> Result<(), String> {
        let step = self.attempts[at].step;
        for (place, part) in self.attempts.iter().enumerate().skip(step).take_while(|(_, part)| part.step == step) {
            let own = revision + place as u64 - at as u64;
            let may_be_gone = || {
                part.content.is_none()
                    || self.attempts.iter().enumerate().any(|(other, removal)| {
                        let later = removal.step != step || other > place;
                        let open = removal.kept.is_none_or(|kept| kept > own);
                        removal.key == part.key && removal.content.is_none() && later && open
                    })
            };
            let is_there = match found.get(&part.key) {
                Some((found, content)) => *found > own || *found == own && part.content.as_ref() == Some(content),
                None => may_be_gone(),
            };
            if !is_there {
                let key = &self.attempts[at].key;
                return Err(format!("{key} is of revision {revision}, and {}, of the same step, is missing", part.key));
            }
        }
        Ok(())
    }
}
