//! `vkog watch`: prints a line for each change, and reconnects after a lost connection.

use std::io::{self, BufRead, BufReader};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};
use ureq::http::{Method, StatusCode};

use super::error::{ClientError, RequestError};
use super::{Remote, Server, encode, say, shown};
use crate::failure::Failure;
use crate::logging;

/// The delay before the client reconnects. It doubles with each attempt that fails, up to [`RECONNECT_DELAY_MAX`].
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// See [`RECONNECT_DELAY`].
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(30);
/// The statuses of a server, or of a proxy before it, that does not serve now.
const TEMPORARY: [StatusCode; 3] =
    [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];

/// The arguments of `vkog watch`.
#[derive(clap::Args)]
pub struct Watch {
    /// Watch only keys with this prefix
    #[arg(default_value = "")]
    prefix: String,

    /// Also print changes after this revision
    #[arg(long, value_name = "REVISION")]
    since: Option<u64>,

    /// Print one JSON object per line, with all fields
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: Remote,
}

/// Prints changes until standard output is closed. It reconnects after a lost connection, and while the server or a proxy
/// reports that it does not serve now. It resumes after the last event.
///
/// # Errors
///
/// The first connection fails, or the server rejects the watch: the token is not valid, or the history no longer has the last
/// event.
pub fn watch(Watch { prefix, since, json, remote }: Watch) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    let action = format!("watch {}", if prefix.is_empty() { "all keys" } else { &prefix });
    let mut seen = since.map(|since| since.to_string());
    let mut began = false;
    let mut delay = RECONNECT_DELAY;
    loop {
        let since = seen.as_ref().map(|seen| format!("&since={}", encode(seen))).unwrap_or_default();
        let request = server.request(Method::GET, &format!("/watch?prefix={}{since}", encode(&prefix)));
        let lost = match server.ask(request.header("Accept", "text/event-stream")) {
            Ok(response) => {
                (began, delay) = (true, RECONNECT_DELAY);
                let body = super::reader(response.into_body());
                match follow(BufReader::new(body), &mut seen, json) {
                    Ok(StreamEnd::Unread) => return Ok(ExitCode::SUCCESS),
                    // The next response has the reason.
                    Ok(StreamEnd::Closed) => "the server closed the connection".to_owned(),
                    Err(Broken::Output(error)) => return Err(error.into()),
                    Err(Broken::Input(error)) => server.interrupted(error).to_string(),
                }
            }
            Err(error @ RequestError::Refused { status, .. }) if TEMPORARY.contains(&status) => error.to_string(),
            Err(
                error @ (RequestError::NotListening { .. }
                | RequestError::NoResponse { .. }
                | RequestError::TimedOut { .. }),
            ) if began => error.to_string(),
            Err(error) => return Err(error.of(action).into()),
        };
        logging::say(&format!("vkog: {lost}; reconnecting in {} s", delay.as_secs()));
        thread::sleep(delay);
        delay = RECONNECT_DELAY_MAX.min(2 * delay);
    }
}

enum StreamEnd {
    /// Standard output is closed.
    Unread,
    Closed,
}

enum Broken {
    Input(io::Error),
    Output(ClientError),
}

/// Prints the events of a stream, and stores the id of the last complete one.
fn follow(stream: impl BufRead, seen: &mut Option<String>, json: bool) -> Result<StreamEnd, Broken> {
    let (mut id, mut event, mut data) = (None, String::new(), String::new());
    for line in stream.lines() {
        let line = line.map_err(Broken::Input)?;
        // A line without a colon is a field without a value.
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => id = Some(value.to_owned()),
            "event" => value.clone_into(&mut event),
            "data" => data.push_str(value),
            "" if line.is_empty() => {
                let (event, data) = (std::mem::take(&mut event), std::mem::take(&mut data));
                if ["put", "delete"].contains(&&*event)
                    && !say(&formatted(&event, &data, json)).map_err(Broken::Output)?
                {
                    return Ok(StreamEnd::Unread);
                }
                if id.is_some() {
                    *seen = id.take();
                }
            }
            _ => {}
        }
    }
    Ok(StreamEnd::Closed)
}

/// Formats an event as a line.
fn formatted(event: &str, data: &str, json: bool) -> String {
    let mut change: Map<String, Value> = serde_json::from_str(data).unwrap_or_default();
    if json {
        change.insert("event".to_owned(), event.into());
        return Value::from(change).to_string();
    }
    let key = change.get("key").and_then(Value::as_str).unwrap_or_default();
    let revision = change.get("revision").and_then(Value::as_u64).unwrap_or_default();
    format!("{event} {revision} {}", shown(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_complete_at_its_empty_line() {
        let stream = "retry: 1000\nid: 41\n\n:comment\n\nid: 42\n\nid: 43\nevent: other\ndata: {}\n";
        let mut seen = None;
        assert!(matches!(follow(stream.as_bytes(), &mut seen, false), Ok(StreamEnd::Closed)));
        assert_eq!(seen.as_deref(), Some("42"));
    }

    #[test]
    fn a_change_is_one_line() {
        let data = "{\"key\":\"a b\",\"revision\":7,\"size\":1}";
        assert_eq!(formatted("put", data, false), "put 7 a b");
        assert_eq!(formatted("put", data, true), "{\"event\":\"put\",\"key\":\"a b\",\"revision\":7,\"size\":1}");
    }
}
