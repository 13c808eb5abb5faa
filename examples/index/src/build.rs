//! Builds the index of a store that was written without the plugin, or with other fields: writes each entry again that is not
//! indexed, and removes index entries without one. The store is in use meanwhile. An entry that cannot be read or written is left
//! out, and tried again later.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use vkog_plugin_api::{Answer, Ask, Found, KeyRange, Refusal};

use crate::Index;
use crate::areas::PREFIX;
use crate::terms::Terms;

/// The number of entries that are written together and share the wait for the disk.
const TOGETHER: usize = 256;
/// The maximum number of attempts to write an entry that changes meanwhile.
const TRIES: usize = 64;

/// The keys of entries that cannot be read or written, so that they are not indexed.
#[derive(Default)]
pub(crate) struct LeftOut {
    pub(crate) keys: BTreeSet<String>,
    /// The first of them with the reason, for the log.
    pub(crate) first: Option<String>,
}

impl LeftOut {
    fn add(&mut self, key: &str, refusal: &Refusal) {
        self.first.get_or_insert_with(|| format!("{key:?}: {}", refusal.message()));
        self.keys.insert(key.to_owned());
    }
}

/// Whether a refused request fails because of its entry, and not because the store or the host cannot do it now.
fn is_of_entry(refusal: &Refusal) -> bool {
    !matches!(refusal.status(), 501 | 503 | 504 | 507 | 508)
}

impl Index {
    /// Builds what is missing. While it runs, every write of a client adds all its index entries. Returns what cannot be indexed.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written. The rest may be missing.
    pub(crate) fn build(&self) -> Result<LeftOut, Refusal> {
        // Index entries, and whether they can be read.
        let mut found: HashMap<String, bool> = HashMap::new();
        for area in self.areas.iter() {
            let mut keys = Vec::new();
            self.host.for_each_readable(
                &KeyRange::new(&format!("{area}{PREFIX}")),
                |key, _| {
                    found.insert(key.to_owned(), true);
                    ControlFlow::Continue(())
                },
                |key, _| keys.push(key.to_owned()),
            )?;
            found.extend(keys.into_iter().map(|key| (key, false)));
        }
        let (mut missing, mut left_out) = (Vec::new(), LeftOut::default());
        self.host.for_each_readable(
            &KeyRange::new(""),
            |key, entry| {
                if !self.areas.is_index(key) {
                    let terms = Terms::of(&self.fields, entry.value());
                    let is_found = |term: &str| found.contains_key(&self.areas.index_key(term, key));
                    if terms.as_details() != entry.details() || !terms.iter().all(is_found) {
                        missing.push(key.to_owned());
                    }
                }
                ControlFlow::Continue(())
            },
            |key, refusal| {
                if !self.areas.is_index(key) {
                    left_out.add(key, refusal);
                }
            },
        )?;
        for keys in missing.chunks(TOGETHER) {
            self.write_again(keys, &mut left_out)?;
        }
        for (index_key, is_readable) in &found {
            self.remove_stray(index_key, *is_readable, &left_out)?;
        }
        Ok(left_out)
    }

    /// Indexes those of the entries that were left out which can be read and written now. Returns the others.
    ///
    /// # Errors
    ///
    /// As for [`build`](Self::build).
    pub(crate) fn build_left_out(&self, keys: &BTreeSet<String>) -> Result<LeftOut, Refusal> {
        let (mut missing, mut left_out) = (Vec::new(), LeftOut::default());
        for key in keys {
            match self.host.get(key) {
                Ok(Some(found)) => {
                    let terms = Terms::of(&self.fields, &found.value);
                    // A client may have written it meanwhile.
                    if terms.as_details() != found.details {
                        missing.push(key.clone());
                    }
                }
                Ok(None) => {}
                Err(refusal) => left_out.add(key, &refusal),
            }
        }
        for keys in missing.chunks(TOGETHER) {
            self.write_again(keys, &mut left_out)?;
        }
        Ok(left_out)
    }

    /// Writes entries again, with the values that they have, so that the guard adds their index entries.
    fn write_again(&self, keys: &[String], left_out: &mut LeftOut) -> Result<(), Refusal> {
        let mut keys: Vec<&String> = keys.iter().collect();
        for _ in 0..TRIES {
            let mut found: Vec<(&String, Found)> = Vec::new();
            for key in keys {
                match self.host.get(key) {
                    Ok(entry) => found.extend(entry.filter(|entry| !entry.value.is_empty()).map(|entry| (key, entry))),
                    Err(refusal) if is_of_entry(&refusal) => left_out.add(key, &refusal),
                    Err(refusal) => return Err(refusal),
                }
            }
            let asks = found.iter().map(|(key, found)| {
                let ask = Ask::put(key, &found.value).content_type(&found.content_type);
                ask.if_revision(found.revision).keep_content_encoding()
            });
            let answers = self.host.ask_each(&asks.collect::<Vec<_>>());
            keys = Vec::new();
            for ((key, _), answer) in found.iter().zip(answers) {
                match answer {
                    Ok(_) => {}
                    // Another client has written it meanwhile, perhaps without a field.
                    Err(refusal) if refusal.status() == 412 => keys.push(key),
                    Err(refusal) if is_of_entry(&refusal) => left_out.add(key, &refusal),
                    Err(refusal) => return Err(refusal),
                }
            }
            if keys.is_empty() {
                return Ok(());
            }
        }
        // Every write since the build began is indexed.
        Ok(())
    }

    /// Removes an index entry whose entry does not have the term.
    fn remove_stray(&self, index_key: &str, is_readable: bool, left_out: &LeftOut) -> Result<(), Refusal> {
        let Some((term, key)) = self.areas.parse(index_key) else { return Ok(()) };
        // With other prefixes it would be in another place.
        let is_its_place = self.areas.index_key(term, &key) == index_key;
        if is_its_place && left_out.keys.contains(&key) {
            return Ok(());
        }
        let revision = if is_readable {
            let Some(index_entry) = self.host.get(index_key)? else { return Ok(()) };
            index_entry.revision
        } else {
            // So that it has a revision that this plugin knows.
            match self.host.ask(&Ask::put(index_key, key.as_bytes()).content_type("text/plain").upsert())? {
                Answer::Done(revision) => revision,
                Answer::Absent | Answer::Found(_) => return Ok(()),
            }
        };
        if is_its_place && self.host.get(&key)?.is_some_and(|found| Terms::stored(&found.details).has(term)) {
            return Ok(());
        }
        // A write that adds the term meanwhile writes the index entry again.
        match self.host.ask(&Ask::delete(index_key).if_revision(revision)) {
            Ok(Answer::Done(_) | Answer::Absent | Answer::Found(_)) => Ok(()),
            Err(refusal) if refusal.status() == 412 => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }
}
