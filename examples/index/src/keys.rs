//! The terms of values and the keys of index entries. A term is what a value is found by: the name of a field and its value, such as
//! `city/Rome`. Several terms are one text, each with a line break behind it.
//!
//! An area is a key prefix with a separate index, for clients that see only the keys behind it. The index entry of a key is in the area
//! of the key.

use serde_json::{Map, Value};

use crate::Index;

/// The prefix of the keys of index entries, behind that of their area.
pub(crate) const PREFIX: &str = "index/";

/// Returns a term. In the value, percent signs, slashes and control characters are percent-encoded.
pub(crate) fn term(field: &str, value: &str) -> String {
    let mut term = format!("{field}/");
    for letter in value.chars() {
        if letter == '%' || letter == '/' || letter.is_ascii_control() {
            term += &format!("%{:02X}", u32::from(letter));
        } else {
            term.push(letter);
        }
    }
    term
}

/// Returns the terms of a value, in the order of the fields: for each field that is a text, a number or a boolean. A value that is no
/// JSON object has none.
pub(crate) fn terms_of(fields: &[String], value: &[u8]) -> String {
    let object: Map<String, Value> = serde_json::from_slice(value).unwrap_or_default();
    let mut terms = String::new();
    for field in fields {
        match object.get(field) {
            Some(Value::String(text)) => terms += &(term(field, text) + "\n"),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => terms += &(term(field, &value.to_string()) + "\n"),
            _ => {}
        }
    }
    terms
}

/// Returns the terms that were stored as the details of an entry.
pub(crate) fn stored(details: &[u8]) -> &str {
    str::from_utf8(details).unwrap_or_default()
}

impl Index {
    /// Splits a key behind the prefix of its area, the longest that it begins with.
    fn split<'a>(&self, key: &'a str) -> (&'a str, &'a str) {
        let areas = self.areas.iter().filter(|area| key.starts_with(*area));
        key.split_at(areas.map(String::len).max().unwrap_or_default())
    }

    /// Whether this is the key of an index entry, in any area.
    pub(crate) fn is_index(&self, key: &str) -> bool {
        self.areas.iter().any(|area| key.strip_prefix(area).is_some_and(|rest| rest.starts_with(PREFIX)))
    }

    /// Returns the key of the index entry of a term and a key.
    pub(crate) fn index_key(&self, term: &str, key: &str) -> String {
        let (area, rest) = self.split(key);
        format!("{area}{PREFIX}{term}/{rest}")
    }

    /// Returns the key of the entry that an index entry belongs to.
    pub(crate) fn entry_key(&self, index_key: &str) -> Option<String> {
        let (area, rest) = self.split(index_key);
        // In front of it are the prefix, the field and the value.
        rest.splitn(4, '/').nth(3).map(|key| format!("{area}{key}"))
    }
}
