//! The two formats of a batch and of its response.

use crate::api::accept;
use crate::api::problem::{ErrorFormat, Problem};
use crate::http::RequestHead;

/// The format of a batch or of its response.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(in crate::api) enum Format {
    Json,
    MessagePack,
}

impl Format {
    /// Returns the format of a request body, by `Content-Type`.
    pub(in crate::api) fn of_request(head: &RequestHead) -> Result<Self, Problem> {
        let content_type = head.headers.get("content-type").and_then(|name| str::from_utf8(name).ok());
        let fact = "A batch is application/msgpack or application/json; say which in Content-Type";
        content_type.and_then(Self::of_media_type).ok_or_else(|| Problem::new(415, fact))
    }

    /// Returns the format of the response to a batch in this format: the same, unless the client names the other one and prefers
    /// it.
    pub(in crate::api) fn of_response(self, head: &RequestHead) -> Self {
        let other = match self {
            Self::Json => Self::MessagePack,
            Self::MessagePack => Self::Json,
        };
        if accept::prefers(head, other.media_types(), self.media_types()) { other } else { self }
    }

    fn of_media_type(media_type: &str) -> Option<Self> {
        let name = media_type.split(';').next().unwrap_or_default().trim();
        let has_name = |format: &Self| format.media_types().iter().any(|known| name.eq_ignore_ascii_case(known));
        [Self::Json, Self::MessagePack].into_iter().find(has_name)
    }

    /// Returns all names of the format.
    fn media_types(self) -> &'static [&'static str] {
        match self {
            Self::Json => &["application/json", "application/problem+json"],
            Self::MessagePack => &["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"],
        }
    }

    /// Returns the media type of a response.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MessagePack => "application/msgpack",
        }
    }

    /// Returns the format of an error response.
    pub(super) fn error_format(self) -> ErrorFormat {
        match self {
            Self::Json => ErrorFormat::Json,
            Self::MessagePack => ErrorFormat::MessagePack,
        }
    }
}
