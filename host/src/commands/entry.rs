//! An entry as a line of JSON, as `vkog export` writes and `vkog import` reads it.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use vkog_store::{DEFAULT_CONTENT_TYPE, Entry, LeftOut};

/// An entry as a line of JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub(super) key: Cow<'a, str>,
    /// A value that is text.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<Cow<'a, str>>,
    /// A value that is not text.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) value_base64: Option<Cow<'a, str>>,
    /// The media type, if it is not the default.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) content_type: Option<Cow<'a, str>>,
    /// The revision. An import ignores it, because imported entries get new ones.
    pub(super) revision: Option<u64>,
    /// The details that plugins store with the entry.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) details_base64: Option<Cow<'a, str>>,
}

impl<'a> From<&'a Entry> for Line<'a> {
    fn from(entry: &'a Entry) -> Self {
        let text = str::from_utf8(entry.value()).ok();
        let base64 = |bytes| Cow::Owned(STANDARD.encode(bytes));
        Self {
            key: entry.key().into(),
            value: text.map(Cow::Borrowed),
            value_base64: if text.is_none() { Some(base64(entry.value())) } else { None },
            content_type: Some(entry.content_type()).filter(|name| *name != DEFAULT_CONTENT_TYPE).map(Cow::Borrowed),
            revision: Some(entry.revision()),
            details_base64: Some(entry.details()).filter(|details| !details.is_empty()).map(base64),
        }
    }
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
