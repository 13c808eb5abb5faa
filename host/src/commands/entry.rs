//! An entry as a line of JSON, as `vkog import` and `vkog restore` read it, and as `vkog repair` writes it.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::schema::export::Op;
use vkog_store::LeftOut;

/// An entry as a line of JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line<'a> {
    /// The line is that of a removal, in an incremental backup.
    pub(super) op: Option<Op>,
    #[serde(borrow)]
    pub(super) key: Cow<'a, str>,
    /// A value that is text.
    #[serde(borrow)]
    pub(super) value: Option<Cow<'a, str>>,
    /// A value that is not text.
    #[serde(borrow)]
    pub(super) value_base64: Option<Cow<'a, str>>,
    /// The media type, if it is not the default.
    #[serde(borrow)]
    pub(super) content_type: Option<Cow<'a, str>>,
    /// The revision. Imported entries get new ones; restored entries have it again.
    pub(super) revision: Option<u64>,
    /// The details that plugins store with the entry.
    #[serde(borrow)]
    pub(super) details_base64: Option<Cow<'a, str>>,
}

/// An entry that cannot be in a store, as a line of JSON that becomes one of an import once its key is corrected.
#[derive(Serialize)]
pub(super) struct LeftOutLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    /// A key that is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

impl<'a> From<&'a LeftOut> for LeftOutLine<'a> {
    fn from(entry: &'a LeftOut) -> Self {
        let (key, key_base64) = text_or_base64(&entry.key);
        let (value, value_base64) = text_or_base64(&entry.value);
        Self { key, key_base64, value, value_base64 }
    }
}

fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}
