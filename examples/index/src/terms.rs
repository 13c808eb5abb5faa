//! The terms of a value: what it is found by. A term is the name of a field and its value, such as `city/Rome`.

use serde_json::{Map, Value};

/// The terms of one value, in the order of the fields, each with a line break behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms(String);

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

impl Terms {
    /// Returns the terms of a value: for each field that is a text, a number or a boolean. A value that is no JSON object has
    /// none.
    pub(crate) fn of(fields: &[String], value: &[u8]) -> Self {
        let Ok(object) = serde_json::from_slice::<Map<String, Value>>(value) else { return Self::default() };
        let mut terms = String::new();
        for field in fields {
            let text = match object.get(field) {
                Some(Value::String(text)) => text.clone(),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
                _ => continue,
            };
            terms += &term(field, &text);
            terms.push('\n');
        }
        Self(terms)
    }

    /// Returns the terms that were stored as details.
    pub(crate) fn stored(details: &[u8]) -> Self {
        Self(String::from_utf8_lossy(details).into_owned())
    }

    pub(crate) fn as_details(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.lines()
    }

    pub(crate) fn has(&self, term: &str) -> bool {
        self.iter().any(|own| own == term)
    }

    /// The size of the terms, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.0.len()
    }
}
