//! `vkog health`: whether a server is ready, as an exit status and one line. For containers, whose images have no HTTP client.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use ureq::http::{Response, StatusCode};
use ureq::tls::TlsConfig;

use super::error::without_kind;
use super::{ClientError, Url, agent_config, duration, say, trusting};
use crate::config::{Config, File, Host, Listen, Options, Scheme, without_empty_variables};
use crate::failure::{Failure, Status};

/// The body of `/readyz` of a server that is ready.
const READY: &[u8] = b"Ok";
/// The beginning of that body if a note follows.
const READY_WITH_NOTE: &[u8] = b"Ok; ";
/// The maximum length of a note, in bytes.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// Checks whether a server is ready.
#[derive(clap::Args)]
pub struct Health {
    /// Check this server: http://, https:// or unix:PATH (VKOG_URL) [default: the first address of the configuration]
    #[arg(long, value_name = "URL", env = "VKOG_URL", hide_env = true)]
    url: Option<Url>,

    /// Find the address in this configuration file of the server
    #[arg(long, value_name = "FILE", env = "VKOG_CONFIG", hide_env = true)]
    config: Option<PathBuf>,

    /// Trust only the certificates in this file (PEM) [default: public authorities]
    #[arg(long, value_name = "FILE", requires = "url")]
    cacert: Option<PathBuf>,

    /// Maximum duration of the check
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    timeout: Duration,
}

/// The outcome of a check.
enum Outcome {
    /// The server is ready, perhaps with a note.
    Ready(Option<String>),
    /// The server responds and is not ready, for this reason.
    NotReady(String),
    /// There is no response, for this reason.
    Unreachable(String),
    /// Something responds that is no server of this program.
    Unexpected(StatusCode),
    /// Something with the status of a server that is ready responds, and is none.
    OtherService,
}

impl Outcome {
    fn status(&self) -> Status {
        match self {
            Self::Ready(_) => Status::Success,
            Self::Unexpected(_) | Self::OtherService => Status::Failure,
            Self::NotReady(_) => Status::Refused,
            Self::Unreachable(_) => Status::Unreachable,
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(None) => f.write_str("ready"),
            Self::Ready(Some(note)) => write!(f, "ready; {note}"),
            Self::NotReady(reason) => write!(f, "not ready: {reason}"),
            Self::Unreachable(reason) => write!(f, "unreachable: {reason}"),
            Self::Unexpected(status) => write!(f, "unexpected status {}; check --url", status.as_str()),
            Self::OtherService => f.write_str("unexpected response; check --url"),
        }
    }
}

/// Returns the failure for certificates that cannot be used. A missing file has its own status, as no key can be missing.
fn unusable(error: ClientError) -> Failure {
    match error {
        ClientError::Read { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Failure::with_status(Status::NotFound, [error])
        }
        _ => error.into(),
    }
}

/// Checks a server and prints the outcome as one line.
///
/// # Errors
///
/// The configuration or the certificates cannot be used.
pub fn health(health: Health) -> Result<ExitCode, Failure> {
    let builder = agent_config().timeout_global(Some(health.timeout));
    let (url, tls) = match health.url {
        Some(url) => (url, health.cacert.as_ref().map(trusting).transpose().map_err(unusable)?),
        // Its certificate has the public name of the server. No secret is sent.
        None => (configured(health.config)?, Some(TlsConfig::builder().disable_verification(true).build())),
    };
    let config = match tls {
        Some(tls) => builder.tls_config(tls).build(),
        None => builder.build(),
    };
    let outcome = match url.agent(config)?.get(format!("{}/readyz", url.base())).call() {
        Ok(response) => of(response),
        Err(ureq::Error::Timeout(_)) => Outcome::Unreachable(format!("no response within {:?}", health.timeout)),
        Err(error) => Outcome::Unreachable(without_kind(&error)),
    };
    say(&super::shown(&format!("{url}: {outcome}")))?;
    Ok(outcome.status().into())
}

