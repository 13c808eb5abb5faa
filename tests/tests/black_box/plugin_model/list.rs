//! Listings, deletions by prefix, and what the plugin `index` finds.

use serde_json::{Value, json};
use vkog_tests::{Client, encode};

use super::random::{AGES, CITIES};
use super::session::{Lost, Session, Step, parsed};
use super::tenant::{Effect, Entry, Tenant};

/// Returns an entry as a listing shows it.
pub(super) fn listed(key: &str, entry: &Entry) -> Value {
    json!({
        "key": key,
        "size": entry.value.len(),
        "revision": entry.revision,
        "content_type": entry.content_type,
    })
}

/// Encodes a text for a query or a part of a path.
fn encoded(text: &str) -> String {
    encode(text).replace('/', "%2F")
}

impl Tenant {
    /// Returns the path of the route that finds entries by a field.
    pub(super) fn find_path(field: &str, value: &str) -> String {
        format!("/x/index/{field}/{}", encoded(value))
    }

    /// Returns the keys of the entries with this term, in byte order.
    pub(super) fn with_term(&self, fields: &[&str], term: &str) -> Vec<&String> {
        let has = |entry: &Entry| entry.terms(fields).iter().any(|own| own == term);
        self.entries.iter().filter(|(_, entry)| has(entry)).map(|(key, _)| key).collect()
    }

    /// Checks the whole listing, all values, and what the index finds.
    pub(super) fn verify(&self, client: &Client, fields: &[&str]) {
        let prefix = encoded(self.folder);
        let reply = self.request(client, "GET", &format!("/keys?prefix={prefix}")).send().expect(200);
        let all: Vec<Value> = self.entries.iter().map(|(key, entry)| listed(key, entry)).collect();
        assert_eq!(parsed(&reply), json!({ "keys": all, "prefixes": [], "next": null }), "{reply}");
        let reply = self.request(client, "GET", &format!("/keys?count&prefix={prefix}")).send().expect(200);
        assert_eq!(parsed(&reply), json!({ "count": self.entries.len() }), "{reply}");
        let gets: Vec<Value> = self.entries.keys().map(|key| json!({ "op": "get", "key": key })).collect();
        let request = self.request(client, "POST", "/batch").header("Content-Type", "application/json");
        let reply = request.body(json!(gets).to_string()).send().expect(200);
        let results = parsed(&reply);
        for (at, (key, entry)) in self.entries.iter().enumerate() {
            let value = super::batch::value_of(&results[at], "base64");
            assert_eq!(value.as_deref(), Some(&*entry.value), "{key}: {reply}");
            assert_eq!(results[at]["revision"], entry.revision, "{key}: {reply}");
        }
        for field in fields {
            for value in values_of(field) {
                self.check_find(client, fields, field, &value).unwrap_or_else(|lost| panic!("{}", lost.error));
            }
        }
    }

    fn check_find(&self, client: &Client, fields: &[&str], field: &str, value: &str) -> Step {
        let request = self.request(client, "GET", &Self::find_path(field, value));
        let reply = request.try_send().map_err(|error| Lost { effects: Vec::new(), error })?;
        if fields.contains(&field) {
            let term = format!("{field}/{}", value.replace('%', "%25").replace('/', "%2F"));
            assert_eq!(parsed(&reply), json!(self.with_term(fields, &term)), "{}: {reply}", self.token);
        } else {
            drop(reply.refused(404, "No index of the field"));
        }
        Ok(())
    }
}

/// Returns all values of a field, and one that no entry has.
fn values_of(field: &str) -> Vec<String> {
    match field {
        "city" => CITIES.iter().map(|city| (*city).to_owned()).chain(["Oslo".to_owned()]).collect(),
        _ => (0..=AGES).map(|age| age.to_string()).collect(),
    }
}

