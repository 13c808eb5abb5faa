//! The documents of the HTTP interface that the server and the command-line client share.

pub mod export;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A page of `/keys`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page<'a> {
    /// The keys in byte order, without those that are folded into prefixes.
    pub keys: Vec<Key<'a>>,
    /// Prefixes up to the delimiter, each for all keys that have it.
    pub prefixes: Vec<String>,
    /// The value of `after` for the next page, if there is one.
    pub next: Option<String>,
}

/// A key of a page.
#[derive(Debug, Serialize, Deserialize)]
pub struct Key<'a> {
    /// The key.
    pub key: Cow<'a, str>,
    /// The length of the value, in bytes.
    pub size: u64,
    /// The revision of the entry.
    pub revision: u64,
    /// The media type of the value.
    pub content_type: Cow<'a, str>,
}

/// The response of `/keys?count`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Count {
    /// The number of keys.
    pub count: u64,
}

/// A problem document (RFC 9457). Other members are ignored.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem<'a> {
    /// The type of the problem.
    #[serde(rename = "type")]
    pub kind: Cow<'a, str>,
    /// The error, in one sentence.
    pub title: Cow<'a, str>,
    /// The status of the response.
    pub status: u16,
    /// The plugin that refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<Cow<'a, str>>,
    /// The index of the operation in its batch, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// The key of that operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
}
