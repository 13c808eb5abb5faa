//! Error responses: one line of text, or a problem document (RFC 9457) with the same facts in JSON or MessagePack.

use std::borrow::Cow;

use super::accept;
use crate::http::{RequestHead, Response};
use crate::schema::Problem as Document;
use vkog_engine::InvalidRequest;
use vkog_plugin_host::Refusal;

/// The format of an error response, by content negotiation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum ErrorFormat {
    /// One line of text.
    Text,
    /// A problem document in JSON.
    Json,
    /// A problem document in MessagePack, for clients that sent MessagePack.
    MessagePack,
}

impl ErrorFormat {
    /// Chooses the format by `Accept`: JSON if the client names it and prefers it to plain text.
    pub(super) fn of(head: &RequestHead) -> Self {
        let json = ["application/json", "application/problem+json"];
        if accept::prefers(head, &json, &["text/plain"]) { Self::Json } else { Self::Text }
    }
}

/// An error response before its format is chosen.
#[derive(Debug)]
pub(super) struct Problem {
    document: Document<'static>,
    headers: Vec<(String, String)>,
}

impl From<InvalidRequest> for Problem {
    fn from(invalid: InvalidRequest) -> Self {
        Self::new(invalid.status(), invalid.to_string())
    }
}

impl Problem {
    pub(super) fn new(status: u16, title: impl Into<Cow<'static, str>>) -> Self {
        let document = Document { kind: "about:blank".into(), title: title.into(), status, ..Document::default() };
        Self { document, headers: Vec::new() }
    }

    /// Returns the 503 for a temporary shortage. Clients retry after one second.
    pub(super) fn busy(title: impl Into<Cow<'static, str>>) -> Self {
        Self::new(503, title).with_header("Retry-After", "1")
    }

    /// Makes the problem of a refusal by a plugin, or by the host where no plugin is named.
    pub(super) fn of(refusal: Refusal) -> Self {
        let Refusal { plugin, status, message, headers } = refusal;
        let mut problem = Self { headers, ..Self::new(status, message) };
        problem.document.plugin = Some(plugin).filter(|plugin| !plugin.is_empty()).map(Cow::Owned);
        problem
    }

    /// Adds the code of the error, for programs.
    pub(super) fn with_code(mut self, code: &'static str) -> Self {
        self.document.code = Some(code.into());
        self
    }

    /// Adds a header field to the response.
    pub(super) fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Names the operation of a batch that failed.
    pub(super) fn at(mut self, index: usize, key: Option<String>) -> Self {
        (self.document.index, self.document.key) = (Some(index), key.map(Cow::Owned));
        self
    }

    /// Returns the document of the deletion of this key, one of several in one response.
    pub(super) fn of_key(mut self, key: String) -> Document<'static> {
        self.document.key = Some(key.into());
        self.document
    }

    /// Returns the document, to be sent as an event.
    pub(super) fn document(&self) -> &Document<'static> {
        &self.document
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> u16 {
        self.document.status
    }

    /// Makes the response.
    pub(super) fn reply(self, format: ErrorFormat) -> Response {
        let (content_type, body) = match format {
            ErrorFormat::Text => {
                ("text/plain; charset=utf-8", format!("{}\n", one_line(&self.document.title)).into_bytes())
            }
            ErrorFormat::Json => ("application/problem+json", serde_json::to_vec(&self.document).unwrap_or_default()),
            ErrorFormat::MessagePack => {
                ("application/msgpack", rmp_serde::to_vec_named(&self.document).unwrap_or_default())
            }
        };
        // `Accept` chooses the format.
        let mut reply = Response::new(self.document.status, body)
            .with_header("Content-Type", content_type)
            .with_header("Vary", "Accept");
        if let Some(plugin) = self.document.plugin {
            reply = reply.with_header("Vkog-Plugin", plugin.into_owned());
        }
        // It may quote what a client sent, and a plugin may say it in HTML.
        reply = reply.inert();
        for (name, value) in self.headers {
            if name.eq_ignore_ascii_case("content-type") {
                // A plugin may say what its own text is.
                if format != ErrorFormat::Text {
                    continue;
                }
                reply.headers.retain(|(other, _)| other != "Content-Type");
            }
            reply.extend([(name, value)]);
        }
        reply
    }
}

/// Replaces control characters by spaces, so that the text is one line.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect::<String>().into()
    } else {
        text.into()
    }
}