fn of(mut response: Response<ureq::Body>) -> Outcome {
    match response.status() {
        StatusCode::OK => {
            ready(&mut response.body_mut().as_reader()).unwrap_or_else(|error| Outcome::Unreachable(error.to_string()))
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            let line = text.lines().next().unwrap_or_default();
            Outcome::NotReady(line.strip_prefix("Not ready: ").unwrap_or(line).to_owned())
        }
        status => Outcome::Unexpected(status),
    }
}

/// Returns the outcome for the body of a response with status 200. That of another service may have no end.
fn ready(body: &mut impl io::Read) -> io::Result<Outcome> {
    let (mut begin, mut note) = (Vec::new(), String::new());
    body.take(READY_WITH_NOTE.len() as u64).read_to_end(&mut begin)?;
    if begin == READY_WITH_NOTE {
        body.take(NOTE_BYTES_MAX).read_to_string(&mut note)?;
        return Ok(Outcome::Ready(Some(note.trim_end().to_owned())));
    }
    Ok(if begin == READY { Outcome::Ready(None) } else { Outcome::OtherService })
}

/// The options of a server that come from the environment.
#[derive(Parser)]
struct Environment {
    #[command(flatten)]
    options: Options,
}

/// Returns the first address at which a server with this configuration file and this environment listens.
fn configured(file: Option<PathBuf>) -> Result<Url, Failure> {
    let matches = without_empty_variables(Environment::command()).try_get_matches_from(["vkog"]);
    let parsed = matches.and_then(|matches| Environment::from_arg_matches(&matches));
    let Environment { options } = parsed.map_err(Failure::usage)?;
    let file = File::read_if_given(file.as_deref())?;
    Ok(address(&Config::without_plugins(options, file)?))
}

fn address(config: &Config) -> Url {
    let default = Listen::default_address();
    match config.listen.first().unwrap_or(&default) {
        Listen::Unix(path) => Url::Unix(path.clone()),
        Listen::Abstract(name) => Url::Unix(format!("@{name}").into()),
        Listen::Tcp(tcp) => {
            let scheme = match tcp.scheme {
                Some(Scheme::Http) => "http",
                _ if config.tls.is_some() => "https",
                _ => "http",
            };
            let host = match &tcp.host {
                Host::All => Ipv4Addr::LOCALHOST.to_string(),
                Host::Localhost => "localhost".to_owned(),
                Host::Name(name) => match name.parse() {
                    Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
                    Ok(IpAddr::V6(ip)) if ip.is_unspecified() => format!("[{}]", Ipv6Addr::LOCALHOST),
                    Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
                    _ => name.clone(),
                },
            };
            Url::Web(format!("{scheme}://{host}:{}", tcp.port))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_first_one_of_the_configuration_as_this_machine_reaches_it() {
        for (listen, expected) in [
            (vec![], "http://127.0.0.1:3110"),
            (vec!["0.0.0.0:80", "unix:/run/s"], "http://127.0.0.1:80"),
            (vec![":4960"], "http://127.0.0.1:4960"),
            (vec!["[::]:1"], "http://[::1]:1"),
            (vec!["[::1]:1"], "http://[::1]:1"),
            (vec!["localhost:1"], "http://localhost:1"),
            (vec!["vkog.example:1"], "http://vkog.example:1"),
            (vec!["unix:/run/s", ":1"], "unix:/run/s"),
        ] {
            let listen: Vec<Listen> = listen.iter().map(|text| text.parse().expect("an address")).collect();
            let options = Options { listen: Some(listen), ..Options::default() };
            let config = Config::without_plugins(options, File::default()).expect("it is valid");
            assert_eq!(address(&config).to_string(), expected);
        }
    }

    #[test]
    fn a_certificate_makes_the_address_https_unless_it_names_http() {
        for (listen, expected) in [(":443", "https://127.0.0.1:443"), ("http://:80,:443", "http://127.0.0.1:80")] {
            let options = Options {
                listen: Some(listen.split(',').map(|text| text.parse().expect("an address")).collect()),
                tls_cert: Some("cert.pem".into()),
                tls_key: Some("key.pem".into()),
                ..Options::default()
            };
            let config = Config::without_plugins(options, File::default()).expect("it is valid");
            assert_eq!(address(&config).to_string(), expected);
        }
    }
}
