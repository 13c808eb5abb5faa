//! What a client is told when something is not done: one line of text, or a problem document (RFC 9457) with the same
//! facts, in JSON or in MessagePack.

use std::borrow::Cow;

use serde::Serialize;

use super::one_line;
use crate::http::{RequestHead, Response};
use vkog_engine::InvalidRequest;
use vkog_plugin_host::Refusal;

/// How a client wants to be told.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Text,
    Document,
    /// A document in MessagePack, for who sent some.
    Packed,
}

impl Manner {
    /// As its `Accept` says: a document if it names JSON and not plain text before.
    pub(super) fn of(head: &RequestHead) -> Self {
        let Some(Ok(accept)) = head.headers.get("accept").map(str::from_utf8) else { return Self::Text };
        let named = accept.split(',').map(|range| range.split(';').next().unwrap_or("").trim());
        for range in named {
            match range {
                "application/json" | "application/problem+json" => return Self::Document,
                "text/plain" | "text/*" | "*/*" => return Self::Text,
                _ => {}
            }
        }
        Self::Text
    }
}

/// Why something is not done.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: Cow<'static, str>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<Box<str>>,
    /// Which operation of a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// The key of that operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Box<str>>,
    #[serde(skip)]
    headers: Vec<(String, String)>,
}

impl From<InvalidRequest> for Problem {
    fn from(invalid: InvalidRequest) -> Self {
        Self::new(invalid.status(), invalid.to_string())
    }
}

impl Problem {
    pub(super) fn new(status: u16, title: impl Into<Cow<'static, str>>) -> Self {
        let kind = "about:blank";
        Self { kind, title: title.into(), status, plugin: None, index: None, key: None, headers: Vec::new() }
    }

    /// What a plugin refused, or the host where no plugin is named.
    pub(super) fn of(refusal: Refusal) -> Self {
        let Refusal { plugin, status, message, headers } = refusal;
        let by_plugin = !plugin.is_empty();
        Self { plugin: by_plugin.then(|| plugin.into()), headers, ..Self::new(status, message) }
    }

    /// The same with a header field.
    pub(super) fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same, of an operation of a batch.
    pub(super) fn at(self, index: usize, key: Option<String>) -> Self {
        Self { index: Some(index), key: key.map(Into::into), ..self }
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn reply(self, manner: Manner) -> Response {
        let (content_type, body) = match manner {
            Manner::Text => ("text/plain; charset=utf-8", format!("{}\n", one_line(&self.title)).into_bytes()),
            Manner::Document => ("application/problem+json", serde_json::to_vec(&self).unwrap_or_default()),
            Manner::Packed => ("application/msgpack", rmp_serde::to_vec_named(&self).unwrap_or_default()),
        };
        let mut reply = Response::new(self.status, body).with_header("Content-Type", content_type);
        if let Some(plugin) = self.plugin {
            reply = reply.with_header("Vkog-Plugin", String::from(plugin));
        }
        // It may quote what a client sent, and a plugin may say it in HTML.
        reply = reply.inert();
        for (name, value) in self.headers {
            if name.eq_ignore_ascii_case("content-type") {
                // A plugin may say what its own text is.
                if manner != Manner::Text {
                    continue;
                }
                reply.headers.retain(|(other, _)| other != "Content-Type");
            }
            reply = reply.with_header(name, value);
        }
        reply
    }
}
