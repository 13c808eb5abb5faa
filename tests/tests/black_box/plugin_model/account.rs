//! The bytes that the plugin `bytes` counts, and the writes that it has to refuse.

use std::collections::BTreeMap;

use super::tenant::{Effect, Entry, Tenant, index_writes};

/// The bytes in use before a step of one client, while no other client writes.
pub(super) struct Account<'a> {
    pub(super) tenant: &'a Tenant,
    /// The bytes of all entries and index entries of all clients.
    pub(super) held: u64,
    pub(super) limit: u64,
    pub(super) fields: &'static [&'static str],
    pub(super) round: u64,
}

/// The refusal of a step: the number of the effect, and the message.
pub(super) type Full = (usize, String);

impl Account<'_> {
    /// Decides about a step. It reserves what each of its writes adds, one after the other; what it removes is free after it. The
    /// writes of the index come behind all others, and not at all if the step fails for another reason.
    ///
    /// # Errors
    ///
    /// The first write that does not fit.
    pub(super) fn decide(&self, effects: &[Effect], fails: bool) -> Result<(), Full> {
        let mut reserved = 0;
        let mut entries: BTreeMap<&str, Option<&Entry>> = BTreeMap::new();
        let mut added = Vec::new();
        for (number, Effect { key, after }) in effects.iter().enumerate() {
            let after = after.as_ref();
            let before = entries.get(key.as_str()).copied().unwrap_or_else(|| self.tenant.entries.get(key));
            let cost = |entry: Option<&Entry>| entry.map_or(0, |entry| self.tenant.whole_len(key) + entry.stored);
            self.reserve(&mut reserved, key, cost(after).saturating_sub(cost(before)))
                .map_err(|text| (number, text))?;
            added.extend(index_writes(key, before, after, self.fields).into_iter().map(|write| (number, write)));
            entries.insert(key, after);
        }
        if fails {
            return Ok(());
        }
        let mut index: BTreeMap<String, u64> = BTreeMap::new();
        for (number, (key, is_written)) in added {
            let own = self.tenant.index.get(&key).map(|rounds| self.tenant.index_cost(&key, rounds[0]));
            let before = index.get(&key).copied().or(own).unwrap_or(0);
            let after = if is_written { self.tenant.index_cost(&key, self.round) } else { 0 };
            self.reserve(&mut reserved, &key, after.saturating_sub(before)).map_err(|text| (number, text))?;
            index.insert(key, after);
        }
        Ok(())
    }

    fn reserve(&self, reserved: &mut u64, key: &str, needs: u64) -> Result<(), String> {
        let (held, limit) = (self.held + *reserved, self.limit);
        if needs > 0 && held + needs > limit {
            let free = limit.saturating_sub(held);
            return Err(format!("Max size exceeded: {key:?} needs {needs} bytes, {free} of {limit} are free"));
        }
        *reserved += needs;
        Ok(())
    }
}

/// Returns the needed and the free bytes of a refusal.
pub(super) fn numbers(message: &str) -> Option<[u64; 2]> {
    let (before, rest) = message.rsplit_once(" bytes, ")?;
    let needs = before.rsplit_once(" needs ")?.1.parse().ok()?;
    Some([needs, rest.split(' ').next()?.parse().ok()?])
}
