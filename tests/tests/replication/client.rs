//! A client that expects failures: of hosts that are killed, stopped or cut off.

use std::time::Duration;

/// After this time a client gives a request up.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a request.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A response: status, `ETag`, body.
    Answered(u16, Option<String>, Vec<u8>),
    /// It did not reach a host.
    NotSent,
    /// It reached a host perhaps, and no response came.
    Unknown,
}

/// A client of one host at a time.
pub(crate) struct Client(ureq::Agent);

impl Client {
    pub(crate) fn new() -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .max_idle_connections(16)
            .build();
        Self(agent.into())
    }

    /// Sends a request to a host.
    pub(crate) fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: Option<&str>) -> Reply {
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = match body {
            Some(body) => self.0.run(request.body(body.as_bytes().to_vec()).expect("it is a request")),
            None => self.0.run(request.body(()).expect("it is a request")),
        };
        match sent {
            Ok(mut response) => {
                let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
                let status = response.status().as_u16();
                match response.body_mut().read_to_vec() {
                    Ok(body) => Reply::Answered(status, tag, body),
                    Err(_) => Reply::Unknown,
                }
            }
            Err(ureq::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Reply::NotSent,
            Err(ureq::Error::ConnectionFailed) => Reply::NotSent,
            Err(_) => Reply::Unknown,
        }
    }
}
