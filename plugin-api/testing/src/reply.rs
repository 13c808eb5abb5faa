//! Replies, and assertions on them.

use std::fmt;

use vkog_engine::{ExtraHeaders, Outcome};

/// The reply to a request, as a client would get it. Its `Display` shows the request, the reply and the log.
///
/// ```
/// use vkog_plugin_testing::Setup;
///
/// let host = Setup::new().start();
/// let revision = host.put("a", "1").expect(200).is("Ok").revision();
/// host.get("a").expect(200).is("1").has("ETag", &format!("\"{revision}\""));
/// host.get("b").refused(404, "Not Found");
/// ```
#[derive(Clone)]
pub struct Reply {
    request: String,
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`, `ETag` and `Vkog-Plugin` as a server sends them, and the headers that plugins add.
    pub headers: Vec<(String, String)>,
    /// The value that was read, `Ok` for a write, or the message of a failure.
    pub body: Vec<u8>,
    log: String,
}

impl Reply {
    pub(crate) fn new(request: String, outcome: Outcome, extra: ExtraHeaders, log: String) -> Self {
        let mut headers = Vec::new();
        let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
        let (mut status, mut body) = (200, b"Ok".to_vec());
        if let Some((failed, text)) = outcome.failure() {
            (status, body) = (failed, text.into_owned().into_bytes());
        }
        match &outcome {
            Outcome::Found(entry) => {
                add("Content-Type", entry.content_type());
                add("ETag", &format!("\"{}\"", entry.revision()));
                body = entry.value().to_vec();
            }
            Outcome::Written(revision) => add("ETag", &format!("\"{revision}\"")),
            Outcome::Refused(refusal) if !refusal.plugin.is_empty() => add("Vkog-Plugin", &refusal.plugin),
            _ => {}
        }
        headers.extend(extra);
        if let Outcome::Refused(refusal) = outcome {
            headers.extend(refusal.headers);
        }
        Self { request, status, headers, body, log }
    }

    /// Returns the reply of a route.
    pub(crate) fn with_body(
        request: String,
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        log: String,
    ) -> Self {
        Self { request, status, headers, body, log }
    }

    /// Asserts the status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "the status of {self}");
        self
    }

    /// Asserts a failure: the status, and the beginning of the message.
    #[track_caller]
    pub fn refused(self, status: u16, words: &str) -> Self {
        let reply = self.expect(status);
        assert!(reply.body.starts_with(words.as_bytes()), "no {words:?} at the beginning of {reply}");
        reply
    }

    /// Asserts the whole body.
    #[track_caller]
    pub fn is(self, body: impl AsRef<[u8]>) -> Self {
        assert!(self.body == body.as_ref(), "not the {} bytes that were expected: {self}", body.as_ref().len());
        self
    }

    /// Asserts a header.
    #[track_caller]
    pub fn has(self, name: &str, value: &str) -> Self {
        assert_eq!(self.header(name), Some(value), "the header {name} of {self}");
        self
    }

    /// Returns the first header with this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the revision in the header `ETag`, for [`Request::if_revision`](crate::Request::if_revision).
    ///
    /// # Panics
    ///
    /// The reply has no `ETag`.
    #[track_caller]
    pub fn revision(&self) -> u64 {
        let revision = self.header("ETag").and_then(|tag| tag.trim_matches('"').parse().ok());
        revision.unwrap_or_else(|| panic!("no revision in {self}"))
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, status, headers, body, log } = self;
        write!(f, "{request}\n--- reply {status}, {} bytes\n", body.len())?;
        for (name, value) in headers {
            writeln!(f, "{name}: {value}")?;
        }
        write!(f, "{}\n--- log\n{log}", body[..body.len().min(1000)].escape_ascii())
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The reply to a batch: a reply for each operation, or the reply of the operation that failed, with its index. The
/// index is `None` if the batch failed as a whole.
pub struct BatchReply(pub Result<Vec<Reply>, (Option<usize>, Reply)>);

impl BatchReply {
    /// Asserts that the batch succeeded, and returns the reply of each operation.
    #[track_caller]
    pub fn succeeded(self) -> Vec<Reply> {
        self.0.unwrap_or_else(|(index, reply)| panic!("the batch failed at {index:?}: {reply}"))
    }

    /// Asserts that the batch failed at this operation, with a status and the beginning of the message. The first
    /// operation has the index 0.
    #[track_caller]
    pub fn failed(self, index: usize, status: u16, words: &str) -> Reply {
        match self.0 {
            Err((at, reply)) => {
                assert_eq!(at, Some(index), "the operation that failed: {reply}");
                reply.refused(status, words)
            }
            Ok(replies) => panic!("the batch of {} operations succeeded", replies.len()),
        }
    }
}
