//! What a client is told when something is not done: one line of text, or a problem document (RFC 9457) with the same
//! facts.

use std::borrow::Cow;

use serde::Serialize;

use super::one_line;
use crate::http::{Head, Reply};

/// How a client wants to be told.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Text,
    Document,
}

impl Manner {
    /// As its `Accept` says: a document if it names JSON and not plain text before.
    pub(super) fn of(head: &Head) -> Self {
        let accept = head.headers.get("accept").and_then(|value| str::from_utf8(value).ok()).unwrap_or("");
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
    plugin: Option<String>,
}

impl Problem {
    pub(super) fn new(status: u16, title: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: "about:blank", title: title.into(), status, plugin: None }
    }

    /// The same, said by a plugin.
    pub(super) fn by(mut self, plugin: String) -> Self {
        self.plugin = Some(plugin);
        self
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn reply(self, manner: Manner) -> Reply {
        let mut reply = match manner {
            Manner::Text => Reply::new(self.status, format!("{}\n", one_line(&self.title)).into_bytes())
                .with_header("Content-Type", "text/plain; charset=utf-8"),
            Manner::Document => Reply::new(self.status, serde_json::to_vec(&self).unwrap_or_default())
                .with_header("Content-Type", "application/problem+json"),
        };
        if let Some(plugin) = self.plugin {
            reply = reply.with_header("Vkog-Plugin", plugin);
        }
        reply.with_header("X-Content-Type-Options", "nosniff")
    }
}
