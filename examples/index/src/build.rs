//! Builds the index of a store that was written without the plugin, or with other fields: writes each entry again that is not
//! indexed, and removes index entries without one. The store is in use meanwhile.

use std::collections::HashSet;
use std::ops::ControlFlow;

use vkog_plugin_api::{Answer, Ask, Found, Refusal};

use crate::Index;
use crate::areas::PREFIX;
use crate::terms::Terms;

/// The number of entries that are written together and share the wait for the disk.
const TOGETHER: usize = 256;
/// The maximum number of attempts to write an entry that changes meanwhile.
const TRIES: usize = 64;

impl Index {
    /// Builds what is missing. While it runs, every write of a client adds all its index entries.
    ///
    /// # Errors
    ///
    /// A plugin or the store refuses a write. The rest may be missing.
    pub(crate) fn build(&self) -> Result<(), Refusal> {
        let mut found: HashSet<String> = HashSet::new();
        for area in self.areas.iter() {
            self.host.for_each(&format!("{area}{PREFIX}"), |key, _| {
                found.insert(key.to_owned());
                ControlFlow::Continue(())
            })?;
        }
        let mut missing = Vec::new();
        self.host.for_each("", |key, entry| {
            if !self.areas.is_index(key) {
                let terms = Terms::of(&self.fields, entry.value());
                let is_found = |term: &str| found.contains(&self.areas.index_key(term, key));
                if terms.as_details() != entry.details() || !terms.iter().all(is_found) {
                    missing.push(key.to_owned());
                }
            }
            ControlFlow::Continue(())
        })?;
        for keys in missing.chunks(TOGETHER) {
            self.write_again(keys)?;
        }
        for index_key in &found {
            self.remove_stray(index_key)?;
        }
        Ok(())
    }

    /// Writes entries again, with the values that they have, so that the guard adds their index entries.
    fn write_again(&self, keys: &[String]) -> Result<(), Refusal> {
        let mut keys: Vec<&String> = keys.iter().collect();
        for _ in 0..TRIES {
            let mut found: Vec<(&String, Found)> = Vec::new();
            for key in keys {
                found.extend(self.host.get(key)?.filter(|found| !found.value.is_empty()).map(|found| (key, found)));
            }
            let asks = found.iter().map(|(key, found)| {
                Ask::put(key, &found.value).content_type(&found.content_type).if_revision(found.revision)
            });
            let answers = self.host.ask_each(&asks.collect::<Vec<_>>());
            keys = Vec::new();
            for ((key, _), answer) in found.iter().zip(answers) {
                match answer {
                    Ok(_) => {}
                    // Another client has written it meanwhile, perhaps without a field.
                    Err(refusal) if refusal.status() == 412 => keys.push(key),
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
    fn remove_stray(&self, index_key: &str) -> Result<(), Refusal> {
        let Some((term, key)) = self.areas.parse(index_key) else { return Ok(()) };
        let Some(index_entry) = self.host.get(index_key)? else { return Ok(()) };
        // With other prefixes it would be in another place.
        let is_its_place = self.areas.index_key(term, &key) == index_key;
        if is_its_place && self.host.get(&key)?.is_some_and(|found| Terms::stored(&found.details).has(term)) {
            return Ok(());
        }
        // A write that adds the term meanwhile writes the index entry again.
        match self.host.ask(&Ask::delete(index_key).if_revision(index_entry.revision)) {
            Ok(Answer::Done(_) | Answer::Absent | Answer::Found(_)) => Ok(()),
            Err(refusal) if refusal.status() == 412 => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }
}
