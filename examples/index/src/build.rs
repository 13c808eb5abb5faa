//! Builds the index of a store that was written without the plugin, or with other settings: writes each entry again that is not
//! indexed, and removes index entries without one. The store is in use meanwhile. An entry that cannot be read or written is left
//! out.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use vkog_plugin_api::{Ask, Entry, KeyRange, Refusal};

use crate::Index;
use crate::keys::{PREFIX, stored, terms_of};

/// The number of entries that are written together and share the wait for the disk.
const TOGETHER: usize = 256;

/// The keys of the entries that are not indexed, with the reasons.
type LeftOut = BTreeMap<String, Refusal>;

impl Index {
    /// Builds what is missing. While it runs, every write of a client adds all index entries of its entry. Returns what cannot be
    /// indexed.
    ///
    /// # Errors
    ///
    /// The store cannot be listed.
    pub(crate) fn build(&self) -> Result<LeftOut, Refusal> {
        // The keys of index entries, and whether an entry knows that it has them.
        let mut found = HashMap::new();
        for area in &self.areas {
            found.extend(self.keys(&format!("{area}{PREFIX}"))?.into_iter().map(|index_key| (index_key, false)));
        }
        let (mut missing, mut left_out) = (Vec::new(), LeftOut::new());
        let check = |key: &str, entry: Entry<'_>| {
            let terms = stored(entry.details());
            let mut is_indexed = self.is_index(key) || terms == terms_of(&self.fields, entry.value());
            for term in terms.lines() {
                match found.get_mut(&self.index_key(term, key)) {
                    Some(is_known) => *is_known = true,
                    None => is_indexed = false,
                }
            }
            if !is_indexed {
                missing.push(key.to_owned());
            }
            ControlFlow::Continue(())
        };
        let leave_out = |key: &str, refusal: &Refusal| _ = left_out.insert(key.to_owned(), refusal.clone());
        self.host.for_each_readable(&KeyRange::new(""), check, leave_out)?;
        left_out.retain(|key, _| !self.is_index(key));
        for keys in missing.chunks(TOGETHER) {
            self.write_again(keys.to_vec(), &mut left_out);
        }
        for (index_key, _) in found.into_iter().filter(|(_, is_known)| !is_known) {
            let Some(key) = self.entry_key(&index_key) else { continue };
            if let Err(refusal) = self.remove_stray(&index_key, &key) {
                left_out.insert(key, refusal);
            }
        }
        Ok(left_out)
    }

    /// Writes entries again, with the values that they have, so that the guard adds their index entries.
    fn write_again(&self, mut keys: Vec<String>, left_out: &mut LeftOut) {
        // An entry that changes all the time is left out.
        let mut tries = 64;
        while !keys.is_empty() {
            tries -= 1;
            let mut found = Vec::new();
            for key in keys.drain(..) {
                match self.host.get(&key) {
                    Ok(entry) => found.extend(entry.map(|entry| (key, entry))),
                    Err(refusal) => _ = left_out.insert(key, refusal),
                }
            }
            let puts = found.iter().map(|(key, entry)| {
                let put = Ask::put(key, &entry.value).content_type(&entry.content_type);
                put.if_revision(entry.revision).keep_content_encoding()
            });
            let answers = self.host.ask_each(&puts.collect::<Vec<_>>());
            for ((key, _), answer) in found.into_iter().zip(answers) {
                match answer {
                    Ok(_) => {}
                    // Another client has changed it meanwhile. A touch does not index its value.
                    Err(refusal) if refusal.status() == 412 && tries > 0 => keys.push(key),
                    Err(refusal) => _ = left_out.insert(key, refusal),
                }
            }
        }
    }

    /// Removes an index entry whose entry does not have the term.
    fn remove_stray(&self, index_key: &str, key: &str) -> Result<(), Refusal> {
        let revision = match self.host.get(index_key) {
            // No entry has the revision 0: if it does not exist, there is nothing to remove.
            Ok(found) => found.map_or(0, |found| found.revision),
            // It cannot be read: written again, it has a revision that this plugin knows.
            Err(_) => self.host.put(index_key, key.as_bytes())?,
        };
        let details = self.host.get(key)?.map_or_else(Vec::new, |found| found.details);
        if stored(&details).lines().any(|term| self.index_key(term, key) == index_key) {
            return Ok(());
        }
        // A write that adds the term meanwhile writes the index entry again.
        match self.host.ask(&Ask::delete(index_key).if_revision(revision)) {
            Err(refusal) if refusal.status() != 412 => Err(refusal),
            _ => Ok(()),
        }
    }
}
