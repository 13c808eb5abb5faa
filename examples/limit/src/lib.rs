//! Limits the rate of requests of each client, by its address or its access token. Decides how long a client has to wait; counts
//! HTTP requests, not operations, so a batch, a listing or a watch is one request.

#![forbid(unsafe_code)]

mod table;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

use table::{Rate, Table};

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// Requests per second.
    rate: u32,
    /// The number of requests that a client may send at once after a pause; the rate if it is not set.
    burst: Option<u32>,
    by: By,
}

/// The property that identifies a client.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(crate = "vkog_plugin_api::serde", rename_all = "lowercase")]
enum By {
    Ip,
    Token,
}

/// A client. Those without an address or a token are one client together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Client {
    Address(IpAddr),
    Token(String),
    Unknown,
}

struct Limit {
    host: Host,
    by: By,
    rate: u32,
    table: Table<Client>,
    limited: Counter,
}

const MAX: u32 = 1_000_000;

impl Plugin for Limit {
    type Settings = Settings;

    const STAGE: Stage = Stage::Access;

    fn create(host: Host, Settings { rate, burst, by }: Settings) -> Result<Self, CreateError> {
        let burst = burst.unwrap_or(rate);
        for (name, value) in [("rate", rate), ("burst", burst)] {
            if !(1..=MAX).contains(&value) {
                return Err(format!("{name} is {value}; give 1 to {MAX}").into());
            }
        }
        let limited = host.counter("limited_total", "Requests that were refused because of the rate limit.");
        Ok(Self { host, by, rate, table: Table::new(Rate::new(rate, burst)), limited })
    }
}

impl BeforeRequest for Limit {
    fn before_request(&self, request: &mut HttpRequest<'_>) -> Verdict {
        let client = match self.by {
            By::Ip => request.client_ip().map(|address| Client::Address(network(address))),
            By::Token => request.token().map(|token| Client::Token(token.to_owned())),
        };
        let since = self.host.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let Err(wait) = self.table.take(client.unwrap_or(Client::Unknown), since) else { return Ok(()) };
        self.limited.add(1);
        let message = format!("Too many requests: {} per second are allowed; try again later", self.rate);
        Err(Refusal::new(429, message).with_header("Retry-After", whole_seconds(wait).to_string()))
    }
}

export_plugin!(Limit, required: [before_request]);

/// Returns the part of an address that one client cannot change: all of IPv4, and the network (/64) of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

/// Returns the time in seconds, rounded up.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use vkog_plugin_testing::{Setup, TestHost};

    use super::*;

    fn host(settings: &str) -> TestHost {
        Setup::new().load::<Limit>().settings(settings).start()
    }

    fn status(host: &TestHost, client: &str) -> u16 {
        host.request(Verb::Get, "k").client(client).send().status
    }

    #[test]
    fn a_client_that_sends_faster_than_the_rate_waits() {
        let host = host(r#"{"rate": 2, "burst": 3, "by": "ip"}"#);
        for _ in 0..3 {
            assert_eq!(status(&host, "10.0.0.1:1"), 404);
        }
        let refused = host.request(Verb::Get, "k").client("10.0.0.1:2").send();
        refused.refused(429, "Too many requests: 2 per second").has("Retry-After", "1").has("Vkog-Plugin", "limit");
        assert_eq!(status(&host, "10.0.0.2:1"), 404);
        host.advance(Duration::from_millis(500));
        assert_eq!([0; 2].map(|_| status(&host, "10.0.0.1:1")), [404, 429]);
        host.advance(Duration::from_secs(60));
        assert_eq!([0; 4].map(|_| status(&host, "10.0.0.1:1")), [404, 404, 404, 429]);
        assert_eq!(host.metric("limit", "limited_total"), 3);
        // The clock of the host was put back.
        host.set_time(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!(status(&host, "10.0.0.1:1"), 429);
        host.advance(Duration::from_secs(2));
        assert_eq!(status(&host, "10.0.0.1:1"), 404);
    }

    #[test]
    fn a_batch_and_a_listing_are_one_request() {
        let host = host(r#"{"rate": 1, "burst": 2, "by": "ip"}"#);
        let put = |key| host.request(Verb::Put, key).body("1");
        host.batch([put("a"), put("b"), put("c"), put("d")]).succeeded();
        assert_eq!(host.keys("").map(|keys| keys.len()).ok(), Some(4));
        host.get("a").expect(429);
    }

    #[test]
    fn clients_without_a_token_are_one_client() {
        let host = host(r#"{"rate": 1, "by": "token"}"#);
        assert_eq!(status(&host, "10.0.0.1:1"), 404);
        assert_eq!(status(&host, "10.0.0.2:1"), 429);
        for token in ["a", "b"] {
            host.use_token(token);
            assert_eq!(status(&host, "10.0.0.1:1"), 404);
            assert_eq!(status(&host, "10.0.0.2:1"), 429);
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let host = host(r#"{"rate": 1, "by": "ip"}"#);
        for (client, expected) in [
            ("[2001:db8::1]:1", 404),
            ("[2001:db8::2]:1", 429),
            ("[2001:db8:0:1::1]:1", 404),
            ("[::ffff:10.0.0.1]:1", 404),
            ("10.0.0.1:1", 429),
            ("unknown", 404),
            ("", 429),
        ] {
            assert_eq!(status(&host, client), expected, "{client}");
        }
    }

    #[test]
    fn settings_without_sense_are_rejected() {
        for (settings, words) in [
            (r#"{"rate": 0, "by": "ip"}"#, "rate is 0; give 1 to 1000000"),
            (r#"{"rate": 1, "burst": 0, "by": "ip"}"#, "burst is 0"),
            (r#"{"rate": 1, "by": "name"}"#, "unknown variant `name`, expected `ip` or `token`"),
            (r#"{"rate": 1}"#, "missing field `by`"),
        ] {
            let error = Setup::new().load::<Limit>().settings(settings).try_start().err();
            let error = error.unwrap_or_else(|| panic!("{settings}")).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
