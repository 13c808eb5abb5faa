//! The two formats of a batch and of its response.

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

    /// Returns the format of the response to a batch in this format: the first one in `Accept`, else the same.
    pub(in crate::api) fn of_response(self, head: &RequestHead) -> Self {
        let accept = head.headers.get("accept").and_then(|value| str::from_utf8(value).ok()).unwrap_or_default();
        accept.split(',').find_map(Self::of_media_type).unwrap_or(self)
    }

    fn of_media_type(media_type: &str) -> Option<Self> {
        let name = media_type.split(';').next().unwrap_or_default().trim();
        let is = |known: &&str| name.eq_ignore_ascii_case(known);
        if ["application/json", "application/problem+json"].iter().any(is) {
            Some(Self::Json)
        } else if ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"].iter().any(is) {
            Some(Self::MessagePack)
        } else {
            None
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