impl Session<'_> {
    pub(super) fn find(&mut self) -> Step {
        let field = *self.random.of(&["city", "city", "age"]);
        let value = self.random.of(&values_of(field)).clone();
        self.tenant.check_find(self.client, self.round.fields(), field, &value)
    }

    /// Follows a listing page by page.
    pub(super) fn list(&mut self) -> Step {
        let prefix = format!("{}{}", self.tenant.folder, self.random.folder());
        let (limit, is_folded) = (1 + self.random.below(40), self.random.percent(30));
        let delimiter = if is_folded { "&delimiter=/" } else { "" };
        let path = format!("/keys?prefix={}&limit={limit}{delimiter}", encoded(&prefix));
        let (mut keys, mut prefixes): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
        let mut after = String::new();
        loop {
            let request = self.request("GET", &format!("{path}{after}"));
            let reply = request.try_send().map_err(|error| Lost { effects: Vec::new(), error })?.expect(200);
            let page = parsed(&reply);
            let part = |name: &str| page[name].as_array().cloned().unwrap_or_default();
            let (new_keys, new_prefixes) = (part("keys"), part("prefixes"));
            let count = new_keys.len() + new_prefixes.len();
            keys.extend(new_keys);
            prefixes.extend(new_prefixes);
            match page["next"].as_str() {
                Some(next) => {
                    assert_eq!(count, limit, "{reply}");
                    after = format!("&after={}", encoded(next));
                }
                None => break assert!(count <= limit, "{reply}"),
            }
        }
        let below = self.tenant.entries.iter().filter(|(key, _)| key.starts_with(&prefix));
        let folded = |key: &str| {
            let end = key[prefix.len()..].find('/').filter(|_| is_folded)?;
            Some(json!(key[..=prefix.len() + end]))
        };
        let (in_folders, alone): (Vec<_>, Vec<_>) = below.partition(|(key, _)| folded(key).is_some());
        let mut expected: Vec<Value> = in_folders.into_iter().filter_map(|(key, _)| folded(key)).collect();
        expected.dedup();
        assert_eq!(prefixes, expected, "{path}");
        assert_eq!(keys, alone.into_iter().map(|(key, entry)| listed(key, entry)).collect::<Vec<_>>(), "{path}");
        Ok(())
    }

    /// Deletes some keys of a folder. While others write only one, so that a lost reply leaves all or nothing.
    pub(super) fn delete_by_prefix(&mut self) -> Step {
        let prefix = format!("{}{}{}", self.tenant.folder, self.random.folder(), self.random.below(3));
        let limit = if self.others.is_some() { 1 + self.random.below(4) } else { 1 };
        let mut keys: Vec<String> =
            self.tenant.entries.keys().filter(|key| key.starts_with(&prefix)).take(limit + 1).cloned().collect();
        let next = if keys.len() > limit { keys.pop().and(keys.last().cloned()) } else { None };
        let path = format!("/keys?prefix={}&limit={limit}", encoded(&prefix));
        if self.random.percent(30) {
            let request = self.request("DELETE", &format!("{path}&dry_run"));
            let reply = request.try_send().map_err(|error| Lost { effects: Vec::new(), error })?.expect(200);
            assert_eq!(parsed(&reply), json!({ "would_delete": keys, "next": next }), "{reply}");
            return Ok(());
        }
        let effects: Vec<_> = keys.into_iter().map(|key| Effect { key, after: None }).collect();
        let reply = self.send(self.request("DELETE", &path), &effects)?.expect(200);
        assert_eq!(parsed(&reply), json!({ "deleted": effects.len(), "refused": [], "next": next }), "{reply}");
        self.tenant.apply(effects, self.rounds, self.round.fields());
        Ok(())
    }

    /// Requests an index entry, which belongs to the plugin.
    pub(super) fn protected(&mut self) -> Step {
        let keys: Vec<&String> = self.tenant.index.keys().collect();
        let key = if keys.is_empty() { "index/x" } else { self.random.of(&keys).as_str() };
        let method = *self.random.of(&["GET", "PUT", "DELETE", "PATCH"]);
        let request = self.request(method, &format!("/k/{}", encode(key)));
        let request = if method == "PUT" { request.body("plain-text-x") } else { request };
        let reply = request.try_send().map_err(|error| Lost { effects: Vec::new(), error })?;
        drop(reply.refused(403, "Index entries belong to the plugin index").has("Vkog-Plugin", "index"));
        Ok(())
    }
}
