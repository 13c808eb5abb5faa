//! The documents of the HTTP interface that the server and the command-line client share.

pub mod export;
pub mod member;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vkog_plugin_host::{Route, RoutePermission};

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
    /// The fields that plugins add, such as `expires`.
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

impl Key<'_> {
    /// The names of the fields that plugins cannot set.
    pub const OWN_FIELDS: [&'static str; 4] = ["key", "size", "revision", "content_type"];
}

/// The response of `/keys?count`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Count {
    /// The number of keys.
    pub count: u64,
}

/// The response to a deletion of keys.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deletion<'a> {
    /// The number of keys that were deleted.
    pub deleted: u64,
    /// Why keys were not deleted, each with its key.
    pub refused: Vec<Problem<'a>>,
    /// The value of `after` for the next request, if there are more keys.
    pub next: Option<String>,
}

/// The response to a dry run of a deletion of keys.
#[derive(Debug, Serialize, Deserialize)]
pub struct DryRun<'a> {
    /// The keys that a deletion would try to delete.
    pub would_delete: Vec<Cow<'a, str>>,
    /// The value of `after` for the next request, if there are more keys.
    pub next: Option<String>,
}

/// A route of a plugin.
#[derive(Debug, Serialize)]
pub struct RouteDocument {
    method: &'static str,
    /// The path below `/x/PLUGIN`.
    path: &'static str,
    /// The permission that a client needs.
    permission: &'static str,
    summary: &'static str,
}

impl From<&Route> for RouteDocument {
    fn from(&Route { method, path, permission, summary, .. }: &Route) -> Self {
        let permission = match permission {
            RoutePermission::None => "none",
            RoutePermission::Read => "read",
            RoutePermission::Write => "write",
            RoutePermission::Admin => "admin",
        };
        Self { method, path, permission, summary }
    }
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
    /// The code of the error, if programs have to distinguish it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Cow<'a, str>>,
    /// The plugin that refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<Cow<'a, str>>,
    /// The index of the operation in its batch, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// The key of that operation, or of one of several keys that are deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
}
